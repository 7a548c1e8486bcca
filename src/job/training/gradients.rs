//! Gradients of this rank's shard that have been reduced for the next step.

use crate::error::{Error, Result};
use crate::gradients::Gradients;
use crate::partition::Partition;
use crate::units::ParamIndex;

/// The values, and which parameters have them.
#[derive(Default)]
pub(super) struct Collected {
    values: Vec<f32>,
    given: Vec<ParamIndex>,
    is_whole: bool,
}

impl Collected {
    /// None yet, with room for those of the whole shard.
    pub fn new(partition: &Partition) -> Self {
        let values = vec![0.0; partition.elems() as usize];
        Self { values, given: Vec::new(), is_whole: false }
    }

    /// Whether this parameter, or every one, may be given.
    ///
    /// # Errors
    /// Usage if it has been, since the last step.
    pub fn check_new(&self, param: Option<ParamIndex>) -> Result<()> {
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
            Some(param) => error.with("parameter", param),
            None => error,
        })
    }

    /// A parameter has been given.
    pub fn note(&mut self, param: ParamIndex) {
        self.given.push(param);
    }

    /// All parameters have been given.
    pub fn note_all(&mut self) {
        self.is_whole = true;
    }

    /// In shard order.
    pub fn values(&self) -> &[f32] {
        &self.values
    }

    /// In shard order, to be filled.
    pub fn values_mut(&mut self) -> &mut [f32] {
        &mut self.values
    }

    /// What a step takes.
    pub fn gradients(&self, partition: &Partition) -> Gradients<'_, f32> {
        if self.is_whole {
            return Gradients::Shard(&self.values);
        }
        let given = partition.pieces().iter().filter(|piece| self.given.contains(&piece.param));
        let piece = given.map(|it| (it.param, it.param_offset, &self.values[it.in_shard()]));
        Gradients::Pieces(piece.collect())
    }

    /// The same room, for the next step.
    pub fn emptied(mut self) -> Self {
        self.given.clear();
        self.is_whole = false;
        self
    }
}
