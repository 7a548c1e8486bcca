//! The caller's own update by handle, as a program in another language drives it: values without
//! lifetimes, of which every misuse is an error that names it and changes nothing.

#![allow(clippy::unwrap_used, reason = "a test may end where it fails")]

#[path = "support/handed_over.rs"]
mod handed_over;
mod support;

use std::sync::Arc;

use std::fs::File;
use std::os::unix::fs::FileExt;

use half::bf16;
use handed_over::{CHUNK_BYTES, GRADIENT_BYTES, hand_over};
use optswap::internals::config::{AccumulateIn, GradientPlace};
use optswap::{
    Bytes, Change, ChunkHandle, Communicator, Config, Elems, Error, Gradients, MicroBatch,
    NO_PARAMETERS, ParamIndex, Result, StepOptions, StepOutcome, SwappedOptimizer,
};
use support::Drives;
use support::by_hand::{adamw, update_all};
use support::world::{all, config_for, on_ranks, shard_gradients, start};

/// Three sub-groups of two chunks on one rank.
const SIZES: [usize; 3] = [9000, 5000, 9500];

fn small_config(drives: &Drives, buffers: u64) -> Config {
    let mut config = config_for(drives);
    config.swap.sub_group_elements = Elems(8192);
    config.swap.memory_budget = Bytes(buffers * 4096 * 12);
    config
}

struct Job {
    optimizer: SwappedOptimizer,
    params: Vec<bf16>,
}

impl Job {
    fn start(config: &Config, comm: Arc<dyn Communicator>) -> Result<Self> {
        let optimizer = start(config, &SIZES, comm)?;
        let params = vec![bf16::ZERO; optimizer.partition().elems() as usize];
        Ok(Self { optimizer, params })
    }

    fn begin(&mut self) -> Result<StepOutcome> {
        let shard = shard_gradients(&self.optimizer, self.optimizer.attempts() + 1);
        let gradients = Gradients::Shard(&shard);
        self.optimizer.handles().begin(&gradients, &mut self.params, StepOptions::default())
    }

    fn next(&mut self) -> Result<Option<ChunkHandle>> {
        self.optimizer.handles().next_chunk(&mut self.params)
    }

    fn swap_out(&mut self, handle: ChunkHandle, change: Change) -> Result<()> {
        self.optimizer.handles().swap_out_chunk(handle, &mut self.params, change)
    }

    /// All that is left of an update, unchanged, and its end.
    fn run_through(&mut self, from: u32) -> Result<StepOutcome> {
        for sub_group in from..self.optimizer.sub_groups() {
            self.optimizer.handles().swap_in_optimizer_state(sub_group)?;
            while let Some(handle) = self.next()? {
                self.swap_out(handle, Change::Unchanged)?;
            }
            self.optimizer.handles().swap_out_optimizer_state(sub_group)?;
        }
        self.optimizer.handles().finish(Ok(()))
    }
}

fn refused<T>(result: Result<T>, words: &str) {
    let error: Error = result.map(drop).unwrap_err();
    assert_eq!(error.exit_code(), 64, "{error}");
    assert!(error.to_string().contains(words), "{error}");
}

#[test]
fn sub_groups_come_in_order_each_once() {
    let drives = Drives::new(1);
    all(on_ranks(1, |comm| {
        let mut job = Job::start(&small_config(&drives, 4), comm)?;
        let before = job.optimizer.state_digest(NO_PARAMETERS)?;
        refused(job.optimizer.handles().swap_in_optimizer_state(0), "no update is under way");
        refused(job.optimizer.handles().finish(Ok(())), "no update is under way");
        job.begin()?;
        refused(job.next(), "no sub-group is swapped in");
        refused(job.optimizer.handles().swap_in_optimizer_state(1), "in order");
        refused(job.optimizer.handles().swap_in_optimizer_state(3), "no such sub-group");
        refused(job.optimizer.handles().swap_out_optimizer_state(0), "not in is swapped out");
        job.optimizer.handles().swap_in_optimizer_state(0)?;
        refused(job.optimizer.handles().swap_in_optimizer_state(0), "swapped in twice");
        refused(
            job.optimizer.handles().swap_in_optimizer_state(1),
            "before another is swapped out",
        );
        refused(
            job.optimizer.handles().swap_out_optimizer_state(0),
            "before its last gradient is used",
        );
        let first = job.next()?.unwrap();
        let second = job.next()?.unwrap();
        assert_eq!(job.next()?, None, "the sub-group has two chunks");
        refused(
            job.optimizer.handles().swap_out_optimizer_state(0),
            "swapped out before its chunks",
        );
        job.swap_out(second, Change::Unchanged)?;
        job.swap_out(first, Change::Unchanged)?;
        job.optimizer.handles().swap_out_optimizer_state(0)?;
        refused(job.optimizer.handles().swap_out_optimizer_state(0), "not in is swapped out");
        refused(job.optimizer.handles().swap_in_optimizer_state(0), "swapped in again");
        // Nothing else meanwhile.
        refused(job.optimizer.state_digest(NO_PARAMETERS), "an update is under way");
        refused(job.optimizer.flush(), "an update is under way");
        refused(job.begin(), "an update is under way");
        assert_eq!(job.run_through(1)?.attempt, 1);
        assert_eq!(job.optimizer.state_digest(NO_PARAMETERS)?, before);
        assert_eq!(job.optimizer.update_count(ParamIndex(0)), 1);
        Ok(())
    }));
}

#[test]
fn a_handle_is_good_for_one_chunk_of_one_optimizer_once() {
    let (drives, others) = (Drives::new(1), Drives::new(1));
    all(on_ranks(1, |comm| {
        let mut job = Job::start(&small_config(&drives, 4), Arc::clone(&comm))?;
        let mut other = Job::start(&small_config(&others, 4), comm)?;
        let before = job.optimizer.state_digest(NO_PARAMETERS)?;
        job.begin()?;
        other.begin()?;
        job.optimizer.handles().swap_in_optimizer_state(0)?;
        other.optimizer.handles().swap_in_optimizer_state(0)?;
        let (mine, foreign) = (job.next()?.unwrap(), other.next()?.unwrap());
        refused(job.optimizer.handles().state_sections(foreign), "another optimizer");
        refused(job.swap_out(foreign, Change::Changed), "another optimizer");
        let [which, generation] = mine.to_raw();
        for never in [[which, generation + 1], [which + 2, 0], [which | 0xffff, generation]] {
            let never = ChunkHandle::from_raw(never);
            refused(job.optimizer.handles().state_sections(never), "nothing that was swapped in");
            refused(job.swap_out(never, Change::Changed), "nothing that was swapped in");
        }
        assert_eq!(ChunkHandle::from_raw(mine.to_raw()), mine);
        let mut short = vec![bf16::ZERO; 5];
        refused(
            job.optimizer.handles().swap_out_chunk(mine, &mut short, Change::Changed),
            "another length",
        );
        job.swap_out(mine, Change::Unchanged)?;
        refused(job.swap_out(mine, Change::Changed), "stale");
        refused(job.optimizer.handles().state_sections(mine), "stale");
        let second = job.next()?.unwrap();
        job.swap_out(second, Change::Unchanged)?;
        job.optimizer.handles().swap_out_optimizer_state(0)?;
        job.run_through(1)?;
        // The same chunk, the next time.
        job.begin()?;
        job.optimizer.handles().swap_in_optimizer_state(0)?;
        let again = job.next()?.unwrap();
        assert_eq!(again.chunk(), mine.chunk());
        refused(job.swap_out(mine, Change::Changed), "stale");
        job.swap_out(again, Change::Unchanged)?;
        let second = job.next()?.unwrap();
        job.swap_out(second, Change::Unchanged)?;
        job.optimizer.handles().swap_out_optimizer_state(0)?;
        job.run_through(1)?;
        assert_eq!(job.optimizer.state_digest(NO_PARAMETERS)?, before);
        Ok(())
    }));
}

#[test]
fn sections_are_where_they_say_and_next_to_each_other() {
    let drives = Drives::new(1);
    all(on_ranks(1, |comm| {
        let mut job = Job::start(&small_config(&drives, 4), comm)?;
        job.begin()?;
        job.optimizer.handles().swap_in_optimizer_state(0)?;
        let (first, second) = (job.next()?.unwrap(), job.next()?.unwrap());
        for handle in [first, second] {
            let sections = job.optimizer.handles().state_sections(handle)?;
            let names: Vec<&str> = sections.iter().map(|section| section.name.as_str()).collect();
            assert_eq!(names, ["master", "exp_avg", "exp_avg_sq"]);
            for (number, section) in sections.iter().enumerate() {
                assert_eq!(section.elems, 4096);
                assert_eq!(section.address, sections[0].address + number * 4 * 4096);
                assert!(section.address.is_multiple_of(4096));
            }
            assert_eq!(sections, job.optimizer.handles().state_sections(handle)?, "they stay");
        }
        job.swap_out(first, Change::Unchanged)?;
        // What was shown may have been written to: the update has not been taken back.
        refused(job.optimizer.handles().finish(Ok(())), "before a chunk is swapped out");
        refused(job.begin(), "an earlier step failed");
        Ok(())
    }));
}

#[test]
fn more_chunks_than_buffers_are_refused_and_none_is_lost() {
    for (buffers, cache, most) in [(2, "0", 2), (3, "48KiB", 3), (6, "288KiB", 6)] {
        let drives = Drives::new(1);
        all(on_ranks(1, |comm| {
            let mut config = small_config(&drives, buffers);
            config.swap.sub_group_elements = Elems(1 << 20);
            config.swap.cache = cache.parse().unwrap();
            let mut job = Job::start(&config, comm)?;
            for _ in 0..2 {
                job.begin()?;
                job.optimizer.handles().swap_in_optimizer_state(0)?;
                let mut held = Vec::new();
                for _ in 0..most {
                    held.push(job.next()?.unwrap());
                }
                if most < 6 {
                    refused(job.next(), "every buffer is in the caller's hands");
                }
                held.into_iter().try_for_each(|handle| job.swap_out(handle, Change::Changed))?;
                while let Some(handle) = job.next()? {
                    job.swap_out(handle, Change::Changed)?;
                }
                job.optimizer.handles().swap_out_optimizer_state(0)?;
                job.optimizer.handles().finish(Ok(()))?;
            }
            Ok(())
        }));
    }
}

#[test]
fn an_update_that_ends_early_is_an_error_on_all_ranks() {
    let drives = Drives::new(1);
    let results = all(on_ranks(2, |comm| {
        let is_first = comm.rank().0 == 0;
        let mut job = Job::start(&small_config(&drives, 4), comm)?;
        let before = job.optimizer.state_digest(NO_PARAMETERS)?;
        job.begin()?;
        let ended = match is_first {
            true => job.optimizer.handles().finish(Err(Error::usage("no more work"))),
            false => job.run_through(0),
        };
        // Nobody has changed anything.
        assert_eq!(job.optimizer.state_digest(NO_PARAMETERS)?, before);
        assert_eq!(job.optimizer.update_count(ParamIndex(2)), 0);
        job.begin()?;
        job.run_through(0)?;
        assert_eq!(job.optimizer.update_count(ParamIndex(2)), u64::from(!is_first));
        Ok(ended.unwrap_err().to_string())
    }));
    assert!(results.iter().all(|text| text.contains("no more work")), "{results:?}");
}

#[test]
fn an_update_that_nobody_ends_goes_with_its_optimizer() {
    let drives = Drives::new(1);
    let mut config = small_config(&drives, 4);
    config.durability.mode = optswap::internals::config::Durability::Step;
    all(on_ranks(1, |comm| {
        let mut job = Job::start(&config, Arc::clone(&comm))?;
        let before = job.optimizer.state_digest(NO_PARAMETERS)?;
        job.begin()?;
        job.optimizer.handles().swap_in_optimizer_state(0)?;
        let handle = job.next()?.unwrap();
        job.optimizer.recover(&mut job.params)?;
        refused(job.optimizer.handles().state_sections(handle), "stale");
        assert_eq!(job.optimizer.state_digest(NO_PARAMETERS)?, before);
        job.begin()?;
        job.optimizer.handles().swap_in_optimizer_state(0)?;
        job.next()?.unwrap();
        drop(job);
        let mut job = Job::start(&config, comm)?;
        assert_eq!(job.optimizer.state_digest(NO_PARAMETERS)?, before);
        job.begin()?;
        job.optimizer.close();
        assert!(drives.are_empty());
        Ok(())
    }));
}

#[test]
fn calls_in_a_forked_child_fail_and_leave_the_parent_alone() {
    let drives = Drives::new(1);
    all(on_ranks(1, |comm| {
        let mut job = Job::start(&small_config(&drives, 4), comm)?;
        job.begin()?;
        job.optimizer.handles().swap_in_optimizer_state(0)?;
        let handle = job.next()?.unwrap();
        match fork::fork().unwrap() {
            fork::Fork::Child => {
                let texts = [
                    job.optimizer.handles().state_sections(handle).map(drop),
                    job.swap_out(handle, Change::Changed),
                    job.next().map(drop),
                    job.optimizer.handles().swap_out_optimizer_state(0),
                    job.optimizer.handles().finish(Ok(())).map(drop),
                    job.optimizer.flush(),
                ];
                let is_refused = |result: Result<()>| {
                    result.is_err_and(|error| error.to_string().contains("forked child"))
                };
                let all_refused = texts.into_iter().all(is_refused);
                // Its files are the parent's.
                drop(job);
                std::process::exit(i32::from(!all_refused));
            }
            fork::Fork::Parent(child) => {
                assert_eq!(fork::waitpid(child).unwrap(), 0, "a call in the child went through");
            }
        }
        assert!(!drives.are_empty());
        job.swap_out(handle, Change::Unchanged)?;
        let second = job.next()?.unwrap();
        job.swap_out(second, Change::Unchanged)?;
        job.optimizer.handles().swap_out_optimizer_state(0)?;
        job.run_through(1)?;
        let shard = shard_gradients(&job.optimizer, 2);
        let gradients = Gradients::Shard(&shard);
        let options = StepOptions::default();
        update_all(job.optimizer.begin_update(&gradients, &mut job.params, options)?, adamw)?;
        Ok(())
    }));
}

/// As another language would read it.
fn bytes_at(address: usize, bytes: usize) -> Vec<u8> {
    let mut seen = vec![0; bytes];
    let memory = File::open("/proc/self/mem").unwrap();
    memory.read_exact_at(&mut seen, address as u64).unwrap();
    seen
}

#[test]
fn stored_gradients_are_where_their_sections_say() {
    for place in [GradientPlace::Memory, GradientPlace::Drives] {
        for format in [AccumulateIn::F32, AccumulateIn::Bf16] {
            let drives = Drives::new(1);
            let mut config = small_config(&drives, 4);
            config.swap.memory_budget = Bytes(4 * CHUNK_BYTES + 6 * GRADIENT_BYTES);
            (config.gradients.place, config.gradients.accumulate_in) = (place, format);
            all(on_ranks(1, |comm| {
                let mut job = Job::start(&config, comm)?;
                let shard = shard_gradients(&job.optimizer, 1);
                let expected: Vec<u8> = match format {
                    AccumulateIn::F32 => shard.iter().flat_map(|it| it.to_le_bytes()).collect(),
                    AccumulateIn::Bf16 => {
                        let values = shard.iter().map(|it| bf16::from_f32(*it));
                        values.flat_map(|it| it.to_le_bytes()).collect()
                    }
                };
                let bytes = expected.len() / shard.len();
                hand_over(&mut job.optimizer, &shard, |param| param.0 != 1, 3, MicroBatch::Last)?;
                let options = StepOptions::default();
                let begun = job.optimizer.handles().begin(
                    &Gradients::handed_over(),
                    &mut job.params,
                    options,
                )?;
                assert!(begun.grad_scale > 0.0);
                let (mut seen, mut elems) = (0, 0);
                for sub_group in 0..job.optimizer.sub_groups() {
                    job.optimizer.handles().swap_in_optimizer_state(sub_group)?;
                    while let Some(handle) = job.next()? {
                        for section in job.optimizer.handles().gradient_sections(handle)? {
                            assert_ne!(section.param, ParamIndex(1));
                            let at = (elems + section.start) * bytes;
                            let len = section.elems * bytes;
                            assert_eq!(bytes_at(section.address, len), expected[at..at + len]);
                            seen += section.elems;
                        }
                        elems += job.optimizer.partition().chunk(handle.chunk()).elems as usize;
                        job.swap_out(handle, Change::Changed)?;
                        refused(job.optimizer.handles().gradient_sections(handle), "stale");
                    }
                    job.optimizer.handles().swap_out_optimizer_state(sub_group)?;
                }
                job.optimizer.handles().finish(Ok(()))?;
                assert_eq!((seen, elems), (SIZES[0] + SIZES[2], shard.len()));
                let counts = [0, 1, 2].map(|it| job.optimizer.update_count(ParamIndex(it)));
                assert_eq!(counts, [1, 0, 1]);
                // An update with the caller's own has none; then nothing is left of the others.
                job.begin()?;
                job.optimizer.handles().swap_in_optimizer_state(0)?;
                let handle = job.next()?.unwrap();
                refused(job.optimizer.handles().gradient_sections(handle), "the caller's own");
                Ok(())
            }));
        }
    }
}

#[test]
fn gradients_stay_as_they_are_while_an_update_uses_them() {
    let drives = Drives::new(1);
    let mut config = small_config(&drives, 6);
    config.swap.sub_group_elements = Elems(1 << 20);
    config.gradients.place = GradientPlace::Drives;
    config.swap.memory_budget = Bytes(6 * CHUNK_BYTES + 2 * GRADIENT_BYTES);
    all(on_ranks(1, |comm| {
        let mut job = Job::start(&config, comm)?;
        let buffers = job.optimizer.plan().gradients().buffers();
        let shard = shard_gradients(&job.optimizer, 1);
        hand_over(&mut job.optimizer, &shard, |_| true, 3, MicroBatch::Last)?;
        let options = StepOptions::default();
        refused(job.begin(), "handed over before");
        job.optimizer.handles().begin(&Gradients::handed_over(), &mut job.params, options)?;
        let again =
            job.optimizer.handles().begin(&Gradients::handed_over(), &mut job.params, options);
        refused(again, "an update is under way");
        let more = job.optimizer.gradient_sink().add(ParamIndex(0), 0, &[1.0f32], MicroBatch::Last);
        refused(more, "an update is under way");
        refused(job.optimizer.flush_gradients(), "an update is under way");
        job.optimizer.discard_gradients();
        job.optimizer.handles().swap_in_optimizer_state(0)?;
        let mut held = Vec::new();
        for _ in 0..buffers {
            let handle = job.next()?.unwrap();
            assert!(!job.optimizer.handles().gradient_sections(handle)?.is_empty());
            held.push(handle);
        }
        // There are buffers for state, but none that the next gradient could come in.
        refused(job.next(), "every buffer for spilled gradients");
        held.into_iter().rev().try_for_each(|handle| job.swap_out(handle, Change::Changed))?;
        while let Some(handle) = job.next()? {
            assert!(!job.optimizer.handles().gradient_sections(handle)?.is_empty());
            job.swap_out(handle, Change::Changed)?;
        }
        job.optimizer.handles().swap_out_optimizer_state(0)?;
        job.optimizer.handles().finish(Ok(()))?;
        // They are gone: borrowed ones are taken.
        job.begin()?;
        job.run_through(0)?;
        Ok(())
    }));
}
