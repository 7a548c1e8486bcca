"""The update in memory: ours beside DeepSpeed's CPU Adam and torch's fused AdamW.

All of them on all cores, passes over the same number of parameters, interleaved. 28 bytes per
parameter are counted for each. For ours these are a bf16 gradient and fp32 state in, fp32 state and
the bf16 parameter out. Theirs take an fp32 gradient and emit no parameter, which is 28 bytes as
well; what stage 3 does around it, widening the gradient and copying the parameter, comes on top in
the row that says so.
"""

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
# The folder above has to be known first.
from harness import ROOT, human, progress, show, spread, table, torch_environment  # noqa: E402

BYTES = 28
PASSES = 5
TARGET = 1.0
PYTHON = ROOT / "target" / "peers" / "python" / "bin" / "python"


class Worker:
    """A process with torch: it gets an arm's name and answers with seconds."""

    def __init__(self, params):
        environment = torch_environment(len(os.sched_getaffinity(0)))
        self.process = subprocess.Popen(
            [PYTHON, __file__, str(params)], env=environment, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )

    def run(self, arm):
        self.process.stdin.write(arm + "\n")
        self.process.stdin.flush()
        # Libraries print as well; an answer is a line of JSON.
        for line in self.process.stdout:
            if line.startswith("["):
                return json.loads(line)
        raise SystemExit("torch's process ended; what it said is above")

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def ours(params):
    command = ["cargo", "bench", "--quiet", "--locked", "--bench", "update", "--"]
    command += ["--params", str(params), "--passes", str(PASSES)]
    output = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return json.loads(output[output.index("{"):])["seconds"]


def run(args):
    params = args.params // 4
    ours(1 << 20)  # built before anything is timed
    worker = Worker(params)
    arms = {
        "DeepSpeed's CPU Adam": lambda: worker.run("deepspeed"),
        "the same, gradient widened and parameter copied": lambda: worker.run("stage3"),
        "torch's AdamW, fused": lambda: worker.run("torch"),
        "ours": lambda: ours(params),
    }
    found = {name: [] for name in arms}
    for round_ in range(args.rounds):
        for name, arm in arms.items():
            seconds = statistics.median(arm())
            found[name].append(seconds)
            progress(f"round {round_ + 1}, {name}: {seconds * 1e9 / params:.2f} ns per parameter")
    worker.close()
    results = {}
    for name, seconds in found.items():
        results[name] = {
            "ns_per_param": [value * 1e9 / params for value in seconds],
            "gb_per_s": spread([BYTES * params / value / 1e9 for value in seconds]),
            "times_faster": [theirs / own for theirs, own in zip(seconds, found["ours"])],
        }
    print(f"\n## The update in memory\n\n{human(params)} parameters, "
          f"{len(os.sched_getaffinity(0))} cores, {args.rounds} rounds, each the median of "
          f"{PASSES} passes. Target: at least {TARGET} times as fast.\n")
    header = ["", "ns/param (min-max)", f"GB/s at {BYTES} B/param", "ours is faster by"]
    print(table(header, [
        [name, show(one["ns_per_param"], 2), f"{one['gb_per_s']['median']:.1f}",
         show(one["times_faster"], 2)]
        for name, one in results.items()
    ]))
    return results


def serve(params):
    """The worker's side."""
    import time

    import torch
    from deepspeed.ops.adam import DeepSpeedCPUAdam

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    settings = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.01}

    def parameter():
        made = torch.nn.Parameter(torch.full((params,), 0.1))
        made.grad = torch.randn(params) * 1e-3
        return made

    flat = parameter()
    deepspeed = DeepSpeedCPUAdam([flat], adamw_mode=True, **settings)
    fused = torch.optim.AdamW([flat], fused=True, **settings)
    low = torch.empty(params, dtype=torch.bfloat16)
    low_gradient = flat.grad.to(torch.bfloat16)

    def stage3():
        flat.grad.copy_(low_gradient)
        deepspeed.step()
        low.copy_(flat.data)

    arms = {"deepspeed": deepspeed.step, "stage3": stage3, "torch": fused.step}
    for line in sys.stdin:
        arm = arms[line.strip()]
        seconds = []
        for _ in range(PASSES + 1):
            start = time.monotonic()
            arm()
            seconds.append(time.monotonic() - start)
        print(json.dumps(seconds[1:]), flush=True)


if __name__ == "__main__":
    serve(int(sys.argv[1]))
