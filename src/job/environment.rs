//! How a run was started: its command line, the launcher's, and environment variables that change
//! how ranks, threads and messages behave. Results have them, so that the run can be repeated.

use std::collections::BTreeMap;
use std::path::Path;

/// Beginnings of the names of variables that results have.
const PREFIXES: [&str; 10] = [
    "OPTSWAP_",
    "OMPI_MCA_",
    "PMIX_MCA_",
    "PRTE_MCA_",
    "MPIR_CVAR_",
    "UCX_",
    "FI_",
    "RAYON_",
    "OMP_",
    "MALLOC_",
];
/// Names of further variables that results have.
const NAMES: [&str; 10] = [
    "SLURM_JOB_ID",
    "SLURM_JOB_NODELIST",
    "SLURM_NTASKS",
    "SLURM_NTASKS_PER_NODE",
    "SLURM_CPUS_PER_TASK",
    "SLURM_CPU_BIND",
    "SLURM_MPI_TYPE",
    "SLURM_DISTRIBUTION",
    "PBS_JOBID",
    "LSB_JOBID",
];
/// Beginnings of the names of variables that mpirun sets differently for every run.
const OF_ONE_RUN: [&str; 5] = [
    "OMPI_MCA_orte_",
    "OMPI_MCA_ess",
    "OMPI_MCA_initial_wdir",
    "OMPI_MCA_shmem_RUNTIME_QUERY_hint",
    "PMIX_MCA_mca_base_component",
];
/// Programs that start ranks, by the beginnings of their names.
const LAUNCHERS: [&str; 8] =
    ["mpirun", "mpiexec", "orterun", "prterun", "srun", "flux", "jsrun", "torchrun"];
/// A launcher is at most so many processes above this one.
const ANCESTORS_MAX: usize = 6;

/// The command line of this process, for results that say how a run was started.
pub fn command_line() -> Vec<String> {
    std::env::args_os().map(|word| word.to_string_lossy().into_owned()).collect()
}

/// The environment variables of this process that change how ranks, threads and messages behave.
pub fn settings() -> BTreeMap<String, String> {
    // A name or value that is no valid text is none of these.
    let all = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
    all.filter(|(name, _)| is_setting(name)).collect()
}

fn is_setting(name: &str) -> bool {
    let begins = |prefixes: &[&str]| prefixes.iter().any(|prefix| name.starts_with(prefix));
    NAMES.contains(&name) || (begins(&PREFIXES) && !begins(&OF_ONE_RUN))
}

/// The command line of the launcher, if it runs on this host. On other hosts srun and mpirun start
/// ranks through daemons, whose command lines say nothing.
pub fn launcher_command() -> Option<Vec<String>> {
    let mut pid = std::process::id();
    for _ in 0..ANCESTORS_MAX {
        pid = parent(pid)?;
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let words = line.split(|byte| *byte == 0).map(|word| String::from_utf8_lossy(word).into());
        let mut words: Vec<String> = words.collect();
        // Every word ends with a zero.
        words.pop();
        if words.first().is_some_and(|program| is_launcher(program)) {
            return Some(words);
        }
    }
    None
}

fn is_launcher(program: &str) -> bool {
    let name = Path::new(program).file_name().unwrap_or_default().to_string_lossy();
    LAUNCHERS.iter().any(|launcher| name.starts_with(launcher))
}

/// proc(5), stat: the number after the name and the state; a name may have any bytes.
fn parent(pid: u32) -> Option<u32> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_kept_but_not_those_of_one_run() {
        for name in ["OMPI_MCA_pml", "RAYON_NUM_THREADS", "OPTSWAP_SITE", "SLURM_NTASKS"] {
            assert!(is_setting(name), "{name}");
        }
        for name in ["OMPI_MCA_orte_hnp_uri", "OMPI_MCA_ess_base_vpid", "AWS_SECRET", "SLURM_CONF"]
        {
            assert!(!is_setting(name), "{name}");
        }
    }

    #[test]
    fn launchers_are_known_by_their_names() {
        for program in ["/usr/bin/mpirun.openmpi", "mpiexec.hydra", "srun"] {
            assert!(is_launcher(program), "{program}");
        }
        assert!(!is_launcher("/bin/bash"));
        assert_eq!(parent(std::process::id()), std::os::unix::process::parent_id().into());
    }
}
