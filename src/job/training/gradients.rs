//! Gradients of this rank's shard that have been reduced for the next step.

use crate::error::{Error, Result};
use crate::gradients::Gradients;
use crate::partition::Partition;
use crate::state::Inventory;
use crate::units::ParamIndex;

/// The values, and which parameters have them.
#[derive(Default)]
pub(super) struct Collected {
    values: Vec<f32>,
    given: Vec<ParamIndex>,
    is_whole: bool,
}

impl Collected {
    /// No gradients yet, with memory for those of the whole shard.
    pub fn new(partition: &Partition) -> Self {
        let values = vec![0.0; partition.elems() as usize];
        Self { values, given: Vec::new(), is_whole: false }
    }

    /// Checks that this parameter, or with `None` every one, may be given.
    ///
    /// # Errors
    /// Usage if it has been given since the last step.
    pub fn check_new(&self, param: Option<ParamIndex>, inventory: &Inventory) -> Result<()> {
        let is_given = match param {
            Some(param) => self.is_whole || self.given.contains(&param),
            None => self.is_whole || !self.given.is_empty(),
        };
        if !is_given {
            return Ok(());
        }
        let error = Error::usage("a gradient is reduced twice before a step")
            .hint("add up micro-batches before they are reduced");
        Err(match param {
            Some(param) => error.with("parameter", &inventory.parameter(param).name),
            None => error,
        })
    }

    /// Notes that a parameter has been given.
    pub fn note(&mut self, param: ParamIndex) {
        self.given.push(param);
    }

    /// Notes that all parameters have been given.
    pub fn note_all(&mut self) {
        self.is_whole = true;
    }

    /// The values, in shard order.
    pub fn values(&self) -> &[f32] {
        &self.values
    }

    /// The values, in shard order, to be written.
    pub fn values_mut(&mut self) -> &mut [f32] {
        &mut self.values
    }

    /// The gradients as a step takes them.
    pub fn gradients(&self, partition: &Partition) -> Gradients<'_, f32> {
        if self.is_whole {
            return Gradients::Shard(&self.values);
        }
        let given = partition.pieces().iter().filter(|piece| self.given.contains(&piece.param));
        let piece = given.map(|it| (it.param, it.param_offset, &self.values[it.in_shard()]));
        Gradients::Pieces(piece.collect())
    }

    /// The same memory without gradients, for the next step.
    pub fn emptied(mut self) -> Self {
        self.given.clear();
        self.is_whole = false;
        self
    }
}
