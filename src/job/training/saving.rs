//! What follows a step of a job: checkpoints, and stopping when asked.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::super::environment::command_line;
use super::super::signals::{StopRequest, stop_request};
use super::super::table::{answer_table_request, table_request};
use super::Training;
use crate::checkpoint::Checkpoints;
use crate::coord::gather_all;
use crate::error::{Error, ErrorKind, Result};
use crate::optim::ParamElem;
use crate::step::{StepOutcome, StepResult, Stop};

impl<P: ParamElem> Training<P> {
    /// Before a step: notes what this process has been asked for, so that all ranks learn of it in
    /// the step.
    pub(super) fn pass_requests_on(&mut self) {
        let stop = self.stop_wanted();
        self.optimizer.request_stop(stop);
        if table_request() {
            self.optimizer.request_table();
        }
    }

    /// Collective, after a step: ends a save that is under way, begins a checkpoint that is due,
    /// and stops if a rank was asked to.
    pub(super) fn follow_step(&mut self, outcome: StepOutcome) -> Result<StepOutcome> {
        answer_table_request(&self.optimizer, &outcome)?;
        if outcome.result != StepResult::OutOfTime {
            self.last_step = outcome.duration;
        }
        if outcome.stop {
            return Err(self.stop()?);
        }
        let every = self.checkpoint_every;
        let is_due = every > 0 && outcome.attempt.is_multiple_of(every);
        tolerate(self.save_on(is_due))?;
        Ok(outcome)
    }

    /// After a step: ends the save under way if all of it is written, or if the next one is due.
    fn save_on(&mut self, is_due: bool) -> Result<()> {
        let Some(checkpoints) = &mut self.checkpoints else { return Ok(()) };
        let saved = if is_due && checkpoints.is_saving() {
            Some(checkpoints.finish(&mut self.optimizer, &self.params)?)
        } else {
            checkpoints.poll(&mut self.optimizer)?
        };
        if let Some(saved) = saved {
            self.last_save = self.save_begun.take().map_or(Duration::ZERO, |begun| begun.elapsed());
            log_saved(&saved);
        }
        if is_due {
            self.save_begun = Some(Instant::now());
            let user_blob = self.optimizer.user_blob().to_vec();
            checkpoints.begin(&mut self.optimizer, None, &user_blob, &self.params)?;
        }
        Ok(())
    }

    fn stop_wanted(&self) -> Stop {
        match stop_request() {
            None => Stop::No,
            // Half as long again as the last step, so that there is time for the commit too.
            Some(request) if self.time_left(request) <= self.last_step.mul_f64(1.5) => Stop::Now,
            Some(_) => Stop::AfterThisStep,
        }
    }

    fn time_left(&self, request: StopRequest) -> Duration {
        self.grace_period.saturating_sub(request.since.elapsed())
    }

    /// Collective: the signal that each rank has got, if it has got one: its name, its number, and
    /// how many milliseconds are left.
    fn gather_stop_requests(&self) -> Result<Vec<Option<(String, i32, u64)>>> {
        let mine = stop_request().map(|request| {
            let left_ms = self.time_left(request).as_millis() as u64;
            (request.name().to_owned(), request.signal, left_ms)
        });
        gather_all(&**self.optimizer.communicator(), &mine)
    }

    /// The error that ends a stopped job, after saving what can be saved.
    fn stop(&mut self) -> Result<Error> {
        let asked = self.gather_stop_requests()?;
        let by = asked.iter().enumerate().find_map(|(rank, asked)| Some((rank, asked.as_ref()?)));
        let (rank, name, signal) = match by {
            Some((rank, (name, signal, _))) => (rank, name.as_str(), *signal),
            None => (0, "its caller", 0),
        };
        let left_ms = asked.iter().flatten().map(|(.., left_ms)| *left_ms).min().unwrap_or(0);
        self.optimizer.finish_report(command_line())?;
        let step = self.optimizer.attempts();
        let is_committed = self.optimizer.epoch().is_some();
        tolerate(self.save_before_end(is_committed, left_ms))?;
        let newest = self.checkpoints.as_ref().map_or(Ok(None), Checkpoints::newest);
        let newest = match newest {
            // What is committed can be gone on with all the same.
            Err(error) if error.is_agreed() => {
                tracing::warn!("{error}");
                None
            }
            newest => newest?,
        };
        let stopped = format!("stopped by {name} (rank {rank}) after step {step}");
        Ok(end_of_job(&stopped, self.optimizer.epoch(), newest, signal).agreed())
    }

    /// Saves a checkpoint of the last state, if checkpoints are configured and there is time. A
    /// committed job does not need it to go on from its drives, only to go on elsewhere.
    fn save_before_end(&mut self, is_committed: bool, left_ms: u64) -> Result<()> {
        let Some(checkpoints) = &mut self.checkpoints else { return Ok(()) };
        checkpoints.abandon(&mut self.optimizer);
        // All ranks must decide alike, so the slowest rank counts. A save takes as long as the last
        // one, or at least as two steps, since it reads what a step reads and writes it elsewhere.
        let expected = self.last_save.max(2 * self.last_step).as_millis() as u64;
        let expected_ms =
            gather_all(&**self.optimizer.communicator(), &expected)?.into_iter().max().unwrap_or(0);
        if is_committed && left_ms <= expected_ms {
            return Ok(());
        }
        let user_blob = self.optimizer.user_blob().to_vec();
        log_saved(&checkpoints.save(&mut self.optimizer, None, &user_blob, &self.params)?);
        Ok(())
    }

    /// Collective: ends the job: saves its last state where checkpoints go, if that is configured,
    /// and removes the files from the drives, unless the configuration keeps them.
    ///
    /// # Errors
    /// Agreed: cannot create, if the checkpoint cannot be saved; errors of the drives. The files
    /// are still there then.
    pub fn finish(mut self) -> Result<()> {
        let _call = self.optimizer.enter("finish");
        if let Some(checkpoints) = &mut self.checkpoints {
            let attempts = self.optimizer.attempts();
            let mut last = None;
            if checkpoints.is_saving() {
                last = Some(checkpoints.finish(&mut self.optimizer, &self.params)?);
            }
            if last.as_ref().is_none_or(|saved| saved.attempts != attempts) {
                let user_blob = self.optimizer.user_blob().to_vec();
                let optimizer = &mut self.optimizer;
                last = Some(checkpoints.save(optimizer, None, &user_blob, &self.params)?);
            }
            last.iter().for_each(log_saved);
        }
        self.optimizer.finish_report(command_line())?;
        // No rank removes files before all ranks have got here.
        self.optimizer.communicator().barrier()?;
        self.optimizer.close();
        Ok(())
    }
}

/// The error that ends a stopped job: whether it can go on later, and how.
fn end_of_job(
    stopped: &str,
    epoch: Option<u64>,
    newest: Option<(u64, PathBuf)>,
    signal: i32,
) -> Error {
    let again = "start the same command again to go on";
    match (epoch, newest) {
        (Some(epoch), _) => {
            Error::new(ErrorKind::Requeue, format!("{stopped}; epoch {epoch} is committed"))
                .hint(again)
        }
        (None, Some((_, newest))) => {
            let saved = format!("{stopped}; checkpoint {} is there", newest.display());
            Error::new(ErrorKind::Requeue, saved).hint(again)
        }
        (None, None) if signal == signal_hook::consts::SIGINT => {
            Error::new(ErrorKind::Interrupted, format!("{stopped}; nothing is saved"))
        }
        (None, None) => Error::new(ErrorKind::Terminated, format!("{stopped}; nothing is saved"))
            .hint("set durability.mode = \"step\", or checkpoint.dir, to go on later"),
    }
}

/// A checkpoint that all ranks have failed to save is a warning: training goes on without it.
fn tolerate(saved: Result<()>) -> Result<()> {
    match saved {
        Err(error) if error.is_agreed() && !error.kind().is_damage() => {
            tracing::warn!("no checkpoint: {error}");
            Ok(())
        }
        saved => saved,
    }
}

fn log_saved(saved: &crate::checkpoint::Saved) {
    tracing::info!("checkpoint of step {} saved: {}", saved.attempts, saved.directory.display());
}
