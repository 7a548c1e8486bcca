//! A checkpoint from safetensors files: those of an export, or a model's weights alone.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::super::index::{ChunkEntry, ShardIndex};
use super::super::manifest::{MANIFEST, Manifest};
use super::super::places::ShardEntry;
use super::model::ModelFiles;
use super::{
    ATTEMPTS, ExportSummary, PIECE_ELEMS, STATE_TENSORS, UPDATE_COUNTS, USER_BLOB, cannot_create,
    file_name, file_of,
};
use crate::error::{Error, Result};
use crate::state::{
    Codec, Hyperparameters, Inventory, MASTER, OptimizerKind, OptimizerSpec, StateTensor,
    StateTensorSpec,
};
use crate::storage::ExtentLayout;
use crate::units::{BLOCK_ELEMS, ParamIndex, round_up};
use crate::wire::crc32c;

/// Creates a checkpoint from safetensors files: from a directory as
/// [`export_safetensors`](super::export_safetensors) writes it, with the moments of all its files,
/// or from the files of a model ([`ModelFiles`]) as masters, with moments of zero and at step 0.
/// Parameters have the order of the files. `on_progress` is called with the number of elements
/// written and in all.
///
/// # Errors
/// Usage if a file is cut short or has overlapping offsets, if the files do not fit each other, if
/// some moments are missing, and if a value is NaN or infinite; cannot create if there is a
/// checkpoint already. Nothing is left then of what was begun.
pub fn import_safetensors(
    from: &Path,
    job: &str,
    checkpoint: &Path,
    on_progress: &mut dyn FnMut(u64, u64),
) -> Result<ExportSummary> {
    let import = Import::open(from)?;
    if checkpoint.join(MANIFEST).exists() {
        return Err(cannot_create(checkpoint).because("there is a checkpoint"));
    }
    let new_directories = checkpoint.ancestors().take_while(|it| !it.exists()).count();
    std::fs::create_dir_all(checkpoint)
        .map_err(|error| cannot_create(checkpoint).because(error))?;
    let manifest = import.manifest(job);
    let data = checkpoint.join(&manifest.shards[0].file);
    let written = import
        .write_shard(&data, &manifest.generation, on_progress)
        .and_then(|()| manifest.write(checkpoint));
    if let Err(error) = written {
        // What cannot be removed is left, as the first error matters more.
        let _ = std::fs::remove_file(&data);
        for directory in checkpoint.ancestors().take(new_directories) {
            let _ = std::fs::remove_dir(directory);
        }
        return Err(error);
    }
    Ok(ExportSummary {
        paths: vec![checkpoint.to_owned()],
        parameters: import.model.inventory().parameters().len(),
        elems: import.model.inventory().total_elems(),
        attempts: manifest.attempts,
        notes: import.notes(),
    })
}

/// What is imported.
struct Import {
    model: ModelFiles,
    /// The state tensors, master first.
    tensors: Vec<StateTensor>,
    /// The file of each tensor behind the master, in their order; none if they begin with zero.
    moments: Vec<Moment>,
    history: History,
}

/// The file of a moment.
struct Moment {
    file: ModelFiles,
    /// Its number of each of the model's parameters.
    param_of: Vec<ParamIndex>,
}

/// What moments have behind them.
#[derive(Default)]
struct History {
    attempts: u64,
    update_counts: Vec<u64>,
    user_blob: String,
}

impl Import {
    fn open(from: &Path) -> Result<Self> {
        let model = ModelFiles::open(from)?;
        let about = model.about();
        let (tensors, has_moments) = state_tensors(from, &about)?;
        if !has_moments {
            let update_counts = vec![0; model.inventory().parameters().len()];
            let history = History { update_counts, ..History::default() };
            return Ok(Self { model, tensors, moments: Vec::new(), history });
        }
        let open = |tensor: &StateTensor| Moment::open(&file_of(from, &tensor.name), &model);
        let moments = tensors[1..].iter().map(open).collect::<Result<Vec<_>>>()?;
        let history = History::of(&about, model.inventory())
            .map_err(|error| error.with("path", from.display()))?;
        Ok(Self { model, tensors, moments, history })
    }

    fn notes(&self) -> Vec<String> {
        let used = self.tensors.iter().map(|tensor| file_name(&tensor.name));
        let used: Vec<String> = if self.moments.is_empty() { Vec::new() } else { used.collect() };
        let mut notes = self.model.notes_beside(&used);
        if self.moments.is_empty() {
            let names: Vec<&str> = self.tensors[1..].iter().map(|it| &*it.name).collect();
            notes.push(format!("weights alone: at step 0, {} of zero", names.join(" and ")));
        }
        notes
    }

    fn manifest(&self, job: &str) -> Manifest {
        let inventory = self.model.inventory();
        let generation = "imported".to_owned();
        let elems = inventory.total_elems();
        let bytes = ExtentLayout::new(round_up(elems, BLOCK_ELEMS), &self.tensors, true).bytes();
        let file = format!("shard-00000.{generation}");
        Manifest {
            job: job.to_owned(),
            generation,
            attempts: self.history.attempts,
            parameters: inventory.parameters().to_vec(),
            update_counts: self.history.update_counts.clone(),
            tensors: self.tensors.iter().map(|it| (it.name.to_string(), it.codec)).collect(),
            groups: vec![Hyperparameters::default()],
            loss_scale: 1.0,
            loss_scaler: None,
            saved_by: None,
            user_blobs_differ: false,
            user_blob: Some(self.history.user_blob.clone()),
            shards: vec![ShardEntry { file, flat_start: 0, elems, bytes, pieces: Vec::new() }],
            others: Vec::new(),
        }
    }

    /// Writes all elements as one shard, in chunks of a million.
    fn write_shard(
        &self,
        path: &Path,
        generation: &str,
        on_progress: &mut dyn FnMut(u64, u64),
    ) -> Result<()> {
        let file = File::create(path).map_err(|error| cannot_create(path).because(error))?;
        let mut index = ShardIndex { generation: generation.to_owned(), ..ShardIndex::default() };
        let total = self.model.inventory().total_elems();
        let (mut flat, mut offset) = (0, 0);
        while flat < total {
            let elems = PIECE_ELEMS.min(total - flat);
            let padded_elems = round_up(elems, BLOCK_ELEMS);
            let layout = ExtentLayout::new(padded_elems, &self.tensors, true);
            let mut values = vec![0.0f32; layout.bytes() as usize / 4];
            for (number, section) in layout.sections().iter().enumerate() {
                self.read(number, flat, &mut values[section.start / 4..][..elems as usize])?;
            }
            let bytes: &[u8] = bytemuck::cast_slice(&values);
            file.write_all_at(bytes, offset).map_err(|error| cannot_create(path).because(error))?;
            let checksums = layout.sections().iter().map(|section| crc32c(&bytes[section.clone()]));
            let checksums = checksums.collect();
            let entry = ChunkEntry { flat_start: flat, elems, padded_elems, offset, checksums };
            index.chunks.push(entry);
            offset += layout.bytes();
            flat += elems;
            on_progress(flat, total);
        }
        file.sync_all().map_err(|error| cannot_create(path).because(error))?;
        index.write(path)
    }

    /// Fills a range of the flat space of one state tensor, parameter by parameter.
    fn read(&self, tensor: usize, flat: u64, out: &mut [f32]) -> Result<()> {
        let inventory = self.model.inventory();
        let moment = tensor.checked_sub(1);
        if moment.is_some() && self.moments.is_empty() {
            return Ok(());
        }
        let mut done = 0;
        while done < out.len() {
            let at = flat + done as u64;
            let param = inventory.param_at(at);
            let offset = at - inventory.flat_start(param);
            let elems = (inventory.elems(param) - offset).min((out.len() - done) as u64) as usize;
            let values = &mut out[done..done + elems];
            match moment.map(|moment| &self.moments[moment]) {
                None => self.model.read(param, offset, values)?,
                Some(it) => it.file.read(it.param_of[param.index()], offset, values)?,
            }
            inventory.parameter(param).check_finite(&self.tensors[tensor].name, offset, values)?;
            done += elems;
        }
        Ok(())
    }
}

impl Moment {
    fn open(path: &Path, model: &ModelFiles) -> Result<Self> {
        let file = ModelFiles::open(path)?;
        let other = |what: &str| {
            Error::usage(format!("moments are of another {what} than the weights"))
                .with("path", path.display())
        };
        let (about, of_model) = (file.about(), model.about());
        if let Some(key) =
            [ATTEMPTS, UPDATE_COUNTS].iter().find(|key| about.get(**key) != of_model.get(**key))
        {
            return Err(other("step").with("differs", key).hint("take all files of one export"));
        }
        let numbers: HashMap<&str, ParamIndex> = file
            .inventory()
            .parameters()
            .iter()
            .enumerate()
            .map(|(number, it)| (it.name.as_str(), ParamIndex::from_index(number)))
            .collect();
        let mut param_of = Vec::with_capacity(numbers.len());
        for parameter in model.inventory().parameters() {
            let number = numbers.get(parameter.name.as_str()).copied();
            let of_shape =
                |it: &ParamIndex| file.inventory().parameter(*it).shape == parameter.shape;
            let number = number.filter(of_shape);
            param_of.push(number.ok_or_else(|| other("model").with("parameter", &parameter.name))?);
        }
        let more = numbers.len() - param_of.len();
        if more > 0 {
            return Err(other("model").with("parameters that the weights lack", more));
        }
        Ok(Self { file, param_of })
    }
}

impl History {
    /// What an export says of its steps. Moments without that would be corrected for a bias that
    /// they do not have.
    fn of(about: &HashMap<String, String>, inventory: &Inventory) -> Result<Self> {
        let missing = |key: &'static str| {
            Error::usage("moments do not say how many updates they have behind them")
                .with("key", key)
                .hint("take the files as export wrote them, or the weights alone")
        };
        let text = |key: &'static str| about.get(key).ok_or_else(|| missing(key));
        let attempts = text(ATTEMPTS)?.parse().map_err(|error| missing(ATTEMPTS).because(error))?;
        let counts = text(UPDATE_COUNTS)?.split(' ').map(str::parse);
        let update_counts: Vec<u64> = counts
            .collect::<Result<_, std::num::ParseIntError>>()
            .map_err(|error| missing(UPDATE_COUNTS).because(error))?;
        let params = inventory.parameters().len();
        if update_counts.len() != params {
            let found = update_counts.len();
            return Err(missing(UPDATE_COUNTS)
                .because(format!("it has {found} numbers for {params} parameters")));
        }
        let user_blob = about.get(USER_BLOB).cloned().unwrap_or_default();
        Ok(Self { attempts, update_counts, user_blob })
    }
}

/// The state tensors of what is imported, master first, and whether their files are there: all of
/// them, or none.
fn state_tensors(from: &Path, about: &HashMap<String, String>) -> Result<(Vec<StateTensor>, bool)> {
    let built_in = OptimizerKind::ALL.map(|kind| kind.state_tensors(|_| Codec::Fp32));
    let listed = about.get(STATE_TENSORS).map(|names| listed_tensors(names)).transpose();
    let listed = listed.map_err(|error| error.with("path", from.display()))?;
    let mut there: Vec<&str> = moments(built_in.iter().chain(&listed))
        .into_iter()
        .filter(|name| from.is_dir() && file_of(from, name).exists())
        .collect();
    there.dedup();
    if there.is_empty() {
        // It is not known what moments of a program's own begin with; AdamW's begin with zero.
        let tensors = built_in.iter().find(|tensors| Some(*tensors) == listed.as_ref());
        return Ok((tensors.unwrap_or(&built_in[0]).clone(), false));
    }
    let is_whole = |tensors: &&Vec<StateTensor>| moments([*tensors]) == there;
    let whole = match &listed {
        Some(listed) => Some(listed).filter(is_whole),
        None => built_in.iter().find(is_whole),
    };
    whole.map(|tensors| (tensors.clone(), true)).ok_or_else(|| {
        let error = Error::usage("some moments are missing, or are of several optimizers")
            .with("path", from.display())
            .with("there", there.join(", "))
            .hint("take all files of one export, or the file of the weights alone");
        match &listed {
            Some(listed) => error.with("needed", moments([listed]).join(", ")),
            None => error,
        }
    })
}

/// Names of all moments, sorted.
fn moments<'a>(all: impl IntoIterator<Item = &'a Vec<StateTensor>>) -> Vec<&'a str> {
    let moments = all.into_iter().flat_map(|tensors| &tensors[1..]);
    let mut names: Vec<&str> = moments.map(|tensor| &*tensor.name).collect();
    names.sort_unstable();
    names
}

/// The state tensors that an export lists.
fn listed_tensors(names: &str) -> Result<Vec<StateTensor>> {
    let mut names = names.split(' ');
    let has_master = names.next() == Some(MASTER);
    let names: Vec<&str> = names.collect();
    let specs = names.iter().map(|name| StateTensorSpec::new((*name).to_owned(), 0.0));
    let problem = OptimizerSpec::own("exported", specs).problem();
    let tensors = std::iter::once(&MASTER).chain(&names);
    let tensors = tensors.map(|name| StateTensor::named(name, Codec::Fp32)).collect();
    Some(tensors).filter(|_| has_master && problem.is_none()).flatten().ok_or_else(|| {
        Error::usage("an export lists state tensors that no optimizer can have")
            .with("key", STATE_TENSORS)
            .because(problem.unwrap_or_else(|| "the first one is not the master".to_owned()))
    })
}
