//! A load on files: operations kept in flight for a while, and how many bytes moved. This is how
//! drives are measured, with the engine that moves a job's state; a job never comes here.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::accounting::DriveTotals;
use super::buffer::Buffer;
use super::engine::{Direction, Wait};
use super::spec::EngineSpec;
use super::stall::{Seen, StallWatch};
use super::transfer::{Finished, IoCause, IoFault, Part, Transfer, Transfers};
use crate::error::{Error, ErrorKind, Result};
use crate::units::{SPLITMIX64_GAMMA, mix64};

/// A load without any completion for so long has failed.
const IO_TIMEOUT: Duration = Duration::from_secs(30);
/// How often the bandwidth is sampled, and a request to stop is looked at.
const SLICES: u32 = 10;

/// What a load does with its extents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoadKind {
    /// Writes every extent once, in order, for as long as there is time.
    Fill,
    /// Reads them, again and again.
    Read,
    /// Writes them, again and again.
    Write,
    /// Reads each and writes it back, as a step does: both directions at the same time, in equal
    /// parts.
    Cycle,
}

/// One load.
pub struct Load<'a> {
    /// What it does.
    pub kind: LoadKind,
    /// Lanes that go on independently of each other; the buffers are shared out evenly. A lane's
    /// extents are visited in turn, and each is moved as its parts say.
    pub lanes: &'a [Vec<Vec<Part>>],
    /// Time at the beginning that does not count.
    pub warmup: Duration,
    /// Time that counts.
    pub duration: Duration,
    /// Whether to end early.
    pub is_stopped: &'a dyn Fn() -> bool,
    /// Called as operations complete, with their number so far.
    pub on_progress: &'a dyn Fn(u64),
}

/// What a load moved in the time that counts.
#[derive(Clone, Debug, Default)]
pub struct LoadResult {
    /// The time.
    pub seconds: f64,
    /// Bytes and operations of every file.
    pub files: Vec<DriveTotals>,
    /// Bytes per second, both directions together, in each tenth of the time.
    pub slices: Vec<f64>,
    /// Extents begun in every lane, over all of the time.
    pub extents: Vec<u64>,
}

impl LoadResult {
    /// Bytes read and written per second, all files together.
    pub fn bytes_per_s(&self) -> f64 {
        let bytes = self.files.iter().map(|file| file.read_bytes + file.written_bytes);
        bytes.sum::<u64>() as f64 / self.seconds.max(1e-9)
    }

    /// Bytes read and written per second of one file.
    pub fn file_bytes_per_s(&self, file: usize) -> f64 {
        let DriveTotals { read_bytes, written_bytes, .. } = self.files[file];
        (read_bytes + written_bytes) as f64 / self.seconds.max(1e-9)
    }
}

/// An engine with buffers, for loads one after the other.
pub struct Loader {
    /// `None` once an operation never came back.
    transfers: Option<Transfers>,
    buffers: Vec<Buffer>,
    paths: Vec<PathBuf>,
    stamp: u64,
}

impl Loader {
    /// Opens an engine for these files and fills the buffers with bytes that do not compress.
    ///
    /// # Errors
    /// As [`EngineSpec::open`].
    pub fn open(spec: EngineSpec, mut buffers: Vec<Buffer>, paths: Vec<PathBuf>) -> Result<Self> {
        for (number, buffer) in buffers.iter_mut().enumerate() {
            fill_incompressible(number as u64, buffer);
        }
        let (depth, files) = (spec.depth, spec.files.len());
        let transfers = Some(Transfers::new(spec.open(&buffers)?, depth, files));
        Ok(Self { transfers, buffers, paths, stamp: 0 })
    }

    /// Runs one load to its end; nothing is in flight then.
    ///
    /// # Errors
    /// I/O, naming path and offset; if nothing completes for half a minute, too.
    pub fn run(&mut self, load: &Load<'_>) -> Result<LoadResult> {
        let gone = || Error::new(ErrorKind::Io, "an operation of an earlier load never came back");
        let transfers = self.transfers.as_mut().ok_or_else(gone)?;
        let mut run = Run::new(load, transfers, &mut self.stamp);
        let ended = run.finish(&mut self.buffers);
        let result = std::mem::take(&mut run.result);
        match ended {
            Ok(()) => Ok(result),
            Err(fault) => {
                if fault.cause == IoCause::Errno(libc::ETIMEDOUT)
                    && let Some(transfers) = self.transfers.take()
                {
                    transfers.abandon();
                }
                Err(self.describe(fault))
            }
        }
    }

    fn describe(&self, fault: IoFault) -> Error {
        let what = match fault.direction {
            Direction::SwapIn => "reading a drive failed",
            Direction::SwapOut => "writing a drive failed",
        };
        let path = self.paths.get(fault.file as usize).cloned().unwrap_or_default();
        let error = Error::new(ErrorKind::Io, what)
            .with("drive", path.display())
            .with("offset", fault.offset)
            .with("length", fault.len);
        match fault.cause {
            IoCause::Errno(errno) => error.because(std::io::Error::from_raw_os_error(errno)),
            IoCause::EndOfFile => error.because("the file ends before the data does"),
            IoCause::WroteNothing => error.because("the write moved no byte"),
        }
    }
}

/// A lane's place in its extents.
struct Lane {
    next: usize,
    is_busy: Vec<bool>,
    begun: u64,
}

struct Run<'a> {
    load: &'a Load<'a>,
    transfers: &'a mut Transfers,
    stamp: &'a mut u64,
    lanes: Vec<Lane>,
    /// Buffers at rest, with the lane that they belong to.
    idle: Vec<Buffer>,
    ends: bool,
    result: LoadResult,
}

impl<'a> Run<'a> {
    fn new(load: &'a Load<'a>, transfers: &'a mut Transfers, stamp: &'a mut u64) -> Self {
        let lane =
            |extents: &Vec<_>| Lane { next: 0, is_busy: vec![false; extents.len()], begun: 0 };
        let lanes = load.lanes.iter().map(lane).collect();
        let result = LoadResult::default();
        Self { load, transfers, stamp, lanes, idle: Vec::new(), ends: false, result }
    }

    fn finish(&mut self, buffers: &mut Vec<Buffer>) -> Result<(), IoFault> {
        let lanes = self.lanes.len();
        for (number, buffer) in std::mem::take(buffers).into_iter().enumerate() {
            self.begin_extent(number % lanes, buffer);
        }
        let ended = self.drive();
        buffers.append(&mut self.idle);
        self.result.extents = self.lanes.iter().map(|lane| lane.begun).collect();
        ended
    }

    fn drive(&mut self) -> Result<(), IoFault> {
        let mut clock = Clock::start(self.load);
        let mut finished = Vec::new();
        let mut fault = None;
        let mut watch = StallWatch::new(self.transfers.completed_ops(), IO_TIMEOUT);
        self.transfers.take_totals();
        while self.transfers.active() > 0 {
            let wait = Wait::Until(clock.next().min(watch.next_look()));
            if self.transfers.poll(wait, &mut finished).is_err() {
                return Err(self.lost(libc::EIO));
            }
            match watch.look(self.transfers.completed_ops()) {
                Seen::Progress(completed_ops) => (self.load.on_progress)(completed_ops),
                Seen::Stall => return Err(self.lost(libc::ETIMEDOUT)),
                Seen::Nothing => {}
            }
            let now = Instant::now();
            for transfer in finished.drain(..) {
                fault = fault.or(self.settle(transfer));
            }
            if !self.ends && clock.tick(now, self.transfers, &mut self.result) {
                self.ends = true;
            }
            self.ends |= fault.is_some() || (self.load.is_stopped)();
        }
        clock.close(Instant::now(), self.transfers, &mut self.result);
        fault.map_or(Ok(()), Err)
    }

    fn lost(&self, errno: i32) -> IoFault {
        let unknown = IoFault {
            file: 0,
            direction: Direction::SwapIn,
            offset: 0,
            len: 0,
            cause: IoCause::Errno(errno),
        };
        let fault = self.transfers.any_unfinished().unwrap_or(unknown);
        // Whatever the engine said: its buffers may still be in use.
        IoFault { cause: IoCause::Errno(libc::ETIMEDOUT), ..fault }
    }

    fn settle(&mut self, finished: Finished) -> Option<IoFault> {
        let Finished { token, direction, buffer, result } = finished;
        let (lane, extent) = ((token >> 32) as usize, token as u32 as usize);
        if let Err(fault) = result {
            self.idle.push(buffer);
            return Some(fault);
        }
        if self.load.kind == LoadKind::Cycle && direction == Direction::SwapIn && !self.ends {
            self.start(lane, extent, Direction::SwapOut, buffer);
            return None;
        }
        self.lanes[lane].is_busy[extent] = false;
        self.begin_extent(lane, buffer);
        None
    }

    fn begin_extent(&mut self, lane: usize, buffer: Buffer) {
        let state = &mut self.lanes[lane];
        let extents = state.is_busy.len();
        let is_filled = self.load.kind == LoadKind::Fill && state.begun >= extents as u64;
        let mut turns = (0..extents).map(|turn| (state.next + turn) % extents);
        let free = turns.find(|extent| !state.is_busy[*extent]);
        let Some(extent) = free.filter(|_| !self.ends && !is_filled) else {
            return self.idle.push(buffer);
        };
        state.next = (extent + 1) % extents;
        state.is_busy[extent] = true;
        state.begun += 1;
        let direction = match self.load.kind {
            LoadKind::Fill | LoadKind::Write => Direction::SwapOut,
            LoadKind::Read | LoadKind::Cycle => Direction::SwapIn,
        };
        self.start(lane, extent, direction, buffer);
    }

    fn start(&mut self, lane: usize, extent: usize, direction: Direction, mut buffer: Buffer) {
        if direction == Direction::SwapOut {
            *self.stamp += 1;
            make_unique(*self.stamp, &mut buffer);
        }
        let token = (lane as u64) << 32 | extent as u64;
        let parts = self.load.lanes[lane][extent].clone();
        self.transfers.start(Transfer { token, direction, buffer, parts });
    }
}

/// The time that counts, cut into slices.
struct Clock {
    counts_from: Instant,
    slice: Duration,
    slice_start: Instant,
    is_counting: bool,
    ends: Instant,
}

impl Clock {
    fn start(load: &Load<'_>) -> Self {
        let now = Instant::now();
        Self {
            counts_from: now + load.warmup,
            slice: load.duration / SLICES,
            slice_start: now,
            is_counting: load.warmup.is_zero(),
            ends: now + load.warmup + load.duration,
        }
    }

    fn next(&self) -> Instant {
        if self.is_counting { self.slice_start + self.slice } else { self.counts_from }
    }

    /// Takes what has moved if a slice is over; tells whether the time is.
    fn tick(&mut self, now: Instant, transfers: &mut Transfers, result: &mut LoadResult) -> bool {
        if now < self.next() {
            return false;
        }
        let totals = transfers.take_totals();
        if self.is_counting {
            self.add(now, &totals, result);
        } else {
            // What moved until here was warm-up.
            self.is_counting = true;
        }
        self.slice_start = now;
        now >= self.ends
    }

    /// A load that ended before its time has moved something since the last slice.
    fn close(&mut self, now: Instant, transfers: &mut Transfers, result: &mut LoadResult) {
        let totals = transfers.take_totals();
        if self.is_counting && self.slice_start < self.ends {
            self.add(now, &totals, result);
        }
    }

    fn add(&self, now: Instant, totals: &[DriveTotals], result: &mut LoadResult) {
        let seconds = (now - self.slice_start).as_secs_f64();
        result.files.resize(totals.len(), DriveTotals::default());
        let mut bytes = 0;
        for (sum, more) in result.files.iter_mut().zip(totals) {
            sum.read_bytes += more.read_bytes;
            sum.written_bytes += more.written_bytes;
            sum.reads += more.reads;
            sum.writes += more.writes;
            bytes += more.read_bytes + more.written_bytes;
        }
        result.seconds += seconds;
        result.slices.push(bytes as f64 / seconds.max(1e-9));
    }
}

/// Fills a buffer with random bytes, which no drive compresses.
fn fill_incompressible(seed: u64, bytes: &mut [u8]) {
    let mut state = seed.wrapping_mul(0xd134_2543_de82_ef95);
    for word in bytes.chunks_exact_mut(8) {
        word.copy_from_slice(&mix64(state).to_le_bytes());
        state = state.wrapping_add(SPLITMIX64_GAMMA);
    }
}

/// Makes every sector another one than before, for drives that store equal ones once.
fn make_unique(stamp: u64, bytes: &mut [u8]) {
    for sector in bytes.chunks_exact_mut(4096) {
        sector[..8].copy_from_slice(&stamp.to_le_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::EngineName;
    use crate::io::allocate_buffers;

    const BLOCK: usize = 16 << 10;

    /// A lane of `count` extents of one block each in the file `file`.
    fn lane(file: u32, count: u64) -> Vec<Vec<Part>> {
        let part = |number: u64| Part {
            file,
            file_offset: number * BLOCK as u64,
            buffer_offset: 0,
            len: BLOCK,
        };
        (0..count).map(|number| vec![part(number)]).collect()
    }

    #[test]
    fn loads_count_what_they_move() {
        let files: Vec<_> = (0..2).map(|_| tempfile::tempfile().unwrap()).collect();
        let spec = EngineSpec {
            choice: EngineName::Auto,
            depth: 8,
            files: files.iter().map(|file| file.try_clone().unwrap()).collect(),
            faults: Vec::new(),
        };
        let buffers = allocate_buffers(8, BLOCK).unwrap();
        let mut loader = Loader::open(spec, buffers, vec!["a".into(), "b".into()]).unwrap();
        let lanes = [lane(0, 40), lane(1, 20)];
        let mut run = |kind, warmup| {
            loader.run(&Load {
                kind,
                lanes: &lanes,
                warmup: Duration::from_millis(warmup),
                duration: Duration::from_millis(if kind == LoadKind::Fill { 60_000 } else { 50 }),
                is_stopped: &|| false,
                on_progress: &|_| (),
            })
        };
        let filled = run(LoadKind::Fill, 0).unwrap();
        assert_eq!(filled.extents, [40, 20]);
        let bytes: Vec<u64> = filled.files.iter().map(|file| file.written_bytes).collect();
        assert_eq!(bytes, [40 * BLOCK as u64, 20 * BLOCK as u64]);
        assert_eq!(files[1].metadata().unwrap().len(), 20 * BLOCK as u64);

        let cycled = run(LoadKind::Cycle, 5).unwrap();
        for file in cycled.files {
            let (reads, writes) = (file.reads, file.writes);
            assert!(reads > 0 && reads.abs_diff(writes) <= 8, "{reads} and {writes}");
        }
        // A busy machine gets round to fewer.
        assert!((1..=10).contains(&cycled.slices.len()));
        let read = run(LoadKind::Read, 0).unwrap();
        assert!(read.files.iter().all(|file| file.read_bytes > 0 && file.written_bytes == 0));
        assert!(read.bytes_per_s() > read.file_bytes_per_s(1));
        // Nothing lies behind the end of a file.
        files[1].set_len(0).unwrap();
        let error = run(LoadKind::Read, 0).unwrap_err();
        assert!(error.to_string().contains("reading a drive failed (drive b"), "{error}");
    }

    #[test]
    fn data_does_not_compress_or_repeat() {
        let mut bytes = vec![0; 1 << 16];
        fill_incompressible(7, &mut bytes);
        let mut counts = [0u32; 256];
        bytes.iter().for_each(|byte| counts[usize::from(*byte)] += 1);
        assert!(counts.iter().all(|count| (150..400).contains(count)), "{counts:?}");
        let before = bytes.clone();
        make_unique(1, &mut bytes);
        let differs = |(a, b): (&[u8], &[u8])| a != b;
        assert!(bytes.chunks(4096).zip(before.chunks(4096)).all(differs));
    }
}
