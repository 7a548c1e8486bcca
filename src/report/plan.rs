//! A forecast for people.

use std::path::PathBuf;

use serde::Serialize;

use super::table::{counted, table};
use crate::forecast::{Forecast, Model, Percentiles, Simulation, Site, StateBytes, Swapping};
use crate::units::Bytes;

/// A forecast with the question that it answers.
#[derive(Clone, Debug, Serialize)]
pub struct PlanResult {
    /// Version of this layout.
    pub schema: u32,
    /// What is to be trained.
    pub model: Model,
    /// Where.
    pub site: Site,
    /// Directories on the drives, if they are here.
    pub drive_paths: Vec<PathBuf>,
    /// The codecs in one word for each state tensor.
    pub codecs: Vec<(String, String)>,
    /// Bytes of state of one parameter.
    pub state_bytes: StateBytes,
    /// How it swaps.
    pub swapping: Swapping,
    /// What a node needs.
    pub node: Forecast,
    /// Many steps of all ranks.
    pub simulation: Simulation,
}

/// Everything that people want to see.
pub fn plan_tables(plan: &PlanResult) -> String {
    let mut lines = vec![question(plan), drive_table(plan)];
    lines.extend(node_lines(plan));
    lines.push(simulation_table(&plan.simulation));
    lines.push(verdict(plan));
    lines.join("\n")
}

fn question(plan: &PlanResult) -> String {
    let PlanResult { model, site, state_bytes, .. } = plan;
    let codecs: Vec<String> =
        plan.codecs.iter().map(|(tensor, codec)| format!("{tensor} {codec}")).collect();
    let tensors = match model.tensors {
        0 => String::new(),
        count => format!(" in {}", counted(count, "tensor")),
    };
    format!(
        "{}: {} parameters{tensors} on {} of {} with {} each\n{}: {:.2} B read and {:.2} B written \
         per parameter and step",
        model.name,
        model.params,
        counted(site.nodes, "node"),
        counted(site.ranks_per_node, "rank"),
        counted(site.drives.len() as u64, "drive"),
        codecs.join(", "),
        state_bytes.read,
        state_bytes.written
    )
}

fn drive_table(plan: &PlanResult) -> String {
    let mut table = table(&[
        "drive of a node",
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
    for (index, (drive, known)) in plan.node.drives.iter().zip(&plan.site.drives).enumerate() {
        let path = plan.drive_paths.get(index).map(|path| path.display().to_string());
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

fn node_lines(plan: &PlanResult) -> Vec<String> {
    let node = &plan.node;
    let mut lines = vec![format!(
        "memory of a node: {} of I/O buffers ({} for each rank); gradients and parameters of two \
         bytes each, where they lie in memory: {}",
        Bytes(node.buffer_bytes).human(),
        counted(node.buffers_per_rank, "buffer"),
        Bytes(node.caller_bytes).human()
    )];
    let parts: Vec<String> = node
        .parts
        .iter()
        .map(|(part, seconds)| format!("{} {seconds:.4} s", format!("{part:?}").to_lowercase()))
        .collect();
    lines.push(format!(
        "step: {:.4} s, {:.3} ns per parameter, bound by {} (alone: {})",
        node.step_seconds,
        node.ns_per_param,
        format!("{:?}", node.bound_by).to_lowercase(),
        parts.join(", ")
    ));
    let billions = |params: u64| format!("{:.2} billion parameters", params as f64 / 1e9);
    let largest = match (node.largest_by_space, node.largest_by_memory) {
        (None, None) => return lines,
        (Some(space), None) => format!("{} by space", billions(space)),
        (None, Some(memory)) => format!("{} by memory", billions(memory)),
        (Some(space), Some(memory)) => format!(
            "{} (by space {}, by memory with gradients and parameters in it {})",
            billions(space.min(memory)),
            billions(space),
            billions(memory)
        ),
    };
    lines.push(format!("largest model that fits: {largest}"));
    lines
}

fn simulation_table(simulation: &Simulation) -> String {
    let mut table = table(&["simulated", "mean", "50 %", "90 %", "99 %", "max"]);
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
    let node = &plan.node;
    let lacks_space = |drive: &&crate::forecast::DriveForecast| {
        drive.free_bytes.is_some_and(|free| free < drive.space_bytes)
    };
    if let Some(drive) = node.drives.iter().find(lacks_space) {
        return format!(
            "it does not fit: a drive needs {} and has {}; take more nodes, more drives or smaller \
             codecs",
            Bytes(drive.space_bytes).human(),
            Bytes(drive.free_bytes.unwrap_or(0)).human()
        );
    }
    let memory = plan.site.memory_bytes;
    if let Some(memory) = memory.filter(|memory| *memory < node.buffer_bytes) {
        return format!(
            "it does not fit: I/O buffers take {} of a node's {}; lower --memory-budget",
            Bytes(node.buffer_bytes).human(),
            Bytes(memory).human()
        );
    }
    if let Some(memory) = memory.filter(|it| *it < node.buffer_bytes + node.caller_bytes) {
        return format!(
            "it fits the drives, but gradients and parameters do not all fit a node's memory of {}",
            Bytes(memory).human()
        );
    }
    match node.drives.iter().all(|drive| drive.free_bytes.is_some()) {
        true => "it fits".to_owned(),
        false => "whether it fits the drives is not known: tell --drive-size".to_owned(),
    }
}
