//! The tensors of a model's files, sorted by what they mean.

use std::collections::{BTreeMap, HashMap, HashSet};

use safetensors::tensor::TensorInfo;

use super::meaning::{Meaning, Reason, Tensors, scale_names};
use super::number_formats::is_f8;
use super::scale::Scale;
use super::source::TensorSource;
use crate::error::{Error, Result};
use crate::state::{Inventory, Parameter};
use crate::units::{Bytes, counted, first_of, printable};

/// The tensors of all files, in the order of the files and of their data, each with its file.
pub(super) type Listing = Vec<(String, usize)>;

/// Where a parameter comes from.
pub(super) struct Source {
    pub file: usize,
    /// Its scale, and the file of that.
    pub scale: Option<(usize, Scale)>,
}

/// What was found.
#[derive(Default)]
pub(super) struct Sorted {
    parameters: Vec<Parameter>,
    /// Where each of them comes from.
    pub sources: Vec<Source>,
    left_out: BTreeMap<Reason, Vec<String>>,
    left_out_bytes: u64,
    scaled: Vec<String>,
    /// Parameters in fp8 without a scale.
    unscaled: Vec<String>,
}

impl Sorted {
    /// Sorts the tensors. Those that cannot be taken are an error that names the first of them.
    pub fn new(files: &[TensorSource], listing: &Listing) -> Result<Self> {
        let with_info = |(name, file): &'_ (String, usize)| files[*file].info(name);
        let infos = listing.iter().filter_map(|it| Some((it.0.as_str(), with_info(it)?)));
        let tensors = Tensors::new(infos.collect());
        let file_of: HashMap<&str, usize> =
            listing.iter().map(|(name, file)| (name.as_str(), *file)).collect();
        let mut sorted = Self::default();
        let (mut refused, mut refused_count) = (None, 0);
        for (name, file) in listing {
            let Some(info) = files[*file].info(name) else { continue };
            match tensors.meaning(name, info) {
                Ok(meaning) => sorted.add(name, *file, info, meaning, &file_of),
                Err(why) => {
                    refused_count += 1;
                    refused = refused.or_else(|| Some(refusal(&files[*file], name, info, &why)));
                }
            }
        }
        sorted.left_out.values_mut().for_each(|names| names.sort_unstable());
        match refused {
            Some(error) if refused_count > 1 => Err(error.with("such tensors", refused_count)),
            Some(error) => Err(error),
            None => Ok(sorted),
        }
    }

    fn add(
        &mut self,
        name: &str,
        file: usize,
        info: &TensorInfo,
        meaning: Meaning,
        file_of: &HashMap<&str, usize>,
    ) {
        let scale = match meaning {
            Meaning::Plain => {
                self.unscaled.extend(is_f8(info.dtype).then(|| name.to_owned()));
                None
            }
            Meaning::Scaled(scale) => {
                self.scaled.push(format!("{name} (by {})", scale.tensor));
                Some((file_of[scale.tensor.as_str()], scale))
            }
            Meaning::ScaleOf => return,
            Meaning::LeftOut(reason) => {
                self.left_out_bytes += (info.data_offsets.1 - info.data_offsets.0) as u64;
                return self.left_out.entry(reason).or_default().push(name.to_owned());
            }
        };
        self.parameters.push(Parameter::new(name, info.shape.clone()));
        self.sources.push(Source { file, scale });
    }

    /// The parameters.
    pub fn inventory(&mut self) -> Result<Inventory> {
        if self.parameters.is_empty() {
            let left_out = self.skipped();
            let there = if left_out.is_empty() { "nothing".into() } else { first_of(&left_out) };
            return Err(
                Error::usage("the files of the model have zero parameters").with("left out", there)
            );
        }
        Inventory::new(std::mem::take(&mut self.parameters))
    }

    /// Refuses parameters whose scales are in the files, but not among their tensors.
    pub fn check_scales(&self, others: &HashSet<&str>) -> Result<()> {
        let scale_of = |weight| scale_names(weight).find(|scale| others.contains(scale.as_str()));
        let mut scales =
            self.unscaled.iter().filter_map(|weight| Some((weight, scale_of(weight)?)));
        scales.next().map_or(Ok(()), |(weight, scale)| {
            Err(Error::usage("the index does not name the scale of a tensor that it names")
                .with("tensor", weight)
                .with("scale", scale))
        })
    }

    /// Names of the tensors that are no weights.
    pub fn skipped(&self) -> Vec<String> {
        self.left_out.values().flatten().cloned().collect()
    }

    /// What a person should know of them, a line each.
    pub fn notes(&self, inventory: &Inventory) -> Vec<String> {
        let left_out = self.left_out.iter().map(|(reason, names)| {
            let why = match reason {
                Reason::Integers => "not floating-point",
                Reason::Empty => "no elements",
                Reason::OfActivations => "scales of activations",
                Reason::Marker => "a mark of fp8 weights",
            };
            format!("left out, {why}: {}", first_of(names))
        });
        let mut notes: Vec<String> = left_out.collect();
        if self.left_out_bytes > 4 * inventory.total_elems() {
            notes.push(format!(
                "warning: what is left out has {}, more than the masters: is none of it a weight?",
                Bytes(self.left_out_bytes).human()
            ));
        }
        for (names, text) in [
            (&self.scaled, "dequantised, with the scale beside it"),
            (&self.unscaled, "taken as it is, without a scale"),
        ] {
            if !names.is_empty() {
                let count = counted(names.len() as u64, "fp8 tensor");
                notes.push(format!("{text}: {count}: {}", first_of(names)));
            }
        }
        notes
    }
}

fn refusal(file: &TensorSource, name: &str, info: &TensorInfo, why: &str) -> Error {
    Error::usage("a tensor cannot be taken for weights")
        .with("path", file.path().display())
        .with("tensor", name)
        .with("type", info.dtype)
        .with("shape", format!("{:?}", info.shape))
        .because(printable(why))
        .hint(
            "take the model in f32, bf16 or f16, or in fp8 with one scale for each tensor, row or \
             block of 128 x 128; or convert it with the tools that made it",
        )
}
