"""A module's codebooks, looked up exactly, and prepared once for as long as they stay as they are.

Letters: N features, L levels, K codes, C channels.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from soho_fast import ops
from soho_fast.adapters.swapping import Swapped
from soho_fast.ops.codebook_lookup import reference
from soho_fast.ops.codebook_lookup.reference import Metric


def nearest_code(features_NC: Tensor, codebook_KC: Tensor, metric: Metric = "euclidean") -> Tensor:
    """`ops.codebook_lookup`; where one of the two is float64, its plain-torch reference."""
    if torch.float64 in (features_NC.dtype, codebook_KC.dtype):
        number = reference.METRICS.index(metric)
        return reference.codebook_lookup(features_NC.detach(), codebook_KC.detach(), False, False, metric=number)[1]
    return ops.codebook_lookup(features_NC, codebook_KC, metric=metric)


def is_recorded(tensor: Tensor) -> bool:
    """Whether this call becomes part of a graph (compiled, traced or captured), which will run when weights differ."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return True
    return tensor.is_cuda and torch.cuda.is_current_stream_capturing()


class Watch:
    """Tells whether tensors are still the ones that were seen, with what was in them.

    Their objects, memory, layout and version counters are compared; the memory is held, so that its address cannot be
    given to something else. Not noticed is what torch does not count: a write through `.data` or numpy.
    """

    __slots__ = ("_seen",)

    def __init__(self, *tensors: Tensor) -> None:
        self._seen = tuple((tensor, tensor.detach(), tensor._version, *_place(tensor)) for tensor in tensors)

    @staticmethod
    def of(*tensors: Tensor) -> "Watch | None":
        """None where torch does not count the changes of one: inference tensors, memory that another process may write
        to, and tensors that only stand for others."""
        for tensor in tensors:
            if type(tensor) not in (Tensor, nn.Parameter) or tensor.is_meta or tensor.is_inference():
                return None
            try:
                tensor.data_ptr()
            except RuntimeError:  # of torch.func
                return None
            if tensor.device.type == "cpu" and tensor.is_shared():
                return None
        return Watch(*tensors)

    def holds(self, *tensors: Tensor) -> bool:
        if len(tensors) != len(self._seen):
            return False
        for tensor, (then, memory, version, *place) in zip(tensors, self._seen, strict=True):
            if tensor is not then or not (tensor._version == memory._version == version):
                return False
            if _place(tensor) != tuple(place):
                return False
        return True


def _place(tensor: Tensor) -> tuple[int, torch.dtype, torch.Size, tuple[int, ...]]:
    return tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()


class KeptCodebook:
    """The lookup in the codebook of a module, or those of its levels, which are prepared when two calls in a row find
    them unchanged. Copies and pickles of it are empty.

    Attributes:
        num_drops: how many reports came that they changed in a way that torch does not count.
    """

    __slots__ = ("_entry", "num_drops")

    def __init__(self) -> None:
        self._entry: tuple[Watch, ops.PreparedCodebook | None] | None = None
        self.num_drops = 0

    def __reduce__(self) -> tuple[type["KeptCodebook"], tuple[()]]:
        return type(self), ()

    def drop(self) -> None:
        self._entry = None
        self.num_drops += 1

    @property
    def is_prepared(self) -> bool:
        return self._entry is not None and self._entry[1] is not None

    def _prepared(
        self, codebooks: Sequence[Tensor], prepare: Callable[[], ops.PreparedCodebook]
    ) -> ops.PreparedCodebook | None:
        """What was prepared of the codebooks; None where the call before this one did not find them as they are."""
        entry = self._entry  # read once: threads may share the module
        if entry is None or not entry[0].holds(*codebooks):
            seen = Watch.of(*codebooks)
            self._entry = None if seen is None else (seen, None)
            return None
        watch, prepared = entry
        if prepared is None:
            prepared = prepare()
            self._entry = watch, prepared
        return prepared

    def nearest_code(self, features_HNC: Tensor, codebook_HKC: Tensor, metric: Metric) -> Tensor:
        """Index int64 (H, N) of the code nearest to each feature, by the one metric of the module; the codebook as the
        module holds it."""
        prepared = self._prepared((codebook_HKC,), lambda: ops.prepare_codebook(codebook_HKC, metric=metric))
        return ops.codebook_lookup(features_HNC, codebook_HKC if prepared is None else prepared, metric=metric)

    def residual_lookup(self, features: Tensor, codebooks: Sequence[Tensor]) -> tuple[Tensor, Tensor] | None:
        """`ops.residual_lookup` of float32 features (..., N, C) in the codebooks (1, K, C) of L levels: index int64
        (..., N, L), quantized (..., N, C). None where the caller has to go from level to level instead: before the
        codebooks are prepared, and where no kernel has all levels.
        """
        first = codebooks[0]
        if len(codebooks) < 2 or features.device.type != "cpu":
            return None
        if any(one.dtype != torch.float32 or one.shape != first.shape for one in codebooks):
            return None

        def prepare() -> ops.PreparedCodebook:
            codes = [one.detach().flatten(0, -2) for one in codebooks]
            return ops.prepare_codebook(codes[0] if all(one is first for one in codebooks) else torch.stack(codes))

        prepared = self._prepared(codebooks, prepare)
        if prepared is None:
            return None
        return ops.residual_lookup(features.detach(), prepared, num_levels=len(codebooks))


class Keeping(Swapped):
    """A module's class that keeps what it prepares of codebooks, and drops it where it trains."""

    _kept: KeptCodebook

    def begin(self) -> None:
        self._kept = KeptCodebook()

    def end(self) -> None:
        del self._kept

    def train(self, mode: bool = True) -> Any:
        self._kept.drop()  # some optimisers write past the version counter
        return super().train(mode)  # type: ignore[misc]
