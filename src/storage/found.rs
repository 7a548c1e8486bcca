//! Finding durable shards on drives, in whatever order the drives are named now.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::path::{Path, PathBuf};

use super::directory::ShardDirectory;
use super::record::{Record, ShardLayout};
use crate::error::{Error, ErrorKind, Result};

/// A durable shard that was found on drives, with its directories in the shard's order of drives.
#[derive(Clone, Debug)]
pub struct FoundShard {
    /// Its layout.
    pub layout: ShardLayout,
    /// One directory per drive, in the layout's order; `None` for a drive that was not named.
    pub directories: Vec<Option<ShardDirectory>>,
}

impl FoundShard {
    /// All durable shards on these drives, of every job or of one, sorted by job, creation and
    /// number.
    ///
    /// # Errors
    /// Unavailable if a directory cannot be read or another version of optswap wrote a file; I/O if
    /// a file cannot be read; state lost if a shard has a record but no layout.
    pub fn all_on(drives: &[PathBuf], job: Option<&str>) -> Result<Vec<Self>> {
        Self::each_on(drives, job, |_| Ok(()))
    }

    /// As [`Self::all_on`], with a look at each layout before the next one is read. Where there are
    /// many, `look` may shorten what is not needed of them.
    ///
    /// # Errors
    /// Those of [`Self::all_on`], and that of `look`.
    pub fn each_on(
        drives: &[PathBuf],
        job: Option<&str>,
        mut look: impl FnMut(&mut ShardLayout) -> Result<()>,
    ) -> Result<Vec<Self>> {
        let mut found: BTreeMap<(String, u32, String), Self> = BTreeMap::new();
        for drive in drives {
            for directory in ShardDirectory::all_on(drive, job)? {
                let Some(mut layout) = directory.layout()? else {
                    refuse_lost_layout(&directory)?;
                    continue;
                };
                let key = (layout.job.clone(), layout.shard, layout.job_id.clone());
                let number = layout.drive as usize;
                let shard = match found.entry(key) {
                    Entry::Occupied(known) => known.into_mut(),
                    Entry::Vacant(place) => {
                        look(&mut layout)?;
                        let directories = vec![None; layout.drives.len()];
                        place.insert(Self { layout, directories })
                    }
                };
                if let Some(place) = shard.directories.get_mut(number) {
                    *place = Some(directory);
                }
            }
        }
        let mut found: Vec<Self> = found.into_values().collect();
        let creation = |shard: &Self| (shard.layout.job.clone(), shard.layout.job_id.clone());
        found.sort_by_key(|shard| (creation(shard), shard.layout.shard));
        Ok(found)
    }

    /// The same shard with its whole layout, which is read again.
    ///
    /// # Errors
    /// I/O if it cannot be read, or is not there any more.
    pub fn with_layout(self) -> Result<Self> {
        let mut directories = self.directories.iter().flatten();
        let layout = directories.next().map_or(Ok(None), ShardDirectory::layout)?;
        let layout = layout.filter(|it| it.job_id == self.layout.job_id);
        let layout = layout.ok_or_else(|| {
            Error::new(ErrorKind::Io, "the layout of a shard has gone while it was looked at")
                .with("job", &self.layout.job)
                .with("shard", self.layout.shard)
        })?;
        Ok(Self { layout, ..self })
    }

    /// The directories on all drives of the shard.
    ///
    /// # Errors
    /// Unavailable if a drive was not named, with the path that it had when the job was created.
    pub fn complete(&self) -> Result<Vec<ShardDirectory>> {
        let missing = |number: usize| {
            let path = self.layout.drives.get(number).map_or(Path::new("?"), PathBuf::as_path);
            Error::new(ErrorKind::Unavailable, "a drive of the job is not among those named")
                .with("job", &self.layout.job)
                .with("shard", self.layout.shard)
                .with("drive", number)
                .with("when created", path.display())
                .hint("name it with --drives; if it is lost, start again from a checkpoint")
        };
        let directories = self.directories.iter().enumerate();
        directories.map(|(number, place)| place.clone().ok_or_else(|| missing(number))).collect()
    }

    /// The records in both places of this shard; a record of another creation of the job is left
    /// out.
    ///
    /// # Errors
    /// I/O if a file cannot be read; unavailable if another version of optswap wrote it; state lost
    /// if both places have been written and neither holds a whole record. A creation that was cut
    /// off leaves one of them empty.
    pub fn records(&self) -> Result<[Option<Record>; 2]> {
        let Some(Some(first)) = self.directories.first() else { return Ok([None, None]) };
        let records = [first.record(0)?, first.record(1)?];
        if records.iter().all(Option::is_none) && first.are_records_written() {
            return Err(Error::new(ErrorKind::StateLost, "both records of a shard are damaged")
                .with("path", first.path().display())
                .hint("go on from a checkpoint, or remove the job with optswap clean --remove"));
        }
        Ok(records.map(|record| record.filter(|it| it.job_id == self.layout.job_id)))
    }

    /// The newest record of this shard, whether or not other shards have one of the same commit.
    ///
    /// # Errors
    /// I/O if a file cannot be read; unavailable if another version of optswap wrote it; state lost
    /// if both records are damaged.
    pub fn newest_record(&self) -> Result<Option<Record>> {
        Ok(self.records()?.into_iter().flatten().max_by_key(|record| record.stamp))
    }
}

/// A layout is written before the first record and removed after the last one. So a record without
/// a layout is no creation that was cut off, which may be repeated, but damage, which must be
/// reported.
fn refuse_lost_layout(directory: &ShardDirectory) -> Result<()> {
    let layout = directory.layout_path();
    for place in 0..2 {
        if let Some(record) = directory.record(place)? {
            return Err(Error::new(ErrorKind::StateLost, "a shard has lost its layout")
                .with("path", layout.display())
                .with("its record", record.stamp)
                .hint(
                    "the drive has changed or lost bytes: go on from a checkpoint, or remove the \
                     job with optswap clean --remove",
                ));
        }
    }
    Ok(())
}
