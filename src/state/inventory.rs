//! The inventory: every parameter of the model, in the caller's order. Laid end to end they are the
//! flat space, which shards, norms and digests are counted in.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::Xxh3;

use crate::error::{Error, Result};
use crate::units::ParamIndex;

/// A named tensor of the model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Parameter {
    /// Its name, unique in the inventory.
    pub name: String,
    /// Its dimensions; no dimension is zero, a scalar has none.
    pub shape: Vec<usize>,
    /// Which parameter group's hyper-parameters it follows (0 is the default group).
    pub group: usize,
    /// Whether there are copies of it, in other inventories under the same name or in pieces of
    /// other ranks. One copy counts in the norm.
    #[serde(default)]
    pub replicated: bool,
}

impl Parameter {
    /// A parameter of the default group.
    pub fn new(name: impl Into<String>, shape: impl Into<Vec<usize>>) -> Self {
        Self { name: name.into(), shape: shape.into(), group: 0, replicated: false }
    }

    /// The same, declared to be one of several copies, all of which get the same gradients: a layer
    /// norm or a bias under tensor parallelism. The name tells which copies belong together, so it
    /// is the same in all inventories that have one, and means nothing else in any other.
    #[must_use]
    pub fn replicated(self) -> Self {
        Self { replicated: true, ..self }
    }

    /// Number of elements, if it fits 64 bits.
    fn elems(&self) -> Option<u64> {
        self.shape.iter().try_fold(1u64, |product, dim| product.checked_mul(*dim as u64))
    }
}

/// All parameters of the model and where each begins in the flat space.
#[derive(Clone, Debug)]
pub struct Inventory {
    parameters: Vec<Parameter>,
    /// Where parameter i begins in the flat space; one more entry holds the total.
    starts: Vec<u64>,
}

impl Inventory {
    /// Checks and takes the parameters, in the caller's order.
    ///
    /// # Errors
    /// Usage errors for no parameters, a dimension of zero, a name that is empty or used twice, or
    /// more elements than 2^48.
    pub fn new(parameters: Vec<Parameter>) -> Result<Self> {
        if parameters.is_empty() {
            return Err(Error::usage("the inventory has zero parameters")
                .hint("hand in at least one parameter with at least one element"));
        }
        let mut starts = Vec::with_capacity(parameters.len() + 1);
        let mut seen = HashMap::new();
        let mut total = 0u64;
        for parameter in &parameters {
            let named = |message: &str| Error::usage(message).with("parameter", &parameter.name);
            if parameter.name.is_empty() {
                return Err(Error::usage("a parameter has an empty name"));
            }
            if seen.insert(parameter.name.as_str(), ()).is_some() {
                return Err(named("two parameters have the same name"));
            }
            let elems = parameter.elems().filter(|elems| *elems < 1 << 48);
            let elems = elems.ok_or_else(|| named("a parameter is larger than 2^48 elements"))?;
            if elems == 0 {
                return Err(named("a parameter has zero elements")
                    .hint("leave empty tensors out of the inventory"));
            }
            starts.push(total);
            total += elems;
        }
        if total >= 1 << 48 {
            return Err(Error::usage("the inventory has more than 2^48 elements"));
        }
        starts.push(total);
        Ok(Self { parameters, starts })
    }

    /// The parameters in inventory order.
    pub fn parameters(&self) -> &[Parameter] {
        &self.parameters
    }

    /// One parameter.
    pub fn parameter(&self, param: ParamIndex) -> &Parameter {
        &self.parameters[param.index()]
    }

    /// A digest of names and shapes in order: equal for the same model.
    pub fn digest(&self) -> String {
        let mut hash = Xxh3::new();
        for Parameter { name, shape, .. } in &self.parameters {
            hash.update(&(name.len() as u64).to_le_bytes());
            hash.update(name.as_bytes());
            hash.update(&(shape.len() as u64).to_le_bytes());
            shape.iter().for_each(|dim| hash.update(&(*dim as u64).to_le_bytes()));
        }
        format!("{:032x}", hash.digest128())
    }

    /// Elements of one parameter.
    pub fn elems(&self, param: ParamIndex) -> u64 {
        self.starts[param.index() + 1] - self.starts[param.index()]
    }

    /// Where a parameter begins in the flat space, in elements.
    pub fn flat_start(&self, param: ParamIndex) -> u64 {
        self.starts[param.index()]
    }

    /// Elements of the whole flat space.
    pub fn total_elems(&self) -> u64 {
        self.starts[self.parameters.len()]
    }

    /// Where an element of a parameter lies in the flat space.
    pub fn flat_of(&self, param: ParamIndex, offset: u64) -> u64 {
        self.flat_start(param) + offset
    }

    /// The parameter that holds an element of the flat space.
    pub fn param_at(&self, flat: u64) -> ParamIndex {
        ParamIndex::from_index(self.starts.partition_point(|start| *start <= flat) - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_find_their_parameter() {
        let parameters =
            vec![Parameter::new("a", [2, 3]), Parameter::new("b", []), Parameter::new("c", [5])];
        let inventory = Inventory::new(parameters).unwrap();
        assert_eq!(inventory.total_elems(), 12);
        let found: Vec<u32> = (0..12).map(|flat| inventory.param_at(flat).0).collect();
        assert_eq!(found, [0, 0, 0, 0, 0, 0, 1, 2, 2, 2, 2, 2]);
        assert_eq!(inventory.flat_start(ParamIndex(2)), 7);
        assert_eq!(inventory.elems(ParamIndex(2)), 5);
    }

    #[test]
    fn bad_inventories_are_refused_by_name() {
        let refused = |parameters| Inventory::new(parameters).unwrap_err().to_string();
        assert!(refused(vec![]).contains("zero parameters"));
        let twice = vec![Parameter::new("w", [1]), Parameter::new("w", [2])];
        assert!(refused(twice).contains("parameter w"));
        assert!(refused(vec![Parameter::new("w", [4, 0])]).contains("zero elements"));
        assert!(refused(vec![Parameter::new("w", [usize::MAX, 9])]).contains("2^48"));
    }
}
