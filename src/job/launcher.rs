//! What the launcher says about rank and size, to check MPI against it. Under the launcher of
//! another MPI, each of N processes finds itself alone, and they must not train the model N times.

use crate::error::{Error, Result};

/// How this process was started, according to its environment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Launcher {
    /// Number of processes that were started together, if a launcher is known.
    pub size: Option<usize>,
    /// The number of this process among them.
    pub rank: Option<usize>,
    /// Number of these processes on this host.
    pub local_size: Option<usize>,
    /// The number of this process among those on this host.
    pub local_rank: Option<usize>,
    /// Open MPI's mpirun started it.
    open_mpi: bool,
    /// A PMI-1 or PMI-2 server is there (MPICH's mpirun, `srun --mpi=pmi2`).
    pmi: bool,
    /// A PMIx server is there (Open MPI's mpirun, `srun --mpi=pmix`).
    pmix: bool,
    /// srun started it.
    srun: bool,
    /// `flux run` started it; its PMI-1 server serves Open MPI too, up to version 4.
    flux: bool,
    /// Cray's mpiexec (PALS) started it.
    pals: bool,
    /// IBM's jsrun started it.
    jsrun: bool,
    /// torchrun, or a program like it, started it, which offers no MPI.
    torchrun: bool,
}

/// The variables that a launcher sets.
struct Variables {
    size: &'static str,
    rank: &'static str,
    local_size: &'static str,
    local_rank: &'static str,
}

const OPEN_MPI: Variables = Variables {
    size: "OMPI_COMM_WORLD_SIZE",
    rank: "OMPI_COMM_WORLD_RANK",
    local_size: "OMPI_COMM_WORLD_LOCAL_SIZE",
    local_rank: "OMPI_COMM_WORLD_LOCAL_RANK",
};
/// The variables of Hydra: MPICH's mpirun and others built from it.
const PMI: Variables = Variables {
    size: "PMI_SIZE",
    rank: "PMI_RANK",
    local_size: "MPI_LOCALNRANKS",
    local_rank: "MPI_LOCALRANKID",
};
const PALS: Variables = Variables {
    size: "PMI_SIZE",
    rank: "PALS_RANKID",
    local_size: "PMI_LOCAL_SIZE",
    local_rank: "PALS_LOCAL_RANKID",
};
const FLUX: Variables = Variables {
    size: "FLUX_JOB_SIZE",
    rank: "FLUX_TASK_RANK",
    local_size: "",
    local_rank: "FLUX_TASK_LOCAL_ID",
};
const JSRUN: Variables = Variables {
    size: "JSM_NAMESPACE_SIZE",
    rank: "JSM_NAMESPACE_RANK",
    local_size: "JSM_NAMESPACE_LOCAL_SIZE",
    local_rank: "JSM_NAMESPACE_LOCAL_RANK",
};
const SRUN: Variables = Variables {
    size: "SLURM_STEP_NUM_TASKS",
    rank: "SLURM_PROCID",
    local_size: "",
    local_rank: "SLURM_LOCALID",
};
const TORCHRUN: Variables = Variables {
    size: "WORLD_SIZE",
    rank: "RANK",
    local_size: "LOCAL_WORLD_SIZE",
    local_rank: "LOCAL_RANK",
};

impl Launcher {
    /// Reads the environment through `variable`.
    pub fn detect(variable: &dyn Fn(&str) -> Option<String>) -> Self {
        let number = |name: &str| variable(name)?.trim().parse::<usize>().ok();
        let is_there = |it: &Variables| number(it.size).is_some() && number(it.rank).is_some();
        let mut launcher = Self {
            open_mpi: number(OPEN_MPI.size).is_some(),
            pmi: number(PMI.size).is_some(),
            pmix: number("PMIX_RANK").is_some() || variable("PMIX_NAMESPACE").is_some(),
            srun: number(SRUN.size).is_some(),
            flux: is_there(&FLUX),
            pals: number(PALS.rank).is_some(),
            jsrun: is_there(&JSRUN),
            torchrun: is_there(&TORCHRUN),
            ..Self::default()
        };
        // The innermost launcher counts: mpirun may itself run under srun, and programs for
        // PyTorch set torchrun's variables under any.
        let pmi = if launcher.pals { PALS } else { PMI };
        let found = [OPEN_MPI, pmi, FLUX, JSRUN, SRUN, TORCHRUN].into_iter().find(|names| {
            let wants_both = [FLUX.size, TORCHRUN.size].contains(&names.size);
            if wants_both { is_there(names) } else { number(names.size).is_some() }
        });
        if let Some(names) = found {
            launcher.size = number(names.size);
            launcher.rank = number(names.rank);
            launcher.local_size = number(names.local_size);
            launcher.local_rank = number(names.local_rank);
            launcher.torchrun &= names.size == TORCHRUN.size;
        }
        launcher
    }

    /// In words: which launcher started this process, and which servers know the other ranks.
    pub fn describe(&self) -> String {
        let known = [
            (self.open_mpi, "Open MPI's mpirun"),
            (self.srun, "srun"),
            (self.flux, "flux run"),
            (self.pals, "Cray's mpiexec (PALS)"),
            (self.jsrun, "jsrun"),
            (self.torchrun, "torchrun"),
            (self.pmix, "a PMIx server"),
            (self.pmi, "a PMI server"),
        ];
        let found: Vec<_> = known.iter().filter(|(is, _)| *is).map(|(_, name)| *name).collect();
        if found.is_empty() {
            return "started without a launcher".to_owned();
        }
        let started = format!("started with {}", found.join(", "));
        match self.size {
            Some(size) => format!("one of {size}, {started}"),
            None => started,
        }
    }

    /// Refuses starts that MPI would not survive, or would not notice, before MPI is started.
    /// `library` is the name of the MPI library that is built in, if one is.
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
            Some(_) if self.torchrun => refuse(
                "torchrun starts no MPI, and each would believe to be alone",
                "start them with mpirun or srun --mpi=pmix; a program that is to run under \
                 torchrun hands optswap a Communicator of its own",
            ),
            Some(name) if name.contains("Open MPI") && !self.serves_open_mpi() => {
                if self.srun {
                    refuse("srun offers Open MPI no PMIx", "start them with srun --mpi=pmix")
                } else if self.pals {
                    refuse(
                        "this mpiexec offers Open MPI no PMIx",
                        "start them with mpiexec --pmi=pmix, or build with the system's MPICH: \
                         MPICC=cc",
                    )
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

    /// Whether Open MPI can find the other ranks.
    fn serves_open_mpi(&self) -> bool {
        self.open_mpi || self.pmix || (self.flux && self.pmi)
    }

    /// Refuses to be one of several processes for each of which MPI has only itself.
    ///
    /// # Errors
    /// Usage (exit code 64), with the line that fixes it.
    pub fn check_world_size(&self, world_size: usize) -> Result<()> {
        let Some(size) = self.size.filter(|size| *size > 1 && world_size == 1) else {
            return Ok(());
        };
        let fix = if self.flux {
            "start them with flux run -o pmi=pmix (Open MPI 5), or build with MPICH"
        } else {
            "the launcher and the MPI library do not fit: start them with the mpirun of the MPI \
             that this program was built with, or with srun --mpi=pmix (Open MPI) or --mpi=pmi2 \
             (MPICH)"
        };
        let alone = "processes were started together, but MPI says that each is alone";
        Err(Error::usage(format!("{size} {alone}")).hint(fix))
    }

    /// In words, where the launcher differs from MPI, which says that this process is `rank` of
    /// `size`, and number `local_rank` of the `local_size` ranks of its node. `None` where they
    /// agree.
    pub fn disagreement(
        &self,
        (rank, size): (usize, usize),
        (local_rank, local_size): (usize, usize),
    ) -> Option<String> {
        let differs = |said: Option<usize>, found: usize| said.is_some_and(|said| said != found);
        if differs(self.size, size) || differs(self.rank, rank) {
            let (its_rank, its_size) = (shown(self.rank), shown(self.size));
            return Some(format!(
                "the launcher calls this process {its_rank} of {its_size}, MPI calls it {rank} \
                 of {size}: MPI counts"
            ));
        }
        if differs(self.local_size, local_size) || differs(self.local_rank, local_rank) {
            let (its_rank, its_size) = (shown(self.local_rank), shown(self.local_size));
            return Some(format!(
                "the launcher calls rank {rank} number {its_rank} of {its_size} on its node, MPI \
                 calls it number {local_rank} of {local_size}: MPI counts. Ranks in containers of \
                 one node need its shared memory to see each other"
            ));
        }
        None
    }
}

fn shown(number: Option<usize>) -> String {
    number.map_or("?".to_owned(), |number| number.to_string())
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

    /// Variables of a launcher; and what they say: size, rank, ranks on the host, rank among those
    /// (9 for none), and words of the description.
    type Started =
        (Vec<(&'static str, &'static str)>, (usize, usize, Option<usize>, usize, &'static str));

    fn launchers() -> [Started; 7] {
        [
            (
                vec![
                    ("OMPI_COMM_WORLD_SIZE", "8"),
                    ("OMPI_COMM_WORLD_RANK", "5"),
                    ("OMPI_COMM_WORLD_LOCAL_SIZE", "4"),
                    ("OMPI_COMM_WORLD_LOCAL_RANK", "1"),
                ],
                (8, 5, Some(4), 1, "one of 8, started with Open MPI's mpirun"),
            ),
            (
                vec![
                    ("PMI_SIZE", "4"),
                    ("PMI_RANK", "3"),
                    ("MPI_LOCALNRANKS", "2"),
                    ("MPI_LOCALRANKID", "1"),
                ],
                (4, 3, Some(2), 1, "one of 4, started with a PMI server"),
            ),
            (
                vec![("PMI_SIZE", "4"), ("PMI_RANK", "3"), ("PALS_RANKID", "3")],
                (4, 3, None, 9, "Cray's mpiexec (PALS)"),
            ),
            (
                vec![("FLUX_JOB_SIZE", "4"), ("FLUX_TASK_RANK", "2"), ("FLUX_TASK_LOCAL_ID", "0")],
                (4, 2, None, 0, "one of 4, started with flux run"),
            ),
            (
                vec![
                    ("JSM_NAMESPACE_SIZE", "4"),
                    ("JSM_NAMESPACE_RANK", "2"),
                    ("JSM_NAMESPACE_LOCAL_SIZE", "2"),
                    ("JSM_NAMESPACE_LOCAL_RANK", "0"),
                    ("PMIX_RANK", "2"),
                ],
                (4, 2, Some(2), 0, "jsrun, a PMIx server"),
            ),
            (
                vec![
                    ("SLURM_STEP_NUM_TASKS", "6"),
                    ("SLURM_PROCID", "4"),
                    ("SLURM_LOCALID", "1"),
                    // As scripts for PyTorch set them.
                    ("WORLD_SIZE", "6"),
                    ("RANK", "4"),
                ],
                (6, 4, None, 1, "one of 6, started with srun"),
            ),
            (
                vec![
                    ("WORLD_SIZE", "8"),
                    ("RANK", "7"),
                    ("LOCAL_WORLD_SIZE", "8"),
                    ("LOCAL_RANK", "7"),
                ],
                (8, 7, Some(8), 7, "one of 8, started with torchrun"),
            ),
        ]
    }

    #[test]
    fn every_launcher_gives_rank_and_place() {
        for (variables, expected) in launchers() {
            let launcher = started(&variables);
            let (size, rank, local_size, local_rank, words) = expected;
            assert_eq!((launcher.size, launcher.rank), (Some(size), Some(rank)), "{variables:?}");
            assert_eq!(launcher.local_size, local_size, "{variables:?}");
            assert_eq!(launcher.local_rank.unwrap_or(9), local_rank, "{variables:?}");
            assert!(launcher.describe().contains(words), "{}", launcher.describe());
        }
        // What other programs use these names for is no launcher.
        for stale in [("WORLD_SIZE", "8"), ("FLUX_JOB_SIZE", "8"), ("RANK", "1")] {
            assert_eq!(started(&[stale]).size, None);
        }
        // A batch shell is no task.
        assert_eq!(started(&[("SLURM_NTASKS", "8"), ("SLURM_PROCID", "0")]).size, None);
    }

    #[test]
    fn a_launcher_that_disagrees_is_told() {
        let launcher = started(&[
            ("OMPI_COMM_WORLD_SIZE", "8"),
            ("OMPI_COMM_WORLD_RANK", "5"),
            ("OMPI_COMM_WORLD_LOCAL_SIZE", "4"),
            ("OMPI_COMM_WORLD_LOCAL_RANK", "1"),
        ]);
        assert_eq!(launcher.disagreement((5, 8), (1, 4)), None);
        let words = |world, local| launcher.disagreement(world, local).unwrap();
        assert!(words((4, 8), (1, 4)).contains("5 of 8, MPI calls it 4 of 8"));
        assert!(words((5, 8), (5, 8)).contains("1 of 4 on its node, MPI calls it number 5 of 8"));
        assert_eq!(started(&[]).disagreement((0, 1), (0, 1)), None);
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
            (vec![pmi, ("PALS_RANKID", "1")], OPEN, "mpiexec --pmi=pmix"),
            (vec![("FLUX_JOB_SIZE", "2"), ("FLUX_TASK_RANK", "0")], MPICH, "mpirun.mpich"),
            (vec![("WORLD_SIZE", "2"), ("RANK", "1")], OPEN, "torchrun hands optswap"),
            (vec![("WORLD_SIZE", "2"), ("RANK", "1")], MPICH, "mpirun or srun"),
        ] {
            let error = started(&variables).check_before_start(library).unwrap_err();
            assert_eq!(error.exit_code(), 64);
            assert!(error.to_string().contains(fix), "{error}");
        }
        let error = started(&[open]).check_world_size(1).unwrap_err();
        assert!(error.to_string().contains("each is alone"));
        let flux = [pmi, ("FLUX_JOB_SIZE", "2"), ("FLUX_TASK_RANK", "0")];
        assert!(started(&flux).check_before_start(OPEN).is_ok(), "Open MPI 4 uses its PMI-1");
        let error = started(&flux).check_world_size(1).unwrap_err();
        assert!(error.to_string().contains("-o pmi=pmix"), "{error}");
    }
}
