//! The error type of the whole crate. An error has a kind, which decides the exit code, a message
//! that says what happened, a context (where), a source (why) and a hint (what to do about it).

use std::borrow::Cow;
use std::fmt;

use crate::units::printable;

/// The kind of a failure. It decides the exit code of the process, after sysexits(3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// The command line, the configuration or the way the ranks were started is wrong.
    Usage,
    /// Something that was asked for does not exist on this machine: a drive, io_uring, memory.
    Unavailable,
    /// A bug, a panic, or values that differ although they must not.
    Internal,
    /// A file or directory cannot be created, or the drive is too small for it.
    CannotCreate,
    /// A read or write failed or gave other bytes than asked for.
    Io,
    /// Another rank did not answer in time.
    Peer,
    /// Committed steps lie on drives, but this job cannot go on with them here: a drive or a node
    /// is missing, or the number of ranks is different.
    StateUnavailable,
    /// Committed steps are proven to be lost: a file cut or gone, records damaged, a checksum that
    /// differs.
    StateLost,
    /// Stopped by a signal after everything was saved: the same command goes on from there.
    Requeue,
    /// Stopped by SIGTERM or SIGUSR1 with nothing saved.
    Terminated,
    /// Stopped by SIGINT with nothing saved.
    Interrupted,
}

impl ErrorKind {
    const ALL: [Self; 11] = [
        Self::Usage,
        Self::Unavailable,
        Self::Internal,
        Self::CannotCreate,
        Self::Io,
        Self::Peer,
        Self::StateUnavailable,
        Self::StateLost,
        Self::Requeue,
        Self::Terminated,
        Self::Interrupted,
    ];

    /// The exit code of a process that ends with such an error: 64 usage, 69 unavailable (also for
    /// a silent peer, and for state that is out of reach), 70 internal, 73 cannot create, 74 I/O
    /// (also for lost state), 75 stopped with everything saved, so that the job may be queued
    /// again. Stopped with nothing saved: 128 plus the signal's number, as in shells.
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Usage => 64,
            Self::Unavailable | Self::Peer | Self::StateUnavailable => 69,
            Self::Internal => 70,
            Self::CannotCreate => 73,
            Self::Io | Self::StateLost => 74,
            Self::Requeue => 75,
            Self::Interrupted => 130,
            Self::Terminated => 143,
        }
    }

    /// Whether stored bytes are wrong or cannot be read, and not merely out of reach.
    pub fn is_damage(self) -> bool {
        matches!(self, Self::Io | Self::StateLost)
    }

    /// Whether the job ended because it was asked to stop, which is no failure.
    pub fn is_stop(self) -> bool {
        matches!(self, Self::Requeue | Self::Terminated | Self::Interrupted)
    }

    /// A small number that ranks exchange; 0 stands for "no error".
    pub(crate) fn wire(self) -> u64 {
        Self::ALL.iter().position(|kind| *kind == self).map_or(0, |index| index as u64 + 1)
    }

    /// The kind of a number of [`Self::wire`]; unknown numbers are internal errors.
    pub(crate) fn from_wire(number: u64) -> Self {
        let index = usize::try_from(number.saturating_sub(1)).unwrap_or(usize::MAX);
        Self::ALL.get(index).copied().unwrap_or(Self::Internal)
    }
}

/// An error of optswap. Printed, it is one sentence, followed by a line of help where there is one.
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    message: String,
    context: Vec<(Cow<'static, str>, String)>,
    hint: Option<String>,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
    agreed: bool,
}

/// The result type of the crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error of this kind; `message` says what happened, in one sentence without a full stop.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
            context: Vec::new(),
            hint: None,
            source: None,
            agreed: false,
        }
    }

    /// A usage error (exit code 64).
    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Usage, message)
    }

    /// An internal error: a bug, or values that differ although they must not (exit code 70).
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Internal, message)
    }

    /// A thread that cannot be started (exit code 69).
    pub fn no_thread(
        message: impl Into<String>,
        cause: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self::new(ErrorKind::Unavailable, message).because(cause).hint(
            "raise the limit of processes and threads: ulimit -u, or the control group's pids.max",
        )
    }

    /// What happened, where and why, without the hint.
    pub fn sentence(&self) -> String {
        let pairs: Vec<String> =
            self.context.iter().map(|(key, value)| format!("{key} {value}")).collect();
        let place =
            if pairs.is_empty() { String::new() } else { format!(" ({})", pairs.join(", ")) };
        let why = self.source.as_ref().map(|source| format!(": {source}")).unwrap_or_default();
        format!("{}{place}{why}", self.message)
    }

    /// The hint: what to do about the error, where that is known.
    pub fn help(&self) -> Option<&str> {
        self.hint.as_deref()
    }

    /// Adds to the context: where it happened, such as a drive, a path or an offset. Names from
    /// outside stay on the line of the sentence.
    #[must_use]
    pub fn with(mut self, key: impl Into<Cow<'static, str>>, value: impl fmt::Display) -> Self {
        self.context.push((key.into(), printable(&value.to_string()).into_owned()));
        self
    }

    /// Sets the hint: what to do about the error.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Sets the source: the error that caused this one.
    #[must_use]
    pub fn because(mut self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// Marks that every rank has this error, so that all ranks may end in order.
    #[must_use]
    pub fn agreed(mut self) -> Self {
        self.agreed = true;
        self
    }

    /// Whether every rank of the job has this error. A rank with an error that is not agreed must
    /// abort the job, since the other ranks may be waiting for it.
    pub fn is_agreed(&self) -> bool {
        self.agreed
    }

    /// The kind of the failure.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// The exit code of a process that ends with this error.
    pub fn exit_code(&self) -> u8 {
        self.kind.exit_code()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.sentence())?;
        if let Some(hint) = &self.hint {
            write!(f, "\n  help: {hint}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_ref().map(|source| source.as_ref() as &(dyn std::error::Error + 'static))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_reads_as_what_where_why_and_what_to_do() {
        let error = Error::new(ErrorKind::Io, "swap-in failed")
            .with("drive", "/nvme0")
            .with("offset", 4096)
            .because(std::io::Error::from_raw_os_error(5))
            .hint("replace the drive");
        assert_eq!(
            error.to_string(),
            "swap-in failed (drive /nvme0, offset 4096): Input/output error (os error 5)\
             \n  help: replace the drive"
        );
        assert_eq!(error.exit_code(), 74);
    }

    #[test]
    fn names_from_outside_stay_in_their_sentence() {
        let error = Error::usage("no such tensor").with("tensor", "a\n  help: run this\u{1b}[2J");
        assert_eq!(error.to_string(), r"no such tensor (tensor a\n  help: run this\u{1b}[2J)");
    }

    #[test]
    fn every_kind_survives_the_wire() {
        for kind in ErrorKind::ALL {
            assert_eq!(ErrorKind::from_wire(kind.wire()), kind);
        }
        assert_eq!(ErrorKind::from_wire(999), ErrorKind::Internal);
    }
}
