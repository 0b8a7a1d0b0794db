"""Processes that train together: start-up (process group, device, precision, DeepSpeed's configuration, by where the
training runs), the statistics that they share, and whether all that they train is still finite."""

import contextlib
import ctypes
import errno
import logging
import mmap
import os
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import distributed_c10d

from soho_fast.common.errors import UserError, environment_number, environment_rank, listed, print_line
from soho_fast.common.processes import Processes
from soho_fast.common.shared_arrays import HAS_MEMORY_FILES, machine_name, memory_file, path_for_others
from soho_fast.engine.settings import EngineSettings
from soho_fast.engine.watchdog import Peers, watch_peers

try:
    import deepspeed
except ValueError as error:  # of DS_ACCELERATOR
    raise UserError(str(error)) from error
from deepspeed import DeepSpeedEngine
from deepspeed.accelerator import get_accelerator

LOOPBACK = "127.0.0.1"
# fp16 starts with a loss scale of 2 to this power, DeepSpeed's own default.
LOSS_SCALE_POWER = 16
# Of DeepSpeed's launcher, where none is given.
_DEFAULT_PORT = "29500"
# Machines may be started by hand, one after another.
_PATIENCE = timedelta(minutes=10)
_NEVER = timedelta(days=365)
_LETTING_GO = 0.2  # seconds
_ROOM_OF_THREADS = 64 << 20  # bytes
# Of glibc's mallopt: how many blocks are mapped by themselves, and how much free memory the heap may end with.
_MOST_MAPPED, _MOST_FREE = (-4, 0), (-1, 1 << 30)


def _keep_freed_memory() -> None:
    """glibc hands large blocks back to the system when they are freed, and the next step's are then new pages that are
    filled with zeros: a quarter of the time of recipe `own` in batches of 128. Another C library is left as it is."""
    if not any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ):
        with contextlib.suppress(AttributeError, OSError, TypeError):
            for parameter, value in (_MOST_MAPPED, _MOST_FREE):
                ctypes.CDLL(None).mallopt(parameter, value)


def start_processes(timeout: float = 0) -> Processes:
    """Join the launcher's process group, or form a group of one, which needs no port. On a CPU the processes share
    the machine's cores, where OMP_NUM_THREADS does not say how many threads each has.

    Args:
        timeout: seconds that a collective waits for another process, which then counts as failed; 0: for good.

    Raises:
        UserError: the port by which several processes meet is taken, or some of them have not come, or the launcher's
            variables do not fit.
    """
    for name in ("WORLD_SIZE", "LOCAL_SIZE", "LOCAL_WORLD_SIZE", "MASTER_PORT"):
        if not 0 < (number := environment_number(name, 1)) < 2**16:
            raise UserError(f"{name}: expected 1 to 65535, got {number}")
    (rank, _), world = environment_rank(), environment_number("WORLD_SIZE", 1)
    if rank >= world:
        raise UserError(f"RANK: expected a number below WORLD_SIZE, {world}, got {rank}")
    together = world > 1
    for name in ("RANK", "MASTER_PORT"):
        if together and name not in os.environ:
            raise UserError(f"{name}: expected it from what starts {world} processes, got none")
    if together and not (_is_one_machine() or os.environ.get("MASTER_ADDR")):
        raise UserError("MASTER_ADDR: expected the first machine's address, got none")
    if together and not dist.is_initialized():
        _choose_port()
    deepspeed.utils.logger.setLevel(logging.ERROR)
    # DeepSpeed would probe for compilers here, and compile its shared-memory all-reduce, which only its inference uses.
    deepspeed.ops.__compatible_ops__ = {"deepspeed_shm_comm": False}
    accelerator = get_accelerator()
    if not accelerator.is_available():
        raise UserError(
            f"DS_ACCELERATOR: {accelerator.device_name()} is not available here; expected one that is, or cpu"
        )
    local_world = environment_number("LOCAL_SIZE", environment_number("LOCAL_WORLD_SIZE", 1))
    on_cpu = accelerator.device_name() == "cpu"
    if on_cpu:
        _keep_freed_memory()
    if on_cpu and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // local_world))
    _, local_rank = environment_rank()
    if not dist.is_initialized():
        store: dist.Store = dist.HashStore()
        if not on_cpu:
            accelerator.set_device(local_rank)
        if together:
            store, rank, world = _meet()
            # The default of all groups, since DeepSpeed makes some of its own and hands them none.
            distributed_c10d.default_pg_timeout = timedelta(seconds=timeout) if timeout else _NEVER
            distributed_c10d.default_pg_nccl_timeout = distributed_c10d.default_pg_timeout
        else:
            # DeepSpeed asks for LOCAL_RANK even in a group of one.
            for name, value in {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_SIZE": "1"}.items():
                os.environ.setdefault(name, value)
        # Where `ulimit -v` leaves no room for gloo's threads, C++ would end this process without a line.
        mmap.mmap(-1, _ROOM_OF_THREADS, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS).close()
        # Here and not in DeepSpeed, which would meet by MASTER_ADDR instead of this store; it takes over the group.
        dist.init_process_group(accelerator.communication_backend_name(), store=store, rank=rank, world_size=world)
    deepspeed.init_distributed(auto_mpi_discovery=False, verbose=False)
    device = torch.device(accelerator.device_name(local_rank) if not on_cpu else "cpu")
    group: Any = None
    if dist.get_world_size() > 1:
        # What is gathered are objects and CPU tensors, which NCCL cannot carry.
        group = dist.group.WORLD if dist.get_backend() == "gloo" else dist.new_group(backend="gloo")
    processes = Processes(dist.get_rank(), dist.get_world_size(), local_rank, device, group)
    if group is not None and HAS_MEMORY_FILES:
        _watch(processes, timeout)
    return processes


def _watch(processes: Processes, timeout: float) -> None:
    """Let `Peers` tell which process has failed where a collective does."""
    with memory_file() as file:
        file.truncate(processes.world)
        ranks = processes.gather((machine_name(), os.getpid(), socket.gethostname(), path_for_others(file)))
        first = next(path for machine, _, _, path in ranks if machine == ranks[processes.rank][0])
        with open(first, "r+b") as shared:
            board = mmap.mmap(shared.fileno(), 0)
        watch_peers(Peers(processes.rank, [each[:3] for each in ranks], board, timeout))
        # Not closed before all have opened it.
        processes.wait()


def _meet() -> tuple[dist.Store, int, int]:
    """The store by which the processes find each other, this one's rank, and how many there are."""
    port = environment_number("MASTER_PORT", int(_DEFAULT_PORT))
    try:
        store, rank, world = _own_store(port) or next(iter(dist.rendezvous("env://", timeout=_PATIENCE)))
        # torchrun keeps its store when it starts the processes again, with what those before have left in it.
        store = dist.PrefixStore(f"start {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
        come = store.add(f"rank {rank}", 1)
    except (OSError, dist.DistError) as error:
        if getattr(error, "errno", None) == errno.EADDRINUSE or "EADDRINUSE" in str(error):
            raise UserError(
                f"port {port}, by which the processes meet, is taken, perhaps by another run on this machine; give "
                f"another: deepspeed --master_port {port + 1} ..."
            ) from error
        raise UserError(
            f"not all of the {os.environ['WORLD_SIZE']} processes have come within {_PATIENCE.seconds // 60} minutes "
            f"to {os.environ.get('MASTER_ADDR', LOOPBACK)}:{port}: {str(error).splitlines()[0]}"
        ) from error
    if come > 1:
        raise UserError(
            f"rank {rank}'s place is taken: another process has come as this rank; give each process a RANK of its "
            "own, and another run another MASTER_PORT"
        )
    return store, rank, world


def _own_store(port: int) -> tuple[dist.Store, int, int] | None:
    """Of processes of one machine: a store that no other machine reaches. None where there are others, or where
    torchrun has one."""
    if not _is_one_machine() or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        return None
    rank, world = environment_number("RANK", 0), environment_number("WORLD_SIZE", 0)
    # What gloo and NCCL exchange goes the same way; "lo" is the loopback device's name on Linux.
    if "lo" in [name for _, name in socket.if_nameindex()]:
        for library in ("GLOO", "NCCL"):
            os.environ.setdefault(f"{library}_SOCKET_IFNAME", "lo")
    # TCPStore opens a port to all interfaces; it is handed this one, which only this machine reaches.
    listener = socket.create_server((LOOPBACK, port)).detach() if rank == 0 else None
    store = dist.TCPStore(LOOPBACK, port, world, rank == 0, _PATIENCE, master_listen_fd=listener)
    return store, rank, world


def _is_one_machine() -> bool:
    """Whether the launcher started all processes here; torchrun says it by another name."""
    return os.environ.get("LOCAL_SIZE", os.environ.get("LOCAL_WORLD_SIZE")) == os.environ["WORLD_SIZE"]


def _choose_port() -> None:
    """Sets MASTER_PORT where all processes are of one machine and DeepSpeed's launcher was given none.

    Two launchers would both say 29500. The launcher, whose number is unlike another's, is the parent of them all.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        return  # torchrun has the port already, and has chosen it.
    if _is_one_machine() and os.environ.get("MASTER_PORT") == _DEFAULT_PORT:
        # Below 32768, from where on Linux by default gives ports to outgoing connections.
        os.environ["MASTER_PORT"] = str(10_000 + os.getppid() % 20_000)


def leave_processes() -> None:
    """Leave the process group, so that the interpreter ends without a warning."""
    if dist.is_initialized():
        sys.stdout.flush()
        if dist.get_world_size() > 1:
            # Gloo's threads let go of a collective's tensors some time after it, for which they need a living
            # interpreter: without one they abort the process. torch has no call that waits for that.
            time.sleep(_LETTING_GO)
        # Where DeepSpeed has begun it has to hear of it, or the next run of this process would be given dead groups.
        (deepspeed.comm if deepspeed.comm.is_initialized() else dist).destroy_process_group()


def choose_precision(settings: EngineSettings) -> str:
    """Resolve `auto`; what is asked for and the device does not have is emulated, which a warning says.

    Returns:
        "float32", "bf16" or "fp16".
    """
    accelerator = get_accelerator()
    name = accelerator.device_name()
    supported = {
        "float32": True,
        "fp16": bool(accelerator.is_fp16_supported()),
        # DeepSpeed counts cards that can only emulate it.
        "bf16": torch.cuda.is_bf16_supported(including_emulation=False)
        if name == "cuda"
        else bool(accelerator.is_bf16_supported()),
    }
    if settings.precision == "auto":
        # In this order: bf16 has float32's range, and needs no loss scale.
        on_gpu = ["bf16", "fp16"] if name != "cpu" else []
        return next((precision for precision in on_gpu if supported[precision]), "float32")
    if not supported[settings.precision]:
        able = " or ".join(precision for precision, yes in supported.items() if yes)
        if environment_rank()[0] == 0:
            print_line(
                f"warning: engine.precision: {settings.precision} is emulated, slowly: this device ({name}) computes "
                f"in {able}"
            )
        # DeepSpeed asks the accelerator object itself; torch emulates both types on any CPU.
        accelerator.is_fp16_supported = accelerator.is_bf16_supported = lambda: True
    return settings.precision


def zero_stage(settings: EngineSettings, precision: str) -> int:
    """The stage that DeepSpeed runs; see `deepspeed_config`."""
    return max(settings.zero_stage, 1 if precision == "fp16" else 0)


def deepspeed_config(
    settings: EngineSettings, precision: str, *, micro_batch_size: int, gradient_accumulation_steps: int, clip: float
) -> dict:
    """DeepSpeed's JSON configuration.

    bf16 at stage 0 is `torch_autocast`: parameters, gradients and optimiser are float32, the forward's products are
    taken in bfloat16. There is no loss scale and nothing to partition.

    fp16, and bf16 at stages 1 to 3, use DeepSpeed's own engine (parameters cast, float32 master weights in the
    optimiser, dynamic loss scale), not `torch_autocast`: in 0.19.8 that clips ZeRO's gradients while the scale is still
    in them, updates the scale once per parameter group, and leaves it out of the checkpoint. The engine casts
    parameters only: BatchNorm statistics and the codebook stay float32.

    Stage 0 in fp16 runs as stage 1. DeepSpeed 0.19.8's stage 0 optimiser divides fp16 gradients by a loss scale that
    its `backward` never applied: AdamW hides it, SGD does not move.
    """
    stage = zero_stage(settings, precision)
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": micro_batch_size,
        "gradient_accumulation_steps": gradient_accumulation_steps,
        "gradient_clipping": clip,
        "steps_per_print": sys.maxsize,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "fp16": {"enabled": precision == "fp16", "initial_scale_power": LOSS_SCALE_POWER},
        "bf16": {"enabled": precision == "bf16" and stage > 0},
        "torch_autocast": {"enabled": precision == "bf16" and stage == 0, "dtype": "bfloat16"},
        "zero_optimization": {"stage": stage},
        # It would hash the tag on all ranks and compare; a tag follows from the step, on which they agree.
        "checkpoint": {"tag_validation": "Ignore"},
    }
    if stage == 1 and get_accelerator().device_name() == "cpu":
        # Copies every gradient once more, against a fragmentation that device memory knows.
        config["zero_optimization"]["contiguous_gradients"] = False
    if stage == 3:
        config["zero_optimization"] |= {
            # Small parameters (norms, biases, the mask vector) are read outside their module's forward.
            "stage3_param_persistence_threshold": 100_000,
        }
    return config


def start_engine(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer, config: dict, processes: Processes
) -> deepspeed.DeepSpeedEngine:
    """DeepSpeed's engine around model and optimiser; `config` as `deepspeed_config` gives it."""
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config, dist_init_required=False)
    if processes.world == 1 and config["zero_optimization"]["stage"] == 0:
        # It would copy all gradients into one buffer, sum that over this one process and copy it back.
        engine.enable_backward_allreduce = False
    return engine


def forget_gradients(engine: DeepSpeedEngine) -> None:
    """Before a step's first backward. DeepSpeed 0.19.8's ZeRO 3 overwrites gradients of an earlier step by new ones and
    forgets none: what has no gradient any more, as a backbone that was frozen, would count in the norm for good."""
    if engine.zero_optimization_stage() == 3:
        engine.optimizer.grad_partitions_flat_buffer.zero_()


@torch.no_grad()
def average_batch_norm(model: nn.Module, processes: Processes) -> None:
    """Average BatchNorm's running statistics over the ranks, in one buffer.

    They are exponential means of each rank's own batches, hence linear in them: averaging now and then gives the same
    as averaging at each step, to rounding. The training losses read them only where the backbone or its BatchNorm is
    frozen.
    """
    if processes.world == 1:
        return
    statistics = [
        buffer
        for module in model.modules()
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d))
        for buffer in (module.running_mean, module.running_var)
        if buffer is not None
    ]
    if statistics:
        flat = torch.cat([buffer.reshape(-1).double() for buffer in statistics])
        dist.all_reduce(flat)
        flat /= processes.world
        for buffer, part in zip(statistics, flat.split([buffer.numel() for buffer in statistics]), strict=True):
            buffer.copy_(part.view_as(buffer))


def describe_non_finite(engine: DeepSpeedEngine) -> list[str]:
    """What of this rank's parameters, buffers and optimiser state holds Inf or NaN, in words; empty where nothing.

    Under ZeRO this is the rank's own part of what is partitioned.
    """
    named = list(_state(engine))
    if _all_finite([tensor for _, tensor in named]):
        return []
    # The quick look also says no where a sum of squares is too large for float32.
    bad = [name for name, tensor in named if not bool(torch.isfinite(tensor).all())]
    if not bad:
        return []
    return [f"{len(bad)} of {len(named)} tensors ({listed(bad)})"]


def _all_finite(tensors: Sequence[Tensor]) -> bool:
    # A norm is one read, a fifth of the time of `isfinite`; that of a float16 tensor would overflow in float16.
    wide = [tensor for tensor in tensors if tensor.dtype != torch.float16]
    wide += [torch.linalg.vector_norm(t, dtype=torch.float32) for t in tensors if t.dtype == torch.float16]
    return bool(nn.utils.get_total_norm(wide).isfinite())


def _state(engine: DeepSpeedEngine) -> Iterator[tuple[str, Tensor]]:
    """Floating-point tensors, each once, with a name."""
    names = {}
    for name, parameter in engine.module.named_parameters():
        names[parameter] = name
        # Under ZeRO 3 the parameter itself may hold nothing between uses; `ds_tensor` is this rank's part.
        yield name, getattr(parameter, "ds_tensor", parameter).detach()
    for name, buffer in engine.module.named_buffers():
        if buffer.is_floating_point():
            yield name, buffer
    optimizer = engine.basic_optimizer
    # At stage 0 these are the model's own, named above; under ZeRO they are flat partitions.
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            names.setdefault(parameter, f"a partition of {group['name']}")
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, Tensor) and value.is_floating_point():
                yield f"{name} of {names.get(parameter, 'a partition')}", value


def whole(parameters: Sequence[nn.Parameter], stage: int) -> contextlib.AbstractContextManager[Any]:
    """Within it these parameters can be read on each rank; under ZeRO 3 all ranks enter and leave it together."""
    if stage < 3 or not parameters:
        return contextlib.nullcontext()
    return deepspeed.zero.GatheredParameters(list(parameters))


def whole_state(engine: DeepSpeedEngine) -> dict[str, torch.Tensor]:
    """The model's state; under ZeRO 3 gathered on rank 0, empty on the others. All ranks make the call."""
    model = engine.module
    if engine.zero_optimization_stage() < 3:
        return model.state_dict()
    with deepspeed.zero.GatheredParameters(list(model.parameters())):
        # Inside: entering and leaving gather and partition, in which all ranks take part.
        if dist.get_rank():
            return {}
        state = model.state_dict(keep_vars=True)
        # Tied weights stay one tensor, which is how a saved model knows that they are.
        copies = {id(tensor): tensor.detach().to("cpu", copy=True) for tensor in state.values()}
        return {name: copies[id(tensor)] for name, tensor in state.items()}
