//! The optimizer goes from thread to thread, and gradients come from several threads at once.

#![allow(clippy::unwrap_used, reason = "a test may end where it fails")]

#[path = "support/handed_over.rs"]
mod handed_over;
mod support;

use half::bf16;
use handed_over::{
    CHUNK_BYTES, Dice, GRADIENT_BYTES, batch_of, config_for, micro_batch, pieces_of, step_borrowed,
};
use optswap::internals::config::GradientPlace;
use optswap::{
    Bytes, Change, Error, GradientSink, Gradients, MicroBatch, NO_PARAMETERS, ParamIndex, Result,
    StepOptions, StepOutcome, SwappedOptimizer,
};
use support::Drives;
use support::world::{all, on_ranks, start, step_until};

const SIZES: [usize; 5] = [9000, 1, 12_000, 300, 20_000];
const PLACES: [GradientPlace; 3] =
    [GradientPlace::Memory, GradientPlace::Drives, GradientPlace::Auto];
const THREADS: usize = 4;

#[test]
fn an_optimizer_steps_on_whatever_thread_has_it() {
    let [one, other] = [(); 2].map(|()| Drives::new(1));
    let config = config_for(&one, GradientPlace::Caller, 3);
    let expected = all(on_ranks(2, |comm| {
        let mut optimizer = start(&config, &SIZES, comm)?;
        step_until(&mut optimizer, 4)?;
        optimizer.state_digest(NO_PARAMETERS)
    }));
    let config = config_for(&other, GradientPlace::Caller, 3);
    let seen = all(on_ranks(2, |comm| {
        let mut optimizer = start(&config, &SIZES, comm)?;
        for step in 1..=4 {
            let elsewhere = std::thread::spawn(move || {
                step_until(&mut optimizer, step)?;
                Ok::<_, Error>(optimizer)
            });
            optimizer = elsewhere.join().unwrap()?;
        }
        let digest = optimizer.state_digest(NO_PARAMETERS)?;
        std::thread::spawn(move || optimizer.close()).join().unwrap();
        Ok(digest)
    }));
    assert_eq!(seen, expected);
    assert!(other.are_empty());
}

/// The next step, with gradients of two micro-batches that several threads hand over at once:
/// pieces in any order, each dealt to one of the threads.
fn step_from_threads(
    optimizer: &mut SwappedOptimizer,
    seed: u64,
    params: &mut [bf16],
) -> Result<StepOutcome> {
    let step = optimizer.attempts() + 1;
    let mut dice = Dice(seed + step);
    for batch in 0..2 {
        let shard = &micro_batch(optimizer, step, batch);
        let mut dealt = vec![Vec::new(); THREADS];
        for piece in pieces_of(optimizer, |_| true, seed + 10 * step + batch) {
            dealt[dice.below(THREADS)].push(piece);
        }
        std::thread::scope(|scope| {
            for pieces in dealt {
                let sink = optimizer.gradient_sink().clone();
                scope.spawn(move || {
                    for (param, offset, range) in pieces {
                        sink.add(param, offset, &shard[range], batch_of(batch == 1)).unwrap();
                    }
                });
            }
        });
    }
    optimizer.step(&Gradients::handed_over(), params, StepOptions::default())
}

#[test]
fn gradients_from_several_threads_give_the_bits_of_a_borrowed_step() {
    let train = |place, seed: Option<u64>| {
        let drives = Drives::new(2);
        let config = config_for(&drives, place, 3);
        all(on_ranks(2, |comm| {
            let mut optimizer = start(&config, &SIZES, comm)?;
            let mut params = vec![bf16::ZERO; optimizer.partition().elems() as usize];
            for _ in 0..3 {
                match seed {
                    Some(seed) => step_from_threads(&mut optimizer, seed, &mut params)?,
                    None => step_borrowed(&mut optimizer, 2, &mut params)?,
                };
            }
            Ok((optimizer.state_digest(NO_PARAMETERS)?, params))
        }))
    };
    let expected = train(GradientPlace::Caller, None);
    for place in PLACES {
        for seed in [1, 20, 300, 4000] {
            println!("{place:?}, seed {seed}");
            assert!(train(place, Some(seed)) == expected, "{place:?}, seed {seed}");
        }
    }
}

/// What a piece comes to that another thread hands over.
fn add_elsewhere(sink: &GradientSink) -> Result<()> {
    let sink = sink.clone();
    let add = move || sink.add(ParamIndex(0), 0, &[1.0f32; 9000], MicroBatch::Last);
    std::thread::spawn(add).join().unwrap()
}

fn refused(result: Result<()>, words: &str) {
    let error = result.unwrap_err();
    assert_eq!(error.exit_code(), 64, "{error}");
    assert!(error.to_string().contains(words), "{error}");
}

#[test]
fn a_piece_that_comes_while_an_update_is_under_way_is_refused() {
    for place in PLACES {
        let drives = Drives::new(1);
        let mut config = config_for(&drives, place, 3);
        config.swap.memory_budget = Bytes(12 * CHUNK_BYTES + 12 * GRADIENT_BYTES);
        all(on_ranks(1, |comm| {
            let mut optimizer = start(&config, &SIZES, comm)?;
            let mut params = vec![bf16::ZERO; optimizer.partition().elems() as usize];
            let sink = optimizer.gradient_sink();
            add_elsewhere(&sink)?;
            let (gradients, options) = (Gradients::handed_over(), StepOptions::default());
            optimizer.handles().begin(&gradients, &mut params, options)?;
            refused(add_elsewhere(&sink), "an update is under way");
            for sub_group in 0..optimizer.sub_groups() {
                let mut handles = optimizer.handles();
                handles.swap_in_optimizer_state(sub_group)?;
                while let Some(handle) = handles.next_chunk(&mut params)? {
                    handles.swap_out_chunk(handle, &mut params, Change::Unchanged)?;
                }
                refused(add_elsewhere(&sink), "an update is under way");
                optimizer.handles().swap_out_optimizer_state(sub_group)?;
            }
            optimizer.handles().finish(Ok(()))?;
            // Nothing is left of those that were refused.
            add_elsewhere(&sink)?;
            let outcome = optimizer.step(&gradients, &mut params, options)?;
            assert_eq!(outcome.grad_norm, 9000f64.sqrt());
            Ok(())
        }));
    }
}

#[test]
fn a_piece_that_comes_while_an_update_with_borrowed_gradients_is_under_way_is_refused() {
    for place in PLACES {
        let drives = Drives::new(1);
        let config = config_for(&drives, place, 3);
        all(on_ranks(1, |comm| {
            let mut optimizer = start(&config, &SIZES, comm)?;
            let elems = optimizer.partition().elems() as usize;
            let (mut params, grads) = (vec![bf16::ZERO; elems], vec![1.0f32; elems]);
            let sink = optimizer.gradient_sink();
            let (gradients, options) = (Gradients::Shard(&grads), StepOptions::default());
            optimizer.handles().begin(&gradients, &mut params, options)?;
            refused(add_elsewhere(&sink), "an update is under way");
            // Its chunks never came: the update is given up, and the sink takes pieces again.
            optimizer.handles().finish(Ok(())).unwrap_err();
            add_elsewhere(&sink)
        }));
    }
}

#[test]
fn the_sink_of_an_optimizer_that_is_gone_gives_an_error() {
    for place in PLACES {
        for is_closed in [false, true] {
            let drives = Drives::new(1);
            let config = config_for(&drives, place, 3);
            all(on_ranks(1, |comm| {
                let optimizer = start(&config, &SIZES, comm)?;
                let sink = optimizer.gradient_sink();
                // With gradients on their way.
                add_elsewhere(&sink)?;
                if is_closed {
                    optimizer.close();
                } else {
                    drop(optimizer);
                }
                refused(add_elsewhere(&sink), "the optimizer has been closed");
                refused(add_elsewhere(&sink), "the optimizer has been closed");
                Ok(())
            }));
        }
    }
}
