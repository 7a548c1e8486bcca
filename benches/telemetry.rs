//! What telling costs: two jobs in one process take turns, one without any report, one that writes
//! metrics and traces every step. Their medians are a pair of one run.
//!
//! ```text
//! cargo bench --bench telemetry                     directories in target/ stand for drives
//! cargo bench --bench telemetry -- /nvme0/me        a drive
//! OPTSWAP_BENCH_STEPS=200 cargo bench --bench telemetry
//! ```

#![allow(clippy::unwrap_used, reason = "a benchmark may end where it fails")]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use half::bf16;
use optswap::internals::telemetry::median;
use optswap::{
    Config, CreateOptions, Gradients, Inventory, NoParameters, Parameter, Solo, StepOptions,
    SwappedOptimizer,
};

const PARAMS: usize = 8 << 20;

fn job(name: &str, drive: &Path, report: Option<&Path>) -> SwappedOptimizer {
    let mut config = Config { job: name.to_owned(), ..Config::default() };
    config.drives.paths = vec![drive.to_owned()];
    config.drives.allow_filesystems = vec!["tmpfs".to_owned()];
    config.swap.chunk_elements.0 = 256 << 10;
    if let Some(dir) = report {
        config.report.dir = Some(dir.to_owned());
        config.report.trace_steps = "1-1000000".parse().unwrap();
        config.report.trace_spans = 1 << 20;
    }
    config.validate().unwrap();
    let inventory = Inventory::new(vec![Parameter::new("w", [PARAMS])]).unwrap();
    let mut optimizer = SwappedOptimizer::create(
        &config,
        inventory,
        Arc::new(Solo::default()),
        CreateOptions::default(),
    )
    .unwrap();
    optimizer
        .initialize_parameters(&mut NoParameters, |_, masters| {
            masters.fill(0.01);
            Ok(())
        })
        .unwrap();
    optimizer
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|it| it != "--bench").collect();
    let steps = std::env::var("OPTSWAP_BENCH_STEPS").ok().and_then(|it| it.parse().ok());
    let steps: usize = steps.unwrap_or(60);
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let drive = arguments.first().map_or(folder.path().to_owned(), PathBuf::from);
    let report = folder.path().join("report");
    let mut jobs = [job("silent", &drive, None), job("telling", &drive, Some(&report))];
    let gradients = vec![bf16::from_f32(0.5); PARAMS];
    let mut params = vec![bf16::ZERO; PARAMS];
    let mut seconds = [Vec::new(), Vec::new()];
    for turn in 0..2 * (steps + 2) {
        // Silent, telling, telling, silent, ...: neither profits from the order.
        let which = (turn + turn / 2) % 2;
        let job = &mut jobs[which];
        let pieces = Gradients::Shard(&gradients);
        let outcome = job.step(&pieces, &mut params, StepOptions::default()).unwrap();
        if turn >= 4 {
            seconds[which].push(outcome.duration.as_secs_f64());
        }
    }
    let pairs = seconds[0].iter().zip(&seconds[1]);
    let ratios: Vec<f64> = pairs.map(|(silent, telling)| telling / silent).collect();
    println!(
        "{steps} pairs of steps of {PARAMS} parameters: {:.5} s silent, {:.5} s with metrics and \
         trace (medians); of the pairs, the median costs {:+.2} %",
        median(&seconds[0]),
        median(&seconds[1]),
        (median(&ratios) - 1.0) * 100.0
    );
    jobs.into_iter().for_each(SwappedOptimizer::close);
}
