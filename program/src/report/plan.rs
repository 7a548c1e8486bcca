//! A forecast for people.

use serde::Serialize;

use crate::forecast::{
    BoundBy, CheckpointForecast, Cluster, DriveForecast, Forecast, Model, NodeForecast, NodeKind,
    Percentiles, Simulation, StateBytes, Swapping,
};
use optswap::internals::config::GradientPlace;
use optswap::internals::telemetry::TextTable;
use optswap::internals::units::{Bytes, counted, printable};

/// A forecast with the question that it answers.
#[derive(Clone, Debug, Serialize)]
pub struct PlanResult {
    /// Version of this layout.
    pub schema: u32,
    /// What is to be trained.
    pub model: Model,
    /// Where.
    pub cluster: Cluster,
    /// The codecs in one word for each state tensor.
    pub codecs: Vec<(String, String)>,
    /// Bytes of state of one parameter.
    pub state_bytes: StateBytes,
    /// How it swaps.
    pub swapping: Swapping,
    /// What it needs, and how long a step takes.
    pub forecast: Forecast,
    /// What saving checkpoints costs, if any are saved.
    pub checkpoints: Option<CheckpointForecast>,
    /// Many steps of all ranks.
    pub simulation: Simulation,
}

/// Everything that people want to see.
pub fn plan_tables(plan: &PlanResult) -> String {
    let mut lines = vec![question(plan)];
    lines.extend(plan.model.notes.iter().map(|note| format!("model: {note}")));
    for (kind, forecast) in kinds(plan) {
        lines.push(drive_table(kind, forecast));
    }
    lines.extend(node_lines(plan));
    lines.extend(plan.checkpoints.as_ref().map(checkpoint_line));
    lines.push(simulation_table(&plan.simulation));
    lines.push(verdict(plan));
    lines.join("\n")
}

fn kinds(plan: &PlanResult) -> impl Iterator<Item = (&NodeKind, &NodeForecast)> {
    plan.cluster.kinds.iter().zip(&plan.forecast.kinds)
}

fn question(plan: &PlanResult) -> String {
    let PlanResult { model, cluster, state_bytes, swapping, .. } = plan;
    let codecs: Vec<String> =
        plan.codecs.iter().map(|(tensor, codec)| format!("{tensor} {codec}")).collect();
    let tensors = match model.tensors {
        0 => String::new(),
        count => format!(" in {}", counted(count, "tensor")),
    };
    let drives = |kind: &NodeKind| counted(kind.drives.len() as u64, "drive");
    let with = match cluster.kinds.as_slice() {
        [only] => format!("with {} each", drives(only)),
        kinds => {
            let one =
                |kind: &NodeKind| format!("{} of {} with {}", kind.nodes, kind.name, drives(kind));
            format!("each: {}", kinds.iter().map(one).collect::<Vec<_>>().join(", "))
        }
    };
    let commits = match swapping.commit_every {
        None => "scratch".to_owned(),
        Some(1) => "every step a commit".to_owned(),
        Some(every) => format!("a commit every {every} steps"),
    };
    format!(
        "{}: {} parameters{tensors} on {} of {} {with}\n{}: {:.2} B read and {:.2} B written \
         per parameter that moves in a step; {commits}",
        printable(&model.name),
        model.params,
        counted(cluster.nodes(), "node"),
        counted(cluster.ranks_per_node, "rank"),
        codecs.join(", "),
        state_bytes.read,
        state_bytes.written
    )
}

fn drive_table(kind: &NodeKind, forecast: &NodeForecast) -> String {
    let title = format!("drive of {}", kind.name);
    let mut table = TextTable::of_numbers([
        &title,
        "share",
        "space",
        "free",
        "read per step",
        "written per step",
        "read GB/s",
        "write GB/s",
        "both GB/s",
        "days of life",
    ]);
    let human = |bytes: u64| Bytes(bytes).human();
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    for (index, (drive, known)) in forecast.drives.iter().zip(&kind.drives).enumerate() {
        let path = known.path.as_ref().map(|path| path.display().to_string());
        let gb = |bytes_per_s: f64| format!("{:.3}", bytes_per_s / 1e9);
        table.add_row([
            path.unwrap_or_else(|| index.to_string()),
            format!("{:.1} %", drive.share * 100.0),
            human(drive.space_bytes),
            or_dash(drive.free_bytes.map(human)),
            human(drive.read_bytes),
            human(drive.written_bytes),
            gb(known.bandwidth.read),
            gb(known.bandwidth.write),
            gb(known.bandwidth.mixed),
            or_dash(drive.endurance_days.map(|days| format!("{days:.0}"))),
        ]);
    }
    table.to_string()
}

fn word(bound_by: BoundBy) -> String {
    format!("{bound_by:?}").to_lowercase()
}

fn node_lines(plan: &PlanResult) -> Vec<String> {
    let forecast = &plan.forecast;
    let kept = match forecast.kept_per_rank {
        0 => String::new(),
        kept => format!(", {kept} of them for chunks that stay"),
    };
    let mut lines = vec![format!(
        "memory of a node: {} of I/O buffers ({} for each rank{kept}), {} of tables; {} of two \
         bytes each, where they lie in memory: {}",
        Bytes(forecast.buffer_bytes).human(),
        counted(forecast.buffers_per_rank, "buffer"),
        Bytes(forecast.table_bytes).human(),
        match plan.swapping.gradients {
            GradientPlace::Caller => "gradients and parameters",
            _ => "parameters",
        },
        Bytes(forecast.caller_bytes).human()
    )];
    if plan.swapping.gradients != GradientPlace::Caller {
        lines.push(format!(
            "gradients handed over: {} of a node in memory, {} on its drives, written in {:.4} s; \
             what --compute-seconds does not hide of that is part of the step",
            Bytes(forecast.gradient_memory_bytes).human(),
            Bytes(forecast.spilled_gradient_bytes).human(),
            forecast.spill_seconds
        ));
    }
    if forecast.kinds.len() > 1 {
        lines.extend(kinds(plan).map(|(kind, node)| {
            let (seconds, by) = (node.step_seconds, word(node.bound_by));
            format!("nodes {}: {seconds:.4} s by themselves, bound by {by}", kind.name)
        }));
        let slowest = &plan.cluster.kinds[forecast.slowest].name;
        lines.push(format!("all wait for nodes {slowest}"));
    }
    let slowest = &forecast.kinds[forecast.slowest];
    let part = |(part, seconds): &(BoundBy, f64)| format!("{} {seconds:.4} s", word(*part));
    let parts: Vec<String> = slowest.parts.iter().map(part).collect();
    lines.push(format!(
        "step: {:.4} s, {:.3} ns per parameter, bound by {} (alone: {})",
        forecast.step_seconds,
        forecast.ns_per_param,
        word(forecast.bound_by),
        parts.join(", ")
    ));
    let billions = |params: u64| format!("{:.2} billion parameters", params as f64 / 1e9);
    let largest = match (forecast.largest_by_space, forecast.largest_by_memory) {
        (None, None) => return lines,
        (Some(space), None) => format!("{} by space", billions(space)),
        (None, Some(memory)) => format!("{} by memory", billions(memory)),
        (Some(space), Some(memory)) => format!(
            "{} (by space {}, by memory with what the program keeps in it {})",
            billions(space.min(memory)),
            billions(space),
            billions(memory)
        ),
    };
    lines.push(format!("largest model that fits: {largest}"));
    lines
}

fn checkpoint_line(it: &CheckpointForecast) -> String {
    let size =
        format!("checkpoint every {}: {}", counted(it.every, "step"), Bytes(it.bytes).human());
    match (it.seconds, it.saving_step_seconds, it.mean_step_seconds) {
        (Some(seconds), Some(saving), Some(mean)) => format!(
            "{size}, written in {seconds:.1} s while training goes on; the step that saves takes \
             {saving:.4} s, steps on average {mean:.4} s"
        ),
        _ => format!("{size}; how long that takes is not known: tell --checkpoint-gbps"),
    }
}

fn simulation_table(simulation: &Simulation) -> String {
    let mut table = TextTable::of_numbers(["simulated", "mean", "50 %", "90 %", "99 %", "max"]);
    let mut row = |name: &str, it: &Percentiles, factor: f64| {
        let [mean, p50, p90, p99, max] =
            [it.mean, it.p50, it.p90, it.p99, it.max].map(|value| format!("{:.4}", value * factor));
        table.add_row([name.to_owned(), mean, p50, p90, p99, max]);
    };
    row("step of all ranks, s", &simulation.step_seconds, 1.0);
    row("a rank's own part, s", &simulation.own_seconds, 1.0);
    row("waiting for the slowest, % of step", &simulation.waiting_share, 100.0);
    format!(
        "{table}\n{} and {}, seed {}: {:.1} % of the speed at which nothing varies",
        counted(simulation.ranks, "rank"),
        counted(simulation.steps, "step"),
        simulation.seed,
        simulation.efficiency * 100.0
    )
}

/// Whether it fits.
fn verdict(plan: &PlanResult) -> String {
    let lacks_space =
        |drive: &&DriveForecast| drive.free_bytes.is_some_and(|free| free < drive.space_bytes);
    let drives = || kinds(plan).flat_map(|(_, node)| &node.drives);
    if let Some(drive) = drives().find(lacks_space) {
        let headroom = match plan.swapping.stripe_headroom {
            0.0 => String::new(),
            headroom => format!(", {:.0} % of the state as headroom included", headroom * 100.0),
        };
        return format!(
            "it does not fit: a drive needs {}{headroom}, and has {}; take more nodes, more \
             drives, smaller codecs or a lower drives.stripe_headroom",
            Bytes(drive.space_bytes).human(),
            Bytes(drive.free_bytes.unwrap_or(0)).human()
        );
    }
    let forecast = &plan.forecast;
    let buffers = forecast.buffer_bytes + forecast.gradient_memory_bytes + forecast.table_bytes;
    let caller = plan.forecast.caller_bytes;
    let memory = plan.cluster.kinds.iter().filter_map(|kind| kind.memory_bytes).min();
    if let Some(memory) = memory.filter(|memory| *memory < buffers) {
        return format!(
            "it does not fit: I/O buffers and tables take {} of a node's {}; lower --memory-budget",
            Bytes(buffers).human(),
            Bytes(memory).human()
        );
    }
    if let Some(memory) = memory.filter(|it| *it < buffers + caller) {
        return format!(
            "it fits the drives, but what the program keeps does not all fit a node's memory of {}",
            Bytes(memory).human()
        );
    }
    if drives().all(|drive| drive.free_bytes.is_some()) {
        "it fits".to_owned()
    } else {
        "whether it fits the drives is not known: tell --drive-size".to_owned()
    }
}
