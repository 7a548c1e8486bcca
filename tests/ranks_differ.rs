//! Ranks that do not go together: other configurations, other hyper-parameters, other gradients,
//! other calls. All ranks get one error that says which rank has what, and nothing has changed.

#![allow(clippy::unwrap_used, reason = "a test may end where it fails")]

mod support;

use std::sync::Arc;

use optswap::config::{Durability, MissingGradient};
use optswap::internals::storage::{FoundShard, RecordFiles, ShardDirectory};
use optswap::{
    Communicator, Config, Error, Gradients, NO_PARAMETERS, NoParameters, ParamIndex, Piece, Result,
    Sharding, StepOptions, SwappedOptimizer,
};
use support::Drives;
use support::world::{
    all, config_for, durable_config_for, on_ranks, shard_gradients, start, step_until,
};

const SIZES: [usize; 2] = [20_000, 4000];

/// The error that all ranks got, with these words.
#[track_caller]
fn expect_alike(results: Vec<Result<()>>, words: &[&str]) {
    let errors: Vec<Error> = results.into_iter().map(|result| result.unwrap_err()).collect();
    for error in &errors {
        assert!(error.is_agreed(), "{error}");
        assert_eq!(error.to_string(), errors[0].to_string());
    }
    let text = errors[0].to_string();
    for word in words {
        assert!(text.contains(word), "`{word}` is not in: {text}");
    }
}

#[test]
fn other_configurations_are_named_by_key_rank_and_value_before_anything_is_created() {
    type Change = fn(&mut Config);
    let cases: [(Change, &str); 8] = [
        (
            |it| it.durability.commit_every = 2,
            "durability.commit_every 1 on ranks 0,2, 2 on rank 1",
        ),
        (|it| it.durability.mode = Durability::Scratch, "durability.mode \"step\" on ranks 0,2"),
        (|it| it.optimizer.lr = 0.5, "optimizer.lr 0.001 on ranks 0,2, 0.5 on rank 1"),
        (|it| it.optimizer.clip_norm = 0.0, "optimizer.clip_norm 0.5 on ranks 0,2, 0.0 on rank 1"),
        (|it| it.optimizer.groups.clear(), "optimizer.groups[0].lr 0.01 on ranks 0,2, not set on"),
        (|it| it.gradients.missing = MissingGradient::Zero, "gradients.missing \"skip\" on"),
        (|it| it.checkpoint.dir = Some("/c".into()), "checkpoint.dir not set on ranks 0,2, \"/c\""),
        (|it| it.job = "other".to_owned(), "job \"default\" on ranks 0,2, \"other\" on rank 1"),
    ];
    for (change, words) in cases {
        let drives = Drives::new(1);
        let results = on_ranks(3, |comm| {
            let mut config = durable_config_for(&drives, 1);
            if comm.rank().0 == 1 {
                change(&mut config);
            }
            start(&config, &SIZES, comm).map(drop)
        });
        expect_alike(results, &["ranks have different configurations", words, "stale copy"]);
        assert!(drives.are_empty(), "{words}");
    }
}

#[test]
fn what_a_node_has_may_differ() {
    let drives = Drives::new(2);
    all(on_ranks(2, |comm| {
        let mut config = config_for(&drives);
        let rank = comm.rank().index();
        config.drives.paths = vec![drives.paths()[rank].clone()];
        config.io.depth = 8 << rank;
        config.timeouts.io_timeout = 30.0 + rank as f64;
        let mut optimizer = start(&config, &SIZES, comm)?;
        step_until(&mut optimizer, 2)
    }));
}

fn take_step(optimizer: &mut SwappedOptimizer) -> Result<()> {
    let shard = shard_gradients(optimizer, optimizer.attempts() + 1);
    let gradients = Gradients::Shard(&shard);
    optimizer.step(&gradients, &mut NoParameters, StepOptions::default()).map(drop)
}

#[test]
fn another_rate_or_loss_scale_is_an_error_of_the_step_and_harms_nothing() {
    let drives = Drives::new(1);
    let digests = |disturbed: bool| {
        all(on_ranks(2, |comm| {
            let rank = comm.rank().0;
            let mut optimizer = start(&config_for(&drives), &SIZES, comm)?;
            if disturbed {
                optimizer.set_lr_factor(1.0 + f64::from(rank))?;
                let text = take_step(&mut optimizer).unwrap_err().to_string();
                assert!(text.contains("lr of group 0 0.001 on rank 0, 0.002 on rank 1"), "{text}");
                optimizer.set_lr_factor(1.0)?;
                let shard = shard_gradients(&optimizer, 1);
                let loss_scale = 1.0 + rank as f32;
                let options = StepOptions { loss_scale, ..StepOptions::default() };
                let step = optimizer.step(&Gradients::Shard(&shard), &mut NoParameters, options);
                let error = step.unwrap_err();
                assert!(error.is_agreed() && error.exit_code() == 64);
                let text = error.to_string();
                assert!(text.contains("loss scale 1 on rank 0, 2 on rank 1"), "{text}");
            }
            take_step(&mut optimizer)?;
            assert_eq!(optimizer.attempts(), 1);
            optimizer.state_digest(NO_PARAMETERS)
        }))
    };
    assert_eq!(digests(true), digests(false));
}

#[test]
fn a_gradient_that_only_some_owners_have_is_named() {
    for kind in ["contiguous", "slices", "own"] {
        let drives = Drives::new(1);
        let results = on_ranks(3, |comm| {
            let rank = comm.rank().0;
            let config = config_for(&drives);
            let third = |(param, elems): (usize, u64)| {
                let (share, start) = (elems.div_ceil(3), elems.div_ceil(3) * u64::from(rank));
                Piece::new(ParamIndex(param as u32), start, share.min(elems - start))
            };
            let elems = SIZES.map(|elems| elems as u64).into_iter().enumerate();
            let sharding = match kind {
                "slices" => Sharding::slices(),
                // The last parameter first, so that these are no slices.
                "own" => Sharding::own(elems.rev().map(third).collect()),
                _ => Sharding::default(),
            };
            let options = optswap::CreateOptions::sharded(sharding);
            let inventory = support::world::inventory(&SIZES);
            let mut optimizer = SwappedOptimizer::create(&config, inventory, comm, options)?;
            optimizer.initialize_parameters(&mut NoParameters, |_, masters| {
                masters.fill(1.0);
                Ok(())
            })?;
            // Of the second parameter nobody has a gradient, of the first all but rank 1.
            let values = vec![1.0f32; 20_000];
            let pieces = optimizer.partition().pieces().iter();
            let given = pieces.filter(|piece| piece.param.0 == 0 && rank != 1);
            let given = given.map(|it| (it.param, it.param_offset, &values[..it.elems as usize]));
            let gradients = Gradients::Pieces(given.collect());
            let step = optimizer.step(&gradients, &mut NoParameters, StepOptions::default());
            // The same on all ranks works.
            let whole: Vec<f32> = vec![1.0; optimizer.partition().elems() as usize];
            let again = Gradients::Shard(&whole);
            optimizer.step(&again, &mut NoParameters, StepOptions::default())?;
            step.map(drop)
        });
        let words = ["parameter layer0.weight, with ranks 0,2, without rank 1", "or none of one"];
        expect_alike(results, &words);
    }
}

#[test]
fn other_calls_are_named_with_their_ranks() {
    let drives = Drives::new(1);
    let apart = |call: fn(&mut SwappedOptimizer) -> Result<()>| {
        on_ranks(3, |comm| {
            let rank = comm.rank().0;
            let mut optimizer = start(&config_for(&drives), &SIZES, Arc::clone(&comm))?;
            let result = if rank == 1 { call(&mut optimizer) } else { take_step(&mut optimizer) };
            // Nobody leaves before the others have seen the same.
            drop(optimizer);
            result
        })
    };
    let words = ["ranks are in different calls", "ranks 0,2 step of step 1"];
    expect_alike(apart(SwappedOptimizer::flush), &[&words[..], &["rank 1 flush"]].concat());
    let digest = |optimizer: &mut SwappedOptimizer| optimizer.state_digest(NO_PARAMETERS).map(drop);
    expect_alike(apart(digest), &[&words[..], &["rank 1 state_digest"]].concat());
    let two_steps = |optimizer: &mut SwappedOptimizer| optimizer.gather_records().map(drop);
    expect_alike(apart(two_steps), &[&words[..], &["rank 1 gather_records"]].concat());
}

#[test]
fn gradients_reduced_in_another_order_are_named_with_their_parameters() {
    let drives = Drives::new(1);
    let results = on_ranks(2, |comm| {
        let rank = comm.rank().0;
        let mut optimizer = start(&config_for(&drives), &SIZES, comm)?;
        let mut shard = vec![0.0; optimizer.partition().elems() as usize];
        for index in 0..2 {
            let param = (index + rank) % 2;
            let full = vec![1.0; SIZES[param as usize]];
            optimizer.reduce_gradient(ParamIndex(param), &full, &mut shard)?;
        }
        Ok(())
    });
    let words = [
        "rank 0 reduce_gradient of parameter layer0.weight",
        "rank 1 reduce_gradient of parameter layer1.bias",
        "the same calls, in the same order",
    ];
    expect_alike(results, &words);
}

#[test]
fn a_failed_commit_takes_its_number_with_it() {
    let drives = Drives::new(1);
    let config = durable_config_for(&drives, 1);
    let epochs = all(on_ranks(2, |comm| {
        let is_first = comm.rank().0 == 0;
        let mut optimizer = start(&config, &SIZES, comm)?;
        step_until(&mut optimizer, 1)?;
        let before = optimizer.epoch();
        // Without any gradient nothing changes, so after the error all go on; but rank 0 has
        // written its record of the commit.
        let none = Gradients::<f32>::Pieces(Vec::new());
        let mut no_params = NoParameters;
        let options = StepOptions { user_blob: b"failed", ..StepOptions::default() };
        let groups = optimizer.begin_update(&none, &mut no_params, options)?;
        let own = if is_first { Ok(()) } else { Err(Error::usage("my own")) };
        let error = groups.finish(own).unwrap_err();
        assert!(error.is_agreed() && error.to_string().contains("my own"), "{error}");
        assert_eq!((optimizer.attempts(), optimizer.user_blob()), (1, [].as_slice()));
        assert_eq!(optimizer.epoch(), before);
        step_until(&mut optimizer, 2)?;
        Ok((before, optimizer.epoch()))
    }));
    // Epoch 0 is the initial state; 2 was written by rank 0 alone.
    assert_eq!(epochs, [(Some(1), Some(3)); 2]);
}

#[test]
fn records_of_one_commit_and_different_steps_are_not_gone_on_from() {
    let drives = Drives::new(1);
    let config = durable_config_for(&drives, 1);
    let body = |steps| {
        let config = &config;
        move |comm: Arc<dyn Communicator>| {
            let mut optimizer = start(config, &SIZES, comm)?;
            step_until(&mut optimizer, steps)
        }
    };
    all(on_ranks(2, body(2)));
    // As two ranks leave them that committed after different numbers of steps.
    let shard = ShardDirectory::new(&drives.paths()[0], "default", 1);
    let files = RecordFiles::open(&shard, false, 0).unwrap();
    for (place, record) in files.read().unwrap().into_iter().enumerate() {
        let mut record = record.unwrap();
        record.attempts *= 2;
        files.write(place, &record, false).unwrap();
    }
    assert_eq!(FoundShard::all_on(&drives.paths(), None).unwrap().len(), 2);
    let words = ["the records of a commit are of different steps", "rank 0 step 2, rank 1 step 4"];
    expect_alike(on_ranks(2, body(3)), &words);
    let verified = support::alone(&support::optswap(), &["verify", &drives.list(1)]);
    assert_eq!(verified.code, 74, "{verified:?}");
    assert!((verified.stdout + &verified.stderr).contains("of different steps"));
}
