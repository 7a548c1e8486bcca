//! A job's checkpoints: saving while training goes on, finding the newest, loading, keeping the
//! last few.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use super::claim::Claim;
use super::directories::{
    automatic_name, create_directory, list, remove_old, remove_other_generations, remove_unfinished,
};
use super::manifest::Manifest;
use super::reader::CheckpointReader;
use super::save::{ShardWriter, WriterSink};
use super::shares::{complete_manifest, flat_pieces, manifest_of};
use super::{Progress, blobs, copy};
use crate::config::Config;
use crate::coord::{Call, Checked, Communicator, Group, Pulse, agree, draw_id, gather_all};
use crate::error::{Error, Result};
use crate::optim::ParamElem;
use crate::step::{NO_PARAMETERS, ParameterSink, SwappedOptimizer, check_user_blob};
use crate::units::ChunkIndex;

/// The checkpoints of one job, in one directory that all ranks see. Every rank has such a value. As
/// long as rank 0 has its own, no other job of the name can have one.
pub struct Checkpoints {
    comm: Arc<dyn Communicator>,
    job: String,
    /// `DIR/JOB`
    directory: PathBuf,
    /// On rank 0.
    claim: Option<Claim>,
    keep_last: usize,
    reflink: bool,
    progress: Option<Progress>,
    under_way: Option<UnderWay>,
}

struct UnderWay {
    directory: PathBuf,
    writer: Arc<Mutex<ShardWriter>>,
    /// The manifest, without shards yet.
    manifest: Manifest,
}

/// A checkpoint that has just been saved; the same on every rank.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Saved {
    /// Its directory.
    pub directory: PathBuf,
    /// Steps attempted up to it.
    pub attempts: u64,
    /// Bytes of data, of all shards together.
    pub bytes: u64,
}

impl Checkpoints {
    /// Collective: opens the checkpoints of the configured job, and locks their directory for it,
    /// so that no other job of the name saves there; `None` without `checkpoint.dir`. Where the
    /// file system has no locks, a warning says so.
    ///
    /// # Errors
    /// Agreed. Unavailable if another living job holds the lock, with its process. Cannot create if
    /// something else than a directory is there, or it cannot be read.
    pub fn open(config: &Config, comm: Arc<dyn Communicator>) -> Result<Option<Self>> {
        let Some(directory) = config.checkpoint.dir.as_ref() else { return Ok(None) };
        let comm = Checked::over(comm);
        let _call = Call::enter(&*comm, "Checkpoints::open", String::new);
        let directory = directory.join(&config.job);
        let is_first = comm.rank().0 == 0;
        let claim = is_first.then(|| Claim::take(&directory, &config.job, &*comm));
        let claim = agree(&*comm, claim.transpose())?;
        Ok(Some(Self {
            comm,
            job: config.job.clone(),
            directory,
            claim,
            keep_last: config.checkpoint.keep_last,
            reflink: config.checkpoint.reflink,
            progress: None,
            under_way: None,
        }))
    }

    pub(super) fn communicator(&self) -> &Arc<dyn Communicator> {
        &self.comm
    }

    pub(super) fn pulse(&self) -> Pulse {
        Pulse::of(&*self.comm)
    }

    /// Sets the function to be called while bytes move.
    pub fn set_progress(&mut self, progress: Progress) {
        self.progress = Some(progress);
    }

    /// Whether a save is under way.
    pub fn is_saving(&self) -> bool {
        self.under_way.is_some()
    }

    /// Collective: begins to save the state as it is now, under the name `step-N` if none is given.
    /// The following steps write it, and [`Self::poll`] after each of them makes it a checkpoint
    /// when all of it is written. `user_blob` is saved with it: every shard keeps the bytes that
    /// its rank gives. A save that is under way is finished first.
    ///
    /// A checkpoint with a name of the caller's stays until the caller removes it;
    /// `checkpoint.keep_last` counts the others.
    ///
    /// `params` are the parameters of the shard, in shard order, as they were emitted last. Only a
    /// scratch job with the codec remainder16 needs them, since they hold the upper halves of its
    /// masters; [`NO_PARAMETERS`](crate::NO_PARAMETERS) does for all others.
    ///
    /// # Errors
    /// Agreed: usage for a name that is not a plain file name, or a `user_blob` beyond
    /// [`StepOptions::USER_BLOB_BYTES_MAX`](crate::StepOptions::USER_BLOB_BYTES_MAX); unavailable
    /// if another job of this name saves here as well; cannot create if there is no room. Training
    /// may go on.
    pub fn begin<P: ParamElem>(
        &mut self,
        optimizer: &mut SwappedOptimizer,
        name: Option<&str>,
        user_blob: &[u8],
        params: &[P],
    ) -> Result<()> {
        let _call = Call::enter(&*self.comm, "save", String::new);
        if self.under_way.is_some() {
            self.finish(optimizer, params)?;
        }
        let name = name.map_or_else(|| automatic_name(optimizer.attempts()), str::to_owned);
        let directory = self.directory.join(&name);
        let bytes = self.full_bytes(optimizer)?;
        let created = check_user_blob(user_blob).and_then(|()| match &mut self.claim {
            Some(claim) => {
                claim.name_run(optimizer.job_id());
                claim.check_alone().and_then(|()| create_directory(&directory, &name, bytes))
            }
            None => Ok(()),
        });
        agree(&*self.comm, created)?;
        let generation = draw_id(&*self.comm)?;
        let plan = optimizer.plan();
        let file = directory.join(blobs::file_of_shard(plan.shard(), &generation));
        let pieces = flat_pieces(plan);
        let writer = ShardWriter::create(file, &generation, plan, pieces, user_blob, self.pulse());
        let writer = Arc::new(Mutex::new(agree(&*self.comm, writer)?));
        let differ = blobs::differ(&*self.comm, user_blob)?;
        let saved_by = self.claim.as_ref().map(Claim::run);
        let manifest = manifest_of(optimizer, &self.job, generation)?;
        let manifest = Manifest { saved_by, user_blobs_differ: differ, ..manifest };
        self.under_way = Some(UnderWay { directory, writer: Arc::clone(&writer), manifest });
        if self.reflink {
            // Blocks are shared of what lies on the drives, so chunks that are newer in memory must
            // be written.
            optimizer.write_back()?;
        }
        if self.reflink && self.clone_all(optimizer, &writer)? {
            return Ok(());
        }
        let progress = self.progress.clone();
        let sink = Box::new(WriterSink { writer, progress, put_bytes: 0 });
        agree(&*self.comm, optimizer.begin_snapshot(sink))
    }

    /// Collective: shares the blocks of the state files, if that is possible on all ranks.
    fn clone_all(&self, optimizer: &SwappedOptimizer, writer: &Mutex<ShardWriter>) -> Result<bool> {
        let cloned = copy::clone_shard(
            optimizer,
            &mut writer.lock().unwrap_or_else(PoisonError::into_inner),
        );
        let mut refused = [u64::from(cloned.is_err())];
        self.comm.all_reduce_sum(&mut refused)?;
        if let Err(error) = cloned {
            tracing::warn!("reflink refused, falling back to a copy: {error}");
        }
        Ok(refused[0] == 0)
    }

    /// Collective: makes the save under way a checkpoint if all of it is written on all ranks, and
    /// returns what was saved; otherwise `None`. To be called after every step; it costs nothing
    /// when no save is under way.
    ///
    /// # Errors
    /// Agreed: cannot create, or I/O. There is no checkpoint then, and the older ones are as they
    /// were. Training may go on unless a drive has failed.
    pub fn poll(&mut self, optimizer: &mut SwappedOptimizer) -> Result<Option<Saved>> {
        let _call = Call::enter(&*self.comm, "poll of a save", String::new);
        if self.under_way.is_none() {
            return Ok(None);
        }
        let left = optimizer.snapshot_left().unwrap_or(0) as u64;
        let writer = self.under_way.as_ref().map(|it| Arc::clone(&it.writer));
        let is_writing = left == 0
            && writer
                .is_some_and(|it| it.lock().unwrap_or_else(PoisonError::into_inner).is_writing());
        let mut left = [left + u64::from(is_writing)];
        self.comm.all_reduce_sum(&mut left)?;
        if left[0] > 0 {
            return Ok(None);
        }
        // Nothing is left to be read, so no parameters are needed.
        self.finish(optimizer, NO_PARAMETERS).map(Some)
    }

    /// Collective: makes the save under way a checkpoint; what no step has handed over yet is read
    /// from the drives. Then older checkpoints beyond the last `checkpoint.keep_last` are removed.
    ///
    /// `params` are the parameters of the shard, in shard order, as they were emitted last. Only a
    /// scratch job with the codec remainder16 needs them, since they hold the upper halves of its
    /// masters; [`NO_PARAMETERS`](crate::NO_PARAMETERS) does for all others.
    ///
    /// # Errors
    /// Agreed. Usage if no save is under way. Cannot create, or I/O: there is no checkpoint then,
    /// and the older ones are as they were. Training may go on unless a drive has failed.
    pub fn finish<P: ParamElem>(
        &mut self,
        optimizer: &mut SwappedOptimizer,
        params: &[P],
    ) -> Result<Saved> {
        let _call = Call::enter(&*self.comm, "end of a save", String::new);
        let under_way = self.under_way.take();
        let UnderWay { directory, writer, manifest } =
            under_way.ok_or_else(|| Error::usage("no checkpoint is under way"))?;
        if optimizer.snapshot_left().is_some() {
            optimizer.finish_snapshot(params)?;
        }
        let entry =
            agree(&*self.comm, writer.lock().unwrap_or_else(PoisonError::into_inner).finish())?;
        let group = optimizer.shard_group();
        let mut bytes = [entry.bytes];
        self.comm.all_reduce_sum(&mut bytes)?;
        let attempts = manifest.attempts;
        let manifest = complete_manifest(manifest, entry, group, &*self.comm)?;
        // Once the manifest is written the data belongs to the checkpoint, and must stay even if
        // this rank fails.
        writer.lock().unwrap_or_else(PoisonError::into_inner).keep(true);
        let written = manifest.as_ref().map_or(Ok(()), |manifest| manifest.write(&directory));
        agree(&*self.comm, written).inspect_err(|error| {
            writer.lock().unwrap_or_else(PoisonError::into_inner).keep(!error.is_agreed());
        })?;
        let pulse = self.pulse();
        if let Some((claim, manifest)) = self.claim.as_mut().zip(manifest) {
            claim.note(&manifest.generation);
            remove_other_generations(&directory, &manifest, &pulse);
            if claim.is_locked() {
                // Without a lock, they may be those of a job that lives.
                remove_unfinished(&self.directory, &directory, &pulse);
            }
            remove_old(&self.directory, &directory, self.keep_last, &pulse);
        }
        self.comm.barrier()?;
        Ok(Saved { directory, attempts, bytes: bytes[0] })
    }

    /// Collective: saves the state as it is now, under the name `step-N` if none is given, with the
    /// `user_blob` of each rank, and waits until all of it is written.
    ///
    /// `params` are the parameters of the shard, in shard order, as they were emitted last. Only a
    /// scratch job with the codec remainder16 needs them, since they hold the upper halves of its
    /// masters; [`NO_PARAMETERS`](crate::NO_PARAMETERS) does for all others.
    ///
    /// # Errors
    /// Agreed: usage for a name that is not a plain file name, or a `user_blob` beyond
    /// [`StepOptions::USER_BLOB_BYTES_MAX`](crate::StepOptions::USER_BLOB_BYTES_MAX); unavailable
    /// if another job of this name saves here as well; cannot create if there is no room; I/O.
    /// Training may go on unless a drive has failed.
    pub fn save<P: ParamElem>(
        &mut self,
        optimizer: &mut SwappedOptimizer,
        name: Option<&str>,
        user_blob: &[u8],
        params: &[P],
    ) -> Result<Saved> {
        let _call = Call::enter(&*self.comm, "save", String::new);
        self.begin(optimizer, name, user_blob, params)?;
        self.finish(optimizer, params)
    }

    /// Gives up the save under way, so that there will be no checkpoint of it; does nothing if
    /// there is none. All ranks do the same.
    pub fn abandon(&mut self, optimizer: &mut SwappedOptimizer) {
        optimizer.drop_snapshot();
        self.under_way = None;
    }

    /// Collective: the directory of this job's newest checkpoint, with the number of steps
    /// attempted up to it; `None` if there is no checkpoint.
    ///
    /// # Errors
    /// Agreed: cannot create, if the directory of checkpoints cannot be read. Peer, not agreed, if
    /// another rank does not come in time.
    pub fn newest(&self) -> Result<Option<(u64, PathBuf)>> {
        let _call = Call::enter(&*self.comm, "Checkpoints::newest", String::new);
        Ok(self.all()?.pop())
    }

    /// Collective: the checkpoints of this job, oldest first.
    pub(super) fn all(&self) -> Result<Vec<(u64, PathBuf)>> {
        let is_first = self.comm.rank().0 == 0;
        let found = if is_first { list(&self.directory) } else { Ok(Vec::new()) };
        let found = agree(&*self.comm, found)?;
        let found = found.into_iter().map(|it| (it.attempts, it.directory)).collect();
        Ok(gather_all::<Vec<_>>(&*self.comm, &found)?.swap_remove(0))
    }

    /// The bytes that every rank gave when a checkpoint was saved, in the order of ranks, for jobs
    /// that go on with another number of them. (A checkpoint of an older version has those of rank
    /// 0 alone.)
    ///
    /// # Errors
    /// Unavailable if there is no checkpoint, or its version is not known; I/O if it is damaged.
    pub fn user_blobs(directory: &Path) -> Result<Vec<Vec<u8>>> {
        blobs::read_all(directory)
    }

    /// Collective: starts an optimizer from a checkpoint, instead of initialising it, and emits the
    /// parameters of the shard, in shard order, into `params`. Returns the `user_blob` that was
    /// saved with this rank's shard: on as many ranks as saved the checkpoint, this rank's own. On
    /// another number of ranks, all get that of rank 0, with a warning if the others differed;
    /// [`Self::user_blobs`] gives all of them.
    ///
    /// # Errors
    /// Agreed: usage if it is of another model or optimizer, or `params` does not fit the shard;
    /// I/O if it cannot be read or is corrupt; errors of the drives.
    pub fn load<S: ParameterSink + ?Sized>(
        &self,
        optimizer: &mut SwappedOptimizer,
        directory: &Path,
        params: &mut S,
    ) -> Result<Vec<u8>> {
        let _call = Call::enter(&*self.comm, "load", String::new);
        let mut reader = agree(&*self.comm, open_for(optimizer, directory))?;
        let (shard, shards) = (optimizer.plan().shard(), self.comm.size() as u32);
        let blob = agree(&*self.comm, blobs::read_for(directory, shard, shards))?;
        let manifest = reader.manifest().clone();
        if let Some(run) = manifest.saved_by.as_ref().filter(|run| run.id != optimizer.job_id()) {
            tracing::info!("the checkpoint was saved by {run}");
        }
        let inventory = manifest.inventory()?;
        let elem_bytes = 4 * optimizer.plan().tensors().len() as u64;
        let (mut bytes, all_bytes) = (0, elem_bytes * optimizer.partition().elems());
        let counts = manifest.update_counts;
        optimizer.restore_loss_scale(manifest.loss_scale, manifest.loss_scaler);
        optimizer.restore(manifest.attempts, counts, &blob, params, |run, out| {
            reader.read_flat(inventory.flat_of(run.param, run.param_offset), out)?;
            bytes += elem_bytes * run.elems;
            self.progress.iter().for_each(|progress| progress(bytes, all_bytes));
            Ok(())
        })?;
        Ok(blob)
    }

    /// Collective: bytes of a checkpoint, all ranks together: what a file system must have free.
    fn full_bytes(&self, optimizer: &SwappedOptimizer) -> Result<u64> {
        let plan = optimizer.plan();
        let chunks = (0..plan.partition().chunks().len()).map(ChunkIndex::from_index);
        let mut bytes = [chunks.map(|chunk| plan.saved_layout(chunk).bytes()).sum()];
        self.comm.all_reduce_sum(&mut bytes)?;
        Ok(bytes[0])
    }
}

/// This rank's inventory in a checkpoint of as many as the job has.
pub(super) fn open_part(directory: &Path, group: &Group) -> Result<CheckpointReader> {
    let saved = Manifest::read(directory)?.inventories();
    if saved != group.count() {
        return Err(Error::usage("the checkpoint is of another number of inventories")
            .with("checkpoint", directory.display())
            .with("saved", saved)
            .with("expected", group.count())
            .hint("ranks and pieces may differ from those that saved it, inventories may not"));
    }
    CheckpointReader::open_inventory(directory, group.number())
}

/// This rank's inventory in a checkpoint that must be of the optimizer's model and state tensors.
fn open_for(optimizer: &SwappedOptimizer, directory: &Path) -> Result<CheckpointReader> {
    let reader = open_part(directory, optimizer.shard_group())?;
    reader.check_model(optimizer.plan().inventory())?;
    reader.check_tensors(optimizer.plan().tensors())?;
    Ok(reader)
}
