//! The result of a run, as it is written to JSON and CSV.

use serde::Serialize;

use super::records::RankRecord;
use super::verdict::Verdict;
use crate::config::Config;
use crate::timers::Timer;

/// What a run tells at its end.
#[derive(Clone, Debug, Serialize)]
pub struct RunResult {
    /// Version of this layout.
    pub schema: u32,
    /// Version of the program.
    pub optswap: &'static str,
    /// The command line.
    pub command: Vec<String>,
    /// The full resolved configuration.
    pub config: Config,
    /// Ranks.
    pub ranks: usize,
    /// Parameters (elements) of the world.
    pub params: u64,
    /// Recorded steps.
    pub steps: u64,
    /// Seconds of the last steps, the slowest rank's of each.
    pub step_seconds: Vec<f64>,
    /// What the steps were bound by.
    pub verdict: Verdict,
    /// Timers and counters of every rank.
    pub rank_records: Vec<RankRecord>,
}

/// Seconds of the steps that all ranks tell of, the slowest rank's of each.
pub fn step_seconds(records: &[RankRecord]) -> Vec<f64> {
    let steps = records.iter().map(|record| record.series.len()).min().unwrap_or(0);
    let slowest = |index: usize| {
        let of = |record: &RankRecord| {
            let step_ns = &record.series.step_ns;
            step_ns[step_ns.len() - steps + index]
        };
        records.iter().map(of).max().unwrap_or(0) as f64 / 1e9
    };
    (0..steps).map(slowest).collect()
}

impl RunResult {
    /// Of what all ranks recorded.
    pub fn new(config: &Config, rank_records: Vec<RankRecord>) -> Self {
        Self {
            schema: 1,
            optswap: env!("CARGO_PKG_VERSION"),
            command: std::env::args().collect(),
            config: config.clone(),
            ranks: rank_records.len(),
            params: rank_records.iter().map(|record| record.elems).sum(),
            steps: rank_records.iter().map(|record| record.steps).max().unwrap_or(0),
            step_seconds: step_seconds(&rank_records),
            verdict: Verdict::of(&rank_records),
            rank_records,
        }
    }

    /// A line for each drive of each rank, comma-separated, with a header.
    pub fn csv(&self) -> String {
        let mut text = String::from(
            "rank,host,drive,steps,step_s,own_s,waiting_s,read_bytes,written_bytes,reads,writes,\
             busy_s,depth_max,read_p50_s,read_p99_s,write_p50_s,write_p99_s\n",
        );
        let quoted = |text: String| match text.contains([',', '"', '\n']) {
            true => format!("\"{}\"", text.replace('"', "\"\"")),
            false => text,
        };
        let seconds = |ns: u64| ns as f64 / 1e9;
        for record in &self.rank_records {
            let step = record.seconds(Timer::Step);
            let own = record.seconds(Timer::StepOwn);
            let waiting = (step - own).max(0.0) + record.seconds(Timer::CollectivesBetween);
            for drive in &record.drives {
                let it = &drive.totals;
                let quantiles = [
                    it.read_latency.quantile_ns(0.5),
                    it.read_latency.quantile_ns(0.99),
                    it.write_latency.quantile_ns(0.5),
                    it.write_latency.quantile_ns(0.99),
                ];
                let cells = [
                    record.rank.to_string(),
                    quoted(record.host.clone()),
                    quoted(drive.root().display().to_string()),
                    record.steps.to_string(),
                    step.to_string(),
                    own.to_string(),
                    waiting.to_string(),
                    it.read_bytes.to_string(),
                    it.written_bytes.to_string(),
                    it.reads.to_string(),
                    it.writes.to_string(),
                    seconds(it.busy_ns).to_string(),
                    it.depth_max.to_string(),
                ];
                text.push_str(&cells.join(","));
                quantiles.iter().for_each(|ns| text.push_str(&format!(",{}", seconds(*ns))));
                text.push('\n');
            }
        }
        text
    }
}
