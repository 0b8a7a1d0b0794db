"""A codebook packed once for many lookups.

Letters: K codes, C channels.
"""

import torch
from torch import Tensor

from soho_fast.ops import checks
from soho_fast.ops.backends import LIBRARY, backend_for, define_op, lookup_level, op_of
from soho_fast.ops.codebook_lookup.reference import METRICS, Metric
from soho_fast.ops.codebook_lookup.subspace import check_subspace, codebook_subspace, paying_subspace, pays


class PreparedCodebook:
    """A snapshot of a codebook with what the lookup otherwise derives from it on every call.

    It is a copy: a later change of the tensor it was made of does not reach it. Make a new one after such a change.
    What deepcopy, pickle, `torch.save` and a spawned process make of it is another snapshot of the same codebook,
    packed again where it arrives; `torch.load` takes it with `weights_only=True`, too.

    Attributes:
        codebook: the snapshot, float32 (..., K, C), not to be written to: a lookup refuses it after that, in a compiled
            graph as well. Not noticed are writes past torch's version counter (`.data`, numpy), within the very graph
            that looks up, and in an exported program or a CUDA graph captured by hand, which keep what they hold.
        subspace: its principal subspace for low-dimensional pruning, float32 (..., C, D), or None.
        shape: of the codebook.
        metric: of the lookups.
        plan: how lookups run, in words.
    """

    def __init__(
        self,
        codebook: Tensor,
        backend: str | None = None,
        metric: Metric = "euclidean",
        subspace: Tensor | bool | None = None,
    ) -> None:
        check_metric(metric)
        checks.check_codebook(codebook, with_values=True)
        if subspace is not None and not isinstance(subspace, bool):
            check_subspace(subspace, codebook)
        with torch.inference_mode(False), torch.no_grad():  # an inference tensor would not count its versions
            self._codebook = codebook.detach().float().clone(memory_format=torch.contiguous_format)
        self._version = self._codebook._version
        self._asked = backend
        self._metric = metric
        self._backend = backend_for("pack_codebook", backend, codebook.device, lacking_metric(metric))
        if subspace is None and self._backend == "cpu" and metric == "euclidean" and pays(*codebook.shape[-2:]):
            subspace = paying_subspace(self._codebook)
        elif isinstance(subspace, bool):
            subspace = codebook_subspace(self._codebook) if subspace else None
        self.subspace = None if subspace is None else subspace.detach().clone()
        op = op_of("pack_codebook", self._backend, codebook.device)
        self._packed = op(self.codebook, self.subspace, METRICS.index(metric))
        best = backend_for("codebook_lookup", None, codebook.device, lacking_metric(metric))
        # Not where the lookup would now take another backend than the one that packed.
        is_plain = self._backend == best == "cpu" and codebook.dim() == 2
        self.at_once = (metric, self._codebook, self._packed) if is_plain else None

    def __reduce__(self) -> tuple[type["PreparedCodebook"], tuple]:
        # The packed form is of this build and of the CPU level in use: it does not travel. Nor does the memory, which
        # a spawned process would share with the one that wrote it.
        self.refuse_written()
        subspace = False if self.subspace is None else self.subspace
        return PreparedCodebook, (self.codebook, self._asked, self._metric, subspace)

    @property
    def codebook(self) -> Tensor:
        return self._codebook

    @property
    def shape(self) -> torch.Size:
        return self.codebook.shape

    @property
    def metric(self) -> Metric:
        return self._metric

    @property
    def plan(self) -> str:
        """How lookups run, such as "cpu avx512, pruning in 32 dimensions"; their result does not depend on it."""
        num_codes, num_channels = self.shape[-2:]
        level = f" {lookup_level(num_codes, num_channels)}" if self._backend == "cpu" else ""
        pruning = "" if self.subspace is None else f", pruning in {self.subspace.shape[-1]} dimensions"
        return self._backend + level + pruning

    def refuse_written(self) -> None:
        """ValueError if the snapshot was written to."""
        if self._codebook._version != self._version:
            _refuse_written(self._codebook, self._version)

    def packed_for(self, backend: str) -> Tensor | None:
        """What the backend's kernel reads; None where the codebook was prepared for another backend."""
        if not torch.compiler.is_compiling():
            self.refuse_written()
        # Only the kernel that has packed them can read these bytes.
        return self._packed if backend == self._backend else None

    def checked(self, results: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The results of a lookup in this codebook. In a graph that is being compiled they depend on a check that runs
        with it: what `packed_for` sees is seen once, when the graph is made."""
        # An exported program that was saved and loaded holds another tensor, whose versions are not ours to compare.
        if not torch.compiler.is_compiling() or torch.compiler.is_exporting():
            return results
        zero = torch.ops.soho_fast.snapshot_check.default(self.codebook, self._version)
        # Or a compiler would leave out a check whose result is not used.
        return tuple(result + zero for result in results)

    def __repr__(self) -> str:
        return f"PreparedCodebook(shape={tuple(self.shape)}, device={self.codebook.device})"


def _refuse_written(codebook: Tensor, version: int) -> None:
    if codebook._version != version:
        raise ValueError("codebook: the prepared snapshot was written to; prepare the changed codebook instead")


def check_metric(metric: object) -> None:
    """ValueError unless it is the name of a metric."""
    if metric not in METRICS:
        raise ValueError(f"metric: expected one of {', '.join(METRICS)}, got {metric!r}")


def lacking_metric(metric: Metric) -> dict[str, str]:
    """Of the backends without the metric the reason, for `backend_for`."""
    return {} if metric == "euclidean" else dict.fromkeys(("triton", "cuda"), f"it has no metric {metric!r}")


def prepare_codebook(
    codebook: Tensor,
    *,
    metric: Metric = "euclidean",
    subspace: Tensor | bool | None = None,
    backend: str | None = None,
) -> PreparedCodebook:
    """Pack a codebook once, for many lookups in it: inference, k-means assignment over batches.

    The result goes where `codebook_lookup` takes a codebook and gives the same indices. It is a snapshot; see
    `PreparedCodebook`. Where the CPU level is changed afterwards the lookup packs on each call.

    Args:
        codebook: (K, C) or (..., K, C) float32, bfloat16 or float16.
        metric: "euclidean", "cosine" or "dot": that of the lookups to come.
        subspace: for low-dimensional pruning, as in `codebook_lookup`; True finds it (`codebook_subspace`), False
            leaves pruning out, None finds it on a CPU where it can pay.
        backend: as in `codebook_lookup`.

    Raises:
        TypeError: not a tensor of a supported type.
        ValueError: a shape without codes, a meta tensor, an unknown metric, a subspace of another shape, or a backend
            that cannot serve the call.
    """
    return PreparedCodebook(codebook, backend, metric, subspace)


def _pack_fake(codebook: Tensor, subspace: Tensor | None = None, metric: int = 0) -> Tensor:
    size = torch.library.get_ctx().new_dynamic_size()  # known to the kernel's level alone
    return codebook.new_empty((codebook.shape[:-2].numel(), size), dtype=torch.uint8)


define_op(
    "pack_codebook",
    "(Tensor codebook, Tensor? subspace=None, int metric=0) -> Tensor",
    reference=lambda codebook, *_: codebook.new_empty((codebook.shape[:-2].numel(), 0), dtype=torch.uint8),
    fake=_pack_fake,
)


def _snapshot_check(codebook: Tensor, version: int) -> Tensor:
    _refuse_written(codebook, version)
    return codebook.new_zeros((), dtype=torch.int64)


LIBRARY.define(
    "snapshot_check(Tensor codebook, SymInt version) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag, torch.Tag.cudagraph_unsafe),  # has to run each time
)
LIBRARY.impl("snapshot_check", _snapshot_check, "CompositeExplicitAutograd")
torch.library.register_fake(
    "soho_fast::snapshot_check", lambda codebook, version: codebook.new_empty((), dtype=torch.int64), lib=LIBRARY
)
torch.serialization.add_safe_globals([PreparedCodebook])
