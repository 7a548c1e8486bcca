//! The configuration: one TOML file, read strictly, checked whole before anything is touched.

mod probe;
mod strict;

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use wildmatch::WildMatch;

use crate::error::{Error, Result};
use crate::state::Hyperparameters;
use crate::units::{BLOCK_ELEMS, Bytes, Elems};

pub use probe::memory_limit;

/// Everything that can be set. Missing keys have the defaults shown by each field.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The job's name; it names the directories on the drives. Letters, digits, `.`, `_`, `-`.
    pub job: String,
    /// Which drives, and how they are striped.
    pub drives: DrivesConfig,
    /// How bytes move.
    pub io: IoConfig,
    /// How state is cut and how much memory that may take.
    pub swap: SwapConfig,
    /// The update.
    pub optimizer: OptimizerConfig,
    /// When waiting becomes an error.
    pub timeouts: TimeoutsConfig,
    /// Faults to inject, for tests; empty in real life.
    pub faults: Vec<FaultConfig>,
}

/// `[drives]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DrivesConfig {
    /// One directory on each drive.
    pub paths: Vec<PathBuf>,
    /// Relative speeds of the drives; empty means equal.
    pub weights: Vec<f64>,
    /// Bytes that lie together on one drive: a multiple of 4 KiB. Default 1 MiB.
    pub stripe_unit: Bytes,
    /// File systems that would be refused (memory file systems), forced by name.
    pub allow_filesystems: Vec<String>,
    /// Leave the files on the drives at the end. Default false.
    pub keep_files: bool,
}

/// `[io]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct IoConfig {
    /// `auto`, `uring` or `threads`.
    pub engine: EngineName,
    /// The most operations in flight per rank, 1 to 4,096. Default 64.
    pub depth: usize,
}

/// The engines by name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum EngineName {
    /// io_uring where the kernel allows it, otherwise threads; the log says which and why.
    #[default]
    Auto,
    /// io_uring or an error.
    Uring,
    /// A pool of threads with pread and pwrite.
    Threads,
}

/// `[swap]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SwapConfig {
    /// Bytes of memory per rank that optswap may allocate for I/O buffers. Default 256 MiB.
    pub memory_budget: Bytes,
    /// Elements of a chunk: a multiple of 4,096, at most 64 Mi. Default 1 Mi.
    pub chunk_elements: Elems,
    /// Elements of a sub-group: a multiple of 4,096. Default 1 Gi.
    pub sub_group_elements: Elems,
}

/// `[optimizer]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OptimizerConfig {
    /// Learning rate. Default 1e-3.
    pub lr: f64,
    /// Decay rates of the moments. Default [0.9, 0.999].
    pub betas: [f64; 2],
    /// Added to the denominator. Default 1e-8.
    pub eps: f64,
    /// Decoupled weight decay. Default 0.01.
    pub weight_decay: f64,
    /// Gradients are scaled down to this global norm; 0 means never. Default 0.
    pub clip_norm: f64,
    /// Parameter groups that differ from the values above; the first that matches a name counts.
    pub groups: Vec<GroupConfig>,
}

/// `[[optimizer.groups]]`: what is not set is taken from `[optimizer]`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GroupConfig {
    /// Patterns of parameter names; `*` stands for any characters.
    pub names: Vec<String>,
    /// Learning rate.
    pub lr: Option<f64>,
    /// Decay rates of the moments.
    pub betas: Option<[f64; 2]>,
    /// Added to the denominator.
    pub eps: Option<f64>,
    /// Decoupled weight decay.
    pub weight_decay: Option<f64>,
}

/// `[timeouts]`, in seconds
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TimeoutsConfig {
    /// No completed operation for this long, with some in flight, is an error. Default 60.
    pub io_timeout: f64,
    /// Waiting this long for other ranks in one collective is an error. Default 600.
    pub peer_timeout: f64,
}

/// `[[faults]]`: operation `op` of rank `rank`, counted since start-up, goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FaultConfig {
    /// The rank that it happens on.
    pub rank: u32,
    /// The operation's number on that rank, from 0.
    pub op: u64,
    /// What happens.
    pub kind: FaultKind,
}

/// What can go wrong on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FaultKind {
    /// The operation fails with EIO.
    Eio,
    /// The operation fails with ENOSPC.
    Enospc,
    /// The operation fails once with EINTR; tried again, it works.
    Eintr,
    /// The operation fails once with EAGAIN; tried again, it works.
    Eagain,
    /// Only the first 4,096 bytes move.
    Short,
    /// The result never comes.
    Stall,
    /// The I/O thread panics.
    Panic,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            job: "default".to_owned(),
            drives: DrivesConfig::default(),
            io: IoConfig::default(),
            swap: SwapConfig::default(),
            optimizer: OptimizerConfig::default(),
            timeouts: TimeoutsConfig::default(),
            faults: Vec::new(),
        }
    }
}

impl Default for DrivesConfig {
    fn default() -> Self {
        Self {
            paths: Vec::new(),
            weights: Vec::new(),
            stripe_unit: Bytes(1 << 20),
            allow_filesystems: Vec::new(),
            keep_files: false,
        }
    }
}

impl Default for IoConfig {
    fn default() -> Self {
        Self { engine: EngineName::Auto, depth: 64 }
    }
}

impl Default for SwapConfig {
    fn default() -> Self {
        Self {
            memory_budget: Bytes(256 << 20),
            chunk_elements: Elems(1 << 20),
            sub_group_elements: Elems(1 << 30),
        }
    }
}

impl Default for OptimizerConfig {
    fn default() -> Self {
        let Hyperparameters { lr, betas, eps, weight_decay } = Hyperparameters::default();
        Self { lr, betas, eps, weight_decay, clip_norm: 0.0, groups: Vec::new() }
    }
}

impl Default for TimeoutsConfig {
    fn default() -> Self {
        Self { io_timeout: 60.0, peer_timeout: 600.0 }
    }
}

impl OptimizerConfig {
    /// Hyper-parameters of every group: first the default group, then those of `groups`.
    pub fn hyperparameters(&self) -> Vec<Hyperparameters> {
        let base = Hyperparameters {
            lr: self.lr,
            betas: self.betas,
            eps: self.eps,
            weight_decay: self.weight_decay,
        };
        let groups = self.groups.iter().map(|group| Hyperparameters {
            lr: group.lr.unwrap_or(base.lr),
            betas: group.betas.unwrap_or(base.betas),
            eps: group.eps.unwrap_or(base.eps),
            weight_decay: group.weight_decay.unwrap_or(base.weight_decay),
        });
        std::iter::once(base).chain(groups).collect()
    }

    /// The group of a parameter: 0 is the default group.
    pub fn group_of(&self, name: &str) -> usize {
        let matches =
            |group: &GroupConfig| group.names.iter().any(|p| WildMatch::new(p).matches(name));
        self.groups.iter().position(matches).map_or(0, |index| index + 1)
    }
}

impl Config {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// Usage errors that name the file and the key.
    pub fn read(path: &Path) -> Result<Self> {
        let named = |error: Error| error.with("file", path.display());
        let text = std::fs::read_to_string(path).map_err(|error| {
            named(Error::usage("the configuration file cannot be read").because(error))
        })?;
        let config = strict::parse(&text).map_err(named)?;
        config.validate().map_err(named)?;
        Ok(config)
    }

    /// Reads and checks a text in TOML.
    ///
    /// # Errors
    /// Usage errors that name the key.
    pub fn parse(text: &str) -> Result<Self> {
        let config = strict::parse(text)?;
        config.validate()?;
        Ok(config)
    }

    /// Checks everything that can be checked without looking at a drive.
    ///
    /// # Errors
    /// A usage error for the first value that is out of range, with what is allowed.
    pub fn validate(&self) -> Result<()> {
        self.validate_job()?;
        self.validate_drives()?;
        self.validate_sizes()?;
        for (key, seconds) in [
            ("timeouts.io_timeout", self.timeouts.io_timeout),
            ("timeouts.peer_timeout", self.timeouts.peer_timeout),
        ] {
            demand(seconds > 0.0 && seconds <= 1e6, key, seconds, "above 0 and at most 1e6")?;
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

    fn validate_job(&self) -> Result<()> {
        let is_allowed = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        let is_name = !self.job.is_empty() && self.job.len() <= 100 && !self.job.starts_with('.');
        let allowed = is_name && self.job.chars().all(is_allowed);
        demand(
            allowed,
            "job",
            format!("`{}`", self.job),
            "1 to 100 letters, digits, `.`, `_` or `-`, not beginning with `.`",
        )
    }

    fn validate_drives(&self) -> Result<()> {
        let DrivesConfig { paths, weights, stripe_unit, .. } = &self.drives;
        let count_fits = weights.is_empty() || weights.len() == paths.len();
        let allowed = format!("empty or as long as drives.paths ({})", paths.len());
        demand(count_fits, "drives.weights", format!("{weights:?}"), &allowed)?;
        let in_range = weights.iter().all(|weight| weight.is_finite() && *weight >= 0.0);
        let some = weights.is_empty() || weights.iter().any(|weight| *weight > 0.0);
        let allowed = "finite, not negative, and not all zero";
        demand(in_range && some, "drives.weights", format!("{weights:?}"), allowed)?;
        let unit = stripe_unit.0;
        let in_range = unit >= 4096 && unit.is_multiple_of(4096) && unit <= 1 << 30;
        demand(in_range, "drives.stripe_unit", stripe_unit, "a multiple of 4KiB, at most 1GiB")
    }

    fn validate_sizes(&self) -> Result<()> {
        let SwapConfig { chunk_elements, sub_group_elements, .. } = self.swap;
        let depth = self.io.depth;
        demand((1..=4096).contains(&depth), "io.depth", depth, "1 to 4096")?;
        let blocks = |elems: Elems| elems.0 > 0 && elems.0.is_multiple_of(BLOCK_ELEMS);
        let in_range = blocks(chunk_elements) && chunk_elements.0 <= 64 << 20;
        let allowed = "a multiple of 4096, at most 64Mi";
        demand(in_range, "swap.chunk_elements", chunk_elements, allowed)?;
        let in_range = blocks(sub_group_elements) && sub_group_elements.0 <= 1 << 48;
        let allowed = "a multiple of 4096";
        demand(in_range, "swap.sub_group_elements", sub_group_elements, allowed)
    }

    /// The weight of every drive.
    pub fn drive_weights(&self) -> Vec<f64> {
        match self.drives.weights.as_slice() {
            [] => vec![1.0; self.drives.paths.len()],
            weights => weights.to_vec(),
        }
    }

    /// `timeouts.io_timeout`.
    pub fn io_timeout(&self) -> Duration {
        Duration::from_secs_f64(self.timeouts.io_timeout)
    }

    /// `timeouts.peer_timeout`.
    pub fn peer_timeout(&self) -> Duration {
        Duration::from_secs_f64(self.timeouts.peer_timeout)
    }
}

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
            ("[optimizer]\nbetas = [0.9, 1.0]", "below 1"),
            ("[[optimizer.groups]]\neps = 0.0", "optimizer.groups[0]"),
            ("[timeouts]\nio_timeout = 0.0", "timeouts.io_timeout = 0"),
            ("[optimizer]\nclip_norm = -1.0", "clip_norm"),
        ] {
            let error = Config::parse(text).unwrap_err();
            assert_eq!(error.exit_code(), 64);
            assert!(error.to_string().contains(words), "{text}: {error}");
        }
    }
}
