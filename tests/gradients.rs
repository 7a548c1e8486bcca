//! Gradients as training programs have them: handed over in pieces while backward goes on,
//! accumulated over micro-batches, in memory or on the drives. A step with them is bit for bit the
//! step with their sum; nothing old is ever used; what is wrong is named, and changes nothing.

#![allow(clippy::unwrap_used, reason = "a test may end where it fails")]

#[path = "support/handed_over.rs"]
mod handed_over;
mod support;

use std::sync::Arc;

use half::{bf16, f16};
use handed_over::{config_for, hand_over, micro_batch, step_borrowed, step_handed_over};
use optswap::MicroBatch::{Last, More};
use optswap::internals::config::{AccumulateIn, EngineName, GradientPlace, MissingGradient};
use optswap::{
    Communicator, Config, GradElem, Gradients, NO_PARAMETERS, ParamElem, ParamIndex, Result,
    StepOptions, StepOutcome, SwappedOptimizer,
};
use proptest::prelude::*;
use support::Drives;
use support::world::{all, on_ranks, start};

const PLACES: [GradientPlace; 3] =
    [GradientPlace::Memory, GradientPlace::Drives, GradientPlace::Auto];
const SIZES: [usize; 4] = [5000, 1, 12_000, 300];

fn params_of(optimizer: &SwappedOptimizer) -> Vec<bf16> {
    vec![bf16::ZERO; optimizer.partition().elems() as usize]
}

/// Digest, parameters, and norm and scale of every step.
type Trained = (String, Vec<bf16>, Vec<(f64, f32)>);

/// What comes of three steps.
fn train(
    config: &Config,
    sizes: &[usize],
    batches: u64,
    comm: Arc<dyn Communicator>,
) -> Result<Trained> {
    let mut optimizer = start(config, sizes, comm)?;
    let mut params = params_of(&optimizer);
    let mut outcomes = Vec::new();
    for _ in 0..3 {
        let outcome = match config.gradients.place {
            GradientPlace::Caller => step_borrowed(&mut optimizer, batches, &mut params)?,
            _ => step_handed_over(&mut optimizer, batches, &mut params)?,
        };
        outcomes.push((outcome.grad_norm, outcome.grad_scale));
    }
    let digest = optimizer.state_digest(NO_PARAMETERS)?;
    optimizer.close();
    Ok((digest, params, outcomes))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn any_pieces_give_the_step_of_their_sum(
        sizes in prop::collection::vec(1usize..30_000, 1..5),
        ranks in 1usize..5,
        place in 0usize..3,
        buffers in 2u64..8,
        batches in 1u64..4,
        is_uring in any::<bool>(),
        prefetch in any::<bool>(),
        cached in 0u64..3,
    ) {
        let drives = Drives::new(2);
        let borrowed = config_for(&drives, GradientPlace::Caller, 4);
        let expected = all(on_ranks(ranks, |comm| train(&borrowed, &sizes, batches, comm)));
        let mut config = config_for(&drives, PLACES[place], buffers);
        config.io.engine = if is_uring { EngineName::Uring } else { EngineName::Threads };
        config.swap.prefetch = prefetch;
        config.swap.cache = optswap::internals::config::CacheSize::Bytes(
            optswap::internals::units::Bytes(cached.min(buffers - 2) * handed_over::CHUNK_BYTES));
        let seen = all(on_ranks(ranks, |comm| train(&config, &sizes, batches, comm)));
        prop_assert_eq!(seen, expected, "{:?}", config.swap);
    }
}

#[test]
fn formats_are_converted_exactly_and_sums_are_rounded_as_told() {
    fn sums<A: GradElem + ParamElem>(optimizer: &SwappedOptimizer, step: u64) -> Vec<A> {
        let [first, second, third] = [0, 1, 2].map(|batch| micro_batch(optimizer, step, batch));
        let add = |sum: A, grad: f32| A::emit(sum.load() + grad);
        let all = first.iter().zip(second).zip(third);
        all.map(|((first, second), third)| {
            let sum = A::emit(*first);
            add(add(sum, bf16::from_f32(second).to_f32()), f16::from_f32(third).to_f32())
        })
        .collect()
    }
    fn borrowed<A: GradElem + ParamElem>(config: &Config) -> Vec<String> {
        all(on_ranks(2, |comm| {
            let mut optimizer = start(config, &SIZES, comm)?;
            let mut params = params_of(&optimizer);
            let sums = sums::<A>(&optimizer, 1);
            let gradients = Gradients::Shard(&sums);
            optimizer.step(&gradients, &mut params, StepOptions::default())?;
            optimizer.state_digest(NO_PARAMETERS)
        }))
    }
    for place in PLACES {
        for format in [AccumulateIn::F32, AccumulateIn::Bf16] {
            let drives = Drives::new(1);
            let mut config = config_for(&drives, place, 3);
            config.gradients.accumulate_in = format;
            let seen = all(on_ranks(2, |comm| {
                let mut optimizer = start(&config, &SIZES, comm)?;
                let mut params = params_of(&optimizer);
                let [first, second, third] =
                    [0, 1, 2].map(|batch| micro_batch(&optimizer, 1, batch));
                let second: Vec<bf16> = second.into_iter().map(bf16::from_f32).collect();
                let third: Vec<f16> = third.into_iter().map(f16::from_f32).collect();
                hand_over(&mut optimizer, &first, |_| true, 1, More)?;
                hand_over(&mut optimizer, &second, |_| true, 2, More)?;
                hand_over(&mut optimizer, &third, |_| true, 3, Last)?;
                optimizer.flush_gradients()?;
                take_step(&mut optimizer, &mut params)?;
                optimizer.state_digest(NO_PARAMETERS)
            }));
            let other = Drives::new(1);
            let plain = config_for(&other, GradientPlace::Caller, 3);
            let expected = match format {
                AccumulateIn::F32 => borrowed::<f32>(&plain),
                AccumulateIn::Bf16 => borrowed::<bf16>(&plain),
            };
            assert_eq!(seen, expected, "{place:?}, {format:?}");
        }
    }
}

/// DeepSpeed's swapped_gradients are never cleared: a parameter that is not active in a window gets
/// its old gradient again.
#[test]
fn a_stale_gradient_is_never_replayed() {
    for place in PLACES {
        let drives = Drives::new(1);
        let config = config_for(&drives, place, 3);
        all(on_ranks(2, |comm| {
            let mut optimizer = start(&config, &SIZES, comm)?;
            let mut params = params_of(&optimizer);
            step_handed_over(&mut optimizer, 1, &mut params)?;
            // Only the third parameter is active.
            let shard = micro_batch(&optimizer, 2, 0);
            hand_over(&mut optimizer, &shard, |param| param.0 == 2, 9, Last)?;
            take_step(&mut optimizer, &mut params)?;
            let counts: Vec<u64> =
                (0..4).map(|param| optimizer.update_count(ParamIndex(param))).collect();
            let has = |param: u32| {
                optimizer.partition().pieces().iter().any(|piece| piece.param == ParamIndex(param))
            };
            for param in (0..4).filter(|param| has(*param)) {
                assert_eq!(counts[param as usize], if param == 2 { 2 } else { 1 }, "{place:?}");
            }
            // An overflow: what was handed over is gone all the same.
            let mut shard = micro_batch(&optimizer, 3, 0);
            if let Some(first) = shard.first_mut() {
                *first = f32::INFINITY;
            }
            hand_over(&mut optimizer, &shard, |_| true, 9, Last)?;
            let outcome = take_step(&mut optimizer, &mut params)?;
            assert!(outcome.is_skipped());
            let before = optimizer.state_digest(NO_PARAMETERS)?;
            let outcome = take_step(&mut optimizer, &mut params)?;
            assert!(!outcome.is_skipped() && outcome.grad_norm == 0.0, "{outcome:?}");
            assert_eq!(optimizer.state_digest(NO_PARAMETERS)?, before, "no gradient, no update");
            // And so after they were dropped.
            hand_over(&mut optimizer, &shard, |_| true, 9, More)?;
            optimizer.discard_gradients();
            assert!(!take_step(&mut optimizer, &mut params)?.is_skipped());
            assert_eq!(optimizer.state_digest(NO_PARAMETERS)?, before);
            Ok(())
        }));
    }
}

/// A step with what was handed over.
fn take_step(optimizer: &mut SwappedOptimizer, params: &mut [bf16]) -> Result<StepOutcome> {
    optimizer.step(&Gradients::handed_over(), params, StepOptions::default())
}

/// The shard's gradients of some parameters.
fn some_gradients<'a>(
    optimizer: &SwappedOptimizer,
    shard: &'a [f32],
    is_given: impl Fn(ParamIndex) -> bool,
) -> Gradients<'a, f32> {
    let pieces = optimizer.partition().pieces().iter().filter(|piece| is_given(piece.param));
    let pieces = pieces.map(|it| (it.param, it.param_offset, &shard[it.in_shard()]));
    Gradients::Pieces(pieces.collect())
}

/// DeepSpeed's gradient buffer is not zeroed: ranges that nothing covers hold what was there.
#[test]
fn an_uncovered_range_is_never_read() {
    for place in PLACES {
        let drives = Drives::new(1);
        let (config, plain) =
            (config_for(&drives, place, 3), config_for(&drives, GradientPlace::Caller, 3));
        // Parameters of one element and less than a block lie beside the others in their chunks.
        let active = |param: ParamIndex| param.0 != 1 && param.0 != 3;
        let expected = all(on_ranks(2, |comm| {
            let mut optimizer = start(&plain, &SIZES, comm)?;
            let mut params = params_of(&optimizer);
            for step in 1..=3 {
                let shard = micro_batch(&optimizer, step, 0);
                let given = some_gradients(&optimizer, &shard, active);
                optimizer.step(&given, &mut params, StepOptions::default())?;
            }
            Ok((optimizer.state_digest(NO_PARAMETERS)?, params))
        }));
        let seen = all(on_ranks(2, |comm| {
            let mut optimizer = start(&config, &SIZES, comm)?;
            let mut params = params_of(&optimizer);
            // Large values in every buffer first, of a window that is dropped.
            let large = vec![1e30f32; params.len()];
            hand_over(&mut optimizer, &large, |_| true, 7, Last)?;
            optimizer.discard_gradients();
            for step in 1..=3 {
                let shard = micro_batch(&optimizer, step, 0);
                hand_over(&mut optimizer, &shard, active, step, Last)?;
                take_step(&mut optimizer, &mut params)?;
            }
            Ok((optimizer.state_digest(NO_PARAMETERS)?, params))
        }));
        assert_eq!(seen, expected, "{place:?}");
    }
}

/// DeepSpeed keeps the remainder of a gradient as a view that pins all of it until the step.
#[test]
fn nothing_holds_on_to_the_callers_memory() {
    for place in PLACES {
        let drives = Drives::new(1);
        let config = config_for(&drives, place, 3);
        let plain = config_for(&drives, GradientPlace::Caller, 3);
        let expected = all(on_ranks(1, |comm| train(&plain, &[9001], 1, comm)));
        let seen = all(on_ranks(1, |comm| {
            let mut optimizer = start(&config, &[9001], comm)?;
            let mut params = params_of(&optimizer);
            // One buffer, overwritten as soon as a call has returned; 9,001 is no multiple of it.
            let mut buffer = [0.0f32; 512];
            for step in 1..=3 {
                let shard = micro_batch(&optimizer, step, 0);
                for (index, piece) in shard.chunks(512).enumerate() {
                    let buffer = &mut buffer[..piece.len()];
                    buffer.copy_from_slice(piece);
                    let offset = 512 * index as u64;
                    optimizer.gradient_sink().add(ParamIndex(0), offset, buffer, Last)?;
                    buffer.fill(f32::NAN);
                }
                take_step(&mut optimizer, &mut params)?;
            }
            Ok((optimizer.state_digest(NO_PARAMETERS)?, params))
        }));
        assert_eq!((&seen[0].0, &seen[0].1), (&expected[0].0, &expected[0].1), "{place:?}");
    }
}

#[test]
fn a_missing_gradient_means_what_the_configuration_says() {
    let active = |param: ParamIndex| param.0 != 0;
    for missing in [MissingGradient::Skip, MissingGradient::Zero, MissingGradient::Error] {
        let mut digests = Vec::new();
        for place in [GradientPlace::Caller, PLACES[0], PLACES[1], PLACES[2]] {
            let drives = Drives::new(1);
            let mut config = config_for(&drives, place, 3);
            config.gradients.missing = missing;
            let results = all(on_ranks(2, |comm| {
                let mut optimizer = start(&config, &SIZES, comm)?;
                let mut params = params_of(&optimizer);
                let untouched = optimizer.state_digest(NO_PARAMETERS)?;
                let shard = micro_batch(&optimizer, 1, 0);
                let options = StepOptions::default();
                let result = if place == GradientPlace::Caller {
                    let given = some_gradients(&optimizer, &shard, active);
                    optimizer.step(&given, &mut params, options)
                } else {
                    hand_over(&mut optimizer, &shard, active, 3, Last)?;
                    optimizer.step(&Gradients::handed_over(), &mut params, options)
                };
                if missing == MissingGradient::Error {
                    let error = result.unwrap_err();
                    assert!(error.is_agreed() && error.exit_code() == 64, "{error}");
                    let text = error.to_string();
                    assert!(text.contains("layer0.weight") && text.contains("no gradient"));
                    assert_eq!(optimizer.state_digest(NO_PARAMETERS)?, untouched);
                    if place != GradientPlace::Caller {
                        // What is there stays, so that the rest can still come.
                        hand_over(&mut optimizer, &shard, |param| param.0 == 0, 4, Last)?;
                        optimizer.step(&Gradients::handed_over(), &mut params, options)?;
                    }
                    return Ok((String::new(), 0));
                }
                result?;
                // The first parameter lies on the first rank alone.
                let count = optimizer.update_count(ParamIndex(0));
                let is_here = optimizer.partition().flat().start == 0;
                Ok((optimizer.state_digest(NO_PARAMETERS)?, if is_here { count } else { 0 }))
            }));
            assert_eq!(results[0].1, u64::from(missing == MissingGradient::Zero), "{place:?}");
            digests.push(results[0].0.clone());
        }
        assert!(digests.iter().all(|digest| *digest == digests[0]), "{missing:?}: {digests:?}");
    }
}

#[test]
fn a_zero_gradient_is_what_a_missing_one_is_taken_for() {
    let drives = Drives::new(1);
    let mut config = config_for(&drives, GradientPlace::Caller, 3);
    let sizes = [200_000, 1000];
    let mut digest = |missing: MissingGradient, is_given: bool| {
        config.gradients.missing = missing;
        all(on_ranks(1, |comm| {
            let mut optimizer = start(&config, &sizes, comm)?;
            let mut params = params_of(&optimizer);
            for step in 1..=2 {
                let mut shard = micro_batch(&optimizer, step, 0);
                shard[..200_000].fill(0.0);
                let mut given = Vec::new();
                if is_given {
                    given.push((ParamIndex(0), 0, &shard[..200_000]));
                }
                given.push((ParamIndex(1), 0, &shard[200_000..]));
                optimizer.step(&Gradients::Pieces(given), &mut params, StepOptions::default())?;
            }
            optimizer.state_digest(NO_PARAMETERS)
        }))
    };
    let zero = digest(MissingGradient::Zero, false);
    assert_eq!(zero, digest(MissingGradient::Skip, true));
    assert_ne!(zero, digest(MissingGradient::Skip, false), "weight decay goes on");
}

/// Every wrong piece: this rank's error at once, everybody's at the next flush or step.
#[test]
fn what_is_wrong_is_named_and_changes_nothing() {
    // Rank 0 has parameters 0 and 1, and a part of 2. Parameter, offset, elements.
    let wrongs = [
        ("unknown parameter", (7, 0, 1), Last),
        ("beyond its parameter's end", (1, 1, 1), Last),
        ("beyond its parameter's end", (0, u64::MAX, 1), Last),
        ("outside of this rank's shard", (3, 0, 1), Last),
        ("twice in one micro-batch", (0, 99, 2), Last),
        ("only some pieces of a micro-batch", (0, 200, 2), More),
    ];
    for place in PLACES {
        let drives = Drives::new(1);
        let config = config_for(&drives, place, 3);
        let plain = config_for(&drives, GradientPlace::Caller, 3);
        let expected = all(on_ranks(2, |comm| {
            let mut optimizer = start(&plain, &SIZES, comm)?;
            let mut params = params_of(&optimizer);
            step_borrowed(&mut optimizer, 1, &mut params)?;
            optimizer.state_digest(NO_PARAMETERS)
        }));
        let seen = all(on_ranks(2, |comm| {
            let is_first = comm.rank().0 == 0;
            let mut optimizer = start(&config, &SIZES, comm)?;
            let mut params = params_of(&optimizer);
            let (sink, shard) = (optimizer.gradient_sink(), micro_batch(&optimizer, 1, 0));
            if is_first {
                sink.add(ParamIndex(0), 0, &shard[..100], Last)?;
            }
            for (index, (words, (param, offset, elems), batch)) in wrongs.into_iter().enumerate() {
                if is_first {
                    let wrong = sink.add(ParamIndex(param), offset, &shard[..elems], batch);
                    let error = wrong.unwrap_err();
                    assert!(error.to_string().contains(words), "{error}");
                    assert!(!error.is_agreed());
                }
                let told = match index % 2 {
                    0 => optimizer.flush_gradients().unwrap_err(),
                    _ => take_step(&mut optimizer, &mut params).unwrap_err(),
                };
                let text = told.to_string();
                assert!(told.is_agreed() && told.exit_code() == 64, "{text}");
                assert!(text.contains(words) && text.contains("rank 0 of 2"), "{text}");
            }
            // Said once; now it is the rest that is missing.
            let told = optimizer.flush_gradients().unwrap_err().to_string();
            assert!(told.contains("only partly there") && told.contains("layer0.weight"), "{told}");
            if is_first {
                sink.add(ParamIndex(0), 100, &shard[100..5000], Last)?;
                let late = sink.add(ParamIndex(0), 0, &shard[..1], Last);
                assert!(late.unwrap_err().to_string().contains("after the last one"));
                let pieces = optimizer.partition().pieces().to_vec();
                for piece in pieces.iter().filter(|piece| piece.param.0 > 0) {
                    let (offset, shard) = (piece.param_offset, &shard[piece.in_shard()]);
                    sink.add(piece.param, offset, shard, More)?;
                }
                assert!(optimizer.flush_gradients().is_err(), "the late piece");
                let told = optimizer.flush_gradients().unwrap_err().to_string();
                assert!(told.contains("last gradient has not come"), "{told}");
                // A micro-batch of zeros more, and that was the last one.
                for piece in pieces.iter().filter(|piece| piece.param.0 > 0) {
                    let zeros = vec![0.0f32; piece.elems as usize];
                    sink.add(piece.param, piece.param_offset, &zeros, Last)?;
                }
            } else {
                assert!(optimizer.flush_gradients().is_err());
                assert!(optimizer.flush_gradients().is_err());
                hand_over(&mut optimizer, &shard, |_| true, 5, Last)?;
            }
            take_step(&mut optimizer, &mut params)?;
            optimizer.state_digest(NO_PARAMETERS)
        }));
        assert_eq!(seen, expected, "{place:?}");
    }
}

#[test]
fn gradients_have_one_way_into_a_step() {
    let drives = Drives::new(1);
    let config = config_for(&drives, GradientPlace::Memory, 3);
    all(on_ranks(1, |comm| {
        let mut optimizer = start(&config, &SIZES, comm)?;
        let mut params = params_of(&optimizer);
        let shard = micro_batch(&optimizer, 1, 0);
        optimizer.gradient_sink().add(ParamIndex(1), 0, &shard[..1], Last)?;
        let error = step_borrowed(&mut optimizer, 1, &mut params).unwrap_err().to_string();
        assert!(error.contains("would not use"), "{error}");
        optimizer.discard_gradients();
        step_borrowed(&mut optimizer, 1, &mut params)?;
        Ok(())
    }));
    let config = config_for(&drives, GradientPlace::Caller, 3);
    all(on_ranks(1, |comm| {
        let mut optimizer = start(&config, &SIZES, comm)?;
        let mut params = params_of(&optimizer);
        let error = optimizer.gradient_sink().add(ParamIndex(1), 0, &[0.0f32], Last).unwrap_err();
        assert!(error.to_string().contains("gradients.place"), "{error}");
        let error = take_step(&mut optimizer, &mut params).unwrap_err();
        assert!(error.to_string().contains("gradients.place"), "{error}");
        step_borrowed(&mut optimizer, 1, &mut params)?;
        Ok(())
    }));
}
