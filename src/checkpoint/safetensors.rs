//! Checkpoints as safetensors files, for other programs, and back: masters under the model's own
//! names in `model.safetensors`, moments under the same names in `exp_avg.safetensors` and
//! `exp_avg_sq.safetensors`.
//!
//! Format: <https://github.com/huggingface/safetensors>, read and written by the crate of that
//! name; data is streamed here, so that memory holds one piece at a time.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};

use super::manifest::{ChunkEntry, MANIFEST, Manifest, ShardEntry, ShardIndex, with_ending};
use super::reader::CheckpointReader;
use crate::error::{Error, ErrorKind, Result};
use crate::state::{
    Codec, Hyperparameters, Inventory, MASTER, OptimizerKind, Parameter, StateTensor,
};
use crate::storage::ExtentLayout;
use crate::units::{BLOCK_ELEMS, round_up};
use crate::wire::crc32c;

/// Elements that are copied at once.
const PIECE_ELEMS: u64 = 1 << 20;
/// A header beyond this is no header (the format's own limit).
const HEADER_BYTES_MAX: u64 = 100_000_000;
/// The master's file; moments have files of their own names.
const MODEL: &str = "model";

/// What was written.
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

/// Writes a checkpoint as safetensors files into a directory. `told` gets elements done and in all.
///
/// # Errors
/// Errors of reading the checkpoint; cannot create if a file exists or cannot be written.
pub fn export_safetensors(
    checkpoint: &Path,
    directory: &Path,
    told: &mut dyn FnMut(u64, u64),
) -> Result<ExportSummary> {
    let mut reader = CheckpointReader::open(checkpoint)?;
    let manifest = reader.manifest().clone();
    let inventory = manifest.inventory()?;
    std::fs::create_dir_all(directory).map_err(|error| cannot_create(directory).because(error))?;
    let paths: Vec<PathBuf> =
        reader.tensors().iter().map(|tensor| file_of(directory, tensor.name)).collect();
    if let Some(there) = paths.iter().find(|path| path.exists()) {
        return Err(cannot_create(there).because("it exists"));
    }
    let header = header_of(&manifest, &inventory)?;
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
        told(flat, total);
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
fn header_of(manifest: &Manifest, inventory: &Inventory) -> Result<Vec<u8>> {
    let mut at = 0;
    let tensors = inventory.parameters().iter().enumerate().map(|(index, parameter)| {
        let start = at;
        at += 4 * inventory.elems(crate::units::ParamIndex::from_index(index)) as usize;
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
        ("optswap.user_blob".to_owned(), manifest.user_blob.clone()),
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

/// A file under its final name only when it is whole.
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

/// A safetensors file, open for reading.
struct TensorSource {
    path: PathBuf,
    file: File,
    metadata: Metadata,
    data_start: u64,
}

impl TensorSource {
    fn open(path: &Path) -> Result<Self> {
        let wrong = |why: String| {
            Error::usage("this is no whole safetensors file")
                .with("path", path.display())
                .because(why)
        };
        let io = |error: std::io::Error| wrong(error.to_string());
        let file = File::open(path).map_err(io)?;
        let file_bytes = file.metadata().map_err(io)?.len();
        let mut length = [0u8; 8];
        file.read_exact_at(&mut length, 0).map_err(io)?;
        let header_bytes = u64::from_le_bytes(length);
        if header_bytes > HEADER_BYTES_MAX.min(file_bytes.saturating_sub(8)) {
            return Err(wrong(format!("its header claims {header_bytes} bytes")));
        }
        let mut header = vec![0; header_bytes as usize];
        file.read_exact_at(&mut header, 8).map_err(io)?;
        // The crate checks offsets, overlaps and sizes as it reads.
        let metadata: Metadata =
            serde_json::from_slice(&header).map_err(|error| wrong(error.to_string()))?;
        let data_start = 8 + header_bytes;
        let needed = data_start.checked_add(metadata.data_len() as u64);
        if needed != Some(file_bytes) {
            let data_bytes = metadata.data_len();
            return Err(wrong(format!("{data_bytes} bytes of data in a file of {file_bytes}")));
        }
        Ok(Self { path: path.to_owned(), file, metadata, data_start })
    }

    /// Copies values of one tensor from `offset` on, widened to f32.
    fn read(&self, name: &str, offset: u64, out: &mut [f32]) -> Result<()> {
        let wrong = |why: String| {
            Error::usage("a tensor cannot be read")
                .with("path", self.path.display())
                .with("tensor", name)
                .because(why)
        };
        let info = self.metadata.info(name).ok_or_else(|| wrong("it is not there".into()))?;
        let elem_bytes = match info.dtype {
            Dtype::F32 => 4,
            Dtype::BF16 | Dtype::F16 => 2,
            Dtype::F64 => 8,
            other => return Err(wrong(format!("its type is {other:?}, not a float"))),
        };
        let mut bytes = vec![0u8; out.len() * elem_bytes];
        let at = self.data_start + info.data_offsets.0 as u64 + offset * elem_bytes as u64;
        self.file.read_exact_at(&mut bytes, at).map_err(|error| wrong(error.to_string()))?;
        for (out, value) in out.iter_mut().zip(bytes.chunks_exact(elem_bytes)) {
            *out = match (info.dtype, value) {
                (Dtype::F32, [a, b, c, d]) => f32::from_le_bytes([*a, *b, *c, *d]),
                (Dtype::BF16, [a, b]) => half::bf16::from_le_bytes([*a, *b]).to_f32(),
                (Dtype::F16, [a, b]) => half::f16::from_le_bytes([*a, *b]).to_f32(),
                (_, wide) => f64::from_le_bytes(wide.try_into().unwrap_or_default()) as f32,
            };
        }
        Ok(())
    }
}

/// Makes a checkpoint of safetensors files: a directory as [`export_safetensors`] writes it, or one
/// file with the masters alone, and moments of zero. Parameters are taken in the order in which
/// they lie in the file.
///
/// # Errors
/// Usage if a file is cut short, has overlapping offsets, or the files do not fit each other;
/// cannot create if there is a checkpoint already.
pub fn import_safetensors(
    from: &Path,
    job: &str,
    checkpoint: &Path,
    told: &mut dyn FnMut(u64, u64),
) -> Result<ExportSummary> {
    let model = if from.is_dir() { file_of(from, MASTER) } else { from.to_owned() };
    let mut sources = vec![TensorSource::open(&model)?];
    let tensors = tensors_in(from);
    for tensor in tensors[1..].iter().filter(|tensor| file_of(from, tensor.name).exists()) {
        sources.push(TensorSource::open(&file_of(from, tensor.name))?);
    }
    let names = sources[0].metadata.offset_keys();
    let parameters = names.iter().filter_map(|name| {
        sources[0].metadata.info(name).map(|info| Parameter::new(name, info.shape.clone()))
    });
    let inventory = Inventory::new(parameters.collect())?;
    for source in &sources[1..] {
        for parameter in inventory.parameters() {
            let shape = source.metadata.info(&parameter.name).map(|info| &info.shape);
            if shape != Some(&parameter.shape) {
                return Err(Error::usage("the moments are of another model")
                    .with("path", source.path.display())
                    .with("parameter", &parameter.name));
            }
        }
    }
    if checkpoint.join(MANIFEST).exists() {
        return Err(cannot_create(checkpoint).because("there is a checkpoint"));
    }
    std::fs::create_dir_all(checkpoint)
        .map_err(|error| cannot_create(checkpoint).because(error))?;
    let about = sources[0].metadata.metadata().clone().unwrap_or_default();
    let manifest = manifest_of(job, &inventory, &tensors, &about);
    write_shard(&sources, &tensors, &inventory, checkpoint, &manifest, told)?;
    manifest.write(checkpoint)?;
    Ok(ExportSummary {
        paths: vec![checkpoint.to_owned()],
        parameters: inventory.parameters().len(),
        elems: inventory.total_elems(),
        attempts: manifest.attempts,
    })
}

/// The state tensors of the optimizer whose moments lie in a directory, AdamW's if none do.
fn tensors_in(directory: &Path) -> Vec<StateTensor> {
    let tensors_of = |kind: &OptimizerKind| kind.state_tensors(|_| Codec::Fp32);
    let is_there = |tensor: &StateTensor| file_of(directory, tensor.name).exists();
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
        tensors: tensors.iter().map(|it| (it.name.to_owned(), it.codec)).collect(),
        groups: vec![Hyperparameters::default()],
        loss_scale: 1.0,
        user_blob: text("optswap.user_blob").to_owned(),
        shards: vec![ShardEntry { file, flat_start: 0, elems, bytes }],
    }
}

/// Writes all elements as one shard, in chunks of a million.
fn write_shard(
    sources: &[TensorSource],
    tensors: &[StateTensor],
    inventory: &Inventory,
    checkpoint: &Path,
    manifest: &Manifest,
    told: &mut dyn FnMut(u64, u64),
) -> Result<()> {
    let path = checkpoint.join(&manifest.shards[0].file);
    let file = File::create(&path).map_err(|error| cannot_create(&path).because(error))?;
    let mut index = ShardIndex { generation: manifest.generation.clone(), chunks: Vec::new() };
    let (mut flat, mut offset) = (0, 0);
    while flat < inventory.total_elems() {
        let elems = PIECE_ELEMS.min(inventory.total_elems() - flat);
        let padded_elems = round_up(elems, BLOCK_ELEMS);
        let layout = ExtentLayout::new(padded_elems, tensors, true);
        let mut values = vec![0.0f32; layout.bytes() as usize / 4];
        for (source, section) in sources.iter().zip(layout.sections()) {
            let out = &mut values[section.start / 4..][..elems as usize];
            read_flat(source, inventory, flat, out)?;
        }
        let bytes: &[u8] = bytemuck::cast_slice(&values);
        file.write_all_at(bytes, offset).map_err(|error| cannot_create(&path).because(error))?;
        let checksums = layout.sections().iter().map(|section| crc32c(&bytes[section.clone()]));
        let checksums = checksums.collect();
        index.chunks.push(ChunkEntry { flat_start: flat, elems, padded_elems, offset, checksums });
        offset += layout.bytes();
        flat += elems;
        told(flat, inventory.total_elems());
    }
    file.sync_all().map_err(|error| cannot_create(&path).because(error))?;
    index.write(&path)
}

/// A range of the flat space, tensor by tensor.
fn read_flat(
    source: &TensorSource,
    inventory: &Inventory,
    flat: u64,
    out: &mut [f32],
) -> Result<()> {
    let mut done = 0;
    while done < out.len() {
        let at = flat + done as u64;
        let param = inventory.param_at(at);
        let offset = at - inventory.flat_start(param);
        let elems = (inventory.elems(param) - offset).min((out.len() - done) as u64) as usize;
        source.read(&inventory.parameter(param).name, offset, &mut out[done..done + elems])?;
        done += elems;
    }
    Ok(())
}
