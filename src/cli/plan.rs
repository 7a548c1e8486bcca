//! `optswap plan`: before the run, what a model on a site needs.

use std::path::PathBuf;
use std::rc::Rc;
use std::str::FromStr;
use std::time::Duration;

use clap::Args;

use super::args::DurabilityArg;
use super::out::{say, to_json, write_to};
use crate::config::{CodecsConfig, Config, expand_wildcards, memory_limit};
use crate::coord::{Communicator, agree};
use crate::error::{Error, Result};
use crate::forecast::{
    Bandwidth, Site, SiteDrive, StateBytes, Swapping, predict, read_model, simulate,
};
use crate::job::{Launch, LogRanks};
use crate::measure::{CollectiveSpeed, ProcessorSpeed, measure_collectives, measure_processors};
use crate::report::{PlanResult, plan_tables};
use crate::storage::{Drive, DriveProfile};
use crate::units::Bytes;

/// Collectives and noise of a common cluster network, where nothing was measured.
const COLLECTIVES: CollectiveSpeed = CollectiveSpeed { hop_seconds: 5e-6, noise_seconds: 50e-6 };

/// Processors of a server with some dozen cores, for nodes that are not this machine.
const ELSEWHERE: ProcessorSpeed =
    ProcessorSpeed { update_ns_per_param: 0.2, norm_ns_per_param: 0.02 };

#[derive(Debug, Args)]
pub(super) struct PlanArgs {
    /// gpt2, llama3-8b, llama3-70b, llama3-405b, moe-1t; a number of parameters such as 7G; a
    /// .safetensors file or its index; or a JSON list of names and shapes.
    #[arg(long, value_name = "MODEL")]
    model: String,

    /// Probed drives of this machine, as those of every node.
    #[arg(long, value_name = "DIR,DIR", value_delimiter = ',')]
    drives: Vec<PathBuf>,

    /// In their place the speeds of a node's drives, MB/s: of each direction, or
    /// READ:WRITE:BOTH, separated by commas.
    #[arg(long, value_name = "MBPS,MBPS", value_delimiter = ',', conflicts_with = "drives")]
    drive_mbps: Vec<DriveSpeed>,

    /// Space on each drive for state, such as 3.5TB.
    #[arg(long, value_name = "SIZE")]
    drive_size: Option<Bytes>,

    /// Nodes.
    #[arg(long, value_name = "N", default_value_t = 1)]
    nodes: u64,

    /// Ranks on each.
    #[arg(long, value_name = "N", default_value_t = 1)]
    ranks_per_node: u64,

    /// Memory of a node [default: with --drives, this machine's].
    #[arg(long, value_name = "SIZE")]
    memory: Option<Bytes>,

    /// Bandwidth of a node's memory, GB/s, if it may bind.
    #[arg(long, value_name = "GBPS")]
    memory_gbps: Option<f64>,

    /// What may be written to a drive in its life, in TB (TBW).
    #[arg(long, value_name = "TB")]
    endurance_tbw: Option<f64>,

    /// Seconds between two optimizer steps: forward and backward passes.
    #[arg(long, value_name = "SECONDS", default_value_t = 0.0)]
    compute_seconds: f64,

    /// Configuration file (TOML): its chunks, codecs and durability, and its drives.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,

    /// How state lies on the drives, as in a job [default: fp32].
    #[arg(long, value_name = "CODECS")]
    codecs: Option<CodecsConfig>,

    /// What survives the process, as in a job [default: scratch].
    #[arg(long, value_name = "scratch|step|K")]
    durability: Option<DurabilityArg>,

    /// Memory for I/O buffers, per rank [default: 256MiB].
    #[arg(long, value_name = "SIZE")]
    memory_budget: Option<Bytes>,

    /// Nanoseconds that a node needs for one parameter's checksums and update [default: with
    /// --drives, measured here in memory; else 0.2].
    #[arg(long, value_name = "NS")]
    update_ns: Option<f64>,

    /// Microseconds from one rank to the next in a collective [default: measured here under mpirun,
    /// else 5].
    #[arg(long, value_name = "US")]
    hop_us: Option<f64>,

    /// Microseconds that delay a rank by chance, on average [default: measured under mpirun, else
    /// 50].
    #[arg(long, value_name = "US")]
    noise_us: Option<f64>,

    /// How much a drive's speed varies within a fifth of a second, in percent [default: as probed,
    /// else 5].
    #[arg(long, value_name = "PERCENT")]
    spread: Option<f64>,

    /// How much drives of one model differ from each other, in percent.
    #[arg(long, value_name = "PERCENT", default_value_t = 2.0)]
    drive_to_drive: f64,

    /// Steps that are simulated.
    #[arg(long, value_name = "N", default_value_t = 20)]
    steps: u64,

    /// Seed of the simulation.
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,

    /// Write the result to this file, as JSON; `-` prints it in place of the tables.
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = "-")]
    json: Option<PathBuf>,
}

/// `300`, or `3000:1000:1500`.
#[derive(Clone, Copy, Debug)]
struct DriveSpeed(Bandwidth);

impl FromStr for DriveSpeed {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let numbers: Option<Vec<f64>> = text.split(':').map(|part| part.parse().ok()).collect();
        let numbers = numbers.unwrap_or_default();
        let is_speed = numbers.iter().all(|mbps: &f64| mbps.is_finite() && *mbps > 0.0);
        match numbers.as_slice() {
            [mbps] if is_speed => Ok(Self(Bandwidth::symmetric(mbps * 1e6))),
            [read, write, mixed] if is_speed => {
                Ok(Self(Bandwidth { read: read * 1e6, write: write * 1e6, mixed: mixed * 1e6 }))
            }
            _ => Err("neither MB/s nor READ:WRITE:BOTH".to_owned()),
        }
    }
}

/// How to start the ranks, if there are several.
pub(super) fn launch() -> Launch {
    Launch {
        peer_timeout: Duration::from_secs(600),
        stall_warning: Duration::from_secs(30),
        log_ranks: LogRanks::default(),
        log_dir: None,
    }
}

pub(super) fn run(args: &PlanArgs, comm: &Rc<dyn Communicator>) -> Result<()> {
    let collectives = measure_collectives(&**comm)?;
    let done = match comm.rank().0 {
        0 => args.plan(collectives).and_then(|plan| args.publish(&plan)),
        _ => Ok(()),
    };
    agree(&**comm, done)
}

impl PlanArgs {
    fn plan(&self, collectives: Option<CollectiveSpeed>) -> Result<PlanResult> {
        let config = self.config()?;
        let model = read_model(&self.model)?;
        let (drive_paths, drives) = self.drives(&config)?;
        let site = self.site(&config, drives, !drive_paths.is_empty(), collectives)?;
        let swapping = Swapping {
            chunk_elems: config.swap.chunk_elements.0,
            budget_bytes: config.swap.memory_budget.0,
            is_durable: config.is_durable(),
        };
        let tensors = config.state_tensors();
        let state_bytes = StateBytes::of(&tensors, config.is_durable());
        let node = predict(model.params, &site, &state_bytes, &swapping)?;
        let (steps, seed) = (self.steps.max(1), self.seed);
        let simulation = simulate(model.params, &site, &state_bytes, &swapping, steps, seed)?;
        let codec = |tensor: &crate::state::StateTensor| {
            (tensor.name.to_owned(), tensor.codec.name().to_owned())
        };
        let codecs = tensors.iter().map(codec).collect();
        Ok(PlanResult {
            schema: 1,
            model,
            site,
            drive_paths,
            codecs,
            state_bytes,
            swapping,
            node,
            simulation,
        })
    }

    fn config(&self) -> Result<Config> {
        let mut config = match &self.config {
            Some(path) => Config::read(path)?,
            None => Config::default(),
        };
        if let Some(codecs) = &self.codecs {
            config.codecs = codecs.clone();
        }
        if let Some(durability) = self.durability {
            durability.apply(&mut config);
        }
        config.swap.memory_budget = self.memory_budget.unwrap_or(config.swap.memory_budget);
        config.validate()?;
        Ok(config)
    }

    /// The drives of a node, and where they are if they are here.
    fn drives(&self, config: &Config) -> Result<(Vec<PathBuf>, Vec<SiteDrive>)> {
        let size = self.drive_size.map(|size| size.0);
        let spread = self.spread.map(|percent| percent / 100.0);
        if !self.drive_mbps.is_empty() {
            let drive = |DriveSpeed(bandwidth): &DriveSpeed| SiteDrive {
                bandwidth: *bandwidth,
                free_bytes: size,
                spread: spread.unwrap_or(0.05),
            };
            return Ok((Vec::new(), self.drive_mbps.iter().map(drive).collect()));
        }
        let named = if self.drives.is_empty() { &config.drives.paths } else { &self.drives };
        let paths = expand_wildcards(named)?;
        if paths.is_empty() {
            return Err(Error::usage("no drive is named")
                .hint("name probed drives with --drives, or their speeds with --drive-mbps"));
        }
        let drive = |path: &PathBuf| {
            let inspected = Drive::inspect(path, &config.drives.allow_filesystems)?;
            let profile = DriveProfile::read(path)?.ok_or_else(|| {
                Error::usage("a drive was never probed")
                    .with("drive", path.display())
                    .hint("measure it with optswap probe, or tell speeds with --drive-mbps")
            })?;
            Ok(SiteDrive {
                bandwidth: Bandwidth::of(&profile),
                free_bytes: size.or(Some(inspected.free_bytes)),
                spread: spread.unwrap_or(profile.spread),
            })
        };
        let drives = paths.iter().map(drive).collect::<Result<_>>()?;
        Ok((paths, drives))
    }

    fn site(
        &self,
        config: &Config,
        drives: Vec<SiteDrive>,
        is_here: bool,
        collectives: Option<CollectiveSpeed>,
    ) -> Result<Site> {
        for (flag, value) in [
            ("--memory-gbps", self.memory_gbps),
            ("--endurance-tbw", self.endurance_tbw),
            ("--update-ns", self.update_ns),
            ("--hop-us", self.hop_us),
            ("--noise-us", self.noise_us),
            ("--spread", self.spread),
            ("--drive-to-drive", Some(self.drive_to_drive)),
            ("--compute-seconds", Some(self.compute_seconds)),
        ] {
            if let Some(value) = value.filter(|value| !(value.is_finite() && *value >= 0.0)) {
                return Err(Error::usage(format!("{flag} {value} is out of range")));
            }
        }
        let processors = match self.update_ns {
            Some(ns) => ProcessorSpeed { update_ns_per_param: ns, norm_ns_per_param: 0.0 },
            None if !is_here => ELSEWHERE,
            None => measure_processors(&config.codecs)
                .map_err(|error| error.hint("tell it with --update-ns, such as 0.5"))?,
        };
        let collectives = collectives.unwrap_or(COLLECTIVES);
        let seconds = |us: Option<f64>, measured: f64| us.map_or(measured, |us| us * 1e-6);
        let here = memory_limit().filter(|_| is_here).map(|(bytes, _)| bytes);
        Ok(Site {
            nodes: self.nodes,
            ranks_per_node: self.ranks_per_node,
            drives,
            memory_bytes: self.memory.or(here).map(|bytes| bytes.0),
            memory_bytes_per_s: self.memory_gbps.filter(|it| *it > 0.0).map(|it| it * 1e9),
            update_ns_per_param: processors.update_ns_per_param,
            norm_ns_per_param: processors.norm_ns_per_param,
            drive_to_drive: self.drive_to_drive / 100.0,
            hop_seconds: seconds(self.hop_us, collectives.hop_seconds),
            noise_seconds: seconds(self.noise_us, collectives.noise_seconds),
            endurance_bytes: self.endurance_tbw.map(|tb| tb * 1e12),
            compute_seconds: self.compute_seconds,
        })
    }

    fn publish(&self, plan: &PlanResult) -> Result<()> {
        match &self.json {
            Some(path) if path.as_os_str() == "-" => say(to_json(plan)?),
            Some(path) => {
                write_to(path, &to_json(plan)?)?;
                say(plan_tables(plan))
            }
            None => say(plan_tables(plan)),
        }
    }
}
