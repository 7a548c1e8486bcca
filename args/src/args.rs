//! Flags that every command with a swapper has; each overrides a key of the configuration file.

use std::path::PathBuf;
use std::str::FromStr;

use clap::Args;
use clap::builder::{PossibleValuesParser, TypedValueParser};

use optswap::internals::config::{
    CacheSize, CodecsConfig, Config, DrivesConfig, Durability, EngineName, Note, ReportConfig,
    read_deepspeed,
};
use optswap::internals::error::Result;
use optswap::internals::job::{Launch, LogRanks, choose_drives, find_site, no_drive_named};
use optswap::internals::storage::DriveProfile;
use optswap::internals::units::{Bytes, StepRange};

/// The value of `--durability`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DurabilityArg {
    mode: Durability,
    commit_every: u64,
}

impl FromStr for DurabilityArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (mode, commit_every) = match (text, text.parse::<u64>()) {
            ("scratch", _) => (Durability::Scratch, 1),
            ("step", _) => (Durability::Step, 1),
            (_, Ok(every)) if every > 0 => (Durability::Step, every),
            _ => return Err("neither `scratch`, nor `step`, nor a number of steps".to_owned()),
        };
        Ok(Self { mode, commit_every })
    }
}

impl DurabilityArg {
    /// Overrides what the configuration says.
    pub fn apply(self, config: &mut Config) {
        (config.durability.mode, config.durability.commit_every) = (self.mode, self.commit_every);
    }
}

/// Where and how to swap.
#[derive(Clone, Debug, Args)]
pub struct SwapArgs {
    /// Configuration file (TOML); the flags below override it.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// DeepSpeed's configuration file, in place of --config; what is not taken over is logged.
    #[arg(long, value_name = "FILE", conflicts_with = "config")]
    pub deepspeed_config: Option<PathBuf>,

    /// One directory on each drive, separated by commas; `*`, `?` and `[...]` match as in a shell.
    ///
    /// Without this flag, and without drives in the configuration, the first of these that names
    /// any counts: --site, $OPTSWAP_DRIVES (also separated by commas), $SLURM_TMPDIR; and in a
    /// batch job $TMPDIR, $LOCAL_SCRATCH, $PBS_JOBFS, /local/scratch and /mnt/bb/$USER. Of those of
    /// a batch job, directories in memory are left out, and one on the system's disk comes last.
    #[arg(long, value_name = "DIR,DIR", value_delimiter = ',')]
    pub drives: Vec<PathBuf>,

    /// Description of the site (TOML): which drives its nodes have [default: $OPTSWAP_SITE].
    #[arg(long, value_name = "FILE")]
    pub site: Option<PathBuf>,

    /// The job's name; it names the directories on the drives.
    #[arg(long, value_name = "NAME")]
    pub job: Option<String>,

    /// How operations reach the kernel [default: auto].
    #[arg(long, value_parser = PossibleValuesParser::new(EngineName::NAMES)
        .try_map(|name| name.parse::<EngineName>()))]
    pub engine: Option<EngineName>,

    /// Memory for I/O buffers, per rank, such as 256MiB [default: 256MiB].
    #[arg(long, value_name = "SIZE")]
    pub memory_budget: Option<Bytes>,

    /// How much of --memory-budget keeps chunks in memory between steps: a size, or `auto`
    /// [default: 0].
    #[arg(long, value_name = "SIZE|auto")]
    pub cache: Option<CacheSize>,

    /// How state lies on the drives: `fp32`, `remainder16` (lossless), `bf16` or `int8` moments, or
    /// `bf16+remainder16`, `int8+remainder16` [default: fp32].
    #[arg(long, value_name = "CODECS")]
    pub codecs: Option<CodecsConfig>,

    /// Force a file system that would be refused, such as tmpfs; may be repeated.
    #[arg(long, value_name = "NAME")]
    pub allow_fs: Vec<String>,

    /// Leave the files on the drives at the end.
    #[arg(long)]
    pub keep_files: bool,

    /// What survives the process: `scratch` (nothing), `step` (every step), or a number K (every
    /// K-th step) [default: scratch].
    #[arg(long, value_name = "scratch|step|K")]
    pub durability: Option<DurabilityArg>,

    /// Where checkpoints go: a directory that all ranks see.
    #[arg(long, value_name = "DIR")]
    pub checkpoint_dir: Option<PathBuf>,

    /// Save a checkpoint every so many steps, while training goes on. Without --checkpoint-dir,
    /// they go where the site says.
    #[arg(long, value_name = "N")]
    pub checkpoint_every: Option<u64>,

    /// Where the job's metrics, traces and results go: a directory that all ranks see.
    #[arg(long, value_name = "DIR")]
    pub report_dir: Option<PathBuf>,

    /// Where Prometheus files go, one for each rank: a directory of each node, for node exporter
    /// [default: the directory of --report-dir].
    #[arg(long, value_name = "DIR")]
    pub prometheus_dir: Option<PathBuf>,

    /// Steps of which trace.json is written to --report-dir, such as 3 or 3-5.
    #[arg(long, value_name = "STEPS")]
    pub trace_steps: Option<StepRange>,

    /// What may be written to one drive in its life, such as 600TB, to tell how long it lasts.
    #[arg(long, value_name = "SIZE")]
    pub drive_endurance: Option<Bytes>,

    /// Where each rank's log goes as lines of JSON, whatever --log-ranks says.
    #[arg(long, value_name = "DIR")]
    pub log_dir: Option<PathBuf>,

    /// Which ranks log to the terminal: `all`, or a list such as 0,3-5.
    #[arg(long, value_name = "RANKS", default_value = "0")]
    pub log_ranks: LogRanks,
}

impl SwapArgs {
    /// The configuration: the file's, or the default one, with the values of the flags. It is
    /// validated. What was not taken over from DeepSpeed's file is logged.
    ///
    /// # Errors
    /// Usage errors of the files or of the result; usage if no drive is named anywhere.
    pub fn resolve(&self) -> Result<Config> {
        let (config, notes) = self.read()?;
        for note in notes {
            tracing::info!("DeepSpeed's configuration: {note}");
        }
        Ok(config)
    }

    /// The drives that the user named, as written: `--drives`, else the configuration's. Empty if
    /// they were found elsewhere.
    ///
    /// # Errors
    /// Usage errors of the file.
    pub fn named_drives(&self) -> Result<Vec<PathBuf>> {
        if self.drives.is_empty() {
            Ok(self.read_file()?.0.drives.paths)
        } else {
            Ok(self.drives.clone())
        }
    }

    /// The configuration's file, or the default one.
    fn read_file(&self) -> Result<(Config, Vec<Note>)> {
        match (&self.config, &self.deepspeed_config) {
            (Some(path), _) => Ok((Config::read(path)?, Vec::new())),
            (None, Some(path)) => {
                let sourced = read_deepspeed(path)?;
                Ok((sourced.config, sourced.notes))
            }
            (None, None) => Ok((Config::default(), Vec::new())),
        }
    }

    fn read(&self) -> Result<(Config, Vec<Note>)> {
        let (mut config, notes) = self.read_file()?;
        self.choose_drives(&mut config.drives)?;
        if let Some(job) = &self.job {
            config.job.clone_from(job);
        }
        config.io.engine = self.engine.unwrap_or(config.io.engine);
        config.swap.memory_budget = self.memory_budget.unwrap_or(config.swap.memory_budget);
        config.swap.cache = self.cache.unwrap_or(config.swap.cache);
        if let Some(codecs) = &self.codecs {
            let CodecsConfig { rounding, seed, .. } = config.codecs;
            config.codecs = CodecsConfig { rounding, seed, ..codecs.clone() };
        }
        config.drives.allow_filesystems.extend_from_slice(&self.allow_fs);
        config.drives.keep_files |= self.keep_files;
        if let Some(durability) = self.durability {
            durability.apply(&mut config);
        }
        if let Some(dir) = &self.checkpoint_dir {
            config.checkpoint.dir = Some(dir.clone());
        }
        config.checkpoint.every = self.checkpoint_every.unwrap_or(config.checkpoint.every);
        if config.checkpoint.every > 0 && config.checkpoint.dir.is_none() {
            let variable = |name: &str| std::env::var(name).ok();
            let site = find_site(self.site.as_deref(), &variable)?;
            config.checkpoint.dir = site.map_or(Ok(None), |site| site.checkpoints(&variable))?;
        }
        self.override_report(&mut config.report);
        config.validate()?;
        Ok((config, notes))
    }

    fn choose_drives(&self, drives: &mut DrivesConfig) -> Result<()> {
        let chosen = choose_drives(&self.drives, &drives.paths, self.site.as_deref())?;
        let chosen = chosen.ok_or_else(no_drive_named)?;
        drives.paths = chosen.paths;
        drives.named_by = chosen.rule;
        drives.expected_gb_per_s = chosen.expected;
        // The profiles of probed drives count more than the weights that a site expects.
        let is_probed = |path: &PathBuf| matches!(DriveProfile::read(path), Ok(Some(_)));
        if drives.weights.is_empty() && !drives.paths.iter().all(is_probed) {
            drives.weights = chosen.weights;
        }
        Ok(())
    }

    fn override_report(&self, report: &mut ReportConfig) {
        let override_path = |path: &mut Option<PathBuf>, flag: &Option<PathBuf>| {
            if flag.is_some() {
                path.clone_from(flag);
            }
        };
        override_path(&mut report.dir, &self.report_dir);
        override_path(&mut report.prometheus_dir, &self.prometheus_dir);
        override_path(&mut report.log_dir, &self.log_dir);
        report.trace_steps = self.trace_steps.unwrap_or(report.trace_steps);
        report.drive_endurance = self.drive_endurance.unwrap_or(report.drive_endurance);
    }

    /// How to start the ranks. A configuration that cannot be read gives the defaults here:
    /// `resolve` reports it when the ranks have started and can agree.
    pub fn launch(&self) -> Launch {
        let (config, _) = self.read().unwrap_or_default();
        Launch {
            peer_timeout: config.peer_timeout(),
            stall_warning: config.stall_warning(),
            log_ranks: self.log_ranks.clone(),
            log_dir: config.report.log_dir,
        }
    }
}
