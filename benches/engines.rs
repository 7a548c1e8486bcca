//! What the engines cost, on a file in memory so that no drive is waited for: operations per second
//! at 4 KiB, bytes per second at 1 MiB, and the same per second of processor time.
//!
//! ```text
//! cargo bench --bench engines
//! OPTSWAP_BENCH_DIR=/nvme0/me cargo bench --bench engines
//! ```
//!
//! `processor` is the time that all threads of this process spent, the kernel's workers for it
//! included: at 1 MiB, 1 / (GB/s) is the processor time per GB.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use criterion::measurement::{Measurement, ValueFormatter, WallTime};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use optswap::internals::config::EngineName;
use optswap::internals::io::{
    Buffer, Direction, EngineSpec, Part, Transfer, Transfers, Wait, allocate_buffers,
};
use rustix::time::{ClockId, clock_gettime};

const DEPTH: usize = 32;
const FILE_BYTES: u64 = 64 << 20;

/// The processor time of this process as criterion's clock.
struct ProcessorTime;

impl Measurement for ProcessorTime {
    type Intermediate = Duration;
    type Value = Duration;

    fn start(&self) -> Duration {
        let spent = clock_gettime(ClockId::ProcessCPUTime);
        Duration::new(spent.tv_sec.unsigned_abs(), spent.tv_nsec.unsigned_abs() as u32)
    }

    fn end(&self, start: Duration) -> Duration {
        self.start().saturating_sub(start)
    }

    fn add(&self, a: &Duration, b: &Duration) -> Duration {
        *a + *b
    }

    fn zero(&self) -> Duration {
        Duration::ZERO
    }

    fn to_f64(&self, value: &Duration) -> f64 {
        value.as_nanos() as f64
    }

    fn formatter(&self) -> &dyn ValueFormatter {
        WallTime.formatter()
    }
}

/// A file without a name, written whole.
fn file() -> File {
    let dir = std::env::var_os("OPTSWAP_BENCH_DIR").map_or("/dev/shm".into(), PathBuf::from);
    let path = dir.join(format!("optswap-bench-{}", std::process::id()));
    std::fs::write(&path, vec![1u8; FILE_BYTES as usize]).expect("the directory is writable");
    let direct = rustix::fs::OFlags::DIRECT.bits() as i32;
    let mut options = OpenOptions::new();
    options.read(true).write(true).custom_flags(direct);
    let file = options.open(&path).expect("direct I/O is possible there");
    std::fs::remove_file(&path).expect("the file is there");
    file
}

/// An engine with its buffers, which go round.
struct Mover {
    transfers: Transfers,
    buffers: Vec<Buffer>,
    block: usize,
    next: u64,
}

impl Mover {
    fn new(choice: EngineName, block: usize) -> Self {
        let buffers = allocate_buffers(DEPTH, block).expect("there is memory");
        let spec = EngineSpec { choice, depth: DEPTH, files: vec![file()], faults: Vec::new() };
        let engine = spec.open(&buffers).expect("the engine opens");
        Self { transfers: Transfers::new(engine, DEPTH, 1), buffers, block, next: 0 }
    }

    /// Moves that many blocks, every other one out.
    fn run(&mut self, count: u64) {
        let end = self.next + count;
        let mut finished = Vec::new();
        while self.next < end || self.transfers.active() > 0 {
            while self.next < end
                && let Some(buffer) = self.buffers.pop()
            {
                let at = self.next * self.block as u64 % FILE_BYTES;
                let direction = [Direction::SwapIn, Direction::SwapOut][self.next as usize % 2];
                let part = Part { file: 0, file_offset: at, buffer_offset: 0, len: self.block };
                let token = self.next;
                self.transfers.start(Transfer { token, direction, buffer, parts: vec![part] });
                self.next += 1;
            }
            let soon = Instant::now() + Duration::from_secs(10);
            self.transfers.poll(Wait::Until(soon), &mut finished).expect("the engine works");
            for transfer in finished.drain(..) {
                assert!(transfer.result.is_ok(), "a transfer failed: {:?}", transfer.result);
                self.buffers.push(transfer.buffer);
            }
        }
    }
}

fn engines<M: Measurement>(criterion: &mut Criterion<M>, clock: &str) {
    for (block, count) in [(4 << 10, 4096), (1 << 20, 64)] {
        let mut group = criterion.benchmark_group(format!("{} KiB, {clock}", block >> 10));
        group.sample_size(20);
        group.throughput(match block {
            0x1000 => Throughput::Elements(count),
            _ => Throughput::Bytes(count * block as u64),
        });
        for (name, choice) in [("io_uring", EngineName::Uring), ("threads", EngineName::Threads)] {
            let mut mover = Mover::new(choice, block);
            group.bench_function(name, |bencher| bencher.iter(|| mover.run(count)));
        }
        group.finish();
    }
}

fn wall(criterion: &mut Criterion) {
    engines(criterion, "wall");
}

fn processor(criterion: &mut Criterion<ProcessorTime>) {
    engines(criterion, "processor");
}

criterion_group!(by_the_clock, wall);
criterion_group! {
    name = by_the_processor;
    config = Criterion::default().with_measurement(ProcessorTime);
    targets = processor
}
criterion_main!(by_the_clock, by_the_processor);
