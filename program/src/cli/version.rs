//! What `optswap --version` says: the version, what is built in, and the commit.

use std::sync::LazyLock;

use crate::report::mpi_name;
use optswap::internals::job::mpi_library;

/// `0.1.0 (features: mpi; Open MPI v4.1.4, commit 0123456789ab)`.
pub(super) static LONG_VERSION: LazyLock<String> = LazyLock::new(|| {
    let features = if cfg!(feature = "mpi") { "mpi" } else { "none" };
    let mpi = mpi_library().map_or("no MPI".to_owned(), |library| mpi_name(&library));
    let (version, commit) = (env!("CARGO_PKG_VERSION"), env!("OPTSWAP_COMMIT"));
    format!("{version} (features: {features}; {mpi}, commit {commit})")
});
