//! The sections of the configuration and their defaults.

use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use wildmatch::WildMatch;

use crate::state::{Hyperparameters, OptimizerKind, OptimizerSpec};
use crate::units::{Bytes, Elems, StepRange};

/// `[drives]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DrivesConfig {
    /// One directory on each drive; `*`, `?` and `[...]` match as in a shell.
    pub paths: Vec<PathBuf>,
    /// What named the paths, for the log. No key of the file.
    #[serde(skip)]
    pub named_by: String,
    /// What the site's description expects of each: GB/s reading, writing, and both directions
    /// together. Empty if it did not name them. No key of the file.
    #[serde(skip)]
    pub expected_gb_per_s: Vec<Option<[f64; 3]>>,
    /// Relative speeds of the drives at the start; a drive of weight 0 is not used. Empty means
    /// those of the drives' profiles if every drive has one, and equal ones otherwise.
    pub weights: Vec<f64>,
    /// Give drives other shares of what is written when they do less, or more, than they should.
    /// Default true.
    pub reweight: bool,
    /// Room in the files for that, as a part of the state: 0 to 10. Default 0.25.
    pub stripe_headroom: f64,
    /// Bytes that lie together on one drive: a multiple of 4 KiB. Default 1 MiB.
    pub stripe_unit: Bytes,
    /// File systems that would be refused (memory file systems), forced by name.
    pub allow_filesystems: Vec<String>,
    /// Leave the files on the drives at the end. Default false.
    pub keep_files: bool,
    /// Share the drives with no other job: refuse to start where one lives, and make those that
    /// come later refuse. Default false.
    pub exclusive: bool,
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
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
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

impl EngineName {
    /// Every name that [`Self::from_str`] knows.
    pub const NAMES: [&str; 3] = ["auto", "uring", "threads"];
}

impl FromStr for EngineName {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "auto" => Ok(Self::Auto),
            "uring" => Ok(Self::Uring),
            "threads" => Ok(Self::Threads),
            _ => Err(format!("not one of {}", Self::NAMES.join(", "))),
        }
    }
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
    /// How much of `memory_budget` keeps chunks in memory between steps. Default 0.
    pub cache: CacheSize,
    /// Let the last writes of a step that is no commit go on behind it. Default true.
    pub write_behind: bool,
    /// Read the first chunks of the next step ahead. Default true.
    pub prefetch: bool,
    /// Read later sub-groups while one is updated. Default true.
    pub pipeline_read: bool,
    /// Update later sub-groups while one is written. Default true.
    pub pipeline_write: bool,
}

/// How much memory keeps chunks between steps: bytes, or `auto` for what is left.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "CacheText", into = "CacheText")]
pub enum CacheSize {
    /// At most so much.
    Bytes(Bytes),
    /// What is left when enough chunks can be on their way.
    Auto,
}

/// As it is written.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum CacheText {
    Bytes(Bytes),
    Text(String),
}

impl From<CacheSize> for CacheText {
    fn from(size: CacheSize) -> Self {
        match size {
            CacheSize::Bytes(bytes) => Self::Bytes(bytes),
            CacheSize::Auto => Self::Text("auto".to_owned()),
        }
    }
}

impl TryFrom<CacheText> for CacheSize {
    type Error = String;

    fn try_from(text: CacheText) -> Result<Self, String> {
        match text {
            CacheText::Bytes(bytes) => Ok(Self::Bytes(bytes)),
            CacheText::Text(text) => text.parse(),
        }
    }
}

impl FromStr for CacheSize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "auto" {
            return Ok(Self::Auto);
        }
        let bytes = text.parse().map_err(|error| format!("{error}; or `auto`"))?;
        Ok(Self::Bytes(bytes))
    }
}

/// `[optimizer]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OptimizerConfig {
    /// The update rule: `adamw` (default), `adam`, `sgd`, `lion` or `adagrad`.
    pub kind: OptimizerKind,
    /// Learning rate. Default 1e-3.
    pub lr: f64,
    /// Decay rates of the moments; the first is SGD's momentum. Default [0.9, 0.999].
    pub betas: [f64; 2],
    /// Added to the denominator. Default 1e-8.
    pub eps: f64,
    /// Weight decay: decoupled in AdamW and Lion, part of the gradient in the others. Default 0.01.
    pub weight_decay: f64,
    /// Gradients are scaled down to this global norm; 0 means never. Default 0.
    pub clip_norm: f64,
    /// Parameter groups that differ from the values above; the first that matches a name counts.
    pub groups: Vec<GroupConfig>,
    /// What a program's own optimizer keeps, which then counts instead of `kind`: the program
    /// updates chunk by chunk (`SwappedOptimizer::begin_update`).
    pub own: Option<OptimizerSpec>,
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

/// `[durability]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DurabilityConfig {
    /// `scratch` (default) or `step`.
    pub mode: Durability,
    /// Commit every so many steps; what lies between the last commit and a crash is done again.
    /// Default 1.
    pub commit_every: u64,
    /// Flush drives at every commit, so that it survives power loss and not only the death of
    /// processes. Default false.
    pub sync: bool,
    /// When bytes that come from a drive are held against their checksums. Default `always`.
    pub verify: VerifyChecksums,
}

/// What survives the process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Durability {
    /// Nothing: one slot per chunk.
    #[default]
    Scratch,
    /// The last commit: two slots per chunk, and records.
    Step,
}

/// When bytes that come from a drive are held against their checksums.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VerifyChecksums {
    /// At every swap-in.
    #[default]
    Always,
    /// Each chunk at every sixteenth step, in turn.
    Sampled,
    /// Never.
    Off,
}

/// `[checkpoint]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CheckpointConfig {
    /// The directory that holds checkpoints, on any file system that all ranks see.
    pub dir: Option<PathBuf>,
    /// Save every so many steps, while training goes on; 0 means only when stopped. Default 0.
    pub every: u64,
    /// Checkpoints of this job that are kept. Default 2.
    pub keep_last: usize,
    /// Share blocks with the state files where the file system can (XFS, btrfs) and state files and
    /// checkpoint lie on the same one. Default false.
    pub reflink: bool,
}

/// `[timeouts]`, in seconds
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TimeoutsConfig {
    /// No completed operation for this long, with some in flight, is an error. Default 60.
    pub io_timeout: f64,
    /// Waiting this long for other ranks in one collective is an error, unless they make progress.
    /// Default 600.
    pub peer_timeout: f64,
    /// Waiting this long in one collective names those that are late, in the log. Default 30.
    pub stall_warning: f64,
    /// From a signal to stop until the launcher kills: a step that would not end in time is not
    /// begun. Default 30.
    pub grace_period: f64,
}

/// `[report]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ReportConfig {
    /// Where a job's metrics, traces and results go: a directory, made if it is not there, on any
    /// file system that all ranks see.
    pub dir: Option<PathBuf>,
    /// Where Prometheus files go: a directory of each node. Default: `dir`.
    pub prometheus_dir: Option<PathBuf>,
    /// Steps of which a trace is written into `dir`, such as `3` or `3-5`; empty means none.
    pub trace_steps: StepRange,
    /// What a rank keeps of one trace, at most: spans of 48 bytes. Default 65,536.
    pub trace_spans: usize,
    /// Where each rank's log goes as lines of JSON: a directory, made if it is not there.
    pub log_dir: Option<PathBuf>,
    /// What may be written to one drive in its life, as its maker says (TBW), such as 600TB; 0 if
    /// unknown.
    pub drive_endurance: Bytes,
}

impl Default for ReportConfig {
    fn default() -> Self {
        Self {
            dir: None,
            prometheus_dir: None,
            trace_steps: StepRange::default(),
            trace_spans: 65_536,
            log_dir: None,
            drive_endurance: Bytes(0),
        }
    }
}

impl Default for DrivesConfig {
    fn default() -> Self {
        Self {
            paths: Vec::new(),
            named_by: "configuration".to_owned(),
            expected_gb_per_s: Vec::new(),
            weights: Vec::new(),
            reweight: true,
            stripe_headroom: 0.25,
            stripe_unit: Bytes(1 << 20),
            allow_filesystems: Vec::new(),
            keep_files: false,
            exclusive: false,
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
            cache: CacheSize::Bytes(Bytes(0)),
            write_behind: true,
            prefetch: true,
            pipeline_read: true,
            pipeline_write: true,
        }
    }
}

impl Default for OptimizerConfig {
    fn default() -> Self {
        let Hyperparameters { lr, betas, eps, weight_decay } = Hyperparameters::default();
        let kind = OptimizerKind::default();
        let groups = Vec::new();
        Self { kind, lr, betas, eps, weight_decay, clip_norm: 0.0, groups, own: None }
    }
}

impl Default for TimeoutsConfig {
    fn default() -> Self {
        Self { io_timeout: 60.0, peer_timeout: 600.0, stall_warning: 30.0, grace_period: 30.0 }
    }
}

impl Default for DurabilityConfig {
    fn default() -> Self {
        let (mode, verify) = (Durability::default(), VerifyChecksums::default());
        Self { mode, commit_every: 1, sync: false, verify }
    }
}

impl Default for CheckpointConfig {
    fn default() -> Self {
        Self { dir: None, every: 0, keep_last: 2, reflink: false }
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

    /// The optimizer's name.
    pub fn name(&self) -> &str {
        self.own.as_ref().map_or(self.kind.name(), |own| &own.name)
    }

    /// The group of a parameter: 0 is the default group.
    pub fn group_of(&self, name: &str) -> usize {
        let matches =
            |group: &GroupConfig| group.names.iter().any(|p| WildMatch::new(p).matches(name));
        self.groups.iter().position(matches).map_or(0, |index| index + 1)
    }
}
