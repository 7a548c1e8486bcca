//! The result of a run, as it is written to JSON and CSV.

use serde::{Serialize, Serializer};

use super::records::{DriveRecord, RankRecord};
use super::verdict::Verdict;
use crate::config::Config;
use crate::error::{Error, Result};
use crate::timers::Timer;

/// What is known of a run at its end.
#[derive(Clone, Debug, Serialize)]
pub struct RunResult {
    /// Version of this layout.
    pub schema: u32,
    /// Version of the program.
    pub optswap: &'static str,
    /// The command line that started this rank's process.
    pub command: Vec<String>,
    /// The full resolved configuration.
    pub config: Config,
    /// Number of ranks.
    pub ranks: usize,
    /// Elements of all ranks' shards together.
    pub params: u64,
    /// Number of steps that were recorded.
    pub steps: u64,
    /// Seconds that each of the last steps took on the rank that was slowest in it.
    pub step_seconds: Vec<f64>,
    /// What the steps were bound by.
    pub verdict: Verdict,
    /// Timers and counters of every rank.
    pub rank_records: Vec<RankRecord>,
}

/// Seconds that each step took on the rank that was slowest in it, for the last steps that all
/// ranks have a record of.
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
    /// The result of a run that was started with this command line, from the records of all ranks.
    pub fn new(config: &Config, command: Vec<String>, rank_records: Vec<RankRecord>) -> Self {
        Self {
            schema: 1,
            optswap: env!("CARGO_PKG_VERSION"),
            command,
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
    ///
    /// # Errors
    /// None but bugs: internal if a line cannot be written.
    pub fn csv(&self) -> Result<String> {
        let mut writer = csv::Writer::from_writer(Vec::new());
        let mut rows = self
            .rank_records
            .iter()
            .flat_map(|record| record.drives.iter().map(move |drive| DriveRow::new(record, drive)));
        let written = rows.try_for_each(|row| writer.serialize(row));
        let failed =
            |why: String| Error::internal("a result cannot be written as CSV").because(why);
        written.map_err(|error| failed(error.to_string()))?;
        let bytes = writer.into_inner().map_err(|error| failed(error.to_string()))?;
        String::from_utf8(bytes).map_err(|error| failed(error.to_string()))
    }
}

/// What one rank moved on one drive: a line of the CSV file. Times are in seconds, summed over the
/// steps.
#[derive(Serialize)]
struct DriveRow<'a> {
    rank: u32,
    host: &'a str,
    drive: String,
    steps: u64,
    step_s: Decimal,
    own_s: Decimal,
    waiting_s: Decimal,
    read_bytes: u64,
    written_bytes: u64,
    reads: u64,
    writes: u64,
    busy_s: Decimal,
    depth_max: u32,
    read_p50_s: Decimal,
    read_p99_s: Decimal,
    write_p50_s: Decimal,
    write_p99_s: Decimal,
}

impl<'a> DriveRow<'a> {
    fn new(record: &'a RankRecord, drive: &DriveRecord) -> Self {
        let (step_s, own_s) = (record.seconds(Timer::Step), record.seconds(Timer::StepOwn));
        let waiting_s = (step_s - own_s).max(0.0) + record.seconds(Timer::CollectivesBetween);
        let totals = &drive.totals;
        Self {
            rank: record.rank,
            host: &record.host,
            drive: drive.root().display().to_string(),
            steps: record.steps,
            step_s: Decimal(step_s),
            own_s: Decimal(own_s),
            waiting_s: Decimal(waiting_s),
            read_bytes: totals.read_bytes,
            written_bytes: totals.written_bytes,
            reads: totals.reads,
            writes: totals.writes,
            busy_s: seconds(totals.busy_ns),
            depth_max: totals.depth_max,
            read_p50_s: seconds(totals.read_latency.quantile_ns(0.5)),
            read_p99_s: seconds(totals.read_latency.quantile_ns(0.99)),
            write_p50_s: seconds(totals.write_latency.quantile_ns(0.5)),
            write_p99_s: seconds(totals.write_latency.quantile_ns(0.99)),
        }
    }
}

fn seconds(ns: u64) -> Decimal {
    Decimal(ns as f64 / 1e9)
}

/// A number that is written without an exponent, for programs that do not read those.
struct Decimal(f64);

impl Serialize for Decimal {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::verdict::tests::record;

    #[test]
    fn a_line_of_the_csv_file_has_plain_numbers_and_quotes_only_where_it_must() {
        let mut records = vec![record(0, "node01", 900), record(1, "a,\"b\"", 1000)];
        records[1].timers.clear();
        let result = RunResult::new(&Config::default(), vec!["train".to_owned()], records);
        let expected = "\
rank,host,drive,steps,step_s,own_s,waiting_s,read_bytes,written_bytes,reads,writes,busy_s,\
depth_max,read_p50_s,read_p99_s,write_p50_s,write_p99_s
0,node01,/nvme0,4,4,3.6,0.3999999999999999,4000000000,4000000000,40,40,3.8,7,0,0,0.008,0.008
1,\"a,\"\"b\"\"\",/nvme1,4,0,0,0,4000000000,4000000000,40,40,3.8,7,0,0,0.008,0.008
";
        assert_eq!(result.csv().unwrap(), expected);
    }
}
