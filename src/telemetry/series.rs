//! Samples of the last steps, in memory of fixed size.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use crate::timers::Section;

/// Number of steps that every rank keeps.
const STEPS_KEPT: usize = 4096;
/// Number of steps that all ranks of a world together exchange.
const STEPS_EXCHANGED: usize = 65_536;
/// Number of steps that each rank exchanges at least.
const STEPS_EXCHANGED_MIN: usize = 64;

/// One step of one rank.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct StepSample {
    /// Its number, counted as attempts.
    pub step: u64,
    /// Whether it was skipped.
    pub skipped: bool,
    /// The whole of `step()`.
    pub step_ns: u64,
    /// Time from the end of the step before, without waiting for other ranks in collectives.
    pub between_ns: u64,
    /// The part of `step_ns` that was not spent waiting for other ranks.
    pub own_ns: u64,
    /// Time spent waiting for other ranks, in the step and before it.
    pub waiting_ns: u64,
    /// Where the step's time went, in the order of [`Section::ALL`].
    pub sections_ns: [u64; Section::ALL.len()],
    /// Bytes that were read since the last sample, as the kernel counts them.
    pub kernel_read_bytes: u64,
    /// Bytes that were written since the last sample, as the kernel counts them.
    pub kernel_written_bytes: u64,
    /// Bytes of state that were still in memory, so that they were not read.
    pub cache_hit_bytes: u64,
    /// Bytes of gradients that were written to drives.
    pub spilled_gradient_bytes: u64,
}

/// What one drive did for one rank since the last sample.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DriveSample {
    /// Bytes read.
    pub read_bytes: u64,
    /// Bytes written.
    pub written_bytes: u64,
    /// Operations that read.
    pub reads: u64,
    /// Operations that wrote.
    pub writes: u64,
    /// Time with an operation in flight.
    pub busy_ns: u64,
    /// The most operations in flight.
    pub depth_max: u32,
}

/// Keeps the last samples; a new one replaces the oldest.
#[derive(Debug)]
pub struct Ring {
    drives: usize,
    steps: VecDeque<StepSample>,
    drive_samples: VecDeque<DriveSample>,
}

impl Ring {
    /// Allocates the memory for the samples of so many drives.
    pub fn new(drives: usize) -> Self {
        Self {
            drives,
            steps: VecDeque::with_capacity(STEPS_KEPT),
            drive_samples: VecDeque::with_capacity(STEPS_KEPT * drives),
        }
    }

    /// Adds a step, with one sample for each drive.
    pub fn push(&mut self, step: StepSample, drives: &[DriveSample]) {
        if self.steps.len() == STEPS_KEPT {
            self.steps.pop_front();
            self.drive_samples.drain(..self.drives);
        }
        self.steps.push_back(step);
        self.drive_samples.extend(drives.iter().take(self.drives));
    }

    /// Forgets all samples.
    pub fn clear(&mut self) {
        self.steps.clear();
        self.drive_samples.clear();
    }

    /// The last steps, as many as a rank of so many exchanges with the others.
    pub fn last_steps(&self, ranks: usize) -> Series {
        let steps = (STEPS_EXCHANGED / ranks.max(1)).clamp(STEPS_EXCHANGED_MIN, STEPS_KEPT);
        let skipped = self.steps.len().saturating_sub(steps);
        let column = |value: fn(&StepSample) -> u64| -> Vec<u64> {
            self.steps.iter().skip(skipped).map(value).collect()
        };
        let of_drive = |drive: usize| {
            let column = |value: fn(&DriveSample) -> u64| -> Vec<u64> {
                let samples = self.drive_samples.iter().skip(skipped * self.drives + drive);
                samples.step_by(self.drives).map(value).collect()
            };
            DriveSeries {
                read_bytes: column(|it| it.read_bytes),
                written_bytes: column(|it| it.written_bytes),
                busy_ns: column(|it| it.busy_ns),
            }
        };
        Series {
            step: column(|it| it.step),
            step_ns: column(|it| it.step_ns),
            between_ns: column(|it| it.between_ns),
            own_ns: column(|it| it.own_ns),
            waiting_ns: column(|it| it.waiting_ns),
            drives: (0..self.drives).map(of_drive).collect(),
        }
    }
}

/// Steps of one rank, column by column.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Series {
    /// Numbers of the steps.
    pub step: Vec<u64>,
    /// The whole of `step()`.
    pub step_ns: Vec<u64>,
    /// Time from the end of the step before, without waiting for other ranks.
    pub between_ns: Vec<u64>,
    /// The part of `step_ns` that was not spent waiting for other ranks.
    pub own_ns: Vec<u64>,
    /// Time spent waiting for other ranks, in the step and before it.
    pub waiting_ns: Vec<u64>,
    /// What each drive did.
    pub drives: Vec<DriveSeries>,
}

/// What a drive did for one rank, step by step.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DriveSeries {
    /// Bytes read.
    pub read_bytes: Vec<u64>,
    /// Bytes written.
    pub written_bytes: Vec<u64>,
    /// Time with an operation in flight.
    pub busy_ns: Vec<u64>,
}

impl Series {
    /// Number of steps.
    pub fn len(&self) -> usize {
        self.step.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.step.is_empty()
    }

    /// The rank's own time for a step, before it and in it, for which the others wait.
    pub fn late_ns(&self, index: usize) -> u64 {
        self.between_ns[index] + self.own_ns[index]
    }

    /// Time from the end of the step before to the end of this one.
    pub fn wall_ns(&self, index: usize) -> u64 {
        self.late_ns(index) + self.waiting_ns[index]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_steps_are_kept() {
        let mut ring = Ring::new(2);
        for step in 1..=STEPS_KEPT as u64 + 10 {
            let sample = StepSample { step, step_ns: 10 * step, ..StepSample::default() };
            let drive =
                |drive| DriveSample { read_bytes: 100 * step + drive, ..Default::default() };
            ring.push(sample, &[drive(0), drive(1)]);
        }
        let series = ring.last_steps(1);
        assert_eq!((series.len(), series.step[0]), (STEPS_KEPT, 11));
        assert_eq!(series.drives[1].read_bytes[0], 1101);
        let few = ring.last_steps(100_000);
        assert_eq!(
            (few.len(), few.drives[0].read_bytes.len()),
            (STEPS_EXCHANGED_MIN, STEPS_EXCHANGED_MIN)
        );
        assert_eq!(few.step.last(), Some(&(STEPS_KEPT as u64 + 10)));
        assert_eq!(few.drives[0].read_bytes.last(), Some(&(100 * (STEPS_KEPT as u64 + 10))));
    }
}
