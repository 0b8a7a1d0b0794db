"""A module's codebooks, looked up exactly, and packed once for as long as they stay as they are.

Letters: N features, L levels, K codes, C channels.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from soho_fast import ops
from soho_fast.ops.codebook_lookup import reference
from soho_fast.ops.codebook_lookup.reference import Metric


def nearest_code(features_NC: Tensor, codebook_KC: Tensor, metric: Metric = "euclidean") -> Tensor:
    """`ops.codebook_lookup`; where one of the two is float64, its plain-torch reference."""
    if torch.float64 in (features_NC.dtype, codebook_KC.dtype):
        number = reference.METRICS.index(metric)
        return reference.codebook_lookup(features_NC.detach(), codebook_KC.detach(), False, False, metric=number)[1]
    (features_NC, codebook_KC), metric = _as_served((features_NC, codebook_KC), metric)
    return ops.codebook_lookup(features_NC, codebook_KC, metric=metric)


def _as_served(vectors: tuple[Tensor, ...], metric: Metric) -> tuple[tuple[Tensor, ...], Metric]:
    """What the device's kernels are given. Those of GPUs know distances alone: for a cosine float32 unit vectors."""
    if metric != "cosine" or vectors[0].device.type == "cpu":
        return vectors, metric
    return tuple(nn.functional.normalize(vector.float(), dim=-1) for vector in vectors), "euclidean"


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


class _Kept:
    """What is made of tensors, as long as they stay as they are. Copies and pickles of it are empty.

    Attributes:
        num_drops: how many reports came that they changed in a way that torch does not count.
    """

    __slots__ = ("_entry", "num_drops")

    def __init__(self) -> None:
        self._entry: tuple[Watch, Any] | None = None
        self.num_drops = 0

    def __reduce__(self) -> tuple[type["_Kept"], tuple[()]]:
        return type(self), ()

    def drop(self) -> None:
        self._entry = None
        self.num_drops += 1


class KeptCodebook(_Kept):
    """The lookup in the codebook of a module, or those of its levels, which are prepared when two calls in a row find
    them unchanged."""

    __slots__ = ()

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

    def nearest_code(self, features_NC: Tensor, codebook_KC: Tensor, metric: Metric) -> Tensor:
        """Index int64 (N,) of the code nearest to each feature, by the one metric of the module.

        Args:
            features_NC: (N, C). codebook_KC: (K, C), as the module holds it. Or a batch of both, (H, N, C), (H, K, C).
        """

        def prepare() -> ops.PreparedCodebook:
            (codes_KC,), served = _as_served((codebook_KC,), metric)
            return ops.prepare_codebook(codes_KC, metric=served)

        if is_recorded(features_NC) or torch.float64 in (features_NC.dtype, codebook_KC.dtype):
            return nearest_code(features_NC, codebook_KC, metric)
        prepared = self._prepared((codebook_KC,), prepare)
        if prepared is None:
            return nearest_code(features_NC, codebook_KC, metric)
        (features_NC,), served = _as_served((features_NC,), metric)
        return ops.codebook_lookup(features_NC, prepared, metric=served)

    def residual_lookup(self, features: Tensor, codebooks: Sequence[Tensor]) -> tuple[Tensor, Tensor] | None:
        """`ops.residual_lookup` of features (..., N, C) in the codebooks (K, C) or (1, K, C) of L levels: index int64
        (..., N, L), quantized (..., N, C). None where the caller has to go from level to level instead: before the
        codebooks are prepared, and where what is left of the features would not be float32 or no kernel has all levels.
        """
        if len(codebooks) < 2 or features.device.type != "cpu" or features.dtype == torch.float64:
            return None
        first = codebooks[0]
        if is_recorded(features) or any(one.dtype != torch.float32 or one.shape != first.shape for one in codebooks):
            return None

        def prepare() -> ops.PreparedCodebook:
            codes = [one.detach().flatten(0, -2) for one in codebooks]
            return ops.prepare_codebook(codes[0] if all(one is first for one in codebooks) else torch.stack(codes))

        prepared = self._prepared(codebooks, prepare)
        if prepared is None:
            return None
        return ops.residual_lookup(features.detach(), prepared, num_levels=len(codebooks))


class Made(_Kept):
    """A tensor that is made of others, and made again when they change."""

    __slots__ = ()

    def of(self, make: Callable[..., Tensor], first: Tensor, second: Tensor, *others: Any) -> Tensor:
        """`make(first, second, *others)`, or what it gave when the two tensors were last what they are now."""
        if is_recorded(first):
            return make(first, second, *others)
        entry = self._entry
        if entry is not None and entry[0].holds(first, second):
            return entry[1]
        seen = Watch.of(first, second)
        with torch.inference_mode(False), torch.no_grad():  # an inference tensor would not count its versions
            made = make(first, second, *others)
        self._entry = None if seen is None else (seen, made)
        return made
