//! What Slurm offers to the MPI that is built in.

use super::checks::Check;

/// How ranks can be started with srun: which MPI is built in, and what `srun --mpi=list` printed,
/// if there is an srun.
pub fn slurm_check(library: Option<&str>, listed: Option<&str>) -> Option<Check> {
    let name = "PMI of srun";
    let (library, listed) = (library?, listed?);
    let words: Vec<&str> = listed.split_whitespace().collect();
    let has = |plugin: &str| words.contains(&plugin);
    if !listed.contains("plugin types") {
        return Some(Check::warning(
            name,
            "srun is in PATH, but tells of no PMI plugins: there is no Slurm configuration here",
            "run the doctor on a node of the cluster, inside of a job",
        ));
    }
    // Open MPI since version 4 speaks PMIx alone; MPICH and its kin speak PMI-2.
    let wanted = if library.contains("Open MPI") { "pmix" } else { "pmi2" };
    Some(if has(wanted) {
        Check::ok(name, format!("fits: srun --mpi={wanted}"))
    } else {
        Check::warning(
            name,
            format!("no {wanted}, which the MPI that is built in needs"),
            "start ranks with mpirun inside of the job; or have Slurm's plugin installed",
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::checks::State;

    #[test]
    fn the_plugin_of_the_mpi_that_is_built_in_is_named() {
        let all = "MPI plugin types are...\n\tnone\n\tpmi2\n\tpmix\nspecific pmix plugin versions \
                   available: pmix_v4\n";
        let few = "MPI plugin types are...\n\tnone\n\tpmi2\n";
        let check = |library, listed| slurm_check(Some(library), Some(listed)).unwrap();
        assert_eq!(check("Open MPI v5", all).found, "fits: srun --mpi=pmix");
        assert_eq!(check("MPICH Version: 4", all).found, "fits: srun --mpi=pmi2");
        assert!(check("Open MPI v5", few).found.contains("no pmix"));
        assert_eq!(check("Open MPI v5", "").state, State::Warning);
        assert_eq!(slurm_check(None, Some(all)), None);
        assert_eq!(slurm_check(Some("Open MPI"), None), None);
    }
}
