//! `optswap plan`: before the run, what a model on a site needs.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;

use super::out::{to_json, write_to};
use super::plan_nodes::{DriveSpeed, Nodes, nodes};
use crate::forecast::{
    CheckpointForecast, Cluster, StateBytes, Swapping, predict, read_model, simulate,
};
use crate::measure::{CollectiveSpeed, ProcessorSpeed, measure_collectives, measure_processors};
use crate::report::{PlanResult, plan_tables};
use optswap::internals::config::{CacheSize, CodecsConfig, Config, HostRanges, MachineFacts};
use optswap::internals::coord::{Communicator, agree};
use optswap::internals::error::{Error, Result};
use optswap::internals::job::{Launch, LogRanks};
use optswap::internals::state::StateTensor;
use optswap::internals::units::Bytes;
use optswap_args::{DurabilityArg, say};

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

    /// Drives of this machine, as they were probed; every node is taken to have the same. Without
    /// this flag and --drive-mbps, they are found as for a job.
    #[arg(long, value_name = "DIR,DIR", value_delimiter = ',')]
    pub(super) drives: Vec<PathBuf>,

    /// Description of the site (TOML): its nodes, how many, with which drives, how fast [default:
    /// $OPTSWAP_SITE]. Drives of this machine that were probed count as they were.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["drives", "drive_mbps"])]
    pub(super) site: Option<PathBuf>,

    /// Which of the site's hosts, such as node[001-016],fat[01-02] [default: all with drives].
    #[arg(long, value_name = "HOSTS")]
    pub(super) hosts: Option<HostRanges>,

    /// Speeds of a node's drives in place of --drives, in MB/s, separated by commas: one number
    /// for each direction, or READ:WRITE:BOTH.
    #[arg(long, value_name = "MBPS,MBPS", value_delimiter = ',', conflicts_with = "drives")]
    pub(super) drive_mbps: Vec<DriveSpeed>,

    /// Space on each drive for state, such as 3.5TB.
    #[arg(long, value_name = "SIZE")]
    pub(super) drive_size: Option<Bytes>,

    /// Number of nodes; of a site, or of --hosts, the first so many [default: all of those, else
    /// 1].
    #[arg(long, value_name = "N")]
    pub(super) nodes: Option<u64>,

    /// Ranks on each node.
    #[arg(long, value_name = "N", default_value_t = 1)]
    ranks_per_node: u64,

    /// Memory of a node [default: as the site says; with --drives, this machine's].
    #[arg(long, value_name = "SIZE")]
    pub(super) memory: Option<Bytes>,

    /// Bandwidth of a node's memory, GB/s, if it may bind.
    #[arg(long, value_name = "GBPS")]
    memory_gbps: Option<f64>,

    /// What may be written to a drive in its life, in TB (TBW).
    #[arg(long, value_name = "TB")]
    pub(super) endurance_tbw: Option<f64>,

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

    /// How much of --memory-budget keeps chunks in memory between steps: a size, or `auto`
    /// [default: 0].
    #[arg(long, value_name = "SIZE|auto")]
    cache: Option<CacheSize>,

    /// Save a checkpoint every so many steps, as in a job.
    #[arg(long, value_name = "N")]
    checkpoint_every: Option<u64>,

    /// What all ranks together write to where checkpoints go, GB/s [default: as the site says].
    #[arg(long, value_name = "GBPS")]
    pub(super) checkpoint_gbps: Option<f64>,

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
    pub(super) spread: Option<f64>,

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

/// How to start the ranks, if there are several.
pub(super) fn launch() -> Launch {
    Launch {
        peer_timeout: Duration::from_secs(600),
        stall_warning: Duration::from_secs(30),
        log_ranks: LogRanks::default(),
        log_dir: None,
    }
}

pub(super) fn run(args: &PlanArgs, comm: &Arc<dyn Communicator>) -> Result<()> {
    let collectives = measure_collectives(&**comm)?;
    let done = if comm.rank().0 == 0 {
        args.plan(collectives).and_then(|plan| args.publish(&plan))
    } else {
        Ok(())
    };
    agree(&**comm, done)
}

impl PlanArgs {
    fn plan(&self, collectives: Option<CollectiveSpeed>) -> Result<PlanResult> {
        let (config, every) = self.config()?;
        let model = read_model(&self.model)?;
        self.check()?;
        let nodes = nodes(self, &config)?;
        let checkpoint_gb_per_s = self.checkpoint_gbps.or(nodes.checkpoint_gb_per_s);
        let cluster = self.cluster(&config, nodes, collectives)?;
        let swapping = Swapping::of(&config);
        let tensors = config.state_tensors();
        let state_bytes = StateBytes::of(&tensors, config.is_durable());
        let forecast = predict(model.params, &cluster, &state_bytes, &swapping)?;
        let (steps, seed) = (self.steps.max(1), self.seed);
        let simulation = simulate(model.params, &cluster, &state_bytes, &swapping, steps, seed)?;
        let checkpoints = (every > 0).then(|| {
            let speed = checkpoint_gb_per_s.map(|gb| gb * 1e9);
            CheckpointForecast::of(model.params, &tensors, every, speed, forecast.step_seconds)
        });
        let codec = |tensor: &StateTensor| {
            (tensor.name.clone().into_owned(), tensor.codec.name().to_owned())
        };
        let codecs = tensors.iter().map(codec).collect();
        Ok(PlanResult {
            schema: 3,
            model,
            cluster,
            codecs,
            state_bytes,
            swapping,
            forecast,
            checkpoints,
            simulation,
        })
    }

    /// The configuration, and how many steps there are from one checkpoint to the next; 0 is none.
    fn config(&self) -> Result<(Config, u64)> {
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
        config.swap.cache = self.cache.unwrap_or(config.swap.cache);
        // The directory of checkpoints plays no part in a plan, so it may be missing.
        let every = std::mem::take(&mut config.checkpoint.every);
        config.validate()?;
        Ok((config, self.checkpoint_every.unwrap_or(every)))
    }

    fn cluster(
        &self,
        config: &Config,
        nodes: Nodes,
        collectives: Option<CollectiveSpeed>,
    ) -> Result<Cluster> {
        let Nodes { kinds, cpu_ns_per_byte, .. } = nodes;
        let processors = match (self.update_ns, cpu_ns_per_byte) {
            (Some(ns), _) => ProcessorSpeed { update_ns_per_param: ns, norm_ns_per_param: 0.0 },
            (None, None) => ELSEWHERE,
            (None, Some(_)) => measure_processors(&config.codecs)
                .map_err(|error| error.hint("tell it with --update-ns, such as 0.5"))?,
        };
        let processors_here = MachineFacts::probe().cpus_allowed.len().max(1) as f64;
        let collectives = collectives.unwrap_or(COLLECTIVES);
        let seconds = |us: Option<f64>, measured: f64| us.map_or(measured, |us| us * 1e-6);
        Ok(Cluster {
            kinds,
            ranks_per_node: self.ranks_per_node,
            memory_bytes_per_s: self.memory_gbps.filter(|it| *it > 0.0).map(|it| it * 1e9),
            update_ns_per_param: processors.update_ns_per_param,
            norm_ns_per_param: processors.norm_ns_per_param,
            io_ns_per_byte: cpu_ns_per_byte.unwrap_or(0.0) / processors_here,
            drive_to_drive: self.drive_to_drive / 100.0,
            hop_seconds: seconds(self.hop_us, collectives.hop_seconds),
            noise_seconds: seconds(self.noise_us, collectives.noise_seconds),
            compute_seconds: self.compute_seconds,
        })
    }

    fn check(&self) -> Result<()> {
        if self.checkpoint_gbps == Some(0.0) {
            return Err(Error::usage("--checkpoint-gbps must be above 0"));
        }
        for (flag, value) in [
            ("--checkpoint-gbps", self.checkpoint_gbps),
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
        Ok(())
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
