"""What the scripts in this folder share: emulated drives, runs of `optswap bench`, tables.

Python's standard library only. Emulated drives need root (cluster/drives).
"""

import datetime
import functools
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OPTSWAP = ROOT / "target" / "release" / "optswap"
CODECS = ["fp32", "remainder16", "bf16", "bf16+remainder16", "int8+remainder16"]
USAGE_ERROR = 64


def elements(text):
    """64Mi and the like."""
    units = {"Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30}
    return int(text[:-2]) * units[text[-2:]] if text[-2:] in units else int(text)


def human(count):
    """64Mi and the like, the other way round."""
    for unit, factor in (("Gi", 1 << 30), ("Mi", 1 << 20), ("Ki", 1 << 10)):
        if count % factor == 0:
            return f"{count // factor}{unit}"
    return str(count)


def torch_environment(threads):
    """What a process with torch and DeepSpeed needs: see peers/setup."""
    return os.environ | {
        "DS_ACCELERATOR": "cpu",
        "OMP_NUM_THREADS": str(threads),
        # Kernels are checked with a tool of the same environment (ninja) when they are loaded.
        "PATH": f"{ROOT}/target/peers/python/bin:{os.environ['PATH']}",
        "TORCH_EXTENSIONS_DIR": f"{ROOT}/target/peers/kernels",
    }


def output_of(command):
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


def build():
    """The binary that is measured is that of the sources."""
    command = ["cargo", "build", "--release", "--locked", "--bins", "--quiet"]
    subprocess.run(command, cwd=ROOT, check=True)


@functools.cache
def knows(word):
    """Whether `optswap bench` has a flag; without it the rows that need it are left out."""
    return word in output_of([OPTSWAP, "bench", "--help"])


class Drives:
    """Emulated drives of one size, made on entry and removed on exit."""

    def __init__(self, count, size, sector=512):
        self.count, self.size, self.sector = count, size, sector

    def __enter__(self):
        script = [ROOT / "cluster" / "drives"]
        subprocess.run([*script, "down"], check=False, capture_output=True)
        sizes = ["--count", str(self.count), "--size", self.size, "--sector", str(self.sector)]
        made = subprocess.run(
            [*script, "up", *sizes], check=False, stdout=subprocess.PIPE, text=True
        )
        if made.returncode:
            # It has said why.
            sys.exit(made.returncode)
        self.paths = made.stdout.split()[-1].split(",")
        return self

    def __exit__(self, *_):
        subprocess.run([ROOT / "cluster" / "drives", "down"], check=False)

    @staticmethod
    def limited(mbps):
        """The beginning of a command that runs under a limit; None is no limit."""
        if mbps is None:
            return []
        return [ROOT / "cluster" / "drives", "run", "--mbps", str(mbps), "--"]

    def device(self, index):
        source = output_of(["findmnt", "--noheadings", "--output", "SOURCE", self.paths[index]])
        return source.strip().removeprefix("/dev/")

    def read_bytes(self):
        """What all of them have read since they exist."""
        devices = {self.device(index) for index in range(len(self.paths))}
        fields = [line.split() for line in Path("/proc/diskstats").read_text().splitlines()]
        return sum(int(field[5]) * 512 for field in fields if field[2] in devices)

    def set_mbps(self, index, mbps):
        """Changes one drive's limit while a command runs under it."""
        name = os.environ.get("OPTSWAP_DRIVES_NAME", "optswap-drives")
        number = Path(f"/sys/block/{self.device(index)}/dev").read_text().strip()
        version2 = Path("/sys/fs/cgroup") / name / "io.max"
        if version2.exists():
            version2.write_text(f"{number} rbps={mbps}000000 wbps={mbps}000000")
            return
        for way in ("read", "write"):
            file = Path("/sys/fs/cgroup/blkio") / name / f"blkio.throttle.{way}_bps_device"
            file.write_text(f"{number} {mbps}000000")


def busy_seconds():
    """Processor seconds that the machine has spent, the kernel's own included."""
    user, nice, system, _, _, irq, softirq, steal = map(
        int, Path("/proc/stat").read_text().splitlines()[0].split()[1:9]
    )
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


class Ours:
    """A run of `optswap bench`; its result is the JSON that it writes. A repetition is a number of
    steps, timed from the start of the first to the last byte on the drives."""

    def __init__(self, ranks, drives, params, *, mbps=None, codecs="fp32", budget="256MiB",
                 cache=None, repetitions=5, steps=2, warmup=2, config=None):
        self.mbps = mbps
        bench = [OPTSWAP, "bench", "--params", str(params), "--memory-budget", budget]
        if knows("--repetitions"):
            bench += ["--repetitions", str(repetitions), "--steps", str(steps)]
        else:
            bench += ["--steps", str(repetitions * steps)]
        bench += ["--warmup", str(warmup), "--job", "benches", "--drives", ",".join(drives)]
        for flag, value in (("--codecs", codecs), ("--cache", cache), ("--config", config)):
            if value and value != "fp32":
                bench += [flag, str(value)]
        self.command = [ROOT / "launch" / "ranks", str(ranks), *bench]

    def start(self):
        self.file = tempfile.NamedTemporaryFile(suffix=".json")
        self.began, self.busy = time.monotonic(), busy_seconds()
        # Warnings belong to the result; what is only said at every start would hide them.
        environment = {"RUST_LOG": "warn"} | os.environ
        command = [*Drives.limited(self.mbps), *self.command, "--json", self.file.name]
        self.process = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, text=True
        )
        return self

    def finish(self):
        output, _ = self.process.communicate()
        if self.process.returncode == USAGE_ERROR:
            return None
        if self.process.returncode:
            words = " ".join(map(str, self.command))
            raise SystemExit(f"{words}\nended with {self.process.returncode}:\n{output}")
        result = json.loads(Path(self.file.name).read_text())
        seconds = time.monotonic() - self.began
        result["machine_busy_cores"] = (busy_seconds() - self.busy) / seconds
        self.file.close()
        return result

    def run(self):
        return self.start().finish()


def limit_ns(bytes_read, bytes_written, read_bytes_per_s, write_bytes_per_s=None):
    """T_limit: the slower direction's bytes over its bandwidth, in ns per parameter."""
    write_bytes_per_s = write_bytes_per_s or read_bytes_per_s
    return max(bytes_read / read_bytes_per_s, bytes_written / write_bytes_per_s) * 1e9


def spread(values):
    """The median and what it lies between."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def show(values, digits=1):
    found = spread(values)
    return f"{found['median']:.{digits}f} ({found['min']:.{digits}f}-{found['max']:.{digits}f})"


def table(header, rows):
    """A table in Markdown, in columns for the eye."""
    cells = [list(map(str, row)) for row in [header, *rows]]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    lines = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths)) + " |"
             for row in cells]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def machine():
    """What the results were measured on."""
    cpu = re.search(r"model name\s*:\s*(.*)", Path("/proc/cpuinfo").read_text())
    memory = re.search(r"MemTotal:\s*(\d+)", Path("/proc/meminfo").read_text())
    revision = output_of(["git", "-C", ROOT, "describe", "--always", "--dirty"]).strip()
    return {
        "date": datetime.date.today().isoformat(),
        "revision": revision or "unknown",
        "processor": cpu.group(1) if cpu else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(int(memory.group(1)) / (1 << 20)) if memory else None,
        "kernel": platform.release(),
        "load_at_start": os.getloadavg()[0],
    }


def describe(found):
    text = (
        f"{found['date']}, optswap {found['revision']}; {found['processor']}, {found['cores']} "
        f"cores, {found['memory_gib']} GiB; Linux {found['kernel']}; "
        f"load at the start {found['load_at_start']:.1f}"
    )
    if found["load_at_start"] > 0.5 * found["cores"]:
        text += " (**the machine was busy with other work**)"
    return text


def write_json(path, result):
    if path:
        Path(path).write_text(json.dumps(result, indent=2) + "\n")


def progress(text):
    print(f"{time.strftime('%T')} {text}", file=sys.stderr, flush=True)
