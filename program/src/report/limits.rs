//! What the limits of this process mean for a job that is started in the same way (ulimit).

use super::checks::Check;
use optswap::internals::config::MachineFacts;
use optswap::internals::units::Bytes;

/// Files that a rank has open beside two for each drive: records, logs, metrics, MPI's.
const OPEN_FILES_MIN: u64 = 256;

/// Sizes of files, open files, and memory of one rank, whose buffers take this much.
pub fn limit_checks(facts: &MachineFacts, budget: Bytes) -> Vec<Check> {
    vec![file_sizes(facts), open_files(facts), mapped_memory(facts, budget)]
}

fn file_sizes(facts: &MachineFacts) -> Check {
    let name = "file sizes";
    match facts.file_size_limit {
        None => Check::ok(name, "no limit"),
        Some(limit) => Check::warning(
            name,
            format!(
                "limit {}: a rank's file on a drive, or in a checkpoint, can be no larger",
                limit.human()
            ),
            "ulimit -f unlimited; Slurm hands on the limits of the shell that submits, unless \
             asked not to (--propagate=NONE)",
        ),
    }
}

fn open_files(facts: &MachineFacts) -> Check {
    let name = "open files";
    match facts.open_files_limit {
        Some(limit) if limit < OPEN_FILES_MIN => Check::warning(
            name,
            format!("limit {limit}: a rank has two for each drive, and MPI many"),
            format!("ulimit -n {OPEN_FILES_MIN}, or more"),
        ),
        Some(limit) => Check::ok(name, format!("limit {limit}")),
        None => Check::ok(name, "no limit"),
    }
}

fn mapped_memory(facts: &MachineFacts, budget: Bytes) -> Check {
    let name = "mapped memory";
    match facts.mapped_memory_limit {
        None => Check::ok(name, "no limit"),
        Some(limit) if limit > budget => Check::ok(name, format!("limit {}", limit.human())),
        Some(limit) => Check::problem(
            name,
            format!("limit {}, no more than a rank's buffers ({})", limit.human(), budget.human()),
            "ulimit -v unlimited and ulimit -d unlimited, or lower swap.memory_budget",
        ),
    }
}
