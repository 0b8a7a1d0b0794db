"""One of two processes of `measured.py`: python two_ranks.py FOLDER RANK; writes what a step gives into collectives."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.plan.small import ACCUMULATED, real_inputs, small_work
from soho_fast.common.processes import Processes
from soho_fast.engine.distributed import deepspeed_config, start_engine, start_processes
from soho_fast.engine.optimizer import SgdAdamW, optimizer_groups

STAGES = (0, 1)


class Traffic(TorchDispatchMode):
    """Bytes by kind of collective: the sum of all ranks for what is reduced, what a rank receives for the rest."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes: dict[str, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func.namespace == "c10d":
            tensors = [leaf for leaf in tree_leaves(args[0]) if isinstance(leaf, torch.Tensor)]
            name = func._opname.strip("_").removesuffix("_base")
            size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
            self.bytes[name] = self.bytes.get(name, 0) + size
        return func(*args, **(kwargs or {}))


def step_traffic(processes: Processes, stage: int, frozen: bool) -> dict[str, int]:
    """Of the second optimiser step: in the first the ranks agree on where they start."""
    work = small_work(gpus=2)
    torch.manual_seed(0)
    model, settings = work.make_model(), work.recipe
    model.watch_features()
    settings.engine.zero_stage = stage
    config = deepspeed_config(
        settings.engine, "float32", micro_batch_size=2, gradient_accumulation_steps=ACCUMULATED, clip=10.0
    )
    optimizer = SgdAdamW(optimizer_groups(model, settings.optim))
    engine = start_engine(model, optimizer, config, processes)
    engine.train()
    engine.module.freeze_backbone(frozen)
    for group in engine.basic_optimizer.param_groups:
        group["lr"] = 1e-4
    for _ in range(2):
        with Traffic() as traffic:
            engine.module.begin_step()
            for _ in range(ACCUMULATED):
                engine.backward(engine(**real_inputs(work, 2)).loss)
                engine.step()
            engine.module.end_step(applied=True)
    return traffic.bytes


if __name__ == "__main__":
    folder, rank = Path(sys.argv[1]), int(sys.argv[2])
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank), "LOCAL_SIZE": "2"}
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    processes = start_processes(threads=1)
    found = [(stage, frozen, step_traffic(processes, stage, frozen)) for frozen in (False, True) for stage in STAGES]
    (folder / f"{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()
