//! Memory that a job holds does not grow: not after the first step, not over a thousand.

#![allow(clippy::unwrap_used, reason = "a test may end where it fails")]

mod support;

use half::bf16;
use optswap::Bytes;
use optswap::internals::config::CacheSize;
use support::Drives;
use support::world::{all, config_for, on_ranks, start, step_into};

const CHUNK: u64 = 64 << 10;

fn resident_bytes() -> usize {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
    pages.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

/// Trains a model of `elems` elements, of which `cached` stay in memory: resident bytes after the
/// initialisation, and after each of these numbers of steps.
fn resident_after(elems: usize, cached: u64, steps: &[usize]) -> Vec<usize> {
    let drives = Drives::new(2);
    let mut config = config_for(&drives);
    config.swap.chunk_elements.0 = CHUNK;
    config.swap.memory_budget.0 = (cached + 4 * CHUNK) * 12;
    config.swap.cache = CacheSize::Bytes(Bytes(cached * 12));
    all(on_ranks(1, |comm| {
        let mut optimizer = start(&config, &[elems], comm)?;
        let mut params = vec![bf16::ZERO; elems];
        let mut found = vec![resident_bytes()];
        let mut taken = 0;
        for until in steps {
            while taken < *until {
                step_into(&mut optimizer, &mut params)?;
                taken += 1;
            }
            found.push(resident_bytes());
        }
        optimizer.close();
        Ok(found)
    }))
    .remove(0)
}

/// One test, so that nothing else in this process takes memory meanwhile. (In DeepSpeed's pipelined
/// swapper the moments, 8 bytes per parameter, stay in memory after the first step.)
#[test]
fn resident_memory_is_flat_over_a_thousand_steps() {
    let found = resident_after(2 << 20, 28 * CHUNK, &[20, 1020]);
    let [_, warm, later] = found[..] else { panic!("{found:?}") };
    assert!(later as f64 <= warm as f64 * 1.01, "{warm} bytes after 20 steps, {later} later");

    let elems = 2 << 20;
    let found = resident_after(elems, 0, &[3]);
    // Gradients and parameters of the test itself: 6 bytes per element.
    assert!(found[1] < found[0] + elems * (6 + 2), "moments stay in memory: {found:?}");
}
