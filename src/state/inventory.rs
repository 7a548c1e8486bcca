//! The inventory: every parameter of the model, in the caller's order. Laid end to end they are the
//! flat space, in which shards, norms and digests count elements.

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
    /// The number of the parameter group whose hyper-parameters it follows; 0 is the default group.
    pub group: usize,
    /// Whether there are copies of it, in other inventories under the same name or in pieces of
    /// other ranks. Only one of the copies counts in the norm.
    #[serde(default)]
    pub replicated: bool,
}

impl Parameter {
    /// A parameter of the default group that is not replicated. Names and shapes are checked by
    /// [`Inventory::new`].
    pub fn new(name: impl Into<String>, shape: impl Into<Vec<usize>>) -> Self {
        Self { name: name.into(), shape: shape.into(), group: 0, replicated: false }
    }

    /// The same parameter, declared to be one of several copies that all get the same gradients, as
    /// a layer norm or a bias under tensor parallelism. Copies are found by their name: all
    /// inventories that have a copy use the same name, and none uses it for another parameter.
    #[must_use]
    pub fn replicated(self) -> Self {
        Self { replicated: true, ..self }
    }

    /// Checks values that a state tensor of the parameter is given to begin with, the first of
    /// which is element `offset`.
    ///
    /// # Errors
    /// Usage, if a value is NaN or infinite.
    pub(crate) fn check_finite(&self, tensor: &str, offset: u64, values: &[f32]) -> Result<()> {
        // No branch for each value, so that a look costs no more than reading memory.
        if values.iter().fold(true, |all, value| all & value.is_finite()) {
            return Ok(());
        }
        let mut wrong = values.iter().enumerate().filter(|(_, value)| !value.is_finite());
        let Some((first, value)) = wrong.next() else { return Ok(()) };
        let end = offset + values.len() as u64;
        Err(Error::usage("an initial value is NaN or infinite")
            .with("parameter", &self.name)
            .with("state tensor", tensor)
            .with("element", offset + first as u64)
            .with("value", value)
            .with("such values", format!("{} of elements {offset}..{end}", 1 + wrong.count()))
            .hint(
                "training cannot begin from it: mend the weights, or leave out what is no weight",
            ))
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
    /// Checks the parameters and keeps them in the caller's order.
    ///
    /// # Errors
    /// Usage if there are no parameters, a dimension is zero, a name is empty or used twice, or one
    /// parameter or all together have 2^48 elements or more.
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

    /// One parameter. Panics if there is no parameter of this number.
    pub fn parameter(&self, param: ParamIndex) -> &Parameter {
        &self.parameters[param.index()]
    }

    /// A digest of names and shapes in inventory order, as 32 hexadecimal digits: equal for the
    /// same model.
    pub fn digest(&self) -> String {
        format!("{:032x}", self.fingerprint())
    }

    /// The number that [`Self::digest`] writes.
    pub fn fingerprint(&self) -> u128 {
        let mut hash = Xxh3::new();
        for Parameter { name, shape, .. } in &self.parameters {
            hash.update(&(name.len() as u64).to_le_bytes());
            hash.update(name.as_bytes());
            hash.update(&(shape.len() as u64).to_le_bytes());
            shape.iter().for_each(|dim| hash.update(&(*dim as u64).to_le_bytes()));
        }
        hash.digest128()
    }

    /// Number of elements of one parameter.
    pub fn elems(&self, param: ParamIndex) -> u64 {
        self.starts[param.index() + 1] - self.starts[param.index()]
    }

    /// The position of a parameter's first element in the flat space.
    pub fn flat_start(&self, param: ParamIndex) -> u64 {
        self.starts[param.index()]
    }

    /// Number of elements of all parameters: the length of the flat space.
    pub fn total_elems(&self) -> u64 {
        self.starts[self.parameters.len()]
    }

    /// The position in the flat space of element `offset` of a parameter.
    pub fn flat_of(&self, param: ParamIndex, offset: u64) -> u64 {
        self.flat_start(param) + offset
    }

    /// The parameter that an element of the flat space belongs to, for positions below
    /// [`Self::total_elems`].
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
