#!/usr/bin/env python3
"""DeepSpeed's own optimizer swappers, driven as its ZeRO stage 3 drives them.

The classes are those of the package: PipelinedOptimizerSwapper, or PartitionedOptimizerSwapper
with --no-pipeline, with DeepSpeedCPUAdam between swap-in and swap-out. What is written here is only
what stage 3 does around them, in its order, with the accelerator left out:

  start     sub-groups of whole parameters; initialize_parameters; one swap-in and swap-out of each
            (initialize_optimizer_states)
  backward  per parameter, last first: the bf16 gradient widened to fp32, swap_out_gradients
  step      per sub-group: swap in, the next one prefetched; the gradient scaled; the update; the
            bf16 parameter copied; swap out

Not counted for DeepSpeed: the norm of the gradients and the copy from the accelerator, which run
there. A step is timed from the first gradient to the last swap-out, gradients included, on every
rank after a barrier; its time is the slowest rank's. Needs benches/peers/setup.

  target/peers/python/bin/python benches/peers/deepspeed_swapper.py --drive DIR --params 64Mi \\
      --ranks 2 --block-size 1048576 --queue-depth 32 --json FILE
"""

import argparse
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
# The folder above has to be known first.
from harness import elements, torch_environment  # noqa: E402

LR, BETAS, EPS, WEIGHT_DECAY = 1e-3, (0.9, 0.999), 1e-8, 0.01


def arguments():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--drive", required=True, help="directory on the drive (nvme_path)")
    parser.add_argument("--params", type=elements, default="64Mi", help="over all ranks")
    parser.add_argument("--param-elements", type=elements, default="4Mi", help="one parameter")
    parser.add_argument("--sub-group", type=elements, default="16Mi", help="sub_group_size")
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--block-size", type=int, default=1 << 20, help="aio.block_size")
    parser.add_argument("--queue-depth", type=int, default=8, help="aio.queue_depth")
    parser.add_argument("--parallelism", type=int, default=1, help="aio.intra_op_parallelism")
    parser.add_argument("--pipeline", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--buffer-count", type=int, help="default: 12 pipelined, else 4")
    parser.add_argument("--verify", action="store_true", help="compare with torch's AdamW in memory")
    parser.add_argument("--json", help="write the result to this file")
    parser.add_argument("--rank", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.buffer_count = args.buffer_count or (12 if args.pipeline else 4)
    if args.params % args.ranks or (args.params // args.ranks) % args.param_elements:
        parser.error("--params must be whole parameters of --param-elements for every rank")
    return args


def kernel_bytes():
    with open("/proc/self/io", encoding="ascii") as lines:
        counts = dict(line.split(": ") for line in lines)
    return int(counts["read_bytes"]), int(counts["write_bytes"])


class Stage3:
    """The part of stage 3 around the swapper, for one rank's partition."""

    def __init__(self, args, rank):
        import torch
        from deepspeed.ops.adam import DeepSpeedCPUAdam
        from deepspeed.runtime.swap_tensor.aio_config import get_aio_config
        from deepspeed.runtime.swap_tensor.partitioned_optimizer_swapper import (
            PartitionedOptimizerSwapper,
        )
        from deepspeed.runtime.swap_tensor.pipelined_optimizer_swapper import (
            PipelinedOptimizerSwapper,
        )
        from deepspeed.runtime.zero.offload_config import DeepSpeedZeroOffloadOptimizerConfig

        self.torch = torch
        partition = args.params // args.ranks
        self.param_numel = args.param_elements
        self.groups = self.cut(partition, args.param_elements, args.sub_group)
        generator = torch.Generator().manual_seed(1000 + rank)
        self.params = torch.empty(partition, dtype=torch.bfloat16)
        self.gradients = torch.empty(partition, dtype=torch.bfloat16)
        for start in range(0, partition, args.param_elements):
            piece = slice(start, start + args.param_elements)
            values = torch.randn(args.param_elements, generator=generator)
            self.params[piece] = values * 0.02
            self.gradients[piece] = torch.randn(args.param_elements, generator=generator) * 1e-3

        config = DeepSpeedZeroOffloadOptimizerConfig(
            device="nvme",
            nvme_path=args.drive,
            buffer_count=args.buffer_count,
            pipeline_read=args.pipeline,
            pipeline_write=args.pipeline,
        )
        aio = {
            "block_size": args.block_size,
            "queue_depth": args.queue_depth,
            "intra_op_parallelism": args.parallelism,
        }
        # The optimizer is made with the flat parameters, which then come and go one at a time.
        self.flat = []
        for first, last in self.groups:
            flat = torch.nn.Parameter(torch.empty(0), requires_grad=True)
            # Stage 3's name of a sub-group: the first and the last of its parameters.
            flat.ds_id = f"{first}_{last}"
            self.flat.append(flat)
        self.optimizer = DeepSpeedCPUAdam(
            self.flat, lr=LR, betas=BETAS, eps=EPS, weight_decay=WEIGHT_DECAY, adamw_mode=True
        )
        self.optimizer.param_groups[0]["params"] = []
        folder = os.path.join(args.drive, "zero_stage_3")
        os.makedirs(folder, exist_ok=True)
        swapper = PipelinedOptimizerSwapper if config.pipeline else PartitionedOptimizerSwapper
        self.swapper = swapper(
            swap_config=config,
            aio_config=get_aio_config({"aio": aio}),
            base_folder=folder,
            optimizer=self.optimizer,
            largest_numel=max(self.numel(group) for group in range(len(self.groups))),
            device="cpu",
            dtype=torch.float32,
            timers=None,
        )
        sources = [self.params[self.range(group)] for group in range(len(self.groups))]
        self.swapper.initialize_parameters(parameters=self.flat, src_tensors=sources)
        for group in range(len(self.groups)):
            self.swap_in(group)
            self.swap_out(group)

    @staticmethod
    def cut(partition, param_numel, sub_group):
        """Parameters are added until the sub-group has its size; none is split."""
        groups, first, numel = [], 0, 0
        count = partition // param_numel
        for param in range(count):
            numel += param_numel
            if numel >= sub_group or param == count - 1:
                groups.append((first, param))
                first, numel = param + 1, 0
        return groups

    def range(self, group):
        first, last = self.groups[group]
        return slice(first * self.param_numel, (last + 1) * self.param_numel)

    def numel(self, group):
        first, last = self.groups[group]
        return (last - first + 1) * self.param_numel

    def next(self, group):
        return self.flat[group + 1] if group + 1 < len(self.flat) else None

    def swap_in(self, group):
        self.swapper.swap_in_optimizer_state(
            parameter=self.flat[group], async_parameter=self.next(group)
        )

    def swap_out(self, group):
        self.swapper.swap_out_optimizer_state(
            parameter=self.flat[group], async_swap=self.next(group) is not None
        )

    def backward(self):
        """Gradients become complete from the last parameter to the first."""
        for group in reversed(range(len(self.groups))):
            first, last = self.groups[group]
            for param in range(last, first - 1, -1):
                start = param * self.param_numel
                gradient = self.gradients[start : start + self.param_numel].to(self.torch.float32)
                self.swapper.swap_out_gradients(
                    parameter=self.flat[group],
                    gradient_offsets=[(param - first) * self.param_numel],
                    gradient_tensors=[gradient],
                )

    def step(self):
        for group, flat in enumerate(self.flat):
            self.swap_in(group)
            flat.grad.mul_(1.0)
            self.optimizer.param_groups[0]["params"] = [flat]
            self.optimizer.step()
            self.optimizer.param_groups[0]["params"] = []
            self.params[self.range(group)].copy_(flat.data)
            self.swap_out(group)

    def masters(self):
        """Reads every master back, sub-group by sub-group, as a step would."""
        for group, flat in enumerate(self.flat):
            self.swap_in(group)
            yield self.range(group), flat.data.clone()
            self.swap_out(group)


def rank_main(args):
    os.environ.update(
        RANK=str(args.rank),
        LOCAL_RANK=str(args.rank),
        WORLD_SIZE=str(args.ranks),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(args.port),
    )
    import deepspeed
    import torch

    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // args.ranks))
    deepspeed.init_distributed(dist_backend="gloo", verbose=False)
    job = Stage3(args, args.rank)
    reference = Reference(torch, job.params) if args.verify else None
    seconds, cpu_seconds = [], 0.0
    for step in range(args.warmup + args.steps):
        job.gradients.mul_(-0.75)
        torch.distributed.barrier()
        if step == args.warmup:
            before, cpu_before, begin = kernel_bytes(), time.process_time(), time.monotonic()
        start = time.monotonic()
        job.backward()
        job.step()
        seconds.append(time.monotonic() - start)
        if reference:
            reference.step(job.gradients)
    elapsed = time.monotonic() - begin
    cpu_seconds = time.process_time() - cpu_before
    after = kernel_bytes()
    result = {
        "step_seconds": seconds[args.warmup :],
        "elapsed_seconds": elapsed,
        "cpu_seconds": cpu_seconds,
        "read_bytes": after[0] - before[0],
        "written_bytes": after[1] - before[1],
        "locked_bytes": args.buffer_count * job.swapper.largest_numel * 4,
        "sub_groups": len(job.groups),
        "versions": {"torch": torch.__version__, "deepspeed": deepspeed.__version__},
    }
    if reference:
        result["verified"] = reference.compare(job.masters())
    torch.distributed.barrier()
    with open(args.json, "w", encoding="ascii") as out:
        json.dump(result, out)


class Reference:
    """torch's AdamW over the whole partition, in memory."""

    def __init__(self, torch, params):
        self.torch = torch
        self.master = torch.nn.Parameter(params.to(torch.float32))
        self.optimizer = torch.optim.AdamW(
            [self.master], lr=LR, betas=BETAS, eps=EPS, weight_decay=WEIGHT_DECAY
        )

    def step(self, gradients):
        self.master.grad = gradients.to(self.torch.float32)
        self.optimizer.step()

    def compare(self, masters):
        """The largest difference, relative to a step of the learning rate; refused beyond 0.1 %."""
        worst = 0.0
        for piece, master in masters:
            difference = (master - self.master.data[piece]).abs().max().item()
            worst = max(worst, difference / LR)
        if not worst < 1e-3:
            sys.exit(f"masters differ from AdamW in memory by {worst} learning rates")
        return worst


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def main():
    args = arguments()
    if args.rank is not None:
        rank_main(args)
        return
    port = free_port()
    cores = len(os.sched_getaffinity(0))
    environment = torch_environment(max(1, cores // args.ranks))
    with tempfile.TemporaryDirectory() as folder:
        files = [os.path.join(folder, f"{rank}.json") for rank in range(args.ranks)]
        ranks = []
        for rank, file in enumerate(files):
            own = ["--rank", str(rank), "--port", str(port), "--json", file]
            command = [sys.executable, *sys.argv, *own]
            log = open(os.path.join(folder, f"{rank}.log"), "w", encoding="utf-8")
            ranks.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))
        failed = [rank for rank, process in enumerate(ranks) if process.wait() != 0]
        shutil.rmtree(os.path.join(args.drive, "zero_stage_3"), ignore_errors=True)
        if failed:
            with open(os.path.join(folder, f"{failed[0]}.log"), encoding="utf-8") as log:
                sys.exit(f"rank {failed[0]} failed:\n{log.read()[-4000:]}")
        results = []
        for file in files:
            with open(file, encoding="ascii") as text:
                results.append(json.load(text))
    publish(args, results)


def publish(args, ranks):
    steps = [max(step) for step in zip(*(rank["step_seconds"] for rank in ranks))]
    moved = args.params * args.steps
    result = {
        "swapper": "PipelinedOptimizerSwapper" if args.pipeline else "PartitionedOptimizerSwapper",
        "update": "DeepSpeedCPUAdam",
        "versions": ranks[0]["versions"],
        "ranks": args.ranks,
        "params": args.params,
        "sub_group": args.sub_group,
        "block_size": args.block_size,
        "queue_depth": args.queue_depth,
        "intra_op_parallelism": args.parallelism,
        "buffer_count": args.buffer_count,
        "buffer_bytes_per_rank": ranks[0]["locked_bytes"],
        "step_seconds": steps,
        "ns_per_param": statistics.median(steps) * 1e9 / args.params,
        "bytes_read_per_param": sum(rank["read_bytes"] for rank in ranks) / moved,
        "bytes_written_per_param": sum(rank["written_bytes"] for rank in ranks) / moved,
        "cpu_seconds_per_step": sum(rank["cpu_seconds"] for rank in ranks) / args.steps,
        "verified": max(rank.get("verified", -1.0) for rank in ranks) if args.verify else None,
        "rank_results": ranks,
    }
    text = json.dumps(result, indent=2)
    if args.json:
        with open(args.json, "w", encoding="ascii") as out:
            out.write(text + "\n")
    print(
        f"{result['swapper']}, {args.ranks} ranks: {result['ns_per_param']:.1f} ns per parameter, "
        f"{result['bytes_read_per_param']:.2f} B read and "
        f"{result['bytes_written_per_param']:.2f} B written per parameter"
        + (f", within {result['verified']:.1e} learning rates of AdamW" if args.verify else "")
    )


if __name__ == "__main__":
    main()
