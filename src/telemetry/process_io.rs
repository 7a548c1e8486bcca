//! The kernel's own count of this process's I/O, to hold our counters against.

use std::fs::File;
use std::os::unix::fs::FileExt;

/// `/proc/self/io`, kept open so that reading it costs no open on the hot path.
#[derive(Debug)]
pub struct ProcessIo {
    file: Option<File>,
    last: ProcessIoBytes,
}

/// Bytes that the kernel fetched from, or sent to, storage for this process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProcessIoBytes {
    /// Fetched.
    pub read_bytes: u64,
    /// Sent.
    pub written_bytes: u64,
}

impl ProcessIo {
    /// Opens it, where the kernel has it.
    pub fn open() -> Self {
        Self { file: File::open("/proc/self/io").ok(), last: ProcessIoBytes::default() }
    }

    /// What has been added since the last call.
    pub fn since_last(&mut self) -> ProcessIoBytes {
        let now = self.bytes();
        let last = std::mem::replace(&mut self.last, now);
        now - last
    }

    /// The counts so far; zero where the kernel does not tell.
    pub fn bytes(&self) -> ProcessIoBytes {
        let mut text = [0u8; 512];
        let len = self.file.as_ref().and_then(|file| file.read_at(&mut text, 0).ok()).unwrap_or(0);
        let text = std::str::from_utf8(&text[..len]).unwrap_or("");
        let value = |key: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(key));
            line.and_then(|value| value.trim().parse().ok()).unwrap_or(0)
        };
        ProcessIoBytes { read_bytes: value("read_bytes:"), written_bytes: value("write_bytes:") }
    }
}

impl std::ops::Sub for ProcessIoBytes {
    type Output = Self;

    fn sub(self, earlier: Self) -> Self {
        Self {
            read_bytes: self.read_bytes.saturating_sub(earlier.read_bytes),
            written_bytes: self.written_bytes.saturating_sub(earlier.written_bytes),
        }
    }
}
