//! Signals that ask a rank to stop: SIGTERM and SIGUSR1 from schedulers, SIGINT from people. It is
//! enough if one rank gets one, since all ranks learn of it in their next step. A second SIGINT
//! ends the job at once. SIGUSR2 asks for a table of the world after the next step. SIGXFSZ, which
//! says of a write that it goes beyond a limit, is left to the write's own error.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Instant;

use signal_hook::consts::{SIGINT, SIGTERM, SIGUSR1, SIGUSR2, SIGXFSZ};
use signal_hook::iterator::Signals;

/// The first signal to stop, and when it came.
#[derive(Clone, Copy, Debug)]
pub struct StopRequest {
    /// The number of the signal.
    pub signal: i32,
    /// When it came.
    pub since: Instant,
}

static REQUEST: OnceLock<Mutex<Option<StopRequest>>> = OnceLock::new();
static WANTS_TABLE: AtomicBool = AtomicBool::new(false);
/// Somebody has looked for a request, and so will act on one.
static IS_HEEDED: AtomicBool = AtomicBool::new(false);

impl StopRequest {
    /// The signal's name.
    pub fn name(&self) -> &'static str {
        signal_hook::low_level::signal_name(self.signal).unwrap_or("a signal")
    }
}

/// The first request to stop, if there was one. Always `None` where [`super::run_main`] has not
/// installed handlers.
pub fn stop_request() -> Option<StopRequest> {
    IS_HEEDED.store(true, Ordering::Relaxed);
    *REQUEST.get()?.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether a table of the world has been asked for since the last call.
pub(super) fn take_table_request() -> bool {
    WANTS_TABLE.swap(false, Ordering::Relaxed)
}

/// Makes a write beyond the limit of a file's size (`ulimit -f`) an error like others: by default a
/// signal then ends the process without a word. Programs that this one starts are not affected.
pub(super) fn survive_size_limit() {
    if let Err(error) = signal_hook::flag::register(SIGXFSZ, Arc::default()) {
        tracing::warn!("a write beyond ulimit -f will end the process: {error}");
    }
}

/// Starts the thread that waits for signals. `at_once` ends the job at a second SIGINT.
pub(super) fn listen(at_once: impl Fn(i32) + Send + 'static) -> std::io::Result<()> {
    let mut signals = Signals::new([SIGTERM, SIGUSR1, SIGINT, SIGUSR2])?;
    let request = REQUEST.get_or_init(Mutex::default);
    let listen = move || {
        let mut interrupts = 0;
        for signal in signals.forever() {
            if signal == SIGUSR2 {
                WANTS_TABLE.store(true, Ordering::Relaxed);
                continue;
            }
            interrupts += u32::from(signal == SIGINT);
            if interrupts > 1 {
                at_once(signal);
            }
            let name = signal_hook::low_level::signal_name(signal).unwrap_or("a signal");
            if IS_HEEDED.load(Ordering::Relaxed) {
                tracing::info!("{name}: the job stops after this step");
            } else {
                tracing::info!("{name}: noted, but this program has not asked for signals so far");
            }
            let mut request = request.lock().unwrap_or_else(PoisonError::into_inner);
            request.get_or_insert(StopRequest { signal, since: Instant::now() });
        }
    };
    std::thread::Builder::new().name("optswap-signals".to_owned()).spawn(listen).map(drop)
}
