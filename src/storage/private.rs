//! Directories and files that are this user's alone, below a directory that others may write to,
//! such as a node's shared scratch. Whoever may write there can plant names: so no symbolic link is
//! followed below the directory that the user named, everything is opened from the handle of the
//! directory above it, and what another user owns or may change is refused.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags};
use rustix::io::Errno;

/// Write permission of group and others.
const WRITABLE_BY_OTHERS: u32 = 0o022;
const STICKY: u32 = 0o1000;
/// How often a directory is created again that another rank removes, since it is empty.
const CREATIONS_MAX: usize = 1000;

/// An open directory.
#[derive(Debug)]
pub struct PrivateDirectory {
    handle: OwnedFd,
    path: PathBuf,
}

/// Why what lies below a shared directory is not used.
#[derive(Debug)]
enum NotOurs {
    Link { path: PathBuf },
    NoDirectory { path: PathBuf },
    Foreign { path: PathBuf, owner: u32, mode: u32 },
}

impl fmt::Display for NotOurs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let user = rustix::process::geteuid().as_raw();
        match self {
            Self::Link { path } => write!(
                f,
                "{} is a symbolic link, which is not followed: remove it, or name the directory \
                 that it leads to",
                path.display()
            ),
            Self::NoDirectory { path } => {
                write!(f, "{} is neither a directory nor a file of optswap's", path.display())
            }
            Self::Foreign { path, owner, mode } if *owner == user => write!(
                f,
                "others may change {0} (owner {owner}, mode {1:04o}): if none has, chmod go-w {0}",
                path.display(),
                mode & 0o7777
            ),
            Self::Foreign { path, owner, mode } => write!(
                f,
                "{} belongs to user {owner} (mode {:04o}), and this process runs as user {user}: \
                 name a directory of your own, or run as its owner",
                path.display(),
                mode & 0o7777
            ),
        }
    }
}

impl std::error::Error for NotOurs {}

impl From<NotOurs> for io::Error {
    fn from(why: NotOurs) -> Self {
        Self::new(io::ErrorKind::PermissionDenied, why)
    }
}

/// Whether an error says that something is not this user's, and not that the system has failed.
pub(super) fn is_not_ours(error: &io::Error) -> bool {
    error.get_ref().is_some_and(|why| why.is::<NotOurs>())
}

impl PrivateDirectory {
    /// The directory that the user named: links to it are followed, and anybody may own it.
    ///
    /// # Errors
    /// The system's.
    pub fn named_by_user(path: &Path) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let handle = rustix::fs::openat(CWD, path, flags, Mode::empty())?;
        Ok(Self { handle, path: path.to_owned() })
    }

    /// The directory that these names lead to, one below the other, below a directory that the user
    /// named; `None` if one is missing. The last one is this user's alone. Those above it may be
    /// root's too, and others may create names in them if they are sticky, as /tmp is.
    ///
    /// # Errors
    /// One that says why, if a name is a link, or a directory is not this user's; the system's.
    pub fn open(root: &Path, names: &[&str]) -> io::Result<Option<Self>> {
        match Self::named_by_user(root).and_then(|it| it.walk(names, false)) {
            Ok(found) => Ok(Some(found)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The same, and creates what is missing: for this user alone (mode 0700).
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn create(root: &Path, names: &[&str]) -> io::Result<Self> {
        let root = Self::named_by_user(root)?;
        Self::retry(|| root.walk(names, true))
    }

    /// Creates something in a new directory, again where that is gone: ranks that end remove
    /// directories that are empty, perhaps one that was just created.
    ///
    /// # Errors
    /// Those of the last try.
    pub fn retry<T>(create: impl Fn() -> io::Result<T>) -> io::Result<T> {
        let mut created = create();
        for _ in 0..CREATIONS_MAX {
            match created {
                Err(error) if error.kind() == io::ErrorKind::NotFound => created = create(),
                result => return result,
            }
        }
        created
    }

    fn make(&self, name: &str) -> io::Result<()> {
        match rustix::fs::mkdirat(&self.handle, name, Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    fn walk(&self, names: &[&str], creates: bool) -> io::Result<Self> {
        let mut at = Self { handle: self.handle.try_clone()?, path: self.path.clone() };
        for (index, name) in names.iter().enumerate() {
            if creates {
                at.make(name)?;
            }
            at = at.enter(name, index + 1 < names.len())?;
        }
        Ok(at)
    }

    fn enter(&self, name: &str, may_be_shared: bool) -> io::Result<Self> {
        let path = self.path.join(name);
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let handle = match rustix::fs::openat(&self.handle, name, flags, Mode::empty()) {
            Err(Errno::NOTDIR | Errno::LOOP) => return Err(self.no_directory(name).into()),
            opened => opened?,
        };
        let found = rustix::fs::fstat(&handle)?;
        let (owner, mode) = (found.st_uid, found.st_mode);
        let is_ours = owner == rustix::process::geteuid().as_raw();
        let is_closed = mode & WRITABLE_BY_OTHERS == 0;
        let is_safe = if may_be_shared {
            (is_ours || owner == 0) && (is_closed || mode & STICKY != 0)
        } else {
            is_ours && is_closed
        };
        if is_safe {
            Ok(Self { handle, path })
        } else {
            Err(NotOurs::Foreign { path, owner, mode }.into())
        }
    }

    fn no_directory(&self, name: &str) -> NotOurs {
        let path = self.path.join(name);
        let found = rustix::fs::statat(&self.handle, name, AtFlags::SYMLINK_NOFOLLOW);
        match found.map(|found| FileType::from_raw_mode(found.st_mode)) {
            Ok(FileType::Symlink) => NotOurs::Link { path },
            _ => NotOurs::NoDirectory { path },
        }
    }

    /// The directory of this name below one that the user named, or `None`. It may be root's, and
    /// others may create names in it if it is sticky.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_shared(root: &Path, name: &str) -> io::Result<Option<Self>> {
        match Self::named_by_user(root).and_then(|it| it.enter(name, true)) {
            Ok(found) => Ok(Some(found)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The same, and creates it for this user alone if it is missing.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn create_shared(root: &Path, name: &str) -> io::Result<Self> {
        Self::retry(|| {
            let root = Self::named_by_user(root)?;
            root.make(name)?;
            root.enter(name, true)
        })
    }

    /// The directory's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Opens a file in the directory, with these flags; a new one is for this user alone (mode
    /// 0600).
    ///
    /// # Errors
    /// One that says why, if it is a link or not a file of this user's or root's; the system's.
    pub fn open_file(&self, name: &str, flags: OFlags) -> io::Result<File> {
        let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = Mode::RUSR | Mode::WUSR;
        let file = match rustix::fs::openat(&self.handle, name, flags, mode) {
            Err(Errno::LOOP) => return Err(NotOurs::Link { path: self.path.join(name) }.into()),
            opened => File::from(opened?),
        };
        let found = rustix::fs::fstat(&file)?;
        let (owner, mode, path) = (found.st_uid, found.st_mode, self.path.join(name));
        if FileType::from_raw_mode(mode) != FileType::RegularFile {
            return Err(NotOurs::NoDirectory { path }.into());
        }
        if owner != 0 && owner != rustix::process::geteuid().as_raw() {
            return Err(NotOurs::Foreign { path, owner, mode }.into());
        }
        Ok(file)
    }

    /// All bytes of a file in the directory.
    ///
    /// # Errors
    /// As [`Self::open_file`].
    pub fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        // A pipe would wait for its writer.
        let mut file = self.open_file(name, OFlags::RDONLY | OFlags::NONBLOCK)?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    /// Removes a file; one that is missing is no error.
    ///
    /// # Errors
    /// The system's.
    pub fn remove_file(&self, name: &str) -> io::Result<()> {
        match rustix::fs::unlinkat(&self.handle, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Removes a directory if it is empty.
    ///
    /// # Errors
    /// The system's, also if it is not empty.
    pub fn remove_directory(&self, name: &str) -> io::Result<()> {
        Ok(rustix::fs::unlinkat(&self.handle, name, AtFlags::REMOVEDIR)?)
    }

    /// Gives a file another name in the directory, in place of what has that name.
    ///
    /// # Errors
    /// The system's.
    pub fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        Ok(rustix::fs::renameat(&self.handle, from, &self.handle, to)?)
    }

    /// Device and number of the file that has this name.
    ///
    /// # Errors
    /// The system's.
    pub fn identity(&self, name: &str) -> io::Result<(u64, u64)> {
        let found = rustix::fs::statat(&self.handle, name, AtFlags::SYMLINK_NOFOLLOW)?;
        Ok((found.st_dev, found.st_ino))
    }

    /// Bytes that a file takes on the drive.
    ///
    /// # Errors
    /// The system's.
    pub fn allocated_bytes(&self, name: &str) -> io::Result<u64> {
        let found = rustix::fs::statat(&self.handle, name, AtFlags::SYMLINK_NOFOLLOW)?;
        Ok(found.st_blocks as u64 * 512)
    }

    /// The names in the directory.
    ///
    /// # Errors
    /// The system's.
    pub fn names(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in Dir::new(self.readable()?)? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            if name != "." && name != ".." {
                names.push(name);
            }
        }
        Ok(names)
    }

    /// Flushes the directory, so that the names in it are durable.
    ///
    /// # Errors
    /// The system's.
    pub fn sync(&self) -> io::Result<()> {
        Ok(rustix::fs::fsync(self.readable()?)?)
    }

    fn readable(&self) -> io::Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(rustix::fs::openat(&self.handle, ".", flags, Mode::empty())?)
    }
}

impl AsFd for PrivateDirectory {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.handle.as_fd()
    }
}
