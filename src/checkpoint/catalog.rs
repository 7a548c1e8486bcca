//! A job's checkpoints: saving while training goes on, finding the newest, loading, keeping the
//! last few.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use super::directories::{create_directory, list, remove_old, remove_other_generations};
use super::manifest::{Manifest, hexadecimal};
use super::reader::CheckpointReader;
use super::save::{ShardWriter, WriterSink};
use super::shares::{flat_pieces, gather_entries, with_others};
use super::{Progress, copy};
use crate::config::Config;
use crate::coord::{Call, Checked, Communicator, Group, agree, gather_all};
use crate::error::{Error, Result};
use crate::optim::ParamElem;
use crate::state::{Codec, Inventory, StateTensor};
use crate::step::{NO_PARAMETERS, ParameterSink, SwappedOptimizer};
use crate::units::{ChunkIndex, ParamIndex};

/// The checkpoints of one job, in one directory that all ranks see. Every rank has such a value.
pub struct Checkpoints {
    comm: Arc<dyn Communicator>,
    job: String,
    /// `DIR/JOB`
    directory: PathBuf,
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
    /// The checkpoints of the configured job; `None` without `checkpoint.dir`.
    pub fn open(config: &Config, comm: Arc<dyn Communicator>) -> Option<Self> {
        let directory = config.checkpoint.dir.as_ref()?.join(&config.job);
        Some(Self {
            comm: Checked::over(comm),
            job: config.job.clone(),
            directory,
            keep_last: config.checkpoint.keep_last,
            reflink: config.checkpoint.reflink,
            progress: None,
            under_way: None,
        })
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
    /// when all of it is written. `user_blob` is saved with it: that of rank 0. A save that is
    /// under way is finished first.
    ///
    /// `params` are the parameters of the shard, in shard order, as they were emitted last. Only a
    /// scratch job with the codec remainder16 needs them, since they hold the upper halves of its
    /// masters; [`NO_PARAMETERS`](crate::NO_PARAMETERS) does for all others.
    ///
    /// # Errors
    /// Agreed: usage for a name that is not a plain file name; cannot create if there is no room.
    /// Training may go on.
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
        let attempts = optimizer.attempts();
        let name = name.map_or_else(|| format!("step-{attempts:08}"), str::to_owned);
        let directory = self.directory.join(&name);
        let bytes = self.full_bytes(optimizer)?;
        let is_first = self.comm.rank().0 == 0;
        let created = if is_first { create_directory(&directory, &name, bytes) } else { Ok(()) };
        agree(&*self.comm, created)?;
        let generation = gather_all(&*self.comm, &draw_generation())?.swap_remove(0);
        let file = directory.join(format!("shard-{:05}.{generation}", self.comm.rank().0));
        let plan = optimizer.plan();
        let pieces = flat_pieces(plan);
        let writer = ShardWriter::create(file, &generation, plan.partition(), pieces, |chunk| {
            plan.saved_layout(chunk)
        });
        let writer = Arc::new(Mutex::new(agree(&*self.comm, writer)?));
        let manifest = self.manifest_of(optimizer, generation, user_blob);
        let manifest = agree(&*self.comm, manifest)?;
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
        let UnderWay { directory, writer, mut manifest } =
            under_way.ok_or_else(|| Error::usage("no checkpoint is under way"))?;
        if optimizer.snapshot_left().is_some() {
            optimizer.finish_snapshot(params)?;
        }
        let entry =
            agree(&*self.comm, writer.lock().unwrap_or_else(PoisonError::into_inner).finish())?;
        let group = optimizer.shard_group();
        let mut shards = gather_entries(&**group.communicator(), entry)?;
        if shards.iter().all(|shard| shard.pieces.is_empty()) {
            shards.sort_by_key(|shard| (shard.flat_start, shard.elems));
        }
        manifest.shards = shards;
        let manifest = with_others(manifest, group, &*self.comm)?;
        let others = manifest.others.iter().flat_map(|other| &other.shards);
        let bytes = manifest.shards.iter().chain(others).map(|shard| shard.bytes).sum();
        // Once the manifest is written the data belongs to the checkpoint, and must stay even if
        // this rank fails.
        writer.lock().unwrap_or_else(PoisonError::into_inner).keep(true);
        let is_first = self.comm.rank().0 == 0;
        let written = if is_first { manifest.write(&directory) } else { Ok(()) };
        agree(&*self.comm, written).inspect_err(|error| {
            writer.lock().unwrap_or_else(PoisonError::into_inner).keep(!error.is_agreed());
        })?;
        if is_first {
            remove_other_generations(&directory, &manifest);
            remove_old(&self.directory, &directory, self.keep_last);
        }
        self.comm.barrier()?;
        Ok(Saved { directory, attempts: manifest.attempts, bytes })
    }

    /// Collective: saves the state as it is now, under the name `step-N` if none is given, with the
    /// `user_blob` of rank 0, and waits until all of it is written.
    ///
    /// `params` are the parameters of the shard, in shard order, as they were emitted last. Only a
    /// scratch job with the codec remainder16 needs them, since they hold the upper halves of its
    /// masters; [`NO_PARAMETERS`](crate::NO_PARAMETERS) does for all others.
    ///
    /// # Errors
    /// Agreed: usage for a name that is not a plain file name; cannot create if there is no room;
    /// I/O. Training may go on unless a drive has failed.
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
    /// Peer, not agreed, if another rank does not come in time.
    pub fn newest(&self) -> Result<Option<(u64, PathBuf)>> {
        let _call = Call::enter(&*self.comm, "Checkpoints::newest", String::new);
        Ok(self.all()?.pop())
    }

    /// Collective: the checkpoints of this job, oldest first.
    fn all(&self) -> Result<Vec<(u64, PathBuf)>> {
        let mine = if self.comm.rank().0 == 0 { list(&self.directory) } else { Vec::new() };
        Ok(gather_all(&*self.comm, &mine)?.swap_remove(0))
    }

    /// Collective: the newest checkpoint of this job that is whole and of this model, with the
    /// number of steps attempted up to it. Every chunk is compared with its checksums, so it may
    /// take the place of state on the drives. Others are passed over with a warning.
    ///
    /// # Errors
    /// Peer, not agreed, if another rank does not come in time.
    pub fn newest_whole(
        &self,
        inventory: &Inventory,
        group: &Group,
    ) -> Result<Option<(u64, PathBuf)>> {
        let _call = Call::enter(&*self.comm, "Checkpoints::newest_whole", String::new);
        for (attempts, directory) in self.all()?.into_iter().rev() {
            match agree(&*self.comm, self.check_share(&directory, inventory, group)) {
                Ok(()) => return Ok(Some((attempts, directory))),
                Err(error) if error.is_agreed() => {
                    tracing::warn!("a checkpoint is passed over: {error}");
                }
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    /// Compares this rank's share of a checkpoint's shards.
    fn check_share(&self, directory: &Path, inventory: &Inventory, group: &Group) -> Result<()> {
        let mut reader = open_part(directory, group)?;
        reader.check_model(inventory)?;
        let (ranks, rank) = (group.ranks().len(), group.communicator().rank().index());
        for shard in (rank..reader.manifest().shards.len()).step_by(ranks) {
            for chunk in 0..reader.chunks_of(shard)? {
                reader.check_chunk(shard, chunk)?;
            }
        }
        Ok(())
    }

    /// Collective: starts an optimizer from a checkpoint, instead of initialising it, and emits the
    /// parameters of the shard, in shard order, into `params`. Returns the `user_blob` that rank 0
    /// gave when the checkpoint was saved.
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
        let manifest = reader.manifest().clone();
        let blob = manifest.user_blob();
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

    fn manifest_of(
        &self,
        optimizer: &SwappedOptimizer,
        generation: String,
        user_blob: &[u8],
    ) -> Result<Manifest> {
        let inventory = optimizer.plan().inventory();
        let pieces = optimizer.partition().pieces().iter();
        let counts = pieces.map(|piece| (piece.param, optimizer.update_count(piece.param)));
        let sharing = &**optimizer.shard_group().communicator();
        let counts = gather_all(sharing, &counts.collect::<Vec<_>>())?;
        let blobs = gather_all(&*self.comm, &hexadecimal(user_blob))?;
        Ok(Manifest {
            job: self.job.clone(),
            generation,
            attempts: optimizer.attempts(),
            parameters: inventory.parameters().to_vec(),
            update_counts: join_update_counts(inventory, counts.concat())?,
            tensors: optimizer.plan().tensors().iter().map(in_manifest).collect(),
            groups: optimizer.param_groups().to_vec(),
            loss_scale: optimizer.loss_scale(),
            loss_scaler: Some(optimizer.loss_scaler().state()),
            user_blob: blobs.into_iter().next().unwrap_or_default(),
            shards: Vec::new(),
            others: Vec::new(),
        })
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
fn open_part(directory: &Path, group: &Group) -> Result<CheckpointReader> {
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

/// The update count of every parameter, from what the ranks that hold a part of it have counted.
///
/// # Errors
/// Internal, naming the parameter, if ranks have counted differently.
fn join_update_counts(inventory: &Inventory, counted: Vec<(ParamIndex, u64)>) -> Result<Vec<u64>> {
    let mut counts = vec![None; inventory.parameters().len()];
    for (param, count) in counted {
        let known = *counts[param.index()].get_or_insert(count);
        if known != count {
            return Err(Error::internal("ranks disagree about the updates of a parameter")
                .with("parameter", &inventory.parameter(param).name)
                .with("updates", format!("{known} and {count}"))
                .hint("hand its gradient over on all ranks that hold a part, or on none"));
        }
    }
    Ok(counts.into_iter().map(Option::unwrap_or_default).collect())
}

/// A state tensor as a manifest names it.
fn in_manifest(tensor: &StateTensor) -> (String, Codec) {
    (tensor.name.clone().into_owned(), tensor.codec)
}

fn draw_generation() -> String {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    format!("{:016x}", now.map_or(0, |now| now.as_nanos()))
}
