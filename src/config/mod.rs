//! The configuration: a TOML file that is read strictly and checked as a whole before any file is
//! created, or a file of DeepSpeed's.

mod codecs;
mod deepspeed;
mod faults;
mod gradients;
mod hosts;
mod machine;
mod number_ranges;
mod probe;
mod safe_name;
mod sections;
mod shared;
mod site;
mod sourced;
mod strict;
mod wildcards;

use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::state::{Codec, OptimizerKind, OptimizerSpec, StateTensor, StateTensorSpec};
use crate::units::{BLOCK_ELEMS, Elems};

pub use codecs::CodecsConfig;
pub use deepspeed::read_deepspeed;
#[doc(hidden)]
pub use deepspeed::{parse_deepspeed, parse_hjson};
pub use faults::{FaultConfig, FaultKind};
pub use gradients::{
    AccumulateIn, GradientPlace, GradientsConfig, LossScaleConfig, LossScaleMode, MissingGradient,
};
#[doc(hidden)]
pub use hosts::{HostRanges, compress_names};
#[doc(hidden)]
pub use machine::MachineFacts;
#[doc(hidden)]
pub use number_ranges::{cpu_list, number_ranges, parse_ranges};
#[doc(hidden)]
pub use probe::{allotted_cpus, file_size_limit, memory_limit, open_files};
#[doc(hidden)]
pub use safe_name::safe_name;
pub use sections::{
    CacheSize, CheckpointConfig, DrivesConfig, Durability, DurabilityConfig, EngineName,
    GroupConfig, IoConfig, OptimizerConfig, ReportConfig, SwapConfig, TimeoutsConfig,
    VerifyChecksums,
};
#[doc(hidden)]
pub use site::{Site, SiteCheckpoints, SiteDrive, SiteNodes};
#[doc(hidden)]
pub use sourced::EffectiveValue;
pub use sourced::{Note, Sourced};
#[doc(hidden)]
pub use wildcards::{escape_wildcards, expand_wildcards, has_wildcards};

/// Everything that can be set. A key that is missing in the file has the default that its field
/// states.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The job's name, which also names its directories on the drives: 1 to 100 letters, digits,
    /// `.`, `_` or `-`, not beginning with `.`. Default `default`.
    pub job: String,
    /// Which drives hold the state, and how it is spread over them.
    pub drives: DrivesConfig,
    /// How bytes move between memory and drives.
    pub io: IoConfig,
    /// How the state is cut, and how much memory swapping may take.
    pub swap: SwapConfig,
    /// The update rule and its hyper-parameters.
    pub optimizer: OptimizerConfig,
    /// Where gradients are kept until the step, and what happens if some are missing.
    pub gradients: GradientsConfig,
    /// What the loss is multiplied by.
    pub loss_scale: LossScaleConfig,
    /// How each state tensor is stored on the drives.
    pub codecs: CodecsConfig,
    /// What survives the end of the processes.
    pub durability: DurabilityConfig,
    /// Copies of the state that other machines and other numbers of ranks can load.
    pub checkpoint: CheckpointConfig,
    /// How long an operation or another rank is waited for.
    pub timeouts: TimeoutsConfig,
    /// Which files about the job are written, and where.
    pub report: ReportConfig,
    /// Faults to inject, for tests. Default none.
    pub faults: Vec<FaultConfig>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            job: "default".to_owned(),
            drives: DrivesConfig::default(),
            io: IoConfig::default(),
            swap: SwapConfig::default(),
            optimizer: OptimizerConfig::default(),
            gradients: GradientsConfig::default(),
            loss_scale: LossScaleConfig::default(),
            codecs: CodecsConfig::default(),
            durability: DurabilityConfig::default(),
            checkpoint: CheckpointConfig::default(),
            timeouts: TimeoutsConfig::default(),
            report: ReportConfig::default(),
            faults: Vec::new(),
        }
    }
}

impl Config {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// Usage errors that name the file and the key.
    pub fn read(path: &Path) -> Result<Self> {
        let text = read_text(path)?;
        let result = deepspeed::points_to_deepspeed(&text).map_or_else(|| Self::parse(&text), Err);
        result.map_err(|error| error.with("file", path.display()))
    }

    /// Reads and checks a text in TOML.
    ///
    /// # Errors
    /// Usage errors that name the key.
    pub fn parse(text: &str) -> Result<Self> {
        let config: Self = strict::parse(text)?;
        config.validate_file()?;
        Ok(config)
    }

    /// Checks everything that can be checked without looking at a drive.
    ///
    /// # Errors
    /// A usage error for the first value that is out of range, with what is allowed.
    pub fn validate(&self) -> Result<()> {
        self.validate_file()?;
        let has_place = self.checkpoint.every == 0 || self.checkpoint.dir.is_some();
        let allowed = "0 unless checkpoint.dir, or the site's description, names a directory";
        demand(has_place, "checkpoint.every", self.checkpoint.every, allowed)
    }

    /// Checks what a file must fulfil by itself. The directory of checkpoints may be named
    /// elsewhere.
    fn validate_file(&self) -> Result<()> {
        self.validate_job()?;
        self.validate_drives()?;
        self.validate_sizes()?;
        self.validate_timeouts()?;
        self.codecs.validate()?;
        self.loss_scale.validate()?;
        let (every, keep_last) = (self.durability.commit_every, self.checkpoint.keep_last);
        demand(every >= 1, "durability.commit_every", every, "at least 1")?;
        demand(keep_last >= 1, "checkpoint.keep_last", keep_last, "at least 1")?;
        self.validate_report()?;
        for fault in &self.faults {
            let is_either = fault.op.is_some() != fault.one_in.is_some_and(|one_in| one_in >= 1);
            let allowed = "with either `op` or `one_in` (from 1)";
            demand(is_either, "faults", format!("{fault:?}"), allowed)?;
        }
        if let Some(problem) = self.optimizer.own.as_ref().and_then(OptimizerSpec::problem) {
            return Err(Error::usage(format!("optimizer.own: {problem}")));
        }
        let clip_norm = self.optimizer.clip_norm;
        let allowed = clip_norm.is_finite() && clip_norm >= 0.0;
        demand(allowed, "optimizer.clip_norm", clip_norm, "finite and not negative")?;
        for (index, hyper) in self.optimizer.hyperparameters().iter().enumerate() {
            if let Some(problem) = hyper.problem() {
                let place = match index {
                    0 => "optimizer".to_owned(),
                    group => format!("optimizer.groups[{}]", group - 1),
                };
                return Err(Error::usage(format!("{place}: {problem}")));
            }
        }
        Ok(())
    }

    fn validate_timeouts(&self) -> Result<()> {
        let TimeoutsConfig { io_timeout, peer_timeout, stall_warning, grace_period } =
            self.timeouts;
        for (key, seconds) in [
            ("timeouts.io_timeout", io_timeout),
            ("timeouts.peer_timeout", peer_timeout),
            ("timeouts.stall_warning", stall_warning),
            ("timeouts.grace_period", grace_period),
        ] {
            demand(seconds > 0.0 && seconds <= 1e6, key, seconds, "above 0 and at most 1e6")?;
        }
        Ok(())
    }

    fn validate_report(&self) -> Result<()> {
        let ReportConfig { dir, trace_steps, trace_spans, .. } = &self.report;
        let has_place = trace_steps.is_empty() || dir.is_some();
        demand(has_place, "report.trace_steps", trace_steps, "empty unless report.dir is set")?;
        let in_range = (1..=1 << 24).contains(trace_spans);
        demand(in_range, "report.trace_spans", trace_spans, "1 to 16777216")
    }

    fn validate_job(&self) -> Result<()> {
        let safe = safe_name(&self.job);
        demand(
            safe == self.job,
            "job",
            format!("`{}`", self.job),
            "1 to 100 letters, digits, `.`, `_` or `-`, not beginning with `.`",
        )
        .map_err(|error| error.hint(format!("this name is allowed: {safe}")))
    }

    fn validate_drives(&self) -> Result<()> {
        let DrivesConfig { paths, weights, stripe_unit, stripe_headroom, .. } = &self.drives;
        // A flag may name the paths later.
        let count_fits = weights.is_empty() || paths.is_empty() || weights.len() == paths.len();
        let allowed = format!("empty or as long as drives.paths ({})", paths.len());
        demand(count_fits, "drives.weights", format!("{weights:?}"), &allowed)?;
        let in_range = weights.iter().all(|weight| weight.is_finite() && *weight >= 0.0);
        let some = weights.is_empty() || weights.iter().any(|weight| *weight > 0.0);
        let allowed = "finite, not negative, and not all zero";
        demand(in_range && some, "drives.weights", format!("{weights:?}"), allowed)?;
        let has_room = (0.0..=10.0).contains(stripe_headroom);
        demand(has_room, "drives.stripe_headroom", stripe_headroom, "0 to 10")?;
        let unit = stripe_unit.0;
        let in_range = unit >= 4096 && unit.is_multiple_of(4096) && unit <= 1 << 30;
        demand(in_range, "drives.stripe_unit", stripe_unit, "a multiple of 4KiB, at most 1GiB")
    }

    fn validate_sizes(&self) -> Result<()> {
        let SwapConfig { memory_budget, chunk_elements, sub_group_elements, cache, .. } = self.swap;
        let depth = self.io.depth;
        demand((1..=4096).contains(&depth), "io.depth", depth, "1 to 4096")?;
        if let CacheSize::Bytes(cache) = cache {
            let allowed = format!("`auto` or at most swap.memory_budget ({memory_budget})");
            demand(cache.0 <= memory_budget.0, "swap.cache", cache, &allowed)?;
        }
        let blocks = |elems: Elems| elems.0 > 0 && elems.0.is_multiple_of(BLOCK_ELEMS);
        let in_range = blocks(chunk_elements) && chunk_elements.0 <= 64 << 20;
        let allowed = "a multiple of 4096, at most 64Mi";
        demand(in_range, "swap.chunk_elements", chunk_elements, allowed)?;
        let in_range = blocks(sub_group_elements) && sub_group_elements.0 <= 1 << 48;
        let allowed = "a multiple of 4096";
        demand(in_range, "swap.sub_group_elements", sub_group_elements, allowed)
    }

    /// The same configuration with the directories that `drives.paths` matches in the place of
    /// patterns.
    ///
    /// # Errors
    /// Usage if a pattern is malformed or matches no directory, or if there are then not as many
    /// weights as drives.
    pub fn with_drives_found(&self) -> Result<Self> {
        let mut config = self.clone();
        config.drives.paths = expand_wildcards(&self.drives.paths)?;
        config.validate()?;
        Ok(config)
    }

    /// The weight of every drive: `drives.weights`, or 1 for each if that is empty.
    pub fn drive_weights(&self) -> Vec<f64> {
        match self.drives.weights.as_slice() {
            [] => vec![1.0; self.drives.paths.len()],
            weights => weights.to_vec(),
        }
    }

    /// `timeouts.io_timeout` as a duration.
    pub fn io_timeout(&self) -> Duration {
        Duration::from_secs_f64(self.timeouts.io_timeout)
    }

    /// `timeouts.peer_timeout` as a duration.
    pub fn peer_timeout(&self) -> Duration {
        Duration::from_secs_f64(self.timeouts.peer_timeout)
    }

    /// `timeouts.stall_warning` as a duration.
    pub fn stall_warning(&self) -> Duration {
        Duration::from_secs_f64(self.timeouts.stall_warning)
    }

    /// `timeouts.grace_period` as a duration.
    pub fn grace_period(&self) -> Duration {
        Duration::from_secs_f64(self.timeouts.grace_period)
    }

    /// The state tensors of the configured optimizer, in the order in which a chunk stores them.
    pub fn state_tensors(&self) -> Vec<StateTensor> {
        match &self.optimizer.own {
            Some(own) => own.state_tensors(self.codecs.master),
            None => self.codecs.state_tensors(self.optimizer.kind),
        }
    }

    /// Sets the codec of the state tensor of this name; false if the optimizer has none of that
    /// name.
    pub fn set_codec(&mut self, tensor: &str, codec: Codec) -> bool {
        let own = self.optimizer.own.iter_mut().flat_map(|own| &mut own.state);
        match own.into_iter().find(|spec| spec.name == tensor) {
            Some(spec) => spec.codec = codec,
            None => return self.codecs.set(tensor, codec),
        }
        true
    }

    /// The same configuration for the optimizer that has state tensors of these names and codecs:
    /// the configured optimizer if its names are these, or else a built-in kind, or else a
    /// declaration with these names.
    #[must_use]
    pub fn for_tensors(&self, tensors: &[(String, Codec)]) -> Self {
        let mut config = self.clone();
        let names = tensors.iter().map(|(name, _)| name.as_str());
        let mut kinds = OptimizerKind::ALL.into_iter();
        let has = |found: Vec<StateTensor>| found.iter().map(|it| &*it.name).eq(names.clone());
        if !has(config.state_tensors()) {
            let kind = kinds.find(|kind| has(kind.state_tensors(|_| Codec::Fp32)));
            config.optimizer.kind = kind.unwrap_or_default();
            let state =
                names.clone().skip(1).map(|name| StateTensorSpec::new(name.to_owned(), 0.0));
            config.optimizer.own = kind.is_none().then(|| OptimizerSpec::own("own", state));
        }
        for (name, codec) in tensors {
            config.set_codec(name, *codec);
        }
        config
    }

    /// Whether committed steps survive the end of the processes (`durability.mode = "step"`).
    pub fn is_durable(&self) -> bool {
        self.durability.mode == Durability::Step
    }
}

fn read_text(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).map_err(|error| {
        Error::usage("the configuration file cannot be read")
            .with("file", path.display())
            .because(error)
    })
}

/// The error of a value that is out of range, unless `holds`.
fn demand(holds: bool, key: &str, value: impl std::fmt::Display, allowed: &str) -> Result<()> {
    if holds {
        return Ok(());
    }
    Err(Error::usage(format!("{key} = {value} is out of range: must be {allowed}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_written_defaults_read_back() {
        let text = toml::to_string(&Config::default()).unwrap();
        assert_eq!(Config::parse(&text).unwrap(), Config::default());
        assert_eq!(Config::parse("").unwrap(), Config::default());
    }

    #[test]
    fn groups_override_what_they_set() {
        let config = Config::parse(
            "[optimizer]\nlr = 0.5\n[[optimizer.groups]]\nnames = [\"*.bias\", \"norm*\"]\n\
             weight_decay = 0.0",
        )
        .unwrap();
        let groups = config.optimizer.hyperparameters();
        assert_eq!((groups[1].lr, groups[1].weight_decay), (0.5, 0.0));
        assert_eq!(groups[0].weight_decay, 0.01);
        let group_of = |name| config.optimizer.group_of(name);
        assert_eq!([group_of("a.bias"), group_of("norm.gain"), group_of("a.weight")], [1, 1, 0]);
    }

    #[test]
    fn values_out_of_range_say_what_is_allowed() {
        for (text, words) in [
            ("job = \"../x\"", "letters"),
            ("[io]\ndepth = 0", "io.depth = 0"),
            ("[swap]\nchunk_elements = 1000", "multiple of 4096"),
            ("[drives]\nstripe_unit = \"1KiB\"", "drives.stripe_unit = 1KiB"),
            ("[drives]\npaths = [\"/a\"]\nweights = [1.0, 2.0]", "as long as"),
            ("[drives]\nstripe_headroom = -0.5", "must be 0 to 10"),
            ("[optimizer]\nbetas = [0.9, 1.0]", "below 1"),
            ("[[optimizer.groups]]\neps = 0.0", "optimizer.groups[0]"),
            ("[timeouts]\nio_timeout = 0.0", "timeouts.io_timeout = 0"),
            ("[optimizer]\nclip_norm = -1.0", "clip_norm"),
            ("[loss_scale]\nbackoff_factor = 1.0", "loss_scale.backoff_factor"),
            ("[loss_scale]\nmode = \"dynamic\"\nminimum = 1e6", "loss_scale.minimum (1000000)"),
        ] {
            let error = Config::parse(text).unwrap_err();
            assert_eq!(error.exit_code(), 64);
            assert!(error.to_string().contains(words), "{text}: {error}");
        }
    }

    fn check_names<T>(names: &[&str])
    where
        T: std::str::FromStr<Err = String> + Serialize + std::fmt::Debug,
    {
        for name in names {
            let value: T = name.parse().unwrap();
            assert_eq!(serde_json::to_value(&value).unwrap(), *name, "{value:?}");
        }
        let error = "nonsense".parse::<T>().unwrap_err();
        assert_eq!(error, format!("not one of {}", names.join(", ")));
    }

    #[test]
    fn values_are_named_as_in_the_file() {
        check_names::<AccumulateIn>(&AccumulateIn::NAMES);
        check_names::<Codec>(&Codec::NAMES);
        check_names::<Durability>(&Durability::NAMES);
        check_names::<EngineName>(&EngineName::NAMES);
        check_names::<GradientPlace>(&GradientPlace::NAMES);
        check_names::<LossScaleMode>(&LossScaleMode::NAMES);
        check_names::<MissingGradient>(&MissingGradient::NAMES);
        check_names::<OptimizerKind>(&OptimizerKind::NAMES);
        check_names::<crate::state::Rounding>(&crate::state::Rounding::NAMES);
        check_names::<VerifyChecksums>(&VerifyChecksums::NAMES);
    }
}
