//! A checkpoint as safetensors files: masters under the model's own names in `model.safetensors`,
//! moments under the same names in files of their own.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};

use super::super::Checkpoints;
use super::super::manifest::{Manifest, hexadecimal, with_ending};
use super::super::reader::CheckpointReader;
use super::{
    ATTEMPTS, ExportSummary, PIECE_ELEMS, STATE_TENSORS, UPDATE_COUNTS, USER_BLOB, cannot_create,
    file_of,
};
use crate::error::{Error, Result};
use crate::state::Inventory;
use crate::units::ParamIndex;

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
    let mut all = ExportSummary {
        paths: Vec::new(),
        parameters: 0,
        elems: 0,
        attempts: 0,
        notes: Vec::new(),
    };
    if manifest.user_blobs_differ {
        tracing::warn!("the user state differs between ranks: the files get that of rank 0");
    }
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
        notes: Vec::new(),
    })
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
    let state: Vec<&str> = manifest.tensors.iter().map(|(name, _)| name.as_str()).collect();
    let counts: Vec<String> = manifest.update_counts.iter().map(u64::to_string).collect();
    let about = HashMap::from([
        ("format".to_owned(), "pt".to_owned()),
        ("optswap.job".to_owned(), manifest.job.clone()),
        (ATTEMPTS.to_owned(), manifest.attempts.to_string()),
        (UPDATE_COUNTS.to_owned(), counts.join(" ")),
        (STATE_TENSORS.to_owned(), state.join(" ")),
        (USER_BLOB.to_owned(), hexadecimal(user_blob)),
    ]);
    let failed = |why: String| Error::internal("no safetensors header").because(why);
    let metadata =
        Metadata::new(Some(about), tensors.collect()).map_err(|error| failed(error.to_string()))?;
    let mut text = serde_json::to_vec(&metadata).map_err(|error| failed(error.to_string()))?;
    // The data begins at a multiple of eight bytes.
    text.resize(text.len().next_multiple_of(8), b' ');
    Ok(text)
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
