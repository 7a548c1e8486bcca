//! Checkpoints as safetensors files, for other programs, and back: masters under the model's own
//! names in `model.safetensors`, moments under the same names in `exp_avg.safetensors` and
//! `exp_avg_sq.safetensors`.
//!
//! Format: <https://github.com/huggingface/safetensors>, read and written by the crate of that
//! name; data is streamed here, so that memory holds one piece at a time.

mod model;
mod source;

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};

pub use self::model::ModelFiles;
use self::source::TensorSource;
use super::Checkpoints;
use super::manifest::{ChunkEntry, MANIFEST, Manifest, ShardIndex, hexadecimal, with_ending};
use super::places::ShardEntry;
use super::reader::CheckpointReader;
use crate::error::{Error, ErrorKind, Result};
use crate::state::{Codec, Hyperparameters, Inventory, MASTER, OptimizerKind, StateTensor};
use crate::storage::ExtentLayout;
use crate::units::{BLOCK_ELEMS, ParamIndex, round_up};
use crate::wire::crc32c;

/// Number of elements that are copied at once.
const PIECE_ELEMS: u64 = 1 << 20;
/// The name of the master's file; those of moments have the moments' names.
const MODEL: &str = "model";

/// What an export or import has written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportSummary {
    /// The files or directory.
    pub paths: Vec<PathBuf>,
    /// Parameters.
    pub parameters: usize,
    /// Elements of all parameters.
    pub elems: u64,
    /// Steps attempted.
    pub attempts: u64,
}

/// Writes a checkpoint as safetensors files into a directory; of several inventories, each into a
/// directory of its own below it. `on_progress` is called with the number of elements written and
/// in all.
///
/// # Errors
/// Unavailable if there is no checkpoint; I/O if it is damaged; usage if it has a state tensor that
/// no optimizer can have; cannot create if a file exists or cannot be written.
pub fn export_safetensors(
    checkpoint: &Path,
    directory: &Path,
    on_progress: &mut dyn FnMut(u64, u64),
) -> Result<ExportSummary> {
    let manifest = Manifest::read(checkpoint)?;
    let count = manifest.inventories();
    let user_blob = Checkpoints::user_blobs(checkpoint)?.into_iter().next().unwrap_or_default();
    if manifest.user_blobs_differ {
        tracing::warn!("the user state differs between ranks: the files get that of rank 0");
    }
    let mut all = ExportSummary { paths: Vec::new(), parameters: 0, elems: 0, attempts: 0 };
    for number in 0..count {
        // Names may be the same in several inventories, so each gets a directory.
        let own = directory.join(format!("inventory-{number:05}"));
        let directory = if count == 1 { directory } else { own.as_path() };
        let reader = CheckpointReader::open_inventory(checkpoint, number)?;
        let mut written = export_inventory(reader, directory, &user_blob, on_progress)?;
        all.paths.append(&mut written.paths);
        all.parameters += written.parameters;
        all.elems += written.elems;
        all.attempts = written.attempts;
    }
    Ok(all)
}

fn export_inventory(
    mut reader: CheckpointReader,
    directory: &Path,
    user_blob: &[u8],
    on_progress: &mut dyn FnMut(u64, u64),
) -> Result<ExportSummary> {
    let manifest = reader.manifest().clone();
    let inventory = manifest.inventory()?;
    std::fs::create_dir_all(directory).map_err(|error| cannot_create(directory).because(error))?;
    let paths: Vec<PathBuf> =
        reader.tensors().iter().map(|tensor| file_of(directory, &tensor.name)).collect();
    if let Some(there) = paths.iter().find(|path| path.exists()) {
        return Err(cannot_create(there).because("it exists"));
    }
    let header = header_of(&manifest, &inventory, user_blob)?;
    let mut files = Vec::new();
    for path in &paths {
        files.push(TensorFile::create(path, &header)?);
    }
    let mut pieces = vec![vec![0.0f32; PIECE_ELEMS as usize]; paths.len()];
    let total = inventory.total_elems();
    let mut flat = 0;
    while flat < total {
        let elems = PIECE_ELEMS.min(total - flat) as usize;
        let mut out: Vec<&mut [f32]> = pieces.iter_mut().map(|piece| &mut piece[..elems]).collect();
        reader.read_flat(flat, &mut out)?;
        for (file, piece) in files.iter_mut().zip(&pieces) {
            file.write(bytemuck::cast_slice(&piece[..elems]))?;
        }
        flat += elems as u64;
        on_progress(flat, total);
    }
    files.into_iter().try_for_each(TensorFile::finish)?;
    Ok(ExportSummary {
        paths,
        parameters: inventory.parameters().len(),
        elems: total,
        attempts: manifest.attempts,
    })
}

/// The file of a state tensor.
fn file_of(directory: &Path, tensor: &str) -> PathBuf {
    let name = if tensor == MASTER { MODEL } else { tensor };
    directory.join(format!("{name}.safetensors"))
}

/// The header of each file: tensors end to end in inventory order, so that the data is the flat
/// space itself.
fn header_of(manifest: &Manifest, inventory: &Inventory, user_blob: &[u8]) -> Result<Vec<u8>> {
    let mut at = 0;
    let tensors = inventory.parameters().iter().enumerate().map(|(index, parameter)| {
        let start = at;
        at += 4 * inventory.elems(ParamIndex::from_index(index)) as usize;
        let data_offsets = (start, at);
        let shape = parameter.shape.clone();
        (parameter.name.clone(), TensorInfo { dtype: Dtype::F32, shape, data_offsets })
    });
    let counts: Vec<String> = manifest.update_counts.iter().map(u64::to_string).collect();
    let about = HashMap::from([
        ("format".to_owned(), "pt".to_owned()),
        ("optswap.job".to_owned(), manifest.job.clone()),
        ("optswap.attempts".to_owned(), manifest.attempts.to_string()),
        ("optswap.update_counts".to_owned(), counts.join(" ")),
        ("optswap.user_blob".to_owned(), hexadecimal(user_blob)),
    ]);
    let failed = |why: String| Error::internal("no safetensors header").because(why);
    let metadata =
        Metadata::new(Some(about), tensors.collect()).map_err(|error| failed(error.to_string()))?;
    let mut text = serde_json::to_vec(&metadata).map_err(|error| failed(error.to_string()))?;
    // The data begins at a multiple of eight bytes.
    text.resize(text.len().next_multiple_of(8), b' ');
    Ok(text)
}

fn cannot_create(path: &Path) -> Error {
    Error::new(ErrorKind::CannotCreate, "a file cannot be written").with("path", path.display())
}

/// A file that gets its final name only when it is complete.
struct TensorFile {
    path: PathBuf,
    partial: PathBuf,
    file: BufWriter<File>,
}

impl TensorFile {
    fn create(path: &Path, header: &[u8]) -> Result<Self> {
        let partial = with_ending(path, ".partial");
        let file =
            File::create(&partial).map_err(|error| cannot_create(&partial).because(error))?;
        let mut created = Self { path: path.to_owned(), partial, file: BufWriter::new(file) };
        created.write(&(header.len() as u64).to_le_bytes())?;
        created.write(header)?;
        Ok(created)
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).map_err(|error| cannot_create(&self.partial).because(error))
    }

    fn finish(mut self) -> Result<()> {
        let flushed = self.file.flush().and_then(|()| self.file.get_ref().sync_all());
        let placed = flushed.and_then(|()| std::fs::rename(&self.partial, &self.path));
        placed.map_err(|error| cannot_create(&self.path).because(error))
    }
}

/// Creates a checkpoint from safetensors files: from a directory as [`export_safetensors`] writes
/// it, or from the files of a model ([`ModelFiles`]) as masters, with moments of zero. Parameters
/// have the order of the files. `on_progress` is called with the number of elements written and in
/// all.
///
/// # Errors
/// Usage if a file is cut short, has overlapping offsets, or the files do not fit each other;
/// cannot create if there is a checkpoint already.
pub fn import_safetensors(
    from: &Path,
    job: &str,
    checkpoint: &Path,
    on_progress: &mut dyn FnMut(u64, u64),
) -> Result<ExportSummary> {
    let model = ModelFiles::open(from)?;
    let inventory = model.inventory().clone();
    let tensors = tensors_in(from);
    let mut moments = Vec::new();
    for tensor in tensors[1..].iter().filter(|tensor| file_of(from, &tensor.name).exists()) {
        let source = TensorSource::open(&file_of(from, &tensor.name))?;
        for parameter in inventory.parameters() {
            if source.shape(&parameter.name) != Some(&parameter.shape) {
                return Err(Error::usage("the moments are of another model")
                    .with("path", source.path().display())
                    .with("parameter", &parameter.name));
            }
        }
        moments.push(source);
    }
    if checkpoint.join(MANIFEST).exists() {
        return Err(cannot_create(checkpoint).because("there is a checkpoint"));
    }
    std::fs::create_dir_all(checkpoint)
        .map_err(|error| cannot_create(checkpoint).because(error))?;
    let manifest = manifest_of(job, &inventory, &tensors, &model.about());
    write_shard(&model, &moments, &tensors, checkpoint, &manifest, on_progress)?;
    manifest.write(checkpoint)?;
    Ok(ExportSummary {
        paths: vec![checkpoint.to_owned()],
        parameters: inventory.parameters().len(),
        elems: inventory.total_elems(),
        attempts: manifest.attempts,
    })
}

/// The state tensors of the optimizer whose moments a directory has, or AdamW's if it has none.
fn tensors_in(directory: &Path) -> Vec<StateTensor> {
    let tensors_of = |kind: &OptimizerKind| kind.state_tensors(|_| Codec::Fp32);
    let is_there = |tensor: &StateTensor| file_of(directory, &tensor.name).exists();
    let mut kinds = OptimizerKind::ALL.iter().map(tensors_of);
    let found = kinds.find(|tensors| directory.is_dir() && tensors[1..].iter().all(is_there));
    found.unwrap_or_else(|| tensors_of(&OptimizerKind::default()))
}

fn manifest_of(
    job: &str,
    inventory: &Inventory,
    tensors: &[StateTensor],
    about: &HashMap<String, String>,
) -> Manifest {
    let params = inventory.parameters().len();
    let text = |key: &str| about.get(key).map(String::as_str).unwrap_or_default();
    let counts = text("optswap.update_counts").split(' ').map(|count| count.parse().unwrap_or(0));
    let mut update_counts: Vec<u64> = counts.collect();
    update_counts.resize(params, 0);
    let generation = "imported".to_owned();
    let elems = inventory.total_elems();
    let bytes = ExtentLayout::new(round_up(elems, BLOCK_ELEMS), tensors, true).bytes();
    let file = format!("shard-00000.{generation}");
    Manifest {
        job: job.to_owned(),
        generation,
        attempts: text("optswap.attempts").parse().unwrap_or(0),
        parameters: inventory.parameters().to_vec(),
        update_counts,
        tensors: tensors.iter().map(|it| (it.name.clone().into_owned(), it.codec)).collect(),
        groups: vec![Hyperparameters::default()],
        loss_scale: 1.0,
        loss_scaler: None,
        saved_by: None,
        user_blobs_differ: false,
        user_blob: Some(text("optswap.user_blob").to_owned()),
        shards: vec![ShardEntry { file, flat_start: 0, elems, bytes, pieces: Vec::new() }],
        others: Vec::new(),
    }
}

/// Writes all elements as one shard, in chunks of a million.
fn write_shard(
    model: &ModelFiles,
    moments: &[TensorSource],
    tensors: &[StateTensor],
    checkpoint: &Path,
    manifest: &Manifest,
    on_progress: &mut dyn FnMut(u64, u64),
) -> Result<()> {
    let path = checkpoint.join(&manifest.shards[0].file);
    let file = File::create(&path).map_err(|error| cannot_create(&path).because(error))?;
    let mut index = ShardIndex { generation: manifest.generation.clone(), ..Default::default() };
    let total = model.inventory().total_elems();
    let (mut flat, mut offset) = (0, 0);
    while flat < total {
        let elems = PIECE_ELEMS.min(total - flat);
        let padded_elems = round_up(elems, BLOCK_ELEMS);
        let layout = ExtentLayout::new(padded_elems, tensors, true);
        let mut values = vec![0.0f32; layout.bytes() as usize / 4];
        for (number, section) in layout.sections().iter().enumerate().take(1 + moments.len()) {
            let out = &mut values[section.start / 4..][..elems as usize];
            for_each_parameter(model.inventory(), flat, out, |param, at, out| match number {
                0 => model.read(param, at, out),
                moment => {
                    moments[moment - 1].read(&model.inventory().parameter(param).name, at, out)
                }
            })?;
        }
        let bytes: &[u8] = bytemuck::cast_slice(&values);
        file.write_all_at(bytes, offset).map_err(|error| cannot_create(&path).because(error))?;
        let checksums = layout.sections().iter().map(|section| crc32c(&bytes[section.clone()]));
        let checksums = checksums.collect();
        index.chunks.push(ChunkEntry { flat_start: flat, elems, padded_elems, offset, checksums });
        offset += layout.bytes();
        flat += elems;
        on_progress(flat, total);
    }
    file.sync_all().map_err(|error| cannot_create(&path).because(error))?;
    index.write(&path)
}

/// Fills a range of the flat space, parameter by parameter.
fn for_each_parameter(
    inventory: &Inventory,
    flat: u64,
    out: &mut [f32],
    mut read: impl FnMut(ParamIndex, u64, &mut [f32]) -> Result<()>,
) -> Result<()> {
    let mut done = 0;
    while done < out.len() {
        let at = flat + done as u64;
        let param = inventory.param_at(at);
        let offset = at - inventory.flat_start(param);
        let elems = (inventory.elems(param) - offset).min((out.len() - done) as u64) as usize;
        read(param, offset, &mut out[done..done + elems])?;
        done += elems;
    }
    Ok(())
}
