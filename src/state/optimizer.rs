//! Optimizers as data: which state tensors each keeps beside the parameters, by torch's names.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use super::codec::Codec;
use super::names::names;

/// A state tensor: an array with one value for each element of the parameters.
#[derive(Clone, Debug, PartialEq)]
pub struct StateTensor {
    /// Its name, such as `master` or `exp_avg`.
    pub name: Cow<'static, str>,
    /// How its values are stored on the drives.
    pub codec: Codec,
    /// Whether its values may be negative.
    pub is_signed: bool,
    /// The value of every element before the first step.
    pub initial: f32,
}

impl StateTensor {
    /// The tensor of this name as a built-in optimizer has it, or else as a program's own optimizer
    /// would declare it. `None` if no optimizer may have a tensor of this name.
    pub fn named(name: &str, codec: Codec) -> Option<Self> {
        let mut all = OptimizerKind::ALL.iter().flat_map(|kind| kind.state_tensors(|_| codec));
        all.find(|tensor| tensor.name == name).or_else(|| {
            let spec = StateTensorSpec::new(name.to_owned(), 0.0).with_codec(codec);
            spec.problem().is_none().then(|| spec.tensor(codec))
        })
    }
}

/// The name of the fp32 parameters, the first state tensor of every optimizer.
pub const MASTER: &str = "master";

/// A built-in update rule. All keep an fp32 master and state tensors that begin with zero.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OptimizerKind {
    /// Adam with decoupled weight decay (Loshchilov and Hutter, arXiv 1711.05101).
    #[default]
    AdamW,
    /// Adam with weight decay as part of the gradient (Kingma and Ba, arXiv 1412.6980).
    Adam,
    /// Stochastic gradient descent with momentum, as torch has it: no dampening.
    Sgd,
    /// Lion (Chen et al., arXiv 2302.06675).
    Lion,
    /// Adagrad (Duchi, Hazan and Singer, JMLR 12, 2011).
    Adagrad,
}

impl OptimizerKind {
    /// All kinds.
    pub const ALL: [Self; 5] = [Self::AdamW, Self::Adam, Self::Sgd, Self::Lion, Self::Adagrad];

    /// The declaration of this kind: its state tensors beside the master.
    pub fn spec(self) -> OptimizerSpec {
        let signed = |name: &'static str| StateTensorSpec::new(name, 0.0);
        let unsigned = |name: &'static str| StateTensorSpec { is_signed: false, ..signed(name) };
        let state = match self {
            Self::AdamW | Self::Adam => vec![signed("exp_avg"), unsigned("exp_avg_sq")],
            Self::Sgd => vec![signed("momentum_buffer")],
            Self::Lion => vec![signed("exp_avg")],
            Self::Adagrad => vec![unsigned("sum")],
        };
        OptimizerSpec { name: self.name().into(), state }
    }

    /// The state tensors, master first, in the order in which a chunk stores them, each in the
    /// codec that `codec` gives for its name.
    pub fn state_tensors(self, codec: impl Fn(&str) -> Codec) -> Vec<StateTensor> {
        self.spec().tensors_in(codec)
    }
}

names! { OptimizerKind:
    "adamw" = AdamW,
    "adam" = Adam,
    "sgd" = Sgd,
    "lion" = Lion,
    "adagrad" = Adagrad,
}

/// The declaration of an optimizer: which state tensors it keeps beside the fp32 master. A program
/// that updates with code of its own declares its optimizer in `Config::optimizer.own`; the
/// built-in kinds are such declarations too.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OptimizerSpec {
    /// The optimizer's name, for messages; not empty.
    pub name: Cow<'static, str>,
    /// Its state tensors, at most 16, in the order in which a chunk stores them behind the master.
    #[serde(default)]
    pub state: Vec<StateTensorSpec>,
}

/// A state tensor as an optimizer declares it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StateTensorSpec {
    /// Its name: 1 to 64 lower-case letters, digits or `_`, and neither `master` nor `model`.
    pub name: Cow<'static, str>,
    /// The value of every element before the first step: finite. Default 0.
    #[serde(default)]
    pub initial: f32,
    /// How its values are stored on the drives: `fp32` (default), `bf16` or `int8`. The codecs of
    /// built-in kinds are set in `[codecs]`.
    #[serde(default)]
    pub codec: Codec,
    /// Whether values may be negative. This is not recorded on the drives, so a program's own
    /// tensors are always signed.
    #[serde(skip, default = "signed")]
    is_signed: bool,
}

fn signed() -> bool {
    true
}

/// The most state tensors of one optimizer, beside the master.
const STATE_TENSORS_MAX: usize = 16;

impl OptimizerSpec {
    /// The declaration of a program's own optimizer; [`Self::problem`] checks it.
    pub fn own(
        name: impl Into<Cow<'static, str>>,
        state: impl IntoIterator<Item = StateTensorSpec>,
    ) -> Self {
        Self { name: name.into(), state: state.into_iter().collect() }
    }

    /// The master, in this codec, and then the state tensors as they are declared.
    pub fn state_tensors(&self, master: Codec) -> Vec<StateTensor> {
        let codec_of = |name: &str| {
            let spec = self.state.iter().find(|spec| spec.name == name);
            spec.map_or(master, |spec| spec.codec)
        };
        self.tensors_in(codec_of)
    }

    fn tensors_in(&self, codec: impl Fn(&str) -> Codec) -> Vec<StateTensor> {
        let master = StateTensorSpec::new(MASTER, 0.0).tensor(codec(MASTER));
        let state = self.state.iter().map(|spec| spec.tensor(codec(&spec.name)));
        std::iter::once(master).chain(state).collect()
    }

    /// What is wrong with the declaration, with what is allowed; `None` if nothing is.
    pub fn problem(&self) -> Option<String> {
        if self.name.is_empty() {
            return Some("name = \"\": must not be empty".to_owned());
        }
        if self.state.len() > STATE_TENSORS_MAX {
            let count = self.state.len();
            return Some(format!("state has {count} tensors: at most {STATE_TENSORS_MAX}"));
        }
        let mut seen: Vec<&str> = vec![MASTER];
        for spec in &self.state {
            if seen.contains(&&*spec.name) {
                let name = &spec.name;
                return Some(format!("state has two tensors of the name `{name}`"));
            }
            seen.push(&spec.name);
        }
        self.state.iter().find_map(StateTensorSpec::problem)
    }
}

impl StateTensorSpec {
    /// A tensor that is stored as fp32 and begins with `initial` in every element.
    pub fn new(name: impl Into<Cow<'static, str>>, initial: f32) -> Self {
        Self { name: name.into(), initial, codec: Codec::Fp32, is_signed: true }
    }

    /// The same tensor, stored in another codec.
    #[must_use]
    pub fn with_codec(self, codec: Codec) -> Self {
        Self { codec, ..self }
    }

    fn tensor(&self, codec: Codec) -> StateTensor {
        let Self { name, initial, is_signed, .. } = self;
        StateTensor { name: name.clone(), codec, is_signed: *is_signed, initial: *initial }
    }

    fn problem(&self) -> Option<String> {
        let name = &self.name;
        let is_allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        // `model` is the file that the masters are exported to.
        let is_taken = [MASTER, "model"].contains(&&**name);
        if name.is_empty() || name.len() > 64 || !name.chars().all(is_allowed) || is_taken {
            return Some(format!(
                "a state tensor has the name `{name}`: must be 1 to 64 lower-case letters, digits \
                 or `_`, and neither master nor model"
            ));
        }
        if !self.initial.is_finite() {
            return Some(format!("`{name}` begins with {}: must be finite", self.initial));
        }
        (self.codec == Codec::Remainder16)
            .then(|| format!("`{name}` has the codec remainder16: must be fp32, bf16 or int8"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn declarations_that_cannot_be_are_named() {
        let problem = |names: &[&'static str]| {
            let state = names.iter().map(|name| StateTensorSpec::new(*name, 0.0));
            OptimizerSpec::own("mine", state).problem().unwrap_or_default()
        };
        assert_eq!(problem(&["square_avg", "momentum_buffer"]), "");
        assert_eq!(problem(&[]), "");
        assert!(problem(&["a", "a"]).contains("two tensors of the name `a`"));
        assert!(problem(&["master"]).contains("`master`"));
        assert!(problem(&["model"]).contains("`model`"));
        assert!(problem(&["../x"]).contains("`../x`"));
        assert!(problem(&["a"; 17]).contains("at most 16"));
        let infinite = StateTensorSpec::new("a", f32::INFINITY);
        assert!(OptimizerSpec::own("mine", [infinite]).problem().unwrap().contains("finite"));
        let halved = StateTensorSpec::new("a", 0.0).with_codec(Codec::Remainder16);
        assert!(OptimizerSpec::own("mine", [halved]).problem().unwrap().contains("remainder16"));
        assert!(OptimizerSpec::own("", []).problem().unwrap().contains("name"));
        assert!(OptimizerKind::ALL.iter().all(|kind| kind.spec().problem().is_none()));
    }
}
