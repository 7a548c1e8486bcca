//! Pieces of the caller's own: the same state, bit by bit, as with the default cut; checkpoints
//! between cuts; commits that come back; and what is wrong is named before anything is touched.

#![allow(clippy::unwrap_used, reason = "a test may end where it fails")]

mod support;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use half::bf16;
use optswap::internals::checkpoint::{
    contents_of, export_safetensors, scrub, verify_checkpoint, verify_drives,
};
use optswap::internals::config::GradientPlace;
use optswap::internals::state::Rounding;
use optswap::{
    Checkpoints, Codec, Communicator, Config, CreateOptions, Elems, Error, Gradients, Inventory,
    MicroBatch, NO_PARAMETERS, NoParameters, Origin, ParamIndex, Parameter, Piece, Result,
    Sharding, StepOptions, SwappedOptimizer, Training, Verifier,
};
use support::Drives;
use support::shards::{fill_masters, gradients, joined, slices, start, state, step};
use support::world::{all, config_for, durable_config_for, inventory, on_ranks};

/// Sizes that fit no block.
const RAGGED: [usize; 4] = [9000, 37, 12_000, 4099];
/// Sizes that fit 1 to 4 ranks in whole blocks.
const WHOLE: [usize; 3] = [4096 * 12, 4096 * 24, 4096 * 12];
const SEED: u64 = 5;

fn own(inventory: &Inventory, comm: &dyn Communicator, align: u64) -> Sharding {
    Sharding::own(slices(inventory, comm.rank().index(), comm.size(), align))
}

#[test]
fn a_slice_of_every_parameter_gives_the_state_of_the_default_cut() {
    for (sizes, align, clip_norm) in [(&RAGGED[..], 1, 0.0), (&WHOLE, 4096, 0.5)] {
        let inventory = &inventory(sizes);
        let run = |ranks: usize, is_own: bool| {
            let drives = Drives::new(2);
            let mut config = config_for(&drives);
            config.optimizer.clip_norm = clip_norm;
            config.swap.sub_group_elements = Elems(3 * 4096);
            let results = all(on_ranks(ranks, |comm| {
                let sharding = match is_own {
                    true => own(inventory, &*comm, align),
                    false => Sharding::default(),
                };
                let mut optimizer = start(&config, inventory, &comm, &sharding, SEED)?;
                let mut verifier = Verifier::new(&optimizer, fill_masters(SEED, inventory))?;
                let mut norms = Vec::new();
                for _ in 0..3 {
                    let outcome = step(&mut optimizer, SEED, Some(&mut verifier))?;
                    norms.push(outcome.grad_norm);
                }
                let digest = optimizer.element_digest(NO_PARAMETERS)?;
                let state = state(&mut optimizer)?;
                optimizer.close();
                Ok((norms, digest, state))
            }));
            assert!(drives.are_empty());
            let (norms, digest) = (results[0].0.clone(), results[0].1.clone());
            assert!(results.iter().all(|it| it.0 == norms && it.1 == digest));
            (norms, digest, joined(results.into_iter().map(|(.., state)| state)))
        };
        let expected = run(1, false);
        for ranks in 1..=4 {
            let (norms, digest, state) = run(ranks, true);
            assert!(state == expected.2, "{ranks} ranks");
            assert_eq!(digest, expected.1, "{ranks} ranks");
            let near = |(a, b): (&f64, &f64)| (a - b).abs() <= 1e-14 * b;
            assert!(norms.iter().zip(&expected.0).all(near));
            if align == 4096 {
                let bits = |norms: &[f64]| norms.iter().map(|it| it.to_bits()).collect::<Vec<_>>();
                assert_eq!(bits(&norms), bits(&expected.0), "whole blocks: the same bits");
            }
        }
    }
}

/// Ranks 0 and 1 have slices, ranks 2 and 3 the same slices again.
#[test]
fn copies_of_whole_shards_count_once() {
    let parameters = inventory(&WHOLE).parameters().to_vec();
    let replicated = parameters.into_iter().map(Parameter::replicated).collect();
    let replicated = &Inventory::new(replicated).unwrap();
    let run = |ranks: usize, copies: usize, codec: Codec| {
        let drives = Drives::new(1);
        let mut config = config_for(&drives);
        config.codecs.set("exp_avg", codec);
        config.codecs.rounding = Rounding::Stochastic;
        let results = all(on_ranks(ranks * copies, |comm| {
            let pieces = slices(replicated, comm.rank().index() % ranks, ranks, 4096);
            let sharding = Sharding::own(pieces);
            let mut optimizer = start(&config, replicated, &comm, &sharding, SEED)?;
            let mut verifier = Verifier::new(&optimizer, fill_masters(SEED, replicated))?;
            step(&mut optimizer, SEED, Some(&mut verifier))?;
            let norm = step(&mut optimizer, SEED, Some(&mut verifier))?.grad_norm;
            let result = (norm.to_bits(), optimizer.state_digest(NO_PARAMETERS)?);
            let state = state(&mut optimizer)?;
            optimizer.close();
            Ok((result, state))
        }));
        let (first, states): (Vec<_>, Vec<_>) = results.into_iter().unzip();
        assert!(first.iter().all(|it| *it == first[0]));
        (first[0].clone(), joined(states))
    };
    // Copies of a shard are rounded alike, at random too.
    for codec in [Codec::Fp32, Codec::Bf16, Codec::Int8] {
        assert!(run(2, 1, codec) == run(2, 2, codec), "{codec:?}");
    }
}

#[test]
fn gradients_follow_the_pieces() {
    let drives = Drives::new(1);
    let mut config = config_for(&drives);
    config.gradients.place = GradientPlace::Memory;
    let inventory = inventory(&[100, 50]);
    let piece = |param, offset, elems| Piece::new(ParamIndex(param), offset, elems);
    all(on_ranks(1, |comm| {
        // One parameter in three pieces, around the other.
        let pieces = vec![piece(0, 60, 40), piece(1, 0, 50), piece(0, 0, 20), piece(0, 20, 40)];
        let mut optimizer = start(&config, &inventory, &comm, &Sharding::own(pieces), SEED)?;
        let mut params = vec![0.0f32; 150];
        let ones = [1.0f32; 100];
        let part = Gradients::Pieces(vec![(ParamIndex(0), 0, &ones[..70])]);
        let partly = optimizer.step(&part, &mut params, StepOptions::default());
        let partly = partly.unwrap_err().to_string();
        for word in ["only partly there", "layer0.weight", "given 70", "share 100"] {
            assert!(partly.contains(word), "{partly}");
        }
        let parts = vec![(ParamIndex(0), 0, &ones[..70]), (ParamIndex(0), 70, &ones[70..])];
        let gradients = Gradients::Pieces(parts);
        let outcome = optimizer.step(&gradients, &mut params, StepOptions::default())?;
        assert_eq!(outcome.grad_norm, 10.0);
        assert_eq!([0, 1].map(|param| optimizer.update_count(ParamIndex(param))), [1, 0]);
        assert!(params[..40].iter().chain(&params[90..]).all(|param| *param != 0.0));
        assert!(params[40..90].iter().all(|param| *param == 0.0), "no gradient, no update");
        // The same in two micro-batches, handed over before the step, across pieces.
        for micro_batch in [MicroBatch::More, MicroBatch::Last] {
            for (offset, len) in [(50, 50), (10, 40), (0, 10)] {
                let ones = &ones[..len];
                optimizer.gradient_sink().add(ParamIndex(0), offset, ones, micro_batch)?;
            }
        }
        let outcome =
            optimizer.step(&Gradients::handed_over(), &mut params, StepOptions::default())?;
        assert_eq!(outcome.grad_norm, 20.0);
        assert_eq!([0, 1].map(|param| optimizer.update_count(ParamIndex(param))), [2, 0]);
        Ok(())
    }));
}

/// Two steps on so many ranks, saved.
fn save(config: &Config, ranks: usize, is_own: bool) -> PathBuf {
    let inventory = &inventory(&RAGGED);
    let saved = all(on_ranks(ranks, |comm| {
        let sharding = if is_own { own(inventory, &*comm, 7) } else { Sharding::default() };
        let mut optimizer = start(config, inventory, &comm, &sharding, SEED)?;
        step(&mut optimizer, SEED, None)?;
        let mut checkpoints = Checkpoints::open(config, Arc::clone(&comm)).unwrap().unwrap();
        checkpoints.begin(&mut optimizer, None, b"blob", NO_PARAMETERS)?;
        // The step hands over what it was before.
        step(&mut optimizer, SEED, None)?;
        let saved = checkpoints.finish(&mut optimizer, NO_PARAMETERS)?;
        optimizer.close();
        Ok(saved.directory)
    }));
    saved.into_iter().next().unwrap()
}

/// The digest after two further steps from a checkpoint.
fn go_on(config: &Config, directory: &Path, ranks: usize, is_own: bool) -> String {
    let inventory = &inventory(&RAGGED);
    let digests = all(on_ranks(ranks, |comm| {
        let sharding = if is_own { own(inventory, &*comm, 100) } else { Sharding::default() };
        let mut optimizer = SwappedOptimizer::create(
            config,
            inventory.clone(),
            Arc::clone(&comm),
            CreateOptions::sharded(sharding),
        )?;
        let checkpoints = Checkpoints::open(config, Arc::clone(&comm)).unwrap().unwrap();
        assert_eq!(checkpoints.load(&mut optimizer, directory, &mut NoParameters)?, b"blob");
        assert_eq!(optimizer.attempts(), 1);
        for _ in 0..2 {
            step(&mut optimizer, SEED, None)?;
        }
        let digest = optimizer.element_digest(NO_PARAMETERS)?;
        optimizer.close();
        Ok(digest)
    }));
    digests[0].clone()
}

#[test]
fn checkpoints_go_from_any_cut_to_any_other() {
    let drives = Drives::new(2);
    let mut config = config_for(&drives);
    config.optimizer.clip_norm = 0.0;
    let mut seen = Vec::new();
    for (ranks, is_own) in [(1, false), (1, true), (3, true), (4, true), (2, false)] {
        config.checkpoint.dir = Some(drives.path().join(format!("saved-{ranks}-{is_own}")));
        let directory = save(&config, ranks, is_own);
        let manifest = std::fs::read_to_string(directory.join("manifest.json")).unwrap();
        assert!(manifest.contains("\"version\": 3") && manifest.contains("pieces") == is_own);
        for (ranks, is_own) in [(1, false), (3, false), (2, true), (4, true)] {
            seen.push(go_on(&config, &directory, ranks, is_own));
        }
        let report = verify_checkpoint(&directory).unwrap();
        assert!(report.findings.is_empty() && report.chunks > 0);
        let out = directory.join("export");
        let written = export_safetensors(&directory, &out, &mut |_, _| ()).unwrap();
        seen.push(data_of(&written.paths));
    }
    let exports: Vec<_> = seen.iter().filter(|it| it.len() > 40).collect();
    assert!(exports.len() == 5 && exports.iter().all(|it| *it == exports[0]));
    let digests: Vec<_> = seen.iter().filter(|it| it.len() < 40).collect();
    assert!(digests.len() == 20 && digests.iter().all(|it| *it == digests[0]), "{digests:?}");
}

/// The bytes of all tensors, in text.
fn data_of(paths: &[PathBuf]) -> String {
    let data = |path: &PathBuf| {
        let bytes = std::fs::read(path).unwrap();
        let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        bytes[8 + header..].to_vec()
    };
    format!("{:x?}", paths.iter().flat_map(data).collect::<Vec<u8>>())
}

#[test]
fn commits_come_back_with_the_same_pieces_and_no_others() {
    let drives = Drives::new(2);
    let config = durable_config_for(&drives, 1);
    let inventory = &inventory(&RAGGED);
    let reached = all(on_ranks(3, |comm| {
        let sharding = own(inventory, &*comm, 1);
        let mut optimizer = start(&config, inventory, &comm, &sharding, SEED)?;
        step(&mut optimizer, SEED, None)?;
        step(&mut optimizer, SEED, None)?;
        optimizer.state_digest(NO_PARAMETERS)
    }));
    let other = |sharding: fn(&Inventory, &dyn Communicator) -> Sharding| -> Error {
        let results = on_ranks(3, |comm| {
            let sharding = sharding(inventory, &*comm);
            start(&config, inventory, &comm, &sharding, SEED).map(drop)
        });
        let mut errors = results.into_iter().map(|it| it.unwrap_err());
        errors.next().unwrap()
    };
    let error = other(|inventory, comm| own(inventory, comm, 100));
    let text = error.to_string();
    for word in ["of other shards", "piece 0: layer3.bias[0..1367]", "layer3.bias[0..1400]"] {
        assert!(text.contains(word), "{text}");
    }
    assert_eq!(error.exit_code(), 69, "a checkpoint may take their place");
    let text = other(|_, _| Sharding::default()).to_string();
    assert!(text.contains("4 pieces") && text.contains("a contiguous part of 3"), "{text}");

    let report = verify_drives(&drives.paths(), None).unwrap();
    assert!(report.findings.is_empty() && report.shards.len() == 3, "{:?}", report.findings);
    let (jobs, findings) = contents_of(&drives.paths(), None).unwrap();
    assert!(findings.is_empty() && jobs.len() == 1);
    let elems: Vec<u64> = jobs[0].parameters.iter().map(|it| it.elems).collect();
    assert_eq!(elems, RAGGED.map(|size| size as u64));

    let back = all(on_ranks(3, |comm| {
        let sharding = own(inventory, &*comm, 1);
        let mut optimizer = start(&config, inventory, &comm, &sharding, SEED)?;
        assert_eq!(optimizer.resumed().unwrap().attempt, 2);
        assert_eq!(optimizer.resumed().unwrap().user_blob, b"where I was");
        let digest = optimizer.state_digest(NO_PARAMETERS)?;
        step(&mut optimizer, SEED, None)?;
        optimizer.close();
        Ok(digest)
    }));
    assert_eq!(back, reached);
    assert!(drives.are_empty());
}

#[test]
fn a_checkpoint_repairs_and_replaces_shards_of_other_pieces() {
    let drives = Drives::new(1);
    let mut config = durable_config_for(&drives, 1);
    config.checkpoint.dir = Some(drives.path().join("saved"));
    config.drives.keep_files = true;
    let inventory = &inventory(&RAGGED);
    let begin = |ranks: usize, align: u64| {
        all(on_ranks(ranks, |comm| {
            let sharding = own(inventory, &*comm, align);
            let mut job = Training::builder(&config, Arc::clone(&comm))
                .parameters(inventory.parameters().to_vec())
                .sharding(sharding)
                .start::<bf16>(fill_masters(SEED, inventory))?;
            let origin = job.origin().clone();
            let shard = gradients(job.optimizer(), origin.attempt() + 1, SEED);
            let attempt = job.step_on(&Gradients::Shard(&shard))?.attempt;
            // Saves the last state, and leaves the files on the drives.
            job.finish()?;
            let saved = format!("saved/default/step-{attempt:08}");
            Ok((origin, drives.path().join(saved)))
        }))
        .swap_remove(0)
    };
    let (origin, saved) = begin(2, 1);
    assert_eq!(origin, Origin::Fresh);
    let file = drives.shard("default", 1).join("state");
    let mut bytes = std::fs::read(&file).unwrap();
    bytes.iter_mut().for_each(|byte| *byte ^= 1);
    std::fs::write(&file, bytes).unwrap();
    assert!(!verify_drives(&drives.paths(), None).unwrap().findings.is_empty());
    let report = scrub(&drives.paths(), None, &saved).unwrap();
    assert!(report.repaired > 0 && report.findings.is_empty(), "{:?}", report.findings);
    let (origin, _) = begin(2, 100);
    assert!(matches!(origin, Origin::Checkpoint { attempt: 1, .. }), "{origin}");
    let (origin, _) = begin(3, 1);
    assert!(matches!(origin, Origin::Checkpoint { attempt: 2, .. }), "{origin}");
}

/// The error of all ranks, with nothing left on the drives.
fn refused(ranks: usize, sharding: impl Fn(usize) -> (Inventory, Sharding) + Sync) -> String {
    let drives = Drives::new(1);
    let config = config_for(&drives);
    let results: Vec<Result<()>> = on_ranks(ranks, |comm| {
        let (inventory, sharding) = sharding(comm.rank().index());
        SwappedOptimizer::create(&config, inventory, comm, CreateOptions::sharded(sharding.clone()))
            .map(drop)
    });
    assert!(drives.are_empty());
    let errors: Vec<Error> = results.into_iter().map(|result| result.unwrap_err()).collect();
    assert!(errors.iter().all(|error| error.is_agreed() && error.exit_code() == 64), "{errors:?}");
    errors[0].to_string()
}

fn expect(text: &str, words: &[&str]) {
    words.iter().for_each(|word| assert!(text.contains(word), "`{word}` is not in: {text}"));
}

#[test]
fn an_inventory_that_differs_is_named_by_its_first_difference() {
    let of_rank = |rank: usize| {
        let mut parameters = inventory(&[10, 20, 30]).parameters().to_vec();
        match rank {
            1 | 3 => parameters[1].shape = vec![2, 10],
            2 => drop(parameters.remove(2)),
            _ => {}
        }
        (Inventory::new(parameters).unwrap(), Sharding::default())
    };
    let text = refused(4, of_rank);
    let words = ["parameter 1", "ranks 0, 2: layer1.bias [20]", "ranks 1, 3: layer1.bias [2, 10]"];
    expect(&text, &words);
    let text = refused(3, |rank| of_rank(2 * (rank / 2)));
    expect(&text, &["parameter 2", "ranks 0, 1: layer2.weight [30]", "rank 2: no such parameter"]);
}

#[test]
fn pieces_that_are_wrong_are_named_with_parameter_and_range() {
    let two = |pieces: [&[(u32, u64, u64)]; 2]| {
        let piece = |it: &(u32, u64, u64)| Piece::new(ParamIndex(it.0), it.1, it.2);
        let pieces = pieces.map(|list| list.iter().map(piece).collect::<Vec<_>>());
        refused(2, |rank| (inventory(&[100, 50]), Sharding::own(pieces[rank].clone())))
    };
    let whole: &[(u32, u64, u64)] = &[(0, 0, 100), (1, 0, 50)];
    expect(&two([whole, &[(2, 0, 1)]]), &["rank 1 of 2", "unknown parameter", "piece 0"]);
    expect(&two([whole, &[(1, 40, 11)]]), &["beyond its parameter's end", "layer1.bias", "50"]);
    expect(&two([&[(0, 0, 60), (0, 50, 50)], &[(1, 0, 50)]]), &["own pieces overlap", "50..60"]);
    let overlap = two([whole, &[(0, 99, 1)]]);
    expect(&overlap, &["two ranks", "layer0.weight", "99..100", "0 and 1", "replicated"]);
    let gap = two([&[(0, 0, 40), (1, 0, 50)], &[(0, 41, 59)]]);
    expect(&gap, &["no rank", "layer0.weight", "40..41"]);
    let some = refused(2, |rank| match rank {
        0 => (inventory(&[100]), Sharding::own(vec![Piece::new(ParamIndex(0), 0, 100)])),
        _ => (inventory(&[100]), Sharding::default()),
    });
    expect(&some, &["only some of the ranks", "ranks that do 0"]);
}
