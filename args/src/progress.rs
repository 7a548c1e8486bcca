//! Progress of bytes that move, on a terminal; silent elsewhere, and on all ranks but one.

use std::io::IsTerminal;
use std::sync::Arc;

use indicatif::{ProgressBar, ProgressStyle};

use optswap::internals::checkpoint::Progress;

/// A bar with rate and time left. The function is called with the bytes that have moved, and with
/// the bytes that will have moved in the end.
pub fn bytes_bar(label: &'static str, is_shown: bool) -> Progress {
    if !is_shown || !std::io::stderr().is_terminal() {
        return Arc::new(|_, _| ());
    }
    let template = "{msg} {bar:30} {bytes}/{total_bytes} at {bytes_per_sec} (left {eta})";
    let style = ProgressStyle::with_template(template);
    let bar = ProgressBar::new(0);
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar.set_message(label);
    Arc::new(move |done, total| {
        bar.set_length(total);
        bar.set_position(done);
        if done == total {
            bar.finish_and_clear();
        }
    })
}
