//! The program `optswap`: it measures drives and the swapper, plans and explains, looks after what
//! lies on drives and in checkpoints, and makes reports. It is a library too, so that other ways of
//! installing it call the same [`cli::run`].

pub mod cli;
pub mod forecast;
pub mod measure;
pub mod report;
