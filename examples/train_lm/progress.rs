//! Progress on rank 0's stderr: a bar on a terminal, plain lines elsewhere.

use std::io::{IsTerminal, Write};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

/// Shows how training gets on; silent on all ranks but one.
pub struct Progress {
    bar: Option<ProgressBar>,
    steps: u64,
    is_shown: bool,
}

impl Progress {
    /// Progress over `steps` steps, of which some were done before.
    pub fn new(steps: u64, before: u64, is_shown: bool) -> Progress {
        let template = "{bar:30} step {pos}/{len} {msg} (left {eta})";
        let bar = (is_shown && std::io::stderr().is_terminal()).then(|| {
            let style = ProgressStyle::with_template(template);
            let bar = ProgressBar::new(steps).with_position(before);
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar
        });
        Progress { bar, steps, is_shown }
    }

    /// One step is done.
    pub fn step(&self, loss: f64, grad_norm: f64, optimizer_step: Duration) {
        if let Some(bar) = &self.bar {
            let ms = optimizer_step.as_secs_f64() * 1e3;
            bar.set_message(format!("loss {loss:.3}, |g| {grad_norm:.2}, swap {ms:.0} ms"));
            bar.inc(1);
        }
    }

    /// A validation is done.
    pub fn validation(&self, step: u64, loss: f64, byte_entropy: f64) {
        if !self.is_shown {
            return;
        }
        let line = format!(
            "step {step}/{}: validation loss {loss:.4} nats per byte (entropy {byte_entropy:.4})",
            self.steps
        );
        // A terminal that is gone, or a file that is full, is no reason to stop training.
        let show = || drop(writeln!(std::io::stderr(), "{line}"));
        match &self.bar {
            Some(bar) => bar.suspend(show),
            None => show(),
        }
    }

    /// Training is done.
    pub fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
