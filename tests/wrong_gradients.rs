//! Pieces of gradients that are wrong: each is named, and changes nothing of the step.

#![allow(clippy::unwrap_used, reason = "a test may end where it fails")]

#[path = "support/handed_over.rs"]
mod handed_over;
mod support;

use half::bf16;
use handed_over::{config_for, hand_over, micro_batch, step_borrowed};
use optswap::internals::config::GradientPlace;
use optswap::{
    Gradients, MicroBatch, NO_PARAMETERS, ParamIndex, Result, StepOptions, SwappedOptimizer,
};
use support::Drives;
use support::world::{all, on_ranks, start};

const PLACES: [GradientPlace; 3] =
    [GradientPlace::Memory, GradientPlace::Drives, GradientPlace::Auto];
const SIZES: [usize; 4] = [5000, 1, 12_000, 300];

fn params_of(optimizer: &SwappedOptimizer) -> Vec<bf16> {
    vec![bf16::ZERO; optimizer.partition().elems() as usize]
}

/// Pieces that are wrong when rank 0, which has parameters 0 and 1 and a part of 2, has handed over
/// the first 100 elements of parameter 0: what the error says, parameter, element, number of
/// elements, micro-batch.
const WRONG_PIECES: [(&str, u32, u64, usize, MicroBatch); 6] = [
    ("unknown parameter", 7, 0, 1, MicroBatch::Last),
    ("beyond its parameter's end", 1, 1, 1, MicroBatch::Last),
    ("beyond its parameter's end", 0, u64::MAX, 1, MicroBatch::Last),
    ("outside of this rank's shard", 3, 0, 1, MicroBatch::Last),
    ("twice in one micro-batch", 0, 99, 2, MicroBatch::Last),
    ("only some pieces of a micro-batch", 0, 200, 2, MicroBatch::More),
];

/// Every wrong piece is this rank's error at once, and everybody's at the next flush or step.
fn hand_over_wrong_pieces(
    optimizer: &mut SwappedOptimizer,
    is_first: bool,
    shard: &[f32],
    params: &mut [bf16],
) -> Result<()> {
    let sink = optimizer.gradient_sink();
    if is_first {
        sink.add(ParamIndex(0), 0, &shard[..100], MicroBatch::Last)?;
    }
    for (index, (words, param, offset, elems, batch)) in WRONG_PIECES.into_iter().enumerate() {
        if is_first {
            let piece = &shard[..elems];
            let error = sink.add(ParamIndex(param), offset, piece, batch).unwrap_err();
            assert!(error.to_string().contains(words), "{error}");
            assert!(!error.is_agreed());
        }
        let error = if index % 2 == 0 {
            optimizer.flush_gradients().unwrap_err()
        } else {
            let taken = optimizer.step(&Gradients::handed_over(), params, StepOptions::default());
            taken.unwrap_err()
        };
        let text = error.to_string();
        assert!(error.is_agreed() && error.exit_code() == 64, "{text}");
        assert!(text.contains(words) && text.contains("rank 0 of 2"), "{text}");
    }
    Ok(())
}

/// What rank 0 has not handed over yet, with a piece that comes too late.
fn hand_over_the_rest(optimizer: &mut SwappedOptimizer, shard: &[f32]) -> Result<()> {
    let sink = optimizer.gradient_sink();
    sink.add(ParamIndex(0), 100, &shard[100..5000], MicroBatch::Last)?;
    let late = sink.add(ParamIndex(0), 0, &shard[..1], MicroBatch::Last);
    assert!(late.unwrap_err().to_string().contains("after the last one"));
    let pieces = optimizer.partition().pieces().to_vec();
    for piece in pieces.iter().filter(|piece| piece.param.0 > 0) {
        sink.add(piece.param, piece.param_offset, &shard[piece.in_shard()], MicroBatch::More)?;
    }
    assert!(optimizer.flush_gradients().is_err(), "the late piece");
    let error = optimizer.flush_gradients().unwrap_err().to_string();
    assert!(error.contains("last gradient has not come"), "{error}");
    // A micro-batch of zeros more, and that was the last one.
    for piece in pieces.iter().filter(|piece| piece.param.0 > 0) {
        let zeros = vec![0.0f32; piece.elems as usize];
        sink.add(piece.param, piece.param_offset, &zeros, MicroBatch::Last)?;
    }
    Ok(())
}

#[test]
fn what_is_wrong_is_named_and_changes_nothing() {
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
            let shard = micro_batch(&optimizer, 1, 0);
            hand_over_wrong_pieces(&mut optimizer, is_first, &shard, &mut params)?;
            // Said once; now it is the rest that is missing.
            let error = optimizer.flush_gradients().unwrap_err().to_string();
            assert!(error.contains("only partly there"), "{error}");
            assert!(error.contains("layer0.weight"), "{error}");
            if is_first {
                hand_over_the_rest(&mut optimizer, &shard)?;
            } else {
                assert!(optimizer.flush_gradients().is_err());
                assert!(optimizer.flush_gradients().is_err());
                hand_over(&mut optimizer, &shard, |_| true, 5, MicroBatch::Last)?;
            }
            optimizer.step(&Gradients::handed_over(), &mut params, StepOptions::default())?;
            optimizer.state_digest(NO_PARAMETERS)
        }));
        assert_eq!(seen, expected, "{place:?}");
    }
}
