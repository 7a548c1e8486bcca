//! What spilled gradients cost: their own bytes on the drives, and no more memory than the budget.
//! A process of its own, because the kernel counts both for the whole process.

#![allow(clippy::unwrap_used, reason = "a test may end where it fails")]

#[path = "support/handed_over.rs"]
mod handed_over;
mod support;

use half::bf16;
use handed_over::{
    CHUNK_BYTES, GRADIENT_BYTES, batch_of, config_for, micro_batch, step_handed_over,
};
use optswap::internals::config::{AccumulateIn, GradientPlace};
use optswap::{
    Bytes, Config, Elems, Gradients, MicroBatch, ParamIndex, StepOptions, SwappedOptimizer,
};
use support::world::{all, on_ranks, start};
use support::{Drives, one_at_a_time};

fn params_of(optimizer: &SwappedOptimizer) -> Vec<bf16> {
    vec![bf16::ZERO; optimizer.partition().elems() as usize]
}

/// Bytes read and written by steps, as we and as the kernel count them, spilled bytes last.
fn bytes_of_steps(config: &Config, chunks: u64, batches: u64) -> [u64; 5] {
    all(on_ranks(1, |comm| {
        let mut optimizer = start(config, &[chunks as usize * 4096], comm)?;
        let mut params = params_of(&optimizer);
        step_handed_over(&mut optimizer, batches, &mut params)?;
        optimizer.flush()?;
        optimizer.reset_records();
        for _ in 0..5 {
            step_handed_over(&mut optimizer, batches, &mut params)?;
        }
        optimizer.flush()?;
        let record = optimizer.gather_records()?.swap_remove(0);
        let spilled = record.counters.iter().find(|it| it.name == "spilled_gradient_bytes");
        let spilled = spilled.unwrap().value;
        optimizer.close();
        let (read, written) = (record.read_bytes(), record.written_bytes());
        Ok([read, written, record.kernel_read_bytes, record.kernel_written_bytes, spilled])
    }))
    .remove(0)
}

#[test]
fn only_the_bytes_of_gradients_come_on_top() {
    let _turn = one_at_a_time();
    const CHUNKS: u64 = 20;
    let state = 5 * CHUNKS * CHUNK_BYTES;
    for (format, gradient) in
        [(AccumulateIn::F32, GRADIENT_BYTES), (AccumulateIn::Bf16, GRADIENT_BYTES / 2)]
    {
        let drives = Drives::new(2);
        let mut config = config_for(&drives, GradientPlace::Drives, 4);
        config.gradients.accumulate_in = format;
        // As many buffers as there are chunks: nothing is spilled before its time.
        config.swap.memory_budget = Bytes(8 * CHUNKS * GRADIENT_BYTES);
        (config.swap.write_behind, config.swap.prefetch) = (false, false);
        let [read, written, kernel_read, kernel_written, spilled] =
            bytes_of_steps(&config, CHUNKS, 1);
        let extra = 5 * CHUNKS * gradient;
        println!("{read} read, {written} written, {spilled} spilled; kernel {kernel_read}");
        assert!(spilled >= extra, "{spilled}");
        assert_eq!(written, state + spilled, "{format:?}");
        // What is spilled before its time is read back, unless it is wanted before it was written.
        assert!(read >= state + extra && read <= state + spilled, "{format:?}");
        assert_eq!([kernel_read, kernel_written], [read, written], "{format:?}");
    }
    // Pieces in order, from the end as in backward or from the beginning: nothing comes twice.
    for (len, is_backward) in [(1000, true), (1000, false), (10_000, true), (10_000, false)] {
        let drives = Drives::new(2);
        let mut config = config_for(&drives, GradientPlace::Drives, 3);
        (config.swap.write_behind, config.swap.prefetch) = (false, false);
        let seen = all(on_ranks(1, |comm| {
            let mut optimizer = start(&config, &[CHUNKS as usize * 4096], comm)?;
            let mut params = params_of(&optimizer);
            optimizer.flush()?;
            optimizer.reset_records();
            for step in 1..=5 {
                let shard = micro_batch(&optimizer, step, 0);
                let mut pieces: Vec<(usize, &[f32])> = shard.chunks(len).enumerate().collect();
                if is_backward {
                    pieces.reverse();
                }
                for (index, piece) in pieces {
                    let offset = (len * index) as u64;
                    optimizer.gradient_sink().add(
                        ParamIndex(0),
                        offset,
                        piece,
                        MicroBatch::Last,
                    )?;
                }
                optimizer.step(&Gradients::handed_over(), &mut params, StepOptions::default())?;
            }
            optimizer.flush()?;
            let record = optimizer.gather_records()?.swap_remove(0);
            optimizer.close();
            Ok((record.read_bytes(), record.written_bytes()))
        }));
        let expected = state + 5 * CHUNKS * GRADIENT_BYTES;
        assert_eq!(seen, [(expected, expected)], "pieces of {len}, backward: {is_backward}");
    }
}

/// Bytes of memory that this process has in use.
fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    let kib: u64 = line.trim().trim_end_matches(" kB").parse().unwrap();
    kib << 10
}

/// Four times as many bytes of gradients as the budget has room for, and resident memory grows by
/// the budget at most, however many steps are taken.
#[test]
fn resident_memory_stays_within_the_budget() {
    const ELEMS: usize = 8 << 20;
    const BUDGET: u64 = 8 << 20;
    let _turn = one_at_a_time();
    let drives = Drives::new(2);
    let mut config = config_for(&drives, GradientPlace::Drives, 2);
    config.drives.stripe_unit = Bytes(256 << 10);
    config.swap.chunk_elements = Elems(64 << 10);
    config.swap.memory_budget = Bytes(BUDGET);
    let piece = vec![0.001f32; 100_000];
    all(on_ranks(1, |comm| {
        let mut params = vec![bf16::from_f32(0.1); ELEMS];
        let mut optimizer = start(&config, &[ELEMS], comm)?;
        assert!(optimizer.plan().memory_bytes() <= BUDGET, "{}", optimizer.plan());
        let before = resident_bytes();
        let mut step = || -> optswap::internals::error::Result<()> {
            for batch in 0..2 {
                let mut at = ELEMS;
                while at > 0 {
                    let len = piece.len().min(at);
                    at -= len;
                    let (piece, micro_batch) = (&piece[..len], batch_of(batch == 1));
                    optimizer.gradient_sink().add(ParamIndex(0), at as u64, piece, micro_batch)?;
                }
            }
            optimizer.step(&Gradients::handed_over(), &mut params, StepOptions::default())?;
            Ok(())
        };
        step()?;
        let first = resident_bytes();
        // Buffers have been touched by the initialisation; what is left are small things.
        let grown = first.saturating_sub(before);
        assert!(grown <= BUDGET / 2, "{grown} B more, {} of gradients", 4 * ELEMS);
        for _ in 0..4 {
            step()?;
        }
        let grown = resident_bytes().saturating_sub(first);
        assert!(grown <= 1 << 20, "{grown} B more after four more steps");
        Ok(())
    }));
}
