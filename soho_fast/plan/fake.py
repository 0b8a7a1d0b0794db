"""A training step on fake tensors: what it computes, by part, and what it holds in memory.

B images, P pairs, S words, T places of a pair, N tokens, K codes, C channels.
"""

import bisect
import math
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, register_flop_formula
from torch.utils.hooks import RemovableHandle

from soho_fast import ops
from soho_fast.model import SohoPreTrainedModel

PARTS = ("backbone", "neck", "dictionary", "Transformer", "heads", "other")
DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_PRECISIONS = {dtype: name for name, dtype in DTYPES.items()}
# Neither read nor write the memory of their tensors.
_FREE = {torch.ops.prim.device, torch.ops.aten._unsafe_view, torch.ops.aten.empty, torch.ops.aten.empty_like}
_FREE |= {torch.ops.aten.empty_strided, torch.ops.aten.new_empty, torch.ops.aten.new_empty_strided}
HEADS = ("head", "mlm_head", "mvm_head", "itm_head", "bag_of_words_head", "contrastive_head")


class Kernel(NamedTuple):
    """What one call on the device computes and moves.

    Args:
        part: Of `PARTS`.
        precision: That of its first tensor: "float32", "bf16" or "fp16".
        operations: Multiplications and additions of products.
        bytes: Of its tensors, each read or written once.
    """

    part: str
    precision: str
    operations: float
    bytes: int


@dataclass
class StepCost:
    """What one micro-batch takes.

    Args:
        forward, backward: Operations (multiplications and additions) by part, of `PARTS`; a forward that activation
            checkpointing repeats is the backward's.
        kernels: How often each is called.
        peak: Most bytes alive at once beside parameters, their gradients and buffers: the batch, and what forward and
            backward keep.
        gradients: Elements of the parameters that get a gradient.
    """

    forward: dict[str, float] = field(default_factory=dict)
    backward: dict[str, float] = field(default_factory=dict)
    kernels: Counter[Kernel] = field(default_factory=Counter)
    peak: int = 0
    gradients: int = 0

    @property
    def operations(self) -> float:
        """All of them."""
        return sum(self.forward.values()) + sum(self.backward.values())


def fake_model(make: Callable[[], nn.Module], dtype: torch.dtype, mode: FakeTensorMode) -> Any:
    """The model with parameters that have no values, in training mode; floating-point buffers stay float32.

    A fake tensor says that it is on a CPU: torch's meta device knows no autocast and no backends of our ops.
    """
    with torch.device("meta"):
        model = make().to(dtype)
    with mode:
        made: dict[int, tuple[Tensor, Tensor]] = {}
        for module in model.modules():
            for name, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
                if id(tensor) not in made:
                    values = torch.empty(tensor.shape, dtype=tensor.dtype)
                    if isinstance(tensor, nn.Parameter):
                        values = nn.Parameter(values, requires_grad=tensor.requires_grad)
                    made[id(tensor)] = values, tensor
                setattr(module, name, made[id(tensor)][0])
    return model.train()


def run_step(
    model: SohoPreTrainedModel,
    inputs: Callable[[], dict[str, Tensor]],
    mode: FakeTensorMode,
    *,
    num_labelled: int,
    as_on_gpu: bool = True,
    autocast: bool = False,
) -> StepCost:
    """Forward and backward of one micro-batch.

    Args:
        model: What `fake_model` gave.
        inputs: Makes the keywords of the model's forward.
        mode: The model's.
        num_labelled: Masked visual tokens of the batch, which follow from values.
        as_on_gpu: Attention and dropout keep what a GPU's kernels keep: attention by parts, without the table of
            weights, and dropout a byte for each value.
        autocast: Products in bfloat16 of float32 parameters, as at ZeRO stage 0.
    """
    cost, reached = StepCost(), set[nn.Parameter]()
    with mode, ExitStack() as stack:
        own = [tensor.untyped_storage() for tensor in (*model.parameters(), *model.buffers())]
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.grad = torch.zeros_like(parameter)
                own.append(parameter.grad.untyped_storage())
                stack.callback(parameter.register_post_accumulate_grad_hook(reached.add).remove)
        parts = _Parts(model)
        stack.callback(parts.remove)
        meter = stack.enter_context(Meter(own, parts, num_labelled))
        if as_on_gpu:
            stack.enter_context(kernels_of_gpu())
        model.begin_step()
        batch = inputs()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = model(**batch).loss
        forward = meter.take()
        loss.backward()
        model.end_step(applied=True)
        backward, cost.peak = meter.take(), meter.peak
        cost.forward.update(_by_part(forward))
        cost.backward.update(_by_part(backward))
        cost.kernels, cost.gradients = forward + backward, sum(parameter.numel() for parameter in reached)
        model.zero_grad(set_to_none=True)
    return cost


def _by_part(kernels: Counter[Kernel]) -> dict[str, float]:
    operations = dict.fromkeys(PARTS, 0.0)
    for kernel, number in kernels.items():
        operations[kernel.part] += number * kernel.operations
    return operations


class _Parts:
    """The part of the model that computes: in forward by its modules, in backward by the number of the graph's node.

    (`ModuleTracker` counts a convolution's gradient for another one too, where both read the same features.)
    """

    def __init__(self, model: SohoPreTrainedModel) -> None:
        self._within = ["other"]
        self._begins: list[int] = [0]
        self._parts: list[str] = ["other"]
        self._handles: list[RemovableHandle] = []
        names = {
            "soho.visual_encoder": "backbone",
            "soho.visual_encoder.projection": "neck",
            **dict.fromkeys(("soho.feature_norm", "soho.visual_dictionary", "soho.fusion"), "dictionary"),
            "soho.encoder": "Transformer",
            **dict.fromkeys(HEADS, "heads"),
        }
        for name, module in model.named_modules():
            # The contrastive head's linear layers are called, it itself is not.
            part = "heads" if name.startswith("contrastive_head.") else names.get(name)
            if part is not None:
                enter, leave = partial(self._enter, part), self._leave
                self._handles.append(module.register_forward_pre_hook(enter))
                self._handles.append(module.register_forward_hook(leave))

    def _enter(self, part: str, *_: object) -> None:
        self._within.append(part)
        self._mark()

    def _leave(self, *_: object) -> None:
        self._within.pop()
        self._mark()

    def _mark(self) -> None:
        self._begins.append(torch._C._autograd._get_sequence_nr())
        self._parts.append(self._within[-1])

    def now(self) -> str:
        """The part whose operation runs."""
        node = torch._C._current_autograd_node()
        if node is None:
            return self._within[-1]
        return self._parts[bisect.bisect_right(self._begins, node._sequence_nr()) - 1]

    def remove(self) -> None:
        """Take the hooks off the model."""
        for handle in self._handles:
            handle.remove()


class Meter(TorchDispatchMode):
    """Counts kernels and the bytes of all storages alive; answers what the host asks the device for.

    Args:
        own: Storages that are not counted: those of parameters, gradients and buffers.
        parts: Says to which part of the model a kernel belongs.
        num_labelled: Masked visual tokens of the batch.
    """

    def __init__(self, own: list[torch.UntypedStorage], parts: Any, num_labelled: int) -> None:
        super().__init__()
        self.own = {id(storage): storage for storage in own}
        self.parts, self.num_labelled = parts, num_labelled
        self.alive = self.peak = 0
        self._kernels: Counter[Kernel] = Counter()
        self._known: dict[int, weakref.ref] = {}

    def take(self) -> Counter[Kernel]:
        """The kernels since the last call."""
        taken, self._kernels = self._kernels, Counter()
        return taken

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.aten._local_scalar_dense.default:
            return 1  # a count of steps, or whether the dictionary has its codes
        if func is torch.ops.aten.nonzero.default:
            return args[0].new_empty((self.num_labelled, args[0].dim()), dtype=torch.int64)
        result = func(*args, **kwargs)
        read, written = _tensors((args, kwargs)), _tensors(result)
        if not (func.is_view or func._overloadpacket in _FREE):
            formula = flop_registry.get(func._overloadpacket)
            operations = formula(*args, **kwargs, out_val=result) if formula is not None else 0
            precision = _PRECISIONS.get(read[0].dtype if read else torch.float32, "float32")
            # What an expanded tensor repeats is read once.
            moved = sum(min(t.numel() * t.element_size(), t.untyped_storage().nbytes()) for t in [*read, *written])
            self._kernels[Kernel(self.parts.now(), precision, operations, moved)] += 1
        for leaf in written:
            self._count(leaf.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key = id(storage)  # torch keeps the object while the storage lives
        if key in self.own or key in self._known:
            return
        size = storage.nbytes()
        self.alive += size
        self.peak = max(self.peak, self.alive)

        def gone(_: object) -> None:
            self.alive -= size
            self._known.pop(key, None)

        self._known[key] = weakref.ref(storage, gone)


def _tensors(values: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


@contextmanager
def kernels_of_gpu() -> Iterator[None]:
    """What a GPU would call: memory-efficient attention (which takes a mask), the fused dropout, and a lookup without
    the subspace that it takes on a CPU.

    They stand in for torch's own functions, since a mode for functions does not reach what a backward pass runs again.
    """
    with ExitStack() as stack:
        for owner, name, other in (
            (F, "scaled_dot_product_attention", _efficient_attention),
            (F, "dropout", _fused_dropout),
            (ops.MovingSubspace, "of", lambda subspace, codebook: None),
        ):
            stack.callback(setattr, owner, name, getattr(owner, name))
            setattr(owner, name, other)
        yield


def _efficient_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    **_: object,
) -> Tensor:
    bias = attn_mask
    if bias is not None:
        if bias.dtype == torch.bool:
            bias = torch.zeros_like(bias, dtype=query.dtype).masked_fill_(bias.logical_not(), float("-inf"))
        bias = bias.expand(*query.shape[:-1], key.shape[-2])
    return torch.ops.aten._scaled_dot_product_efficient_attention(
        query, key, value, bias, True, dropout_p, is_causal, scale=scale
    )[0]


def _fused_dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    return torch.native_dropout(input, p, True)[0] if training and p > 0 else input


def _lookup_operations(features: torch.Size, codebook: torch.Size, *_: object, **__: object) -> int:
    """The products of all tokens with all codes, 2 N K C, as an exact search without shortcuts takes."""
    return 2 * math.prod(features) * codebook[-2]


def _stats_operations(features: torch.Size, *_: object, **__: object) -> int:
    """One addition for each channel of each token."""
    return math.prod(features)


for _name, _formula in (("codebook_lookup", _lookup_operations), ("codebook_stats", _stats_operations)):
    for _backend in ("reference", "cpu"):
        if hasattr(torch.ops.soho_fast, f"{_name}_{_backend}"):
            register_flop_formula(getattr(torch.ops.soho_fast, f"{_name}_{_backend}"))(_formula)
