//! The page that the ranks of a node share: one small file in memory, one record for each of them.
//! Writing a record is one pwrite and reading the page one pread, which costs a step next to
//! nothing.
//!
//! The file's name is removed once all ranks have opened it, so nothing stays behind, however the
//! job ends. A record that is read while it is written may be half old and half new, which is good
//! enough for the messages about late ranks that it serves.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use bytemuck::{Pod, Zeroable};

/// Where the page may be, the best place first: in memory, where no slow drive can stall it.
pub(super) const PLACES: [&str; 2] = ["/dev/shm", "/tmp"];

const RECORD_BYTES: usize = size_of::<Record>();

/// What a rank says about itself: 64 bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub(super) struct Record {
    /// The rank's number plus one; zero where nothing was written.
    pub mark: u64,
    /// Number of a [`super::Phase`].
    pub phase: u64,
    /// Number of a [`super::Collective`] plus one; zero outside of collectives.
    pub collective: u64,
    /// Collectives entered so far.
    pub entered: u64,
    /// I/O operations completed so far.
    pub completed_ops: u64,
    /// When one of the above last changed.
    pub changed_ms: u64,
    /// When the rank was last heard of: as `changed_ms`, and now and then while it waits.
    pub alive_ms: u64,
    /// When late ranks on other hosts last made progress, as far as this rank knows.
    pub elsewhere_ms: u64,
}

/// Milliseconds on a clock that all processes of a node share.
pub(super) fn now_ms() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec as u64 * 1000 + now.tv_nsec as u64 / 1_000_000
}

/// The open page.
#[derive(Debug)]
pub(super) struct Page {
    file: File,
    path: PathBuf,
}

impl Page {
    /// Opens the page of this name in the first place where that is possible, and creates it if no
    /// other rank has.
    pub fn open(places: &[&str], name: &str) -> io::Result<Self> {
        let mut refused = io::Error::from(io::ErrorKind::NotFound);
        for place in places {
            let path = Path::new(place).join(name);
            let mut options = OpenOptions::new();
            options.read(true).write(true).create(true).truncate(false).mode(0o600);
            match options.custom_flags(libc::O_NOFOLLOW).open(&path) {
                Ok(file) if is_ours(&file) => return Ok(Self { file, path }),
                // Whoever may write there may have put a file of this name.
                Ok(_) => refused = io::Error::from(io::ErrorKind::PermissionDenied),
                Err(error) => refused = error,
            }
        }
        Err(refused)
    }

    /// Removes the page's name; open pages stay usable. Another rank may have removed it before.
    pub fn unlink(&self) {
        let _ = std::fs::remove_file(&self.path);
    }

    /// Writes the record of one slot.
    pub fn write(&self, slot: usize, record: &Record) -> io::Result<()> {
        self.file.write_all_at(bytemuck::bytes_of(record), (slot * RECORD_BYTES) as u64)
    }

    /// The records of the first slots.
    pub fn read(&self, slots: usize) -> io::Result<Vec<Record>> {
        let mut records = vec![Record::default(); slots];
        self.file.read_exact_at(bytemuck::cast_slice_mut(&mut records), 0)?;
        Ok(records)
    }
}

/// Whether an open file is a plain one of this user's alone.
fn is_ours(file: &File) -> bool {
    let user = rustix::process::geteuid().as_raw();
    let is_ours =
        |it: std::fs::Metadata| it.is_file() && it.uid() == user && it.mode() & 0o077 == 0;
    file.metadata().is_ok_and(is_ours)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_openers_see_each_other_when_the_name_is_gone() {
        let name = format!("optswap-test-{}", std::process::id());
        let folder = tempfile::tempdir().unwrap();
        let places = ["/no/such/place", folder.path().to_str().unwrap()];
        let [first, second] = [0, 1].map(|_| Page::open(&places, &name).unwrap());
        let said = [3, 4].map(|mark| Record { mark, entered: 10 + mark, ..Record::default() });
        second.write(1, &said[1]).unwrap();
        first.unlink();
        second.unlink();
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
        first.write(0, &said[0]).unwrap();
        assert_eq!(first.read(2).unwrap(), said);
        assert_eq!(second.read(2).unwrap(), said);
        assert!(first.read(3).is_err(), "nobody has written so far");
    }

    #[test]
    fn where_no_place_lets_it_there_is_no_page() {
        assert!(Page::open(&["/no/such/place", "/proc"], "page").is_err());
    }
}
