//! The state that lies on drives between two runs, parameter by parameter.

use std::path::PathBuf;

use serde::Serialize;

use super::scrub::{Finding, open_all};
use super::stored_shard::StoredShard;
use crate::error::Result;
use crate::units::ChunkIndex;

/// What drives hold of a job.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct JobContents {
    /// Its name.
    pub job: String,
    /// The commit, in words.
    pub commit: String,
    /// Number of steps attempted before it.
    pub attempts: u64,
    /// The numbers of the shards that were found.
    pub shards: Vec<u32>,
    /// How many shards the job has.
    pub shards_total: u32,
    /// The number of the inventory that these are shards of.
    pub inventory: u32,
    /// How many inventories the job has.
    pub inventories: u32,
    /// The directories with these shards, one per drive and shard.
    pub directories: Vec<PathBuf>,
    /// State tensors and their codecs, in the order in which a chunk stores them.
    pub tensors: Vec<(String, String)>,
    /// The parameters of which these shards have elements, in inventory order.
    pub parameters: Vec<ParameterContents>,
}

/// One parameter.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ParameterContents {
    /// Its name.
    pub name: String,
    /// Its dimensions.
    pub shape: Vec<usize>,
    /// Number of its elements in these shards.
    pub elems: u64,
    /// Number of updates that it has taken.
    pub updates: u64,
    /// The master, then the moments.
    pub tensors: Vec<TensorSummary>,
}

/// Values of one state tensor of a parameter.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct TensorSummary {
    /// The mean.
    pub mean: f64,
    /// The square root of the mean of the squares.
    pub rms: f64,
    /// The smallest.
    pub min: f32,
    /// The largest.
    pub max: f32,
}

/// Sums over a tensor's values.
#[derive(Clone, Copy)]
struct Sums {
    sum: f64,
    squares: f64,
    min: f32,
    max: f32,
}

impl Sums {
    const NONE: Self = Self { sum: 0.0, squares: 0.0, min: f32::INFINITY, max: f32::NEG_INFINITY };

    fn add(&mut self, values: &[f32]) {
        for value in values {
            let wide = f64::from(*value);
            self.sum += wide;
            self.squares += wide * wide;
            self.min = self.min.min(*value);
            self.max = self.max.max(*value);
        }
    }

    fn summary(self, elems: u64) -> TensorSummary {
        let count = elems as f64;
        let (mean, rms) = (self.sum / count, (self.squares / count).sqrt());
        TensorSummary { mean, rms, min: self.min, max: self.max }
    }
}

/// Reads the committed state of every job on these drives, or of one, and compares every chunk with
/// its checksums. Returns the contents, with an entry for each inventory of a job, and the shards
/// that could not be read.
///
/// # Errors
/// Unavailable if there is no durable job, or a drive cannot be read; I/O or state lost if a
/// shard's layout is damaged or missing.
pub fn contents_of(
    drives: &[PathBuf],
    job: Option<&str>,
) -> Result<(Vec<JobContents>, Vec<Finding>)> {
    let (mut shards, mut findings) = open_all(drives, job, false)?;
    let inventory = |shard: &StoredShard| {
        let config = shard.plan().config();
        (config.job.clone(), shard.record().job_id.clone(), shard.plan().allotment().group)
    };
    shards.sort_by_key(inventory);
    let mut jobs = Vec::new();
    for shards in shards.chunk_by(|a, b| inventory(a) == inventory(b)) {
        match job_contents(shards) {
            Ok(contents) => jobs.push(contents),
            Err(finding) => findings.push(*finding),
        }
    }
    Ok((jobs, findings))
}

fn job_contents(shards: &[StoredShard]) -> Result<JobContents, Box<Finding>> {
    let first = &shards[0];
    let inventory = first.plan().inventory();
    let tensors = first.plan().tensors();
    let mut sums = vec![vec![Sums::NONE; tensors.len()]; inventory.parameters().len()];
    let mut elems = vec![0u64; inventory.parameters().len()];
    let mut updates = vec![0u64; inventory.parameters().len()];
    for shard in shards {
        let partition = shard.plan().partition();
        for (piece, count) in partition.pieces().iter().zip(&shard.record().update_counts) {
            updates[piece.param.index()] = *count;
        }
        for chunk in (0..shard.chunks()).map(ChunkIndex::from_index) {
            let extent = shard.read(chunk).and_then(|extent| {
                shard.check(chunk, &extent)?;
                Ok(extent)
            });
            let extent = extent.map_err(|error| {
                let job = shard.plan().config().job.clone();
                Box::new(Finding { job, shard: shard.plan().shard(), error })
            })?;
            let values = shard.decode(chunk, &extent);
            for run in partition.runs_of(chunk) {
                let at = run.in_chunk(partition.chunk(chunk));
                elems[run.param.index()] += run.elems;
                let sums = sums[run.param.index()].iter_mut().zip(&values);
                sums.for_each(|(sums, values)| sums.add(&values[at.clone()]));
            }
        }
    }
    let parameters = inventory.parameters().iter().enumerate().filter(|(at, _)| elems[*at] > 0);
    let parameters = parameters.map(|(at, parameter)| ParameterContents {
        name: parameter.name.clone(),
        shape: parameter.shape.clone(),
        elems: elems[at],
        updates: updates[at],
        tensors: sums[at].iter().map(|sums| sums.summary(elems[at])).collect(),
    });
    Ok(JobContents {
        job: first.plan().config().job.clone(),
        commit: first.record().stamp.to_string(),
        attempts: first.record().attempts,
        shards: shards.iter().map(|shard| shard.plan().shard()).collect(),
        shards_total: first.plan().allotment().shards,
        inventory: first.plan().allotment().group,
        inventories: first.plan().allotment().groups,
        directories: shards.iter().flat_map(StoredShard::paths).collect(),
        tensors: tensors
            .iter()
            .map(|it| (it.name.clone().into_owned(), it.codec.name().into()))
            .collect(),
        parameters: parameters.collect(),
    })
}
