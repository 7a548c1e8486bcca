//! Parameters that do not lie in a slice: a sink of the caller's own gets all of them, chunk by
//! chunk.

#![allow(clippy::unwrap_used, reason = "a test may end where it fails")]

mod support;

use std::ops::Range;

use optswap::{
    CreateOptions, Elems, Error, ErrorKind, Gradients, NO_PARAMETERS, ParameterSink, Result,
    StepOptions, SwappedOptimizer,
};
use support::Drives;
use support::by_hand::{rmsprop, rmsprop_config, update_all};
use support::shards::fill_masters;
use support::world::{
    all, config_for, durable_config_for, inventory, on_ranks, shard_gradients, start,
};

const SIZES: [usize; 4] = [9000, 37, 12_000, 4099];
const STEPS: u64 = 3;

/// Parameters that lie elsewhere: a chunk of them is staged, and brought there when it is whole.
#[derive(Default)]
struct Staging {
    stage: Vec<f32>,
    elsewhere: Vec<f32>,
    /// How often each element was brought there.
    arrivals: Vec<u32>,
    /// The arrival with this number fails.
    fails_at: Option<usize>,
    chunks: usize,
}

impl Staging {
    fn new(elems: usize) -> Self {
        Self { elsewhere: vec![0.0; elems], arrivals: vec![0; elems], ..Self::default() }
    }

    /// Whether every element has come once since the last call.
    fn has_come_once(&mut self) -> bool {
        let came_once = self.arrivals.iter().all(|arrivals| *arrivals == 1);
        self.arrivals.fill(0);
        came_once
    }
}

impl ParameterSink for Staging {
    type Elem = f32;

    fn check(&self, elems: u64) -> Result<()> {
        assert_eq!(self.elsewhere.len() as u64, elems);
        Ok(())
    }

    fn section(&mut self, elems: Range<usize>) -> &mut [f32] {
        self.stage.clear();
        self.stage.resize(elems.len(), f32::NAN);
        &mut self.stage
    }

    fn emitted(&mut self, elems: Range<usize>) -> Result<()> {
        self.chunks += 1;
        if self.fails_at == Some(self.chunks) {
            return Err(Error::new(ErrorKind::Io, "the copy has failed"));
        }
        self.elsewhere[elems.clone()].copy_from_slice(&self.stage);
        self.arrivals[elems].iter_mut().for_each(|arrivals| *arrivals += 1);
        Ok(())
    }
}

#[test]
fn a_sink_that_stages_chunks_gets_every_element_once_per_step() {
    let run = |is_own: bool| {
        let drives = Drives::new(1);
        let mut config = if is_own { rmsprop_config(&drives, false) } else { config_for(&drives) };
        config.swap.sub_group_elements = Elems(8192);
        all(on_ranks(2, |comm| {
            let mut optimizer = SwappedOptimizer::create(
                &config,
                inventory(&SIZES),
                comm,
                CreateOptions::default(),
            )?;
            let mut sink = Staging::new(optimizer.partition().elems() as usize);
            optimizer.initialize_parameters(&mut sink, fill_masters(3, &inventory(&SIZES)))?;
            assert!(sink.has_come_once());
            for step in 1..=STEPS {
                let shard = shard_gradients(&optimizer, step);
                let (gradients, options) = (Gradients::Shard(&shard), StepOptions::default());
                if is_own {
                    update_all(optimizer.begin_update(&gradients, &mut sink, options)?, rmsprop)?;
                } else {
                    optimizer.step(&gradients, &mut sink, options)?;
                }
                assert!(sink.has_come_once(), "step {step}");
                let mut masters = vec![f32::NAN; shard.len()];
                optimizer.emit_parameters(&mut masters)?;
                assert_eq!(sink.elsewhere, masters);
            }
            optimizer.emit_parameters(&mut sink)?;
            assert!(sink.has_come_once());
            Ok(())
        }));
    };
    run(false);
    run(true);
}

#[test]
fn a_sink_that_fails_fails_the_step_on_all_ranks() {
    let drives = Drives::new(1);
    let config = durable_config_for(&drives, 1);
    all(on_ranks(2, |comm| {
        let is_first = comm.rank().0 == 0;
        let mut optimizer = start(&config, &SIZES, comm)?;
        let before = optimizer.state_digest(NO_PARAMETERS)?;
        let shard = shard_gradients(&optimizer, 1);
        let mut sink = Staging::new(shard.len());
        sink.fails_at = is_first.then_some(2);
        let (gradients, options) = (Gradients::Shard(&shard), StepOptions::default());
        let error = optimizer.step(&gradients, &mut sink, options).unwrap_err();
        assert!(error.is_agreed() && error.to_string().contains("the copy has failed"), "{error}");
        assert!(optimizer.step(&gradients, &mut sink, options).is_err(), "it is unusable");
        optimizer.recover(&mut sink)?;
        assert_eq!(optimizer.state_digest(NO_PARAMETERS)?, before);
        sink.has_come_once();
        optimizer.step(&gradients, &mut sink, options)?;
        assert!(sink.has_come_once());
        Ok(())
    }));
}
