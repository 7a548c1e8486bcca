"""The swapper beside fio: the same drive, the same mix of reads and writes, the same block size.

fio reads and writes as many bytes at the same time, in blocks of our stripe unit, with direct
io_uring, registered buffers and our depth, one job for each rank, on a file in the drive's file
system that was written whole before. Ours does its step, with all that belongs to it. Runs are
pairs, one after the other; what counts is the median of the pairs' ratios.
"""

import json
import shutil
import statistics
import subprocess
import tempfile

from harness import Drives, Ours, human, output_of, progress, show, table

BLOCK = "1 MiB"  # to fio 1M: by 1MiB it means a million bytes, which is no whole sector
DEPTH = 64
TARGET = 0.9


def version():
    return output_of(["fio", "--version"]).strip() if shutil.which("fio") else None


def fio(directory, ranks, params, seconds, mbps):
    """Bytes per second, both directions together."""
    size = params * 12 // ranks
    command = [
        *Drives.limited(mbps), "fio", "--name=mix", f"--directory={directory}",
        f"--numjobs={ranks}", "--rw=rw", "--rwmixread=50", "--bs=1M", f"--size={size}",
        "--ioengine=io_uring", "--fixedbufs", f"--iodepth={DEPTH}", "--direct=1", "--thread",
        "--group_reporting", "--time_based", f"--runtime={seconds}", "--ramp_time=1",
        "--output-format=json",
    ]
    output = subprocess.run(list(map(str, command)), check=True, capture_output=True, text=True)
    # Notes may come before it.
    job = json.loads(output.stdout[output.stdout.index("{"):])["jobs"][0]
    return job["read"]["bw_bytes"] + job["write"]["bw_bytes"]


def ours(directory, ranks, params, mbps):
    found = Ours(ranks, [directory], params, mbps=mbps, repetitions=5, steps=2).run()
    moved = found["bytes_read_per_param"] + found["bytes_written_per_param"]
    return moved / found["ns_per_param"] * 1e9


def pairs(args, name, directory, ranks, mbps):
    found = []
    with tempfile.TemporaryDirectory(dir=directory) as folder:
        # Written whole first: fio lays its files out before it measures.
        fio(folder, ranks, args.params, 1, None)
        for pair in range(args.rounds):
            theirs = fio(folder, ranks, args.params, 8, mbps)
            own = ours(directory, ranks, args.params, mbps)
            progress(f"pair {pair + 1}, {name}, {ranks} ranks: fio {theirs / 1e6:.0f} MB/s, "
                     f"ours {own / 1e6:.0f} MB/s")
            found.append((theirs, own))
    ratios = [own / theirs for theirs, own in found]
    return {"drive": name, "ranks": ranks, "pairs": found, "ratios": ratios}


def run(args):
    results = []
    for ranks in args.ranks:
        with tempfile.TemporaryDirectory(dir=args.disk, prefix="optswap-fio-") as disk:
            results.append(pairs(args, "real disk", disk, ranks, None))
        with Drives(1, f"{int(args.params * 24 * 1.3 / (1 << 20)) + 256}MiB") as drives:
            name = "emulated, unlimited"
            results.append(pairs(args, name, drives.paths[0], ranks, None))
            name = f"emulated, {args.mbps} MB/s"
            results.append(pairs(args, name, drives.paths[0], ranks, args.mbps))
    print(f"\n## Beside fio\n\n{human(args.params)} parameters, fp32; MB/s are those of both "
          f"directions together; blocks of {BLOCK}, depth {DEPTH}; {args.rounds} pairs.\n")
    header = ["drive", "ranks", "fio MB/s", "ours MB/s", "ours/fio (min-max)", "target"]
    print(table(header, [
        [one["drive"], one["ranks"],
         f"{statistics.median(theirs for theirs, _ in one['pairs']) / 1e6:.0f}",
         f"{statistics.median(own for _, own in one['pairs']) / 1e6:.0f}",
         show(one["ratios"], 3), TARGET]
        for one in results
    ]))
    return results
