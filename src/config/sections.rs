//! The sections of the configuration: their keys, ranges and defaults.

use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use wildmatch::WildMatch;

use crate::state::{Hyperparameters, OptimizerKind, OptimizerSpec, names};
use crate::units::{Bytes, Elems, StepRange};

/// `[drives]`: which drives hold the state, and how it is spread over them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DrivesConfig {
    /// One directory on each drive; `*`, `?` and `[...]` match as in a shell. Default none.
    pub paths: Vec<PathBuf>,
    /// The rule that named the paths, for the log. This is no key of the file.
    #[serde(skip)]
    pub named_by: String,
    /// What the site's description expects of each drive, in GB/s: reading, writing, and both
    /// directions together. Empty if it did not name the drives. This is no key of the file.
    #[serde(skip)]
    pub expected_gb_per_s: Vec<Option<[f64; 3]>>,
    /// Relative speeds of the drives at the start, one per path: finite, not negative, not all 0. A
    /// drive of weight 0 is not used. Default empty: the speeds in the drives' profiles if every
    /// drive has one, and equal ones otherwise.
    pub weights: Vec<f64>,
    /// Whether a drive that turns out slower or faster than its share gets another share of what is
    /// written from then on. Default true.
    pub reweight: bool,
    /// Extra room in the files for such moves, as a fraction of the state's size: 0 to 10. Default
    /// 0.25.
    pub stripe_headroom: f64,
    /// Bytes that lie together on one drive: a multiple of 4 KiB, at most 1 GiB. Default 1 MiB.
    pub stripe_unit: Bytes,
    /// Names of memory file systems, such as `tmpfs`, that are accepted although they would be
    /// refused. Default none.
    pub allow_filesystems: Vec<String>,
    /// Whether the files stay on the drives when a scratch job ends. Default false.
    pub keep_files: bool,
    /// Whether the job shares its drives with no other job: it refuses to start where another job
    /// runs, and jobs that start later refuse to share the drives with it. Default false.
    pub exclusive: bool,
}

/// `[io]`: how bytes move between memory and drives.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct IoConfig {
    /// The I/O engine: `auto` (default), `uring` or `threads`.
    pub engine: EngineName,
    /// The most operations in flight per rank, all drives together: 1 to 4,096. Default 64.
    pub depth: usize,
}

/// An I/O engine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EngineName {
    /// io_uring where the kernel allows it, otherwise threads; the log says which and why.
    #[default]
    Auto,
    /// io_uring; where the kernel refuses it, the job does not start.
    Uring,
    /// A pool of threads with pread and pwrite.
    Threads,
}

names! { EngineName:
    "auto" = Auto,
    "uring" = Uring,
    "threads" = Threads,
}

/// `[swap]`: how the state is cut, and how much memory swapping may take.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SwapConfig {
    /// Bytes of memory per rank that optswap may allocate for I/O buffers: at least two buffers of
    /// one chunk. Default 256 MiB.
    pub memory_budget: Bytes,
    /// Elements of a chunk, the unit of I/O: a multiple of 4,096, at most 64 Mi. Default 1 Mi.
    pub chunk_elements: Elems,
    /// Elements of a sub-group: a multiple of 4,096, at most 2^48. Default 1 Gi.
    pub sub_group_elements: Elems,
    /// How much of `memory_budget` keeps chunks in memory between steps: bytes, or `auto`. Default
    /// 0.
    pub cache: CacheSize,
    /// Whether the last writes of a step go on after it has returned, unless the step is a commit.
    /// Default true.
    pub write_behind: bool,
    /// Whether the first chunks of the next step are read before it begins. Default true.
    pub prefetch: bool,
    /// Whether later sub-groups are read while one is updated. Default true.
    pub pipeline_read: bool,
    /// Whether later sub-groups are updated while one is written. Default true.
    pub pipeline_write: bool,
}

/// How much memory keeps chunks between steps. Read as a size such as `64MiB`, or `auto`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "CacheText", into = "CacheText")]
pub enum CacheSize {
    /// At most so many bytes; they must fit into `swap.memory_budget`.
    Bytes(Bytes),
    /// What the memory budget leaves when enough chunks can be in transfer at the same time.
    Auto,
}

/// A [`CacheSize`] as the file has it.
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

/// `[optimizer]`: the update rule and its hyper-parameters.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OptimizerConfig {
    /// The update rule: `adamw` (default), `adam`, `sgd`, `lion` or `adagrad`.
    pub kind: OptimizerKind,
    /// Learning rate: finite and not negative. Default 1e-3.
    pub lr: f64,
    /// Decay rates of the moments, each at least 0 and below 1; the first is SGD's momentum.
    /// Default [0.9, 0.999].
    pub betas: [f64; 2],
    /// Added to the denominator: finite and above 0. Default 1e-8.
    pub eps: f64,
    /// Weight decay, decoupled in AdamW and Lion and part of the gradient in the others: finite and
    /// not negative. Default 0.01.
    pub weight_decay: f64,
    /// Gradients whose global norm is larger are scaled down to it: finite and not negative; 0
    /// means never. Default 0.
    pub clip_norm: f64,
    /// Parameter groups that differ from the values above. A parameter belongs to the first group
    /// with a pattern that matches its name. Default none.
    pub groups: Vec<GroupConfig>,
    /// The declaration of a program's own optimizer. If there is one, `kind` does not count, and
    /// the program updates chunk by chunk (`SwappedOptimizer::begin_update`). Default none.
    pub own: Option<OptimizerSpec>,
}

/// `[[optimizer.groups]]`: a parameter group. What is not set is taken from `[optimizer]`; ranges
/// are the same as there.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GroupConfig {
    /// Patterns of parameter names; `*` stands for any characters, `?` for one.
    pub names: Vec<String>,
    /// Learning rate.
    pub lr: Option<f64>,
    /// Decay rates of the moments.
    pub betas: Option<[f64; 2]>,
    /// Added to the denominator.
    pub eps: Option<f64>,
    /// Weight decay.
    pub weight_decay: Option<f64>,
}

/// `[durability]`: what survives the end of the processes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DurabilityConfig {
    /// Whether steps are committed: `scratch` (default) or `step`.
    pub mode: Durability,
    /// A commit every so many steps: at least 1. After a crash, the steps since the last commit are
    /// done again. Default 1.
    pub commit_every: u64,
    /// Whether drives are flushed at every commit, so that it survives a loss of power and not only
    /// the death of processes. Default false.
    pub sync: bool,
    /// When bytes that come from a drive are compared with their checksums: `always` (default),
    /// `sampled` or `off`.
    pub verify: VerifyChecksums,
}

/// What survives the end of the processes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Durability {
    /// Nothing: one slot per chunk.
    #[default]
    Scratch,
    /// The last commit: two slots per chunk, and records.
    Step,
}

names! { Durability:
    "scratch" = Scratch,
    "step" = Step,
}

/// When bytes that come from a drive are compared with their checksums.
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

names! { VerifyChecksums:
    "always" = Always,
    "sampled" = Sampled,
    "off" = Off,
}

/// `[checkpoint]`: copies of the state that other machines and other numbers of ranks can load.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CheckpointConfig {
    /// The directory that holds checkpoints, on a file system that all ranks see. Default none.
    pub dir: Option<PathBuf>,
    /// A checkpoint every so many steps, saved while training goes on; 0 means only when the job is
    /// stopped. Default 0.
    pub every: u64,
    /// How many of this job's checkpoints are kept, not counting those with names of the caller's:
    /// at least 1. Default 2.
    pub keep_last: usize,
    /// Whether a checkpoint shares blocks with the state files, where both lie on the same file
    /// system and that can share blocks (XFS, btrfs). Default false.
    pub reflink: bool,
}

/// `[timeouts]`, all in seconds, above 0 and at most 1e6.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TimeoutsConfig {
    /// With operations in flight and none completed for this long, the job fails. Default 60.
    pub io_timeout: f64,
    /// After waiting this long in one collective for ranks that make no progress, the job fails.
    /// Default 600.
    pub peer_timeout: f64,
    /// After waiting this long in one collective, the log names the ranks that are late. Default
    /// 30.
    pub stall_warning: f64,
    /// Time from a signal to stop until the launcher kills the processes: a step that would not end
    /// before then is not begun. Default 30.
    pub grace_period: f64,
}

/// `[report]`: which files about the job are written, and where.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ReportConfig {
    /// The directory for metrics, traces and results, on a file system that all ranks see; it is
    /// created if it is missing. Default none: none of these are written.
    pub dir: Option<PathBuf>,
    /// The directory on each node for Prometheus files; it is created if it is missing. Default:
    /// `dir`.
    pub prometheus_dir: Option<PathBuf>,
    /// Steps of which a trace is written into `dir`, counted from 1, such as `3` or `3-5`. Default
    /// empty: no trace.
    pub trace_steps: StepRange,
    /// The most spans, of 48 bytes each, that a rank keeps of one trace: 1 to 16,777,216. Default
    /// 65,536.
    pub trace_spans: usize,
    /// The directory for each rank's log as lines of JSON; it is created if it is missing. Default
    /// none.
    pub log_dir: Option<PathBuf>,
    /// Bytes that may be written to one drive in its life, as its maker says (TBW), such as 600TB.
    /// Default 0: unknown.
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
    /// The hyper-parameters of every group: first the default group, then those of `groups`.
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

    /// The name of the program's own optimizer if there is one, else that of `kind`.
    pub fn name(&self) -> &str {
        self.own.as_ref().map_or(self.kind.name(), |own| &own.name)
    }

    /// The number of the group that a parameter of this name belongs to; 0 is the default group.
    pub fn group_of(&self, name: &str) -> usize {
        let matches =
            |group: &GroupConfig| group.names.iter().any(|p| WildMatch::new(p).matches(name));
        self.groups.iter().position(matches).map_or(0, |index| index + 1)
    }
}
