//! A rank's metrics in Prometheus' text format, for node exporter's textfile collector. Every name
//! stands here once, with its type and help; counters count from the start of the process.

use std::fmt::Write as _;

use super::series::StepSample;
use crate::io::DriveTotals;
use crate::timers::{Latency, Section};

/// The values of the metrics' labels.
#[derive(Clone, Debug)]
pub(super) struct Labels {
    pub job: String,
    pub rank: u32,
    pub host: String,
    pub drives: Vec<String>,
}

/// Sums since the start of the process.
#[derive(Clone, Debug, Default)]
pub(super) struct Lifetime {
    pub drives: Vec<DriveTotals>,
    pub steps: u64,
    pub skipped: u64,
    pub last_step: u64,
    pub last_step_unix_s: f64,
    pub step_latency: Latency,
    pub sections_ns: [u64; Section::ALL.len()],
    pub between_ns: u64,
    pub own_ns: u64,
    pub waiting_ns: u64,
    pub kernel_read_bytes: u64,
    pub kernel_written_bytes: u64,
    pub cache_hit_bytes: u64,
    pub spilled_gradient_bytes: u64,
    pub elems: u64,
    pub endurance_bytes: u64,
    pub is_running: bool,
}

impl Lifetime {
    pub fn add_step(&mut self, sample: &StepSample, unix_s: f64) {
        self.steps += 1;
        self.skipped += u64::from(sample.skipped);
        (self.last_step, self.last_step_unix_s) = (sample.step, unix_s);
        self.step_latency.record(std::time::Duration::from_nanos(sample.step_ns));
        let sections = self.sections_ns.iter_mut().zip(sample.sections_ns);
        sections.for_each(|(sum, ns)| *sum += ns);
        self.between_ns += sample.between_ns;
        self.own_ns += sample.own_ns;
        self.waiting_ns += sample.waiting_ns;
        self.kernel_read_bytes += sample.kernel_read_bytes;
        self.kernel_written_bytes += sample.kernel_written_bytes;
        self.cache_hit_bytes += sample.cache_hit_bytes;
        self.spilled_gradient_bytes += sample.spilled_gradient_bytes;
    }
}

struct Text<'a> {
    labels: &'a Labels,
    text: String,
}

fn seconds(ns: u64) -> f64 {
    ns as f64 / 1e9
}

/// A label's value with the escapes of the format.
fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

impl Text<'_> {
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.text, "# HELP optswap_{name} {help}\n# TYPE optswap_{name} {kind}");
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: f64) {
        let Labels { job, rank, host, .. } = self.labels;
        let (job, host) = (escaped(job), escaped(host));
        let _ =
            write!(self.text, "optswap_{name}{{job_name=\"{job}\",host=\"{host}\",rank=\"{rank}\"");
        for (label, value) in labels {
            let _ = write!(self.text, ",{label}=\"{}\"", escaped(value));
        }
        let _ = writeln!(self.text, "}} {value}");
    }

    fn single(&mut self, name: &str, kind: &str, help: &str, value: f64) {
        self.family(name, kind, help);
        self.sample(name, &[], value);
    }

    /// Buckets at powers of two nanoseconds, where those of the histogram end.
    fn histogram(&mut self, name: &str, labels: &[(&str, &str)], of: &Latency, bits: [u32; 2]) {
        let bucket = format!("{name}_bucket");
        let with = |limit: &str, value: f64, text: &mut Self| {
            let mut labels = labels.to_vec();
            labels.push(("le", limit));
            text.sample(&bucket, &labels, value);
        };
        for bits in bits[0]..=bits[1] {
            let below = of.count_below(1 << bits) as f64;
            with(&format!("{}", seconds(1 << bits)), below, self);
        }
        with("+Inf", of.count() as f64, self);
        self.sample(&format!("{name}_sum"), labels, seconds(of.sum_ns()));
        self.sample(&format!("{name}_count"), labels, of.count() as f64);
    }

    /// One value for each drive.
    fn per_drive(
        &mut self,
        (name, kind, help): (&str, &str, &str),
        of: &[DriveTotals],
        value: impl Fn(&DriveTotals) -> f64,
    ) {
        self.family(name, kind, help);
        for (drive, totals) in self.labels.drives.iter().zip(of) {
            self.sample(name, &[("drive", drive)], value(totals));
        }
    }

    /// Two values for each drive, one for each direction.
    fn per_direction(
        &mut self,
        (name, help): (&str, &str),
        of: &[DriveTotals],
        values: impl Fn(&DriveTotals) -> [f64; 2],
    ) {
        self.family(name, "counter", help);
        for (drive, totals) in self.labels.drives.iter().zip(of) {
            for (direction, value) in ["read", "write"].into_iter().zip(values(totals)) {
                self.sample(name, &[("drive", drive), ("direction", direction)], value);
            }
        }
    }
}

/// The whole file.
pub(super) fn text(labels: &Labels, of: &Lifetime) -> String {
    let mut text = Text { labels, text: String::with_capacity(16 << 10) };
    text.family("info", "gauge", "Always 1; the version is a label.");
    text.sample("info", &[("version", env!("CARGO_PKG_VERSION"))], 1.0);
    let running = f64::from(u8::from(of.is_running));
    text.single("running", "gauge", "1 while the rank lives, 0 when it has ended.", running);
    let help = "Parameters (elements) of the rank's shard.";
    text.single("shard_parameters", "gauge", help, of.elems as f64);
    steps(&mut text, of);
    drives(&mut text, of);
    text.text
}

fn steps(text: &mut Text<'_>, of: &Lifetime) {
    let help = "Number of the last step, counted over all starts of the job.";
    text.single("last_step", "gauge", help, of.last_step as f64);
    let help = "When the last step ended, in seconds since 1970.";
    text.single("last_step_timestamp_seconds", "gauge", help, of.last_step_unix_s);
    text.single("steps_total", "counter", "Steps since the start.", of.steps as f64);
    let help = "Steps that were skipped because of an infinity or NaN.";
    text.single("steps_skipped_total", "counter", help, of.skipped as f64);
    text.family("step_seconds", "histogram", "How long steps took.");
    text.histogram("step_seconds", &[], &of.step_latency, [20, 36]);
    let help = "Time in steps by what it was spent on.";
    text.family("section_seconds_total", "counter", help);
    for (section, ns) in Section::ALL.into_iter().zip(of.sections_ns) {
        let label = section.name().replace(' ', "_");
        text.sample("section_seconds_total", &[("section", &label)], seconds(ns));
    }
    let help = "Time in steps that was not waiting for other ranks.";
    text.single("own_seconds_total", "counter", help, seconds(of.own_ns));
    let help = "Time between steps that was not waiting for other ranks.";
    text.single("between_steps_seconds_total", "counter", help, seconds(of.between_ns));
    let help = "Waiting for other ranks, in steps and between them.";
    text.single("waiting_seconds_total", "counter", help, seconds(of.waiting_ns));
    let help = "Bytes of state that were still in memory, so that they were not read.";
    text.single("cache_hit_bytes_total", "counter", help, of.cache_hit_bytes as f64);
    let help = "Bytes of gradients that were written to drives.";
    let spilled = of.spilled_gradient_bytes as f64;
    text.single("spilled_gradient_bytes_total", "counter", help, spilled);
}

fn drives(text: &mut Text<'_>, of: &Lifetime) {
    let drives = &of.drives;
    let read = ("read_bytes_total", "counter", "Bytes read from the drive in steps.");
    text.per_drive(read, drives, |it| it.read_bytes as f64);
    let written = ("written_bytes_total", "counter", "Bytes written to the drive in steps.");
    text.per_drive(written, drives, |it| it.written_bytes as f64);
    let help = "Bytes that the kernel has read from storage for the rank in steps.";
    text.single("kernel_read_bytes_total", "counter", help, of.kernel_read_bytes as f64);
    let help = "Bytes that the kernel has written to storage for the rank in steps.";
    text.single("kernel_written_bytes_total", "counter", help, of.kernel_written_bytes as f64);
    let help = "Time with at least one operation of the direction in flight.";
    text.per_direction(("drive_busy_seconds_total", help), drives, |it| {
        [seconds(it.read_busy_ns), seconds(it.write_busy_ns)]
    });
    let depth = ("queue_depth_max", "gauge", "The most operations in flight so far.");
    text.per_drive(depth, drives, |it| f64::from(it.depth_max));
    if of.endurance_bytes > 0 {
        let help = "What may be written to the drive in its life, as configured.";
        let endurance = ("drive_endurance_bytes", "gauge", help);
        text.per_drive(endurance, drives, |_| of.endurance_bytes as f64);
    }
    text.family("operation_seconds", "histogram", "From submission to completion.");
    for (drive, totals) in text.labels.drives.iter().zip(drives) {
        let latencies = [("read", &totals.read_latency), ("write", &totals.write_latency)];
        for (direction, latency) in latencies {
            let labels = [("drive", drive.as_str()), ("direction", direction)];
            text.histogram("operation_seconds", &labels, latency, [14, 34]);
        }
    }
}
