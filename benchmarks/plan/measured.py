"""What a plan says beside what is measured on this machine's CPU: operations, memory, bytes between two ranks."""

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.plan.small import ACCUMULATED, real_inputs, small_work
from soho_fast.plan import memory
from soho_fast.plan.fake import fake_model, run_step

ROOT = Path(__file__).resolve().parents[2]
IMAGES = 4


@dataclass(frozen=True)
class Row:
    """A figure of the plan and the same measured, in `unit`; `tolerance` is how far they may be apart, a share."""

    what: str
    unit: str
    plan: int
    measured: int
    tolerance: float

    @property
    def apart(self) -> float:
        """Share of what is measured."""
        return abs(self.plan - self.measured) / self.measured


def of_a_step(recomputed: bool) -> list[Row]:
    """Operations and memory of a step in float32, with or without activation checkpointing."""
    work, mode, num_labelled = small_work(), FakeTensorMode(), 0
    torch.manual_seed(0)
    model = work.make_model().train()
    fake = fake_model(work.make_model, torch.float32, mode)
    if recomputed:
        for each in (model, fake):
            each.activation_checkpointing_enable({"use_reentrant": False})

    def step(counter: FlopCounterMode | None = None) -> int:
        nonlocal num_labelled
        model.begin_step()
        output = model(**real_inputs(work, IMAGES))
        num_labelled, loss = len(output.mvm_targets), output.loss
        del output
        forward = counter.get_total_flops() if counter is not None else 0
        loss.backward()
        model.end_step(applied=True)
        return forward

    for _ in range(2):  # From now on gradients are there, and the lookup keeps its subspace for some steps.
        step()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, with_flops=True) as profiled:
        step()
    with FlopCounterMode(display=False) as counter:
        forward = step(counter)
    for _ in range(3):
        inputs = partial(work.inputs, work.largest, IMAGES)
        cost = run_step(fake, inputs, mode, num_labelled=num_labelled, as_on_gpu=False)
    name = ", activation checkpointing" if recomputed else ""
    rows = [
        Row(f"forward{name}", "operations", int(sum(cost.forward.values())), forward, 0.0),
        Row(f"forward and backward{name}", "operations", int(cost.operations), counter.get_total_flops(), 0.0),
        Row(f"peak of the step{name}", "bytes", cost.peak, _peak(profiled), 0.03),
    ]
    if not recomputed:
        # The profiler has formulas of its own, and none for the backward of a convolution.
        convolutions = int(cost.forward["backbone"] + cost.forward["neck"])
        profiled_convolutions = sum(event.flops or 0 for event in profiled.events() if event.name == "aten::conv2d")
        rows.append(Row("CNN and neck, forward, by the profiler", "operations", convolutions, profiled_convolutions, 0))
    return rows


def _peak(profiled: profile) -> int:
    """Largest sum of what torch's allocator gave since the beginning of the profile."""
    events = [event for event in profiled.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak


def of_two_ranks() -> list[Row]:
    """Bytes of an optimiser step of two processes on gloo, through DeepSpeed, at ZeRO stage 0 and 1."""
    with tempfile.TemporaryDirectory() as folder:
        launched = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_SIZE", "MASTER_ADDR", "MASTER_PORT")
        path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        environment = {name: value for name, value in os.environ.items() if name not in launched}
        environment |= {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "benchmarks.plan.two_ranks", folder]
        ranks = [
            subprocess.Popen([*command, rank], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
            for rank in "01"
        ]
        try:
            said = [rank.communicate(timeout=600)[0].decode() for rank in ranks]
        finally:
            for rank in ranks:
                rank.kill()
        if any(rank.returncode for rank in ranks):
            raise RuntimeError("\n".join(said))
        counted = json.loads((Path(folder) / "0.json").read_text())
    work, rows = small_work(gpus=2), []
    with torch.device("meta"):
        sizes = memory.Sizes.of(work.make_model())
    for stage, frozen, found in counted:
        name = f"ZeRO {stage}{', the CNN frozen' * frozen}"
        gradients = sizes.trained - sizes.backbone if frozen and stage else sizes.trained
        plan = memory.exchanged(sizes, stage, "float32", 2, ACCUMULATED, gradients)
        gathered = plan.pop("parameters, gathered", 0)
        plan |= memory.exchanged_by_model(work.config, 3, ACCUMULATED, watched=True)
        # What is more are norms of gradients and paddings, some numbers each.
        rows.append(Row(f"reduced, {name}", "bytes", sum(plan.values()), found["allreduce"], 1e-6))
        if gathered:
            rows.append(Row(f"gathered, {name}", "bytes", gathered, found["allgather"], 1e-6))
    return rows


def as_markdown(rows: list[Row]) -> str:
    """A table."""
    lines = ["| | plan | measured | apart |", "|---|---|---|---|"]
    lines += [f"| {row.what}, {row.unit} | {row.plan:,} | {row.measured:,} | {row.apart:.2%} |" for row in rows]
    return "\n".join(lines)
