//! What thousands of ranks cost each other: bytes sent, received and held per rank in start,
//! agreement, resume and checkpoint. None of it grows with the square of ranks.
//! docs/performance.md has the table.

#![allow(clippy::unwrap_used, reason = "a test may end where it fails")]

#[path = "support/allocations.rs"]
mod allocations;
#[path = "support/many_ranks.rs"]
mod many_ranks;
mod support;

use std::sync::{Arc, OnceLock};

use many_ranks::{Cost, Costs, Counted, RANKS_PER_NODE, Stages, on_many_ranks};
use optswap::internals::checkpoint::{Manifest, ShardEntry, complete_manifest, join_update_counts};
use optswap::internals::config::Durability;
use optswap::internals::coord::Topology;
use optswap::internals::state::{LossScaleRule, LossScaler};
use optswap::internals::step::{Prepared, Sight, choose, choose_record, prepare};
use optswap::internals::storage::commit::Stamp;
use optswap::internals::storage::{MovedUnits, Record};
use optswap::{
    Checkpoints, Communicator, Config, CreateOptions, Error, Inventory, NO_PARAMETERS,
    NoParameters, ParamIndex, Parameter, Piece, Rank, Result, Sharding, SwappedOptimizer, agree,
};
use support::world::{all, config_for, inventory, masters, on_ranks, step_until};
use support::{Drives, one_at_a_time};

const JOB_ID: &str = "0123456789-01234567-89ab-cdef-0123-456789abcdef";
const STAMP: Stamp = Stamp { epoch: 7, incarnation: 1 };
const PARAMS: usize = 24;

/// A few layers, of which every rank can have a slice.
fn model() -> Inventory {
    let layer = |number| Parameter::new(format!("layer{number}.weight"), [1024, 512]);
    Inventory::new((0..PARAMS).map(layer).collect()).unwrap()
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    Contiguous,
    Slices,
    Own,
}

fn sharding(kind: Kind, comm: &dyn Communicator) -> Sharding {
    let elems = 1024 * 512 / comm.size() as u64;
    let piece =
        |param| Piece::new(ParamIndex::from_index(param), elems * u64::from(comm.rank().0), elems);
    match kind {
        Kind::Contiguous => Sharding::default(),
        Kind::Slices => Sharding::slices(),
        // The last parameter first, so that these are no slices.
        Kind::Own => Sharding::own((0..PARAMS).rev().map(piece).collect()),
    }
}

/// What a rank sees that finds these shards of the job on its drives.
fn sights(shards: std::ops::Range<usize>, prepared: &Prepared, ranks: usize) -> Vec<Sight> {
    let sight = |shard| Sight {
        job_id: JOB_ID.to_owned(),
        shard,
        shards: ranks as u32,
        of: prepared.dealt.expected.of(Rank(shard)).unwrap().clone(),
        newest: Some((STAMP, 7)),
        incomplete: None,
        is_headless: false,
    };
    shards.map(|shard| sight(shard as u32)).collect()
}

fn record(prepared: &Prepared) -> Record {
    let chunks = prepared.plan.partition().chunks().len();
    Record {
        stamp: STAMP,
        job_id: JOB_ID.to_owned(),
        attempts: 7,
        update_counts: vec![7; prepared.plan.partition().pieces().len()],
        slots: vec![0; chunks],
        moved: MovedUnits::default(),
        shares: vec![1.0],
        checksums: vec![0; 3 * chunks],
        loss_scaler: LossScaler::new(LossScaleRule::OFF).state(),
        user_blob: Vec::new(),
        boot_id: String::new(),
        is_synced: true,
    }
}

fn manifest(prepared: &Prepared, update_counts: Vec<u64>) -> Manifest {
    let tensors = prepared.plan.tensors().iter();
    Manifest {
        job: "default".to_owned(),
        generation: "0123456789abcdef".to_owned(),
        attempts: 7,
        parameters: prepared.plan.inventory().parameters().to_vec(),
        update_counts,
        tensors: tensors.map(|it| (it.name.clone().into_owned(), it.codec)).collect(),
        groups: Vec::new(),
        loss_scale: 1.0,
        loss_scaler: None,
        saved_by: None,
        user_blobs_differ: false,
        user_blob: None,
        shards: Vec::new(),
        others: Vec::new(),
    }
}

/// What one rank does. `every` is what all ranks see that share their drives.
fn life(
    kind: Kind,
    config: &Config,
    every: &OnceLock<Vec<Sight>>,
    stages: &mut Stages,
) -> Result<()> {
    let (rank, ranks) = (stages.comm.rank().index(), stages.comm.size());
    let (_topology, prepared) = stages.stage("start", |comm| {
        let topology = Topology::discover(&**comm)?;
        let prepared = prepare(config, model(), comm, &topology, &sharding(kind, &**comm))?;
        Ok::<_, Error>((topology, prepared))
    })?;
    stages.stage("agreement", |comm| agree(&**comm, Ok(())))?;
    let long = "an error of every rank, as long as errors are ".repeat(10);
    let failed = stages.stage("all ranks fail", |comm| {
        agree(&**comm, Err::<(), _>(Error::usage(long.clone()).with("rank", rank)))
    });
    assert!(failed.is_err_and(|error| error.is_agreed()));
    let expected = &prepared.dealt.expected;
    let node = rank / RANKS_PER_NODE * RANKS_PER_NODE;
    let on_node = sights(node..node + RANKS_PER_NODE, &prepared, ranks);
    let choice = stages.stage("resume: own drives", |comm| {
        choose(config, expected, &**comm, &on_node, |_| None)
    })?;
    assert_eq!(choice.unwrap().shards[rank], rank as u32);
    let every = every.get_or_init(|| sights(0..ranks, &prepared, ranks));
    let choice = stages.stage("resume: shared drives", |comm| {
        choose(config, expected, &**comm, every, |_| None)
    })?;
    assert_eq!(choice.unwrap().shards[rank], rank as u32);
    let records = [Some(record(&prepared)), None];
    let chosen =
        stages.stage("resume: records", |comm| choose_record(&**comm, JOB_ID, Ok(records)))?;
    assert_eq!(chosen.unwrap().record.stamp, STAMP);
    stages.stage("checkpoint", |comm| {
        let plan = &prepared.plan;
        let pieces: Vec<_> = plan.partition().pieces().iter().map(|it| (it.param, 7)).collect();
        let group = &prepared.dealt.group;
        let counts = join_update_counts(&**group.communicator(), plan.inventory(), &pieces)??;
        let flat = |it: &optswap::Run| plan.inventory().flat_of(it.param, it.param_offset);
        let pieces = plan.partition().pieces().iter().map(|it| [flat(it), it.elems]);
        let entry = ShardEntry {
            file: format!("shard-{rank:05}.0123456789abcdef"),
            flat_start: plan.partition().flat().start,
            elems: plan.partition().elems(),
            bytes: 12 * plan.partition().elems(),
            pieces: if matches!(kind, Kind::Contiguous) { Vec::new() } else { pieces.collect() },
        };
        let complete = complete_manifest(manifest(&prepared, counts), entry, group, &**comm)?;
        assert_eq!(complete.map(|it| it.shards.len()), (rank == 0).then_some(ranks));
        Ok::<_, Error>(())
    })
}

fn print(kind: Kind, costs: &Costs) {
    for (who, costs_of) in [("others", &costs.others), ("rank 0", &costs.first)] {
        for Cost { stage, sent, received, held, most } in costs_of {
            let ranks = costs.ranks;
            println!(
                "| {kind:?} | {ranks} | {stage} | {who} | {sent} | {received} | {held} | {most} |"
            );
        }
    }
}

/// Asserts that from one size to the next each number grows by no more than `bytes_per_rank` for
/// each rank that was added.
fn grows_at_most(bytes_per_rank: u64, few: &[Cost], many: &[Cost], added: usize, who: &str) {
    for (few, many) in few.iter().zip(many) {
        for ((what, few_bytes), (_, many_bytes)) in few.numbers().into_iter().zip(many.numbers()) {
            let grown = many_bytes.saturating_sub(few_bytes);
            assert!(
                grown <= bytes_per_rank * added as u64,
                "{}, {who}, {what}: {few_bytes} B, {many_bytes} B with {added} ranks more",
                many.stage
            );
        }
    }
}

/// The most that a stage costs a rank for each other rank, and rank 0, which gets what the others
/// need not have: of each rank its place, its pieces, and its entry in a manifest.
const OTHERS: u64 = 1024;
const FIRST: u64 = 4096;

fn simulate(sizes: [usize; 3]) {
    let _turn = one_at_a_time();
    println!("| shards | ranks | stage | rank | sent | received | held | held meanwhile |");
    for kind in [Kind::Contiguous, Kind::Slices, Kind::Own] {
        let drives = Drives::new(1);
        let mut config = config_for(&drives);
        config.durability.mode = Durability::Step;
        let costs = sizes.map(|ranks| {
            let every = OnceLock::new();
            let costs = on_many_ranks(ranks, |stages| life(kind, &config, &every, stages));
            print(kind, &costs);
            costs
        });
        for pair in costs.windows(2) {
            let added = pair[1].ranks - pair[0].ranks;
            grows_at_most(OTHERS, &pair[0].others, &pair[1].others, added, "any rank");
            grows_at_most(FIRST, &pair[0].first, &pair[1].first, added, "rank 0");
        }
    }
}

#[test]
fn what_ranks_cost_each_other_does_not_grow_with_their_square() {
    simulate([16, 64, 512]);
}

#[test]
#[ignore = "takes minutes and gigabytes: all ranks are in one process"]
fn what_thousands_of_ranks_cost_each_other() {
    simulate([64, 512, 4096]);
}

/// A whole job through the doors that programs use: bytes that each rank has received by its end.
fn received(ranks: usize) -> Vec<u64> {
    let drives = Drives::new(1);
    let mut config = config_for(&drives);
    config.durability.mode = Durability::Step;
    config.checkpoint.dir = Some(drives.path().join("checkpoints"));
    // Enough blocks that every rank has the same number of chunks, in each world.
    let sizes = [9000, 56_536];
    all(on_ranks(ranks, |comm| {
        let counted = Arc::new(Counted::new(comm));
        let comm: Arc<dyn Communicator> = Arc::clone(&counted) as _;
        let create = |comm: &Arc<dyn Communicator>| {
            let options = CreateOptions::default();
            SwappedOptimizer::create(&config, inventory(&sizes), Arc::clone(comm), options)
        };
        let mut optimizer = create(&comm)?;
        let start = optimizer.partition().flat().start;
        optimizer.initialize_parameters(&mut NoParameters, masters(start))?;
        step_until(&mut optimizer, 2)?;
        let saves = Checkpoints::open(&config, Arc::clone(&comm))?;
        saves.unwrap().save(&mut optimizer, None, b"", NO_PARAMETERS)?;
        optimizer.world_report()?;
        drop(optimizer);
        comm.barrier()?;
        // All ranks name the same drive, so each sees the shards of all.
        let mut optimizer = create(&comm)?;
        assert_eq!(optimizer.resumed().unwrap().attempt, 2);
        step_until(&mut optimizer, 3)?;
        comm.barrier()?;
        optimizer.close();
        Ok(counted.bytes()[1])
    }))
}

#[test]
fn a_whole_job_does_not_grow_with_the_square_of_ranks() {
    let _turn = one_at_a_time();
    let [few, some, many] = [4, 8, 16].map(received);
    // Rank 0 also gets records, whose histograms are as long as times vary.
    for (rank, who, most) in [(1, "rank 1", 2.1), (0, "rank 0", 3.0)] {
        let [few, some, many] = [few[rank], some[rank], many[rank]];
        println!("{who}: {few} B of 4 ranks, {some} B of 8, {many} B of 16");
        // With the square, it would be four times as much.
        let [first, second] = [(some - few) as f64, (many - some) as f64];
        assert!(second <= most * first, "{who}: {first} B for 4 ranks more, {second} B for 8 more");
    }
}
