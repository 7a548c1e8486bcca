//! Both engines are the same engine: random operations leave the same bytes in files and buffers.
//! And a completion is the truth: whatever an operation answers is compared with what was asked.

#![allow(clippy::unwrap_used, reason = "a test may end where it fails")]

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use optswap::internals::config::{EngineName, FaultConfig, FaultKind};
use optswap::internals::io::{
    Direction, EngineSpec, Finished, IoCause, Part, Transfer, Transfers, Wait, allocate_buffers,
};
use proptest::prelude::*;

const SECTOR: usize = 4096;
const FILE_SECTORS: usize = 64;
const BUFFER_SECTORS: usize = 8;
const ENGINES: [EngineName; 2] = [EngineName::Uring, EngineName::Threads];

fn files(count: usize) -> Vec<File> {
    let file = |seed: usize| {
        let file = tempfile::tempfile().unwrap();
        let bytes: Vec<u8> =
            (0..FILE_SECTORS * SECTOR).map(|at| (at * 31 + at / 997 + seed * 7) as u8).collect();
        file.write_all_at(&bytes, 0).unwrap();
        file
    };
    (0..count).map(file).collect()
}

fn contents(files: &[File]) -> Vec<Vec<u8>> {
    let read = |file: &File| {
        let mut bytes = vec![0; file.metadata().unwrap().len() as usize];
        file.read_exact_at(&mut bytes, 0).unwrap();
        bytes
    };
    files.iter().map(read).collect()
}

fn finish_all(transfers: &mut Transfers) -> Vec<Finished> {
    let mut finished = Vec::new();
    let deadline = Instant::now() + Duration::from_secs(10);
    while transfers.active() > 0 {
        assert!(Instant::now() < deadline, "a transfer never ended");
        transfers.poll(Wait::Until(deadline), &mut finished).unwrap();
    }
    finished
}

/// One transfer: direction, and parts as (file, sector in the file, sectors).
type Plan = (bool, Vec<(usize, usize, usize)>);

/// Runs transfers one after the other; gives what is in files and buffers at the end.
fn run(
    engine: EngineName,
    plans: &[Plan],
    depth: usize,
    faults: &[(u64, FaultKind)],
) -> (Vec<Vec<u8>>, Vec<u8>) {
    let files = files(2);
    let buffers = allocate_buffers(1, BUFFER_SECTORS * SECTOR).unwrap();
    let faults = faults.iter().map(|(op, kind)| FaultConfig::at(0, *op, *kind));
    let handles = files.iter().map(|file| file.try_clone().unwrap()).collect();
    let spec = EngineSpec { choice: engine, depth, files: handles, faults: faults.collect() };
    let mut transfers = Transfers::new(spec.open(&buffers).unwrap(), depth, 2);
    let mut buffer = buffers.into_iter().next().unwrap();
    for (token, (is_read, parts)) in plans.iter().enumerate() {
        let direction = if *is_read { Direction::SwapIn } else { Direction::SwapOut };
        let mut at = 0;
        let mut layout = Vec::new();
        for (file, sector, sectors) in parts {
            let sectors = (*sectors).min(BUFFER_SECTORS - at);
            if sectors > 0 {
                layout.push(Part {
                    file: *file as u32,
                    file_offset: (sector * SECTOR) as u64,
                    buffer_offset: at * SECTOR,
                    len: sectors * SECTOR,
                });
                at += sectors;
            }
        }
        transfers.start(Transfer { token: token as u64, direction, buffer, parts: layout });
        let mut finished = finish_all(&mut transfers);
        let done = finished.pop().unwrap();
        assert_eq!((done.token, done.result), (token as u64, Ok(())));
        buffer = done.buffer;
        // The caller's turn: the buffer is changed between transfers.
        buffer.iter_mut().for_each(|byte| *byte = byte.wrapping_mul(3).wrapping_add(token as u8));
    }
    let totals = transfers.take_totals();
    let moved: u64 = totals.iter().map(|drive| drive.read_bytes + drive.written_bytes).sum();
    let asked: usize = plans.iter().map(|(_, parts)| sectors_of(parts)).sum();
    assert_eq!(moved, (asked * SECTOR) as u64, "every byte is counted once");
    (contents(&files), buffer.to_vec())
}

fn sectors_of(parts: &[(usize, usize, usize)]) -> usize {
    parts.iter().map(|(_, _, sectors)| sectors).sum::<usize>().min(BUFFER_SECTORS)
}

fn plans() -> impl Strategy<Value = Vec<Plan>> {
    // Parts of one transfer lie in different quarters of the files, so they cannot overlap.
    let part = |quarter: usize| {
        (0usize..2, 0usize..8, 1usize..6)
            .prop_map(move |(file, at, len)| (file, quarter * FILE_SECTORS / 4 + at, len))
    };
    let parts = (part(0), part(1), part(2), 1usize..4)
        .prop_map(|(a, b, c, count)| vec![a, b, c].into_iter().take(count).collect());
    prop::collection::vec((any::<bool>(), parts), 1..8)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn engines_give_the_same_bytes(plans in plans(), depth in 1usize..9) {
        let [uring, threads] = ENGINES.map(|engine| run(engine, &plans, depth, &[]));
        prop_assert_eq!(uring, threads);
    }

    #[test]
    fn short_and_interrupted_operations_are_resumed(
        plans in plans(),
        faults in prop::collection::vec(
            (0u64..12, prop_oneof![
                Just(FaultKind::Short), Just(FaultKind::Eintr), Just(FaultKind::Eagain)
            ]),
            1..6,
        ),
    ) {
        let expected = run(EngineName::Threads, &plans, 4, &[]);
        for engine in ENGINES {
            prop_assert_eq!(&run(engine, &plans, 4, &faults), &expected);
        }
    }
}

fn one_read(engine: EngineName, sectors: usize, at: u64, fault: Option<FaultKind>) -> Finished {
    let files = files(1);
    let buffers = allocate_buffers(1, BUFFER_SECTORS * SECTOR).unwrap();
    let faults = fault.map(|kind| FaultConfig::at(0, 1, kind)).into_iter().collect();
    let spec = EngineSpec { choice: engine, depth: 8, files, faults };
    let mut transfers = Transfers::new(spec.open(&buffers).unwrap(), 8, 1);
    let part = |index: usize| Part {
        file: 0,
        file_offset: at + (index * SECTOR) as u64,
        buffer_offset: index * SECTOR,
        len: SECTOR,
    };
    transfers.start(Transfer {
        token: 9,
        direction: Direction::SwapIn,
        buffer: buffers.into_iter().next().unwrap(),
        parts: (0..sectors).map(part).collect(),
    });
    finish_all(&mut transfers).pop().unwrap()
}

#[test]
fn a_failed_operation_fails_its_transfer_and_names_itself() {
    for engine in ENGINES {
        for (kind, errno) in [(FaultKind::Eio, 5), (FaultKind::Enospc, 28)] {
            let fault = one_read(engine, 4, 0, Some(kind)).result.unwrap_err();
            assert_eq!(fault.cause, IoCause::Errno(errno));
            assert_eq!((fault.file, fault.offset, fault.len), (0, SECTOR as u64, SECTOR));
        }
    }
}

#[test]
fn a_file_that_ends_too_early_is_an_error_not_a_short_success() {
    for engine in ENGINES {
        let end = ((FILE_SECTORS - 1) * SECTOR) as u64;
        let fault = one_read(engine, 2, end, None).result.unwrap_err();
        assert_eq!(fault.cause, IoCause::EndOfFile);
        assert_eq!(fault.offset, (FILE_SECTORS * SECTOR) as u64);
    }
}
