//! What a machine's facts mean for optswap: whether each is in order, and if not, what to do about
//! it. The facts are given; nothing is looked up here.

use std::io;

use serde::Serialize;

use optswap::internals::config::{EngineName, MachineFacts};
use optswap::internals::error::Error;
use optswap::internals::io::UringTrial;
use optswap::internals::units::Bytes;

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// As it should be.
    Ok,
    /// optswap works, but slower than it could, or not as somebody may expect.
    Warning,
    /// optswap cannot work.
    Problem,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What was looked at, such as `io_uring` or `direct I/O on /nvme0/me`.
    pub name: String,
    /// How it is.
    pub state: State,
    /// What was found, in words.
    pub found: String,
    /// What to do about it, if anything.
    pub fix: Option<String>,
}

impl Check {
    /// Something that is as it should be.
    pub fn ok(name: impl Into<String>, found: impl Into<String>) -> Self {
        Self { name: name.into(), state: State::Ok, found: found.into(), fix: None }
    }

    /// Something that could be better, and how.
    pub fn warning(
        name: impl Into<String>,
        found: impl Into<String>,
        fix: impl Into<String>,
    ) -> Self {
        Self { state: State::Warning, fix: Some(fix.into()), ..Self::ok(name, found) }
    }

    /// Something that stops optswap, and what to do.
    pub fn problem(
        name: impl Into<String>,
        found: impl Into<String>,
        fix: impl Into<String>,
    ) -> Self {
        Self { state: State::Problem, ..Self::warning(name, found, fix) }
    }

    /// An error that stops optswap.
    pub fn of_error(name: impl Into<String>, error: &Error) -> Self {
        let fix = error.help().map(str::to_owned);
        Self { state: State::Problem, fix, ..Self::ok(name, error.sentence()) }
    }
}

/// What the machine's settings mean for so many ranks, each with this much memory for buffers.
pub fn machine_checks(facts: &MachineFacts, ranks: u64, budget: Bytes) -> Vec<Check> {
    let buffers = Buffers { ranks, of_all: Bytes(budget.0.saturating_mul(ranks)) };
    vec![
        Check::ok("kernel", format!("Linux {} on {}", facts.kernel, std::env::consts::ARCH)),
        locked_memory(facts, &buffers),
        memory(facts, &buffers),
        huge_pages(facts),
        processors(facts),
        Check::ok("NUMA", numa(facts)),
    ]
}

/// Whether io_uring may be used, and if not, what forbids it.
pub fn uring_check(
    trial: &io::Result<UringTrial>,
    facts: &MachineFacts,
    engine: EngineName,
) -> Check {
    let name = "io_uring";
    let error = match trial {
        Ok(UringTrial { setup, registered: Ok(()) }) => {
            return Check::ok(name, format!("allowed ({setup}, registered buffers)"));
        }
        Ok(UringTrial { setup, registered: Err(error) }) => {
            let size = Bytes(UringTrial::BUFFER_BYTES as u64);
            let found = format!("allowed ({setup}), but registering {size} is refused: {error}");
            return Check::warning(name, found, LOCKED_MEMORY_FIX);
        }
        Err(error) => error,
    };
    let (why, fix) = match (facts.uring_disabled, error.raw_os_error()) {
        (Some(2), _) => (
            "kernel.io_uring_disabled = 2 forbids it to all",
            "as root: sysctl kernel.io_uring_disabled=0",
        ),
        (Some(1), Some(EPERM)) => (
            "kernel.io_uring_disabled = 1 forbids it to users outside of one group",
            "as root: sysctl kernel.io_uring_disabled=0, or add the user to the group that \
             kernel.io_uring_group names",
        ),
        (_, Some(ENOSYS)) if !facts.has_seccomp_filter => {
            ("the kernel is built without it", "use a kernel with CONFIG_IO_URING")
        }
        (_, Some(EPERM | EACCES | ENOSYS)) if facts.has_seccomp_filter => (
            "a seccomp filter is active, most often a container's",
            "allow io_uring_setup, io_uring_enter and io_uring_register in the container's \
             seccomp profile",
        ),
        (_, Some(ENOMEM)) => ("memory may not be locked", LOCKED_MEMORY_FIX),
        _ => (
            "no known setting forbids it",
            "ask the administrator for a security module or a filter that forbids io_uring",
        ),
    };
    let found = format!("refused: {error}; {why}");
    match engine {
        EngineName::Uring => {
            Check::problem(name, found, format!("{fix}; or set io.engine = \"auto\""))
        }
        EngineName::Auto => Check::warning(
            name,
            format!("{found}; I/O goes through a pool of threads, which costs processor time"),
            fix,
        ),
        EngineName::Threads => Check::ok(name, format!("{found}; io.engine = \"threads\" is set")),
    }
}

const EPERM: i32 = 1;
const ENOMEM: i32 = 12;
const EACCES: i32 = 13;
const ENOSYS: i32 = 38;

const LOCKED_MEMORY_FIX: &str = "raise the limit: ulimit -l unlimited, LimitMEMLOCK=infinity in \
     the batch system's service, or memlock in /etc/security/limits.conf";

/// What the I/O buffers of a node's ranks take together.
struct Buffers {
    ranks: u64,
    of_all: Bytes,
}

impl std::fmt::Display for Buffers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.ranks {
            1 => write!(f, "the {} of a rank's buffers", self.of_all.human()),
            ranks => write!(f, "the {} of {ranks} ranks' buffers", self.of_all.human()),
        }
    }
}

fn locked_memory(facts: &MachineFacts, buffers: &Buffers) -> Check {
    let name = "locked memory";
    match facts.locked_memory_limit {
        None => Check::ok(name, "no limit"),
        Some(limit) if facts.may_lock_all => {
            Check::ok(name, format!("limit {}, not for this process (CAP_IPC_LOCK)", limit.human()))
        }
        Some(limit) if limit >= buffers.of_all => {
            let found = format!("limit {}, for all ranks of a user together", limit.human());
            Check::ok(name, format!("{found}, above {buffers}"))
        }
        Some(limit) => {
            let found = format!(
                "limit {}, for all ranks of a user together, less than {buffers}: those beyond it \
                 will not be registered with io_uring, which costs processor time",
                limit.human()
            );
            Check::warning(name, found, LOCKED_MEMORY_FIX)
        }
    }
}

fn memory(facts: &MachineFacts, buffers: &Buffers) -> Check {
    let name = "memory";
    let Some((limit, source)) = facts.memory else {
        return Check::ok(name, "nothing tells how much there is");
    };
    let found = format!("{} ({source})", limit.human());
    if limit >= buffers.of_all {
        Check::ok(name, found)
    } else {
        Check::problem(
            name,
            format!("{found}, less than {buffers}"),
            "give the job more memory, or lower swap.memory_budget",
        )
    }
}

fn huge_pages(facts: &MachineFacts) -> Check {
    let name = "huge pages";
    let reserved = match facts.reserved_huge_pages {
        None | Some(0) => String::new(),
        Some(count) => format!("; {count} are set aside, which optswap takes first"),
    };
    match facts.huge_pages.as_deref() {
        Some("always" | "madvise") => Check::ok(name, format!("transparent ones{reserved}")),
        Some(other) => Check::warning(
            name,
            format!("transparent_hugepage = {other}: registering buffers is slower{reserved}"),
            "as root: echo madvise > /sys/kernel/mm/transparent_hugepage/enabled",
        ),
        None => Check::ok(name, format!("none in this kernel{reserved}")),
    }
}

fn processors(facts: &MachineFacts) -> Check {
    let (allowed, online) = (facts.cpus_allowed.len(), facts.cpus_online.len());
    let found = format!("{allowed} of {online} may be used");
    if allowed == 1 && online > 1 {
        Check::warning(
            "processors",
            format!("{found}: updates will have one thread"),
            "mpirun --bind-to none or --map-by slot:PE=k (Open MPI), srun -c k (Slurm)",
        )
    } else {
        Check::ok("processors", found)
    }
}

fn numa(facts: &MachineFacts) -> String {
    match facts.numa_nodes.len() {
        0 => "the kernel tells of no nodes".to_owned(),
        1 => "one node".to_owned(),
        count => format!("{count} nodes; this process may run on {:?}", facts.nodes_allowed()),
    }
}

/// Which MPI is built in, against the launchers that were found: name, and what it says of itself.
pub fn mpi_check(library: Option<&str>, launchers: &[(String, String)]) -> Check {
    let name = "MPI";
    let Some(library) = library else {
        let found = "not built in: one process is the whole job";
        return Check::ok(name, found);
    };
    let built_in = mpi_name(library);
    let Some(kind) = mpi_kind(library) else {
        return Check::ok(name, built_in);
    };
    let fits = |(_, version): &&(String, String)| mpi_kind(version) == Some(kind);
    let describe = |(path, version): &(String, String)| {
        format!("{path} ({})", mpi_kind(version).unwrap_or("of an unknown MPI"))
    };
    let found: Vec<String> = launchers.iter().map(describe).collect();
    match (launchers.iter().find(fits), launchers.first()) {
        (Some(fitting), Some(first)) if fitting.0 == first.0 => {
            Check::ok(name, format!("{built_in}, {}", found.join(", ")))
        }
        (Some(fitting), _) => Check::warning(
            name,
            format!("{built_in} is built in, but the first launcher is another's: {}", found[0]),
            format!("start ranks with {}", fitting.0),
        ),
        (None, Some(_)) => Check::warning(
            name,
            format!("{built_in} is built in, but the launchers are: {}", found.join(", ")),
            format!("put {kind}'s mpirun first in PATH (module load), or build with its mpicc"),
        ),
        (None, None) => Check::warning(
            name,
            format!("{built_in} is built in, but there is no mpirun in PATH"),
            format!("install {kind}'s, or load its module; srun does without"),
        ),
    }
}

/// Name and version of an MPI library, out of all that it says of itself.
pub fn mpi_name(library: &str) -> String {
    let line = library.lines().next().unwrap_or_default();
    line.split(',').next().unwrap_or_default().replace('\t', " ").trim().to_owned()
}

fn mpi_kind(text: &str) -> Option<&'static str> {
    // Intel's and Cray's libraries are MPICH inside, with launchers of their own.
    if ["Open MPI", "OpenRTE"].iter().any(|name| text.contains(name)) {
        return Some("Open MPI");
    }
    ["MPICH", "HYDRA"].iter().any(|name| text.contains(name)).then_some("MPICH")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(errno: i32) -> io::Result<UringTrial> {
        Err(io::Error::from_raw_os_error(errno))
    }

    #[test]
    fn the_setting_that_forbids_io_uring_is_named() {
        let facts = |uring_disabled, has_seccomp_filter| MachineFacts {
            uring_disabled,
            has_seccomp_filter,
            ..MachineFacts::default()
        };
        for (errno, facts, words) in [
            (EPERM, facts(Some(2), true), "kernel.io_uring_disabled = 2"),
            (EPERM, facts(Some(1), false), "outside of one group"),
            (EPERM, facts(Some(0), true), "seccomp filter"),
            (ENOSYS, facts(None, true), "seccomp filter"),
            (ENOSYS, facts(None, false), "built without it"),
            (ENOMEM, facts(None, false), "may not be locked"),
            (EPERM, facts(Some(0), false), "no known setting"),
        ] {
            let check = uring_check(&refused(errno), &facts, EngineName::Auto);
            assert_eq!(check.state, State::Warning);
            assert!(check.found.contains(words), "{}", check.found);
            let check = uring_check(&refused(errno), &facts, EngineName::Uring);
            assert_eq!(check.state, State::Problem);
        }
    }

    #[test]
    fn locked_memory_counts_unless_it_does_not() {
        let state_for = |ranks, limit: Option<u64>, may_lock_all| {
            let locked_memory_limit = limit.map(Bytes);
            let facts =
                MachineFacts { locked_memory_limit, may_lock_all, ..MachineFacts::default() };
            let checks = machine_checks(&facts, ranks, Bytes(256 << 20));
            checks.into_iter().find(|check| check.name == "locked memory").unwrap().state
        };
        let state = |limit, may_lock_all| state_for(1, limit, may_lock_all);
        assert_eq!(state(Some(8 << 20), false), State::Warning);
        assert_eq!(state(Some(8 << 20), true), State::Ok);
        assert_eq!(state(Some(256 << 20), false), State::Ok);
        assert_eq!(state_for(2, Some(256 << 20), false), State::Warning, "two ranks share it");
        assert_eq!(state(None, false), State::Ok);
    }

    #[test]
    fn the_launcher_of_the_mpi_that_is_built_in_is_named() {
        let open = ("/usr/bin/mpirun".to_owned(), "mpirun (Open MPI) 4.1.4".to_owned());
        let hydra = ("/opt/mpirun".to_owned(), "HYDRA build details:".to_owned());
        let library = Some("Open MPI v4.1.4, package: Debian OpenMPI");
        let check = mpi_check(library, &[open.clone(), hydra.clone()]);
        assert_eq!((check.state, check.fix), (State::Ok, None));
        let check = mpi_check(library, &[hydra.clone(), open.clone()]);
        assert_eq!(check.fix.as_deref(), Some("start ranks with /usr/bin/mpirun"));
        assert!(mpi_check(library, std::slice::from_ref(&hydra)).found.contains("MPICH"));
        assert_eq!(mpi_check(library, &[]).state, State::Warning);
        assert_eq!(mpi_check(Some("MPICH Version:\t4.0.2"), &[hydra]).state, State::Ok);
        assert_eq!(mpi_check(None, &[open]).state, State::Ok);
    }
}
