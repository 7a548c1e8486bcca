//! Inventories that differ by rank, as under tensor parallelism: two of them, each cut by several
//! ranks, with a layer norm of which both have a copy.

#![allow(clippy::unwrap_used, reason = "a test may end where it fails")]

mod support;

use std::path::PathBuf;
use std::sync::Arc;

use half::bf16;
use optswap::internals::checkpoint::{
    Manifest, contents_of, export_safetensors, verify_checkpoint,
};
use optswap::internals::config::GradientPlace;
use optswap::{
    Checkpoints, Communicator, Config, CreateOptions, Gradients, Inventory, NO_PARAMETERS,
    NoParameters, Parameter, Result, Sharding, StepOptions, SwappedOptimizer, Verifier,
};
use support::Drives;
use support::shards::{State, fill_masters, gradients, joined, slices, start, state, step};
use support::world::{all, config_for, durable_config_for, on_ranks};

const NORM: &str = "norm.weight";

/// The half of a model that one of the two has; the second has one parameter more.
fn half(number: u32) -> Inventory {
    let mut parameters = vec![
        Parameter::new("attention.weight", [9000]),
        Parameter::new(NORM, [5000]).replicated(),
        Parameter::new("mlp.weight", [70, 101]),
    ];
    if number == 1 {
        parameters.insert(0, Parameter::new("embedding.weight", [4100]));
    }
    Inventory::new(parameters).unwrap()
}

/// Which half a rank has: the even ranks share one, the odd ranks the other.
fn number(comm: &dyn Communicator) -> u32 {
    comm.rank().0 % 2
}

/// The default cut of this rank's half, or slices of it on the odd ranks.
fn sharding(comm: &dyn Communicator, odd_have_slices: bool) -> Result<Sharding> {
    let number = number(comm);
    let shared = comm.split(number)?;
    let pieces = slices(&half(number), shared.rank().index(), shared.size(), 1);
    Ok(match odd_have_slices && number == 1 {
        true => Sharding::own(pieces).among(shared),
        false => Sharding::default().among(shared),
    })
}

fn begin(
    config: &Config,
    comm: &Arc<dyn Communicator>,
    odd_have_slices: bool,
) -> Result<SwappedOptimizer> {
    let sharding = sharding(&**comm, odd_have_slices)?;
    start(config, &half(number(&**comm)), comm, &sharding, number(&**comm).into())
}

/// One more step; each half has gradients of its own, and the norm the same.
fn go_on(optimizer: &mut SwappedOptimizer) -> Result<f64> {
    let seed = u64::from(optimizer.shard_group().number());
    step(optimizer, seed, None).map(|outcome| outcome.grad_norm)
}

/// The norm of all gradients of a step, by the book.
fn scalar_norm(step: u64) -> f64 {
    let squares = |number: u32| {
        let inventory = &half(number);
        let sums = all(on_ranks(1, |comm| {
            let drives = Drives::new(1);
            let config = config_for(&drives);
            let sharding = Sharding::default();
            let optimizer = start(&config, inventory, &comm, &sharding, number.into())?;
            let values = gradients(&optimizer, step, number.into());
            let pieces = optimizer.partition().pieces().to_vec();
            optimizer.close();
            let counts = |param| number == 0 || inventory.parameter(param).name != NORM;
            let counted = pieces.into_iter().filter(|piece| counts(piece.param));
            let counted = counted.flat_map(|piece| values[piece.in_shard()].to_vec());
            Ok(counted.map(|value| f64::from(value).powi(2)).sum::<f64>())
        }));
        sums[0]
    };
    (squares(0) + squares(1)).sqrt()
}

#[test]
fn a_copy_counts_once_and_all_copies_are_updated_alike() {
    let expected = [1, 2, 3].map(scalar_norm);
    let mut digests = Vec::new();
    // With slices, also where gradients are spilled to the drives chunk by chunk.
    for (odd_have_slices, place) in [
        (false, GradientPlace::Caller),
        (true, GradientPlace::Caller),
        (false, GradientPlace::Drives),
        (true, GradientPlace::Drives),
    ] {
        let drives = Drives::new(2);
        let mut config = config_for(&drives);
        config.gradients.place = place;
        let results = all(on_ranks(4, |comm| {
            let mut optimizer = begin(&config, &comm, odd_have_slices)?;
            let (group, inventory) = (optimizer.shard_group().clone(), half(number(&*comm)));
            assert_eq!((group.count(), group.number()), (2, number(&*comm)));
            let seed = u64::from(group.number());
            let mut verifier = Verifier::new(&optimizer, fill_masters(seed, &inventory))?;
            let mut norms = Vec::new();
            for _ in 0..3 {
                norms.push(step(&mut optimizer, seed, Some(&mut verifier))?.grad_norm);
            }
            let digest = optimizer.element_digest(NO_PARAMETERS)?;
            let mut state = state(&mut optimizer)?;
            let of_norm = state.extract_if(.., |(name, _), _| name == NORM).collect::<State>();
            optimizer.close();
            Ok((norms, digest, of_norm))
        }));
        assert!(drives.are_empty());
        let norms = &results[0].0;
        assert!(results.iter().all(|it| it.0 == *norms && it.1 == results[0].1));
        for (norm, expected) in norms.iter().zip(expected) {
            assert!((norm - expected).abs() < 1e-12 * expected, "{norm} is not {expected}");
        }
        digests.push((norms.clone(), results[0].1.clone()));
        assert_eq!(joined(results.into_iter().map(|it| it.2)).len(), 5000);
    }
    let near = |a: &f64, b: &f64| (a - b).abs() <= 1e-14 * a;
    for (norms, _) in &digests[1..] {
        assert!(digests[0].0.iter().zip(norms).all(|(a, b)| near(a, b)));
    }
    assert_eq!(digests[2], digests[0], "handed over or borrowed, the same bits");
}

#[test]
fn an_overflow_in_a_copy_that_does_not_count_skips_all_ranks() {
    let drives = Drives::new(1);
    let config = config_for(&drives);
    let outcomes = all(on_ranks(4, |comm| {
        let mut optimizer = begin(&config, &comm, true)?;
        let before = optimizer.element_digest(NO_PARAMETERS)?;
        let mut shard = gradients(&optimizer, 1, 7);
        let of_norm = optimizer.partition().pieces().iter();
        let of_norm =
            of_norm.filter(|it| optimizer.plan().inventory().parameter(it.param).name == NORM);
        let at = of_norm.map(|piece| piece.shard_offset as usize).next();
        if comm.rank().0 == 3 {
            shard[at.unwrap()] = f32::NAN;
        }
        let mut params = vec![bf16::ZERO; shard.len()];
        let pieces = Gradients::Shard(&shard);
        let outcome = optimizer.step(&pieces, &mut params, StepOptions::default())?;
        assert_eq!(optimizer.element_digest(NO_PARAMETERS)?, before);
        optimizer.close();
        Ok((outcome.is_skipped(), outcome.grad_norm))
    }));
    assert!(outcomes.iter().all(|outcome| *outcome == (true, f64::INFINITY)), "{outcomes:?}");
}

#[test]
fn commits_of_all_inventories_come_back_together() {
    let drives = Drives::new(2);
    let config = durable_config_for(&drives, 1);
    let reached = all(on_ranks(4, |comm| {
        let mut optimizer = begin(&config, &comm, true)?;
        go_on(&mut optimizer)?;
        go_on(&mut optimizer)?;
        Ok((optimizer.epoch(), optimizer.state_digest(NO_PARAMETERS)?))
    }));
    assert!(reached.iter().all(|it| *it == reached[0]));
    // The first half is where the second was.
    let turned = on_ranks(4, |comm| {
        let shared = comm.split(comm.rank().0 / 2)?;
        let sharding = Sharding::default().among(shared);
        start(&config, &half(comm.rank().0 / 2), &comm, &sharding, 0).map(drop)
    });
    let error = turned.into_iter().next().unwrap().unwrap_err();
    assert!(error.to_string().contains("of other shards"), "{error}");
    assert_eq!(error.exit_code(), 69);
    let (jobs, findings) = contents_of(&drives.paths(), None).unwrap();
    assert!(findings.is_empty() && jobs.len() == 2, "{findings:?}");
    for (number, job) in jobs.iter().enumerate() {
        assert_eq!((job.inventory as usize, job.inventories, job.shards_total), (number, 2, 4));
        assert_eq!(job.shards, [number as u32, number as u32 + 2]);
        let inventory = half(number as u32);
        let elems: u64 = job.parameters.iter().map(|it| it.elems).sum();
        assert_eq!(elems, inventory.total_elems());
    }
    let back = all(on_ranks(4, |comm| {
        let mut optimizer = begin(&config, &comm, true)?;
        assert_eq!(optimizer.resumed().unwrap().attempt, 2);
        let digest = optimizer.state_digest(NO_PARAMETERS)?;
        go_on(&mut optimizer)?;
        optimizer.close();
        Ok(digest)
    }));
    assert!(back.iter().all(|it| *it == reached[0].1));
    assert!(drives.are_empty());
}

#[test]
fn a_checkpoint_holds_all_inventories_for_any_number_of_ranks() {
    let drives = Drives::new(1);
    let mut config = config_for(&drives);
    config.optimizer.clip_norm = 0.0;
    config.checkpoint.dir = Some(drives.path().join("saved"));
    let saved = all(on_ranks(4, |comm| {
        let mut optimizer = begin(&config, &comm, true)?;
        go_on(&mut optimizer)?;
        let mut checkpoints = Checkpoints::open(&config, Arc::clone(&comm)).unwrap().unwrap();
        let saved = checkpoints.save(&mut optimizer, None, b"", NO_PARAMETERS)?;
        let found = checkpoints.newest_whole(&half(number(&*comm)), optimizer.shard_group())?;
        assert_eq!(found, Some((1, saved.directory.clone())));
        go_on(&mut optimizer)?;
        let digest = optimizer.element_digest(NO_PARAMETERS)?;
        optimizer.close();
        Ok((saved.directory, digest))
    }));
    let (directory, digest) = saved[0].clone();
    let load = |ranks: usize, odd_have_slices: bool| {
        all(on_ranks(ranks, |comm| {
            let sharding = sharding(&*comm, odd_have_slices)?;
            let inventory = half(number(&*comm));
            let mut optimizer = SwappedOptimizer::create(
                &config,
                inventory,
                Arc::clone(&comm),
                CreateOptions::sharded(sharding),
            )?;
            let checkpoints = Checkpoints::open(&config, Arc::clone(&comm)).unwrap().unwrap();
            checkpoints.load(&mut optimizer, &directory, &mut NoParameters)?;
            go_on(&mut optimizer)?;
            let digest = optimizer.element_digest(NO_PARAMETERS)?;
            optimizer.close();
            Ok(digest)
        }))
    };
    for (ranks, odd_have_slices) in [(2, false), (2, true), (5, false), (6, true)] {
        assert!(load(ranks, odd_have_slices).iter().all(|it| *it == digest), "{ranks}");
    }
    assert_eq!(Manifest::read(&directory).unwrap().inventories(), 2);
    assert!(verify_checkpoint(&directory).unwrap().findings.is_empty());
    let out = drives.path().join("out");
    let written = export_safetensors(&directory, &out, &mut |_, _| ()).unwrap();
    let models: Vec<&PathBuf> =
        written.paths.iter().filter(|path| path.ends_with("model.safetensors")).collect();
    assert!(models.len() == 2 && models[1].starts_with(out.join("inventory-00001")));
    let alone = on_ranks(1, |comm| {
        let mut optimizer = start(&config, &half(0), &comm, &Sharding::default(), 0)?;
        let checkpoints = Checkpoints::open(&config, comm).unwrap().unwrap();
        checkpoints.load(&mut optimizer, &directory, &mut NoParameters).map(drop)
    });
    let error = alone.into_iter().next().unwrap().unwrap_err().to_string();
    assert!(error.contains("another number of inventories"), "{error}");
}

/// The error of all four ranks.
fn refused(
    inventory: impl Fn(u32) -> Inventory + Sync,
    shares: impl Fn(u32) -> bool + Sync,
) -> String {
    let drives = Drives::new(1);
    let config = config_for(&drives);
    let results = on_ranks(4, |comm| {
        let shared = comm.split(number(&*comm))?;
        let rank = comm.rank().0;
        let sharding =
            if shares(rank) { Sharding::default().among(shared) } else { Sharding::default() };
        SwappedOptimizer::create(
            &config,
            inventory(rank),
            comm,
            CreateOptions::sharded(sharding.clone()),
        )
        .map(drop)
    });
    assert!(drives.are_empty());
    let errors: Vec<_> = results.into_iter().map(|result| result.unwrap_err()).collect();
    assert!(errors.iter().all(|it| it.is_agreed() && it.exit_code() == 64), "{errors:?}");
    errors[0].to_string()
}

fn changed(number: u32, change: impl Fn(&mut Parameter)) -> Inventory {
    let mut parameters = half(number).parameters().to_vec();
    parameters.iter_mut().filter(|it| it.name == NORM).for_each(change);
    Inventory::new(parameters).unwrap()
}

#[test]
fn what_does_not_fit_is_named_and_nothing_touched() {
    let expect = |text: String, words: &[&str]| {
        words.iter().for_each(|word| assert!(text.contains(word), "`{word}` is not in: {text}"));
    };
    let shape =
        refused(|rank| changed(rank % 2, |it| it.shape = vec![5000 - rank as usize % 2]), |_| true);
    expect(shape, &["do not agree", NORM, "[5000]", "[4999]", "inventory 1"]);
    let undeclared =
        refused(|rank| changed(rank % 2, |it| it.replicated = rank % 2 == 1), |_| true);
    expect(undeclared, &["do not agree", NORM, "declare it as replicated"]);
    let within = refused(|rank| changed(rank % 2, |it| it.replicated = rank < 3), |_| true);
    expect(within, &["parameter 2", "rank 1: norm.weight [5000], replicated", "rank 3: norm"]);
    let all_one = refused(|rank| half(rank % 2), |_| false);
    expect(all_one, &["parameter 0", "ranks 0, 2: attention", "ranks 1, 3: embedding"]);
    let some = refused(|rank| half(rank % 2), |rank| rank < 3);
    expect(some, &["others do not", "ranks that do 3"]);
}

#[test]
fn a_divided_world_acts_in_parts() {
    let sums = all(on_ranks(5, |comm| {
        let part = comm.split(comm.rank().0 % 2)?;
        assert_eq!(part.size(), if comm.rank().0 % 2 == 0 { 3 } else { 2 });
        assert_eq!(part.rank().0, comm.rank().0 / 2);
        let mut values = [u64::from(comm.rank().0)];
        part.all_reduce_sum(&mut values)?;
        let again = part.split(0)?;
        again.barrier()?;
        Ok(values[0])
    }));
    assert_eq!(sums, [6, 4, 6, 4, 6]);
}

/// Real ranks: MPI divides the world, and the state does not depend on how many share a half.
#[cfg(feature = "mpi")]
#[test]
fn halves_of_a_model_under_mpirun() {
    let program = support::built("examples/model_parallel");
    assert!(program.exists(), "not built: cargo build --example model_parallel");
    let drives = Drives::new(2);
    let config = drives.write("small.toml", "[swap]\nchunk_elements = 65536\n");
    let run = |count: usize| {
        let mut command = support::ranks(count, &program);
        command.args(["--drives", &drives.list(2), "--config", &config]);
        let json = support::Run::of(&command.output().unwrap()).json();
        assert_eq!((&json["inventories"], &json["ranks"]), (&2.into(), &count.into()));
        json["element_digest"].as_str().unwrap().to_owned()
    };
    assert_eq!(run(2), run(4));
    assert!(drives.are_empty());
    let mut alone = support::ranks(1, &program);
    alone.args(["--drives", &drives.list(1)]);
    support::Run::of(&alone.output().unwrap()).expect(64, &["two ranks at least"]);
}
