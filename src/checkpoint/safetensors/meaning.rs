//! What each tensor of a model's files means: a parameter, with or without a scale beside it, or
//! something that is left out for a reason. What cannot be told is refused by name.

use std::collections::{HashMap, HashSet};

use safetensors::Dtype;
use safetensors::tensor::TensorInfo;

use super::number_formats::{elem_bytes, is_f8, is_integer};
use super::scale::Scale;

/// What a tensor means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Meaning {
    /// A parameter whose values are numbers as they are.
    Plain,
    /// A parameter whose values are numbers times those of a scale.
    Scaled(Scale),
    /// The scale of a parameter.
    ScaleOf,
    /// No weight.
    LeftOut(Reason),
}

/// Why a tensor is no weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Reason {
    Integers,
    Empty,
    /// What activations are scaled by in a model of eight bits.
    OfActivations,
    /// ComfyUI's sign that weights of eight bits have scales.
    Marker,
}

/// Endings of a weight's own name that name its scale.
const SCALE_ENDINGS: [&str; 2] = ["_scale_inv", "_scale"];
/// Names of the scale of the tensor `weight` of the same module.
const MODULE_SCALES: [&str; 2] = ["scale", "scale_weight"];
/// Last parts of names of single numbers that scale activations, not weights.
const ACTIVATION_SCALES: [&str; 11] = [
    "input_scale",
    "input_scale_ub",
    "activation_scale",
    "output_scale",
    "scale_input",
    "q_scale",
    "k_scale",
    "v_scale",
    "kv_scale",
    "prob_scale",
    "prob_output_scale",
];
const MARKER: &str = "scaled_fp8";
/// Words in names of weights in packed form: GPTQ, AWQ, MXFP4, MLX, bitsandbytes and others.
const PACKED_WORDS: [&str; 8] =
    ["qweight", "qzeros", "qidxs", "packed", "blocks", "codes", "scales", "absmax"];
/// Words in names that whole numbers have only if they are weights in packed form.
const WEIGHT_WORDS: [&str; 3] = ["weight", "weights", "scale"];
/// Endings of a tensor's own name that are beside whole numbers which are weights.
const PACKED_COMPANIONS: [&str; 6] =
    ["_scale", "_scale_inv", "_scales", "_zero_point", ".absmax", ".quant_map"];

/// Types and shapes of all tensors of a model by name, with what depends on several of them.
pub(super) struct Tensors<'a> {
    all: HashMap<&'a str, &'a TensorInfo>,
    /// The scales of weights of eight bits.
    scales: HashSet<String>,
}

impl<'a> Tensors<'a> {
    pub fn new(all: HashMap<&'a str, &'a TensorInfo>) -> Self {
        let mut tensors = Self { all, scales: HashSet::new() };
        let of_f8 = tensors.all.iter().filter(|(_, info)| is_f8(info.dtype));
        tensors.scales = of_f8.flat_map(|(name, _)| tensors.scales_beside(name)).collect();
        tensors
    }

    /// What a tensor of the model means, or why it cannot be taken.
    pub fn meaning(&self, name: &str, info: &TensorInfo) -> Result<Meaning, String> {
        let last = last_part(name);
        if info.shape.contains(&0) {
            return Ok(Meaning::LeftOut(Reason::Empty));
        }
        if self.scales.contains(name) {
            return match elem_bytes(info.dtype) {
                Some(_) => Ok(Meaning::ScaleOf),
                None => {
                    Err(format!("it is a scale, and scales of type {} are not known", info.dtype))
                }
            };
        }
        if is_f8(info.dtype) {
            return self.meaning_of_f8(name, info);
        }
        if is_integer(info.dtype) {
            return match self.packed_because(name, info) {
                Some(why) => Err(why),
                None => Ok(Meaning::LeftOut(Reason::Integers)),
            };
        }
        if elem_bytes(info.dtype).is_none() || info.dtype == Dtype::F8_E8M0 {
            return Err(unusable_type(info.dtype).to_owned());
        }
        let is_single = info.shape.iter().product::<usize>() == 1;
        if !self.scales.is_empty() && is_single && ACTIVATION_SCALES.contains(&last) {
            return Ok(Meaning::LeftOut(Reason::OfActivations));
        }
        match self.weight_of_scale(name) {
            Some(weight) => Err(format!("it is named as the scale of {weight}")),
            None => Ok(Meaning::Plain),
        }
    }

    fn meaning_of_f8(&self, name: &str, info: &TensorInfo) -> Result<Meaning, String> {
        match self.scales_beside(name).as_slice() {
            [] if name == MARKER => Ok(Meaning::LeftOut(Reason::Marker)),
            [] if self.scales.is_empty() => Ok(Meaning::Plain),
            [] => Err("it has no scale, while other weights of eight bits have one".to_owned()),
            [tensor] => {
                let shape = &self.all[tensor.as_str()].shape;
                let scale = Scale::new(tensor, &info.shape, shape).ok_or_else(|| {
                    format!(
                        "its scale {tensor} has the shape {shape:?}; known are one number, one \
                         for each row, and one for each block of 128 x 128"
                    )
                })?;
                Ok(Meaning::Scaled(scale))
            }
            several => Err(format!("it has several scales: {}", several.join(", "))),
        }
    }

    /// The tensors that are scales of a weight, by their names.
    fn scales_beside(&self, weight: &str) -> Vec<String> {
        scale_names(weight).filter(|name| self.all.contains_key(name.as_str())).collect()
    }

    /// Why whole numbers are taken to be weights in packed form; `None` if they are not.
    fn packed_because(&self, name: &str, info: &TensorInfo) -> Option<String> {
        if info.dtype == Dtype::BOOL || info.shape.iter().product::<usize>() == 1 {
            return None;
        }
        let mut companions = PACKED_COMPANIONS.iter().map(|ending| format!("{name}{ending}"));
        let companion = companions.find(|it| self.all.contains_key(it.as_str()));
        let is_packed = is_packed_name(name) || has_word(name, &WEIGHT_WORDS);
        let evidence = companion.or_else(|| is_packed.then(|| "its name".to_owned()))?;
        Some(format!("its whole numbers are weights in packed form, as {evidence} tells"))
    }

    /// The tensor that this one is named as the scale of, and which is of no type that has one.
    fn weight_of_scale(&self, name: &str) -> Option<String> {
        if let Some(weight) = name.strip_suffix("_scale_inv") {
            return Some(weight.to_owned());
        }
        let weight = name.strip_suffix("_scale").filter(|it| last_part(it) == "weight")?;
        self.all.contains_key(weight).then(|| weight.to_owned())
    }
}

/// The names that the scale of a weight may have.
pub(super) fn scale_names(weight: &str) -> impl Iterator<Item = String> {
    let own = SCALE_ENDINGS.map(|ending| format!("{weight}{ending}"));
    let module = weight.strip_suffix("weight");
    let of_module = module.map(|module| MODULE_SCALES.map(|scale| format!("{module}{scale}")));
    own.into_iter().chain(of_module.into_iter().flatten())
}

/// Whether a name is one that only weights in packed form have.
pub(super) fn is_packed_name(name: &str) -> bool {
    has_word(name, &PACKED_WORDS) || ["W_q", "weight_scale_2"].contains(&last_part(name))
}

/// Whether a name is one that scales of weights in fp8 have.
pub(super) fn is_scale_name(name: &str) -> bool {
    name.ends_with("_scale_inv") || ["weight_scale", "scale_weight"].contains(&last_part(name))
}

fn has_word(name: &str, words: &[&str]) -> bool {
    last_part(name).split('_').any(|part| words.iter().any(|word| part.eq_ignore_ascii_case(word)))
}

fn last_part(name: &str) -> &str {
    name.rsplit('.').next().unwrap_or(name)
}

fn unusable_type(dtype: Dtype) -> &'static str {
    match dtype {
        Dtype::F4 => "numbers of four bits, which mean nothing without the scale of each group",
        Dtype::F6_E2M3 | Dtype::F6_E3M2 => {
            "numbers of six bits, which mean nothing without the scale of each group"
        }
        Dtype::F8_E8M0 => "powers of two, which are scales of a weight that is not of eight bits",
        Dtype::C64 => "complex numbers, for which there is no optimizer here",
        _ => "a type that is not known",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What each tensor means, or why it is refused.
    fn meanings(tensors: &[(&str, Dtype, &[usize])]) -> Vec<Result<Meaning, String>> {
        let infos: Vec<TensorInfo> = tensors
            .iter()
            .map(|(_, dtype, shape)| TensorInfo {
                dtype: *dtype,
                shape: shape.to_vec(),
                data_offsets: (0, 0),
            })
            .collect();
        let names = tensors.iter().map(|(name, ..)| *name);
        let all = Tensors::new(names.clone().zip(&infos).collect());
        names.zip(&infos).map(|(name, info)| all.meaning(name, info)).collect()
    }

    #[test]
    fn buffers_are_left_out_and_named_numbers_are_parameters() {
        let found = meanings(&[
            ("embeddings.position_ids", Dtype::I64, &[1, 77]),
            ("bn.num_batches_tracked", Dtype::I64, &[]),
            ("h.0.attn.bias", Dtype::BOOL, &[1, 1, 64, 64]),
            ("layers.num_blocks", Dtype::I32, &[]),
            ("h.0.cache", Dtype::F32, &[8, 0]),
            ("logit_scale", Dtype::F32, &[]),
            ("norm.scale", Dtype::BF16, &[64]),
            ("attn.k_scale", Dtype::F32, &[1]),
            ("conv.weight_scale", Dtype::F32, &[8]),
            ("raw.weight", Dtype::F8_E5M2, &[8, 8]),
        ]);
        let found: Vec<Meaning> = found.into_iter().map(Result::unwrap).collect();
        let integers = || Meaning::LeftOut(Reason::Integers);
        let expected = [integers(), integers(), integers(), integers()];
        assert_eq!(found[..4], expected);
        assert_eq!(found[4], Meaning::LeftOut(Reason::Empty));
        assert!(found[5..].iter().all(|it| *it == Meaning::Plain), "{found:?}");
    }

    #[test]
    fn weights_of_eight_bits_go_with_their_scales() {
        for (weight, scale, shape) in [
            ("up.weight", "up.weight_scale_inv", &[2, 3][..]),
            ("up.weight", "up.weight_scale", &[256, 1]),
            ("up.weight", "up.scale", &[2, 3]),
            ("up.weight", "up.scale_weight", &[]),
            ("experts.up_proj", "experts.up_proj_scale", &[1, 300]),
        ] {
            let found = meanings(&[
                (weight, Dtype::F8_E4M3, &[256, 300]),
                (scale, Dtype::F32, shape),
                ("up.input_scale", Dtype::F32, &[]),
                ("norm.weight", Dtype::BF16, &[256]),
                ("scaled_fp8", Dtype::F8_E4M3, &[2]),
            ]);
            let scaled = Scale::new(scale, &[256, 300], shape).unwrap();
            let expected = [
                Meaning::Scaled(scaled),
                Meaning::ScaleOf,
                Meaning::LeftOut(Reason::OfActivations),
                Meaning::Plain,
                Meaning::LeftOut(Reason::Marker),
            ];
            assert_eq!(found.into_iter().map(Result::unwrap).collect::<Vec<_>>(), expected);
        }
    }

    #[test]
    fn what_is_packed_or_lacks_its_scale_is_refused() {
        use Dtype::{BF16, C64, F4, F8_E4M3, F8_E8M0, F16, F32, I8, I32, U8, U32};
        type Tensor = (&'static str, Dtype, &'static [usize]);
        let refused: [(&[Tensor], &str); 14] = [
            (&[("w", F4, &[4]), ("w_scale", F8_E8M0, &[1])], "four bits"),
            (&[("w_scale", F8_E8M0, &[4])], "powers of two"),
            (&[("e.up_blocks", U8, &[4, 16]), ("e.up_scales", U8, &[4])], "packed form"),
            (&[("q.qweight", I32, &[4, 4]), ("q.scales", F16, &[4])], "packed form"),
            (&[("up.weight", U32, &[4, 4]), ("up.scales", BF16, &[4])], "packed form"),
            (&[("up.weight", I8, &[4, 4]), ("up.SCB", F32, &[4])], "packed form"),
            (&[("w.weight_packed", I32, &[4]), ("w.weight_scale", BF16, &[4])], "packed form"),
            (&[("up_proj", I8, &[4, 4]), ("up_proj_scale", BF16, &[4])], "up_proj_scale"),
            (&[("freqs", C64, &[4])], "complex"),
            (&[("a.weight", F8_E4M3, &[64, 64]), ("a.weight_scale", F32, &[64, 2])], "[64, 2]"),
            (&[("a.weight", F8_E4M3, &[4]), ("a.scale", U8, &[4])], "scale"),
            (&[("a.weight_scale_inv", F32, &[1])], "scale of a.weight"),
            (&[("a.weight_scale", F32, &[1]), ("a.weight", BF16, &[4])], "scale of a.weight"),
            (
                &[
                    ("b.weight", F8_E4M3, &[4]),
                    ("a.weight", F8_E4M3, &[4]),
                    ("a.weight_scale", F32, &[1]),
                ],
                "no scale, while",
            ),
        ];
        for (tensors, words) in refused {
            let found = meanings(tensors).into_iter().find_map(Result::err);
            let found = found.unwrap_or_else(|| panic!("{tensors:?} was taken"));
            assert!(found.contains(words), "{tensors:?}: {found}");
        }
    }
}
