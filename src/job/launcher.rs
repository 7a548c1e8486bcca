//! What the launcher says, as a cross-check. MPI itself tells rank and size; but a launcher of
//! another MPI starts N processes that each believe to be alone, and they must not train N times.

use crate::error::{Error, Result};

/// What the environment tells of how this process was started.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Launcher {
    /// Processes started together, if a launcher is known.
    pub size: Option<usize>,
    /// This process among them.
    pub rank: Option<usize>,
    /// Open MPI's mpirun started it.
    open_mpi: bool,
    /// A PMI-1 or PMI-2 server is there (MPICH's mpirun, `srun --mpi=pmi2`).
    pmi: bool,
    /// A PMIx server is there (Open MPI's mpirun, `srun --mpi=pmix`).
    pmix: bool,
    /// srun started it.
    srun: bool,
}

/// The variables that launchers set: size, rank.
const OPEN_MPI: [&str; 2] = ["OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"];
const PMI: [&str; 2] = ["PMI_SIZE", "PMI_RANK"];
const SRUN: [&str; 2] = ["SLURM_STEP_NUM_TASKS", "SLURM_PROCID"];

impl Launcher {
    /// Reads the environment through `variable`.
    pub fn detect(variable: &dyn Fn(&str) -> Option<String>) -> Self {
        let number = |name: &str| variable(name)?.trim().parse::<usize>().ok();
        let mut launcher = Self {
            open_mpi: number(OPEN_MPI[0]).is_some(),
            pmi: number(PMI[0]).is_some(),
            pmix: number("PMIX_RANK").is_some() || variable("PMIX_NAMESPACE").is_some(),
            srun: number(SRUN[0]).is_some(),
            ..Self::default()
        };
        // The innermost launcher counts: mpirun may itself run under srun.
        for names in [OPEN_MPI, PMI, SRUN] {
            if let Some(size) = number(names[0]) {
                launcher.size = Some(size);
                launcher.rank = number(names[1]);
                break;
            }
        }
        launcher
    }

    /// In words: who started this process, and which servers it may ask for the others.
    pub fn describe(&self) -> String {
        let known = [
            (self.open_mpi, "Open MPI's mpirun"),
            (self.srun, "srun"),
            (self.pmix, "a PMIx server"),
            (self.pmi, "a PMI server"),
        ];
        let found: Vec<_> = known.iter().filter(|(is, _)| *is).map(|(_, name)| *name).collect();
        match (found.is_empty(), self.size) {
            (true, _) => "started without a launcher".to_owned(),
            (false, None) => format!("started with {}", found.join(", ")),
            (false, Some(size)) => format!("one of {size}, started with {}", found.join(", ")),
        }
    }

    /// Refuses what MPI would not survive, or would not notice, before it is started. `library` is
    /// the name of the MPI library that is built in, if one is.
    ///
    /// # Errors
    /// Usage (exit code 64), with the line that fixes it.
    pub fn check_before_start(&self, library: Option<&str>) -> Result<()> {
        let Some(size) = self.size.filter(|size| *size > 1) else { return Ok(()) };
        let refuse = |what: &str, fix: &str| {
            let started = format!("{size} processes were started together, but {what}");
            Err(Error::usage(started).hint(fix))
        };
        match library {
            None => refuse(
                "this program is built without MPI",
                "build it with --features mpi, or start one process",
            ),
            Some(name) if name.contains("Open MPI") && !self.open_mpi && !self.pmix => {
                if self.srun {
                    refuse("srun offers Open MPI no PMIx", "start them with srun --mpi=pmix")
                } else {
                    refuse(
                        "by another MPI's launcher: this program is built with Open MPI",
                        "start them with Open MPI's mpirun (mpirun.openmpi), or build with \
                         MPICC=mpicc.mpich",
                    )
                }
            }
            Some(name) if name.contains("MPICH") && !self.pmi => {
                if self.srun && !self.open_mpi {
                    refuse("srun offers MPICH no PMI", "start them with srun --mpi=pmi2")
                } else {
                    refuse(
                        "by another MPI's launcher: this program is built with MPICH",
                        "start them with MPICH's mpirun (mpirun.mpich), or build with \
                         MPICC=mpicc.openmpi",
                    )
                }
            }
            Some(_) => Ok(()),
        }
    }

    /// Refuses to be one of several that each believe to be alone.
    ///
    /// # Errors
    /// Usage (exit code 64), with the line that fixes it.
    pub fn check_world_size(&self, world_size: usize) -> Result<()> {
        match self.size {
            Some(size) if size > 1 && world_size == 1 => Err(Error::usage(format!(
                "{size} processes were started together, but MPI says that each is alone"
            ))
            .hint(
                "the launcher and the MPI library do not fit: start them with the mpirun of \
                     the MPI that this program was built with, or with srun --mpi=pmix (Open MPI) \
                     or --mpi=pmi2 (MPICH)",
            )),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OPEN: Option<&str> = Some("Open MPI v4.1.4, package: Debian OpenMPI");
    const MPICH: Option<&str> = Some("MPICH Version:\t4.0.2");

    fn started(variables: &[(&str, &str)]) -> Launcher {
        let find = |name: &str| {
            let found = variables.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| (*value).to_owned())
        };
        Launcher::detect(&find)
    }

    #[test]
    fn fitting_launchers_pass() {
        let mpirun =
            [("OMPI_COMM_WORLD_SIZE", "4"), ("OMPI_COMM_WORLD_RANK", "3"), ("PMIX_RANK", "3")];
        assert!(started(&mpirun).check_before_start(OPEN).is_ok());
        assert_eq!(started(&mpirun).rank, Some(3));
        let hydra = [("PMI_SIZE", "2"), ("PMI_RANK", "1")];
        assert!(started(&hydra).check_before_start(MPICH).is_ok());
        let srun = [("SLURM_STEP_NUM_TASKS", "2"), ("SLURM_PROCID", "1"), ("PMIX_RANK", "1")];
        assert!(started(&srun).check_before_start(OPEN).is_ok());
        for library in [OPEN, MPICH, None] {
            assert!(started(&[]).check_before_start(library).is_ok());
        }
        // mpirun in a batch job of many tasks, started once per node by srun.
        let nested = [("SLURM_STEP_NUM_TASKS", "8"), ("OMPI_COMM_WORLD_SIZE", "1")];
        assert!(started(&nested).check_world_size(1).is_ok());
    }

    #[test]
    fn misfits_get_the_line_that_fixes_them() {
        let srun = ("SLURM_STEP_NUM_TASKS", "2");
        let open = ("OMPI_COMM_WORLD_SIZE", "2");
        let pmi = ("PMI_SIZE", "2");
        for (variables, library, fix) in [
            (vec![srun], OPEN, "srun --mpi=pmix"),
            (vec![srun, pmi], OPEN, "srun --mpi=pmix"),
            (vec![srun], MPICH, "srun --mpi=pmi2"),
            (vec![pmi], OPEN, "mpirun.openmpi"),
            (vec![open], MPICH, "mpirun.mpich"),
            (vec![open], None, "--features mpi"),
        ] {
            let error = started(&variables).check_before_start(library).unwrap_err();
            assert_eq!(error.exit_code(), 64);
            assert!(error.to_string().contains(fix), "{error}");
        }
        let error = started(&[open]).check_world_size(1).unwrap_err();
        assert!(error.to_string().contains("each is alone"));
    }
}
