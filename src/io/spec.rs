//! Choosing and opening an engine.

use std::fs::File;

use super::buffer::Buffer;
use super::engine::Engine;
use super::fault::FaultEngine;
use super::threads::ThreadEngine;
use super::uring::UringEngine;
use crate::config::{EngineName, FaultConfig};
use crate::error::{Error, ErrorKind, Result};

/// Everything needed to open an engine on the thread that will use it.
#[derive(Debug)]
pub struct EngineSpec {
    /// What the user asked for.
    pub choice: EngineName,
    /// The most operations in flight.
    pub depth: usize,
    /// The files, in drive order.
    pub files: Vec<File>,
    /// Faults to inject, for tests.
    pub faults: Vec<FaultConfig>,
}

impl EngineSpec {
    /// Opens the engine and registers these buffers where the kernel allows it. The log says which
    /// engine was chosen and why.
    ///
    /// # Errors
    /// Unavailable if io_uring was asked for by name and is refused.
    pub fn open(self, buffers: &[Buffer]) -> Result<Box<dyn Engine>> {
        let (engine, reason): (Box<dyn Engine>, String) = match self.choice {
            EngineName::Threads => (self.open_threads()?, "by choice".to_owned()),
            EngineName::Uring => (self.open_uring(buffers)?, "by choice".to_owned()),
            EngineName::Auto => match self.open_uring(buffers) {
                Ok(engine) => (engine, "the kernel allows io_uring".to_owned()),
                Err(error) => (self.open_threads()?, error.to_string()),
            },
        };
        tracing::info!("I/O engine: {} ({reason})", engine.describe());
        if self.faults.is_empty() {
            return Ok(engine);
        }
        tracing::warn!("{} faults will be injected, as configured", self.faults.len());
        Ok(Box::new(FaultEngine::new(engine, self.faults)))
    }

    fn open_uring(&self, buffers: &[Buffer]) -> Result<Box<dyn Engine>> {
        let engine = UringEngine::open(&self.files, buffers, self.depth).map_err(|error| {
            Error::new(ErrorKind::Unavailable, "io_uring is refused")
                .because(error)
                .hint("see sysctl kernel.io_uring_disabled and seccomp, or use --engine threads")
        })?;
        Ok(Box::new(engine))
    }

    fn open_threads(&self) -> Result<Box<dyn Engine>> {
        let engine = ThreadEngine::open(&self.files, self.depth)
            .map_err(|error| Error::no_thread("I/O threads cannot be started", error))?;
        Ok(Box::new(engine))
    }
}
