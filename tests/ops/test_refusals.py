"""Arguments that the ops refuse: the error's type, and a message that names the argument, what was expected and what
came. What only a kernel can see, an index beyond the codebook, is tested at every level beside its op."""

import functools
import itertools
import math

import numpy as np
import pytest
import torch

from soho_fast import ops
from soho_fast.ops import (
    codebook_ema_,
    codebook_lookup,
    codebook_stats,
    codebook_subspace,
    group_mask,
    prepare_codebook,
    residual_lookup,
    rotation_trick,
    sample_group,
    scatter_mean_ema_,
    set_cpu_level,
    straight_through,
    triton_backend,
)
from soho_fast.ops.nn import VectorQuantizer

pytestmark = pytest.mark.skipif(triton_backend.INTERPRETING, reason="no kernel is reached")


def ones(*shape):
    return torch.ones(shape)


def written_to(codebook):
    """A prepared codebook whose snapshot was changed."""
    prepared = prepare_codebook(codebook)
    prepared.codebook.neg_()
    return prepared


def whole(*shape):
    return torch.zeros(shape, dtype=torch.int64)


FLOATS = "float32, bfloat16, float16"
LOOKUP = [  # (call, exception, what the message names: the argument first)
    (lambda: codebook_lookup([1.0], ones(2, 2)), TypeError, ("features", "torch.Tensor", "list")),
    (lambda: codebook_lookup(ones(2, 2), None), TypeError, ("codebook", "torch.Tensor", "NoneType")),
    (lambda: codebook_lookup(ones(2, 2).double(), ones(2, 2)), TypeError, ("features", FLOATS, "float64")),
    (lambda: codebook_lookup(ones(2, 2), whole(2, 2)), TypeError, ("codebook", FLOATS, "int64")),
    (lambda: codebook_lookup(ones(2, 2).to_sparse(), ones(2, 2)), TypeError, ("features", "dense", "sparse_coo")),
    (lambda: codebook_lookup(ones(2, 2), ones(2, 2).to_sparse()), TypeError, ("codebook", "dense", "sparse_coo")),
    (lambda: codebook_lookup(ones(2, 2).to_sparse_csr(), prepare_codebook(ones(2, 2))), TypeError,
     ("features", "dense", "sparse_csr")),
    (lambda: prepare_codebook(ones(2, 2).to("meta")), ValueError, ("codebook", "values", "meta")),
    (lambda: codebook_subspace(ones(2, 2).to("meta")), ValueError, ("codebook", "values", "meta")),
    (lambda: codebook_lookup(ones(2), ones(2, 2)), ValueError, ("features", "at least 2 dimensions", "(2,)")),
    (lambda: codebook_lookup(ones(2, 2), ones(2)), ValueError, ("codebook", "(K, C)", "(2,)")),
    (lambda: codebook_lookup(ones(2, 2), ones(0, 2)), ValueError, ("codebook", "with a code", "(0, 2)")),
    (lambda: codebook_lookup(ones(4, 3), ones(2, 2)), ValueError, ("codebook", "3 channels", "(4, 3)", "(2, 2)")),
    (lambda: codebook_lookup(ones(2, 5, 3), ones(3, 2, 3)), ValueError, ("codebook", "batch shape", "(2,)", "(3,)")),
    (lambda: codebook_lookup(ones(2, 3).to("meta"), ones(2, 3)), ValueError, ("codebook", "device meta", "got cpu")),
    (lambda: codebook_lookup(ones(5, 8), ones(4, 8), warm_start=whole(5).int()), TypeError,
     ("warm_start", "int64", "int32")),
    (lambda: codebook_lookup(ones(5, 8), ones(4, 8), warm_start=whole(4)), ValueError, ("warm_start", "(5,)", "(4,)")),
    (lambda: codebook_lookup(ones(5, 8), prepare_codebook(ones(4, 8)), subspace=ones(8, 2)), ValueError,
     ("subspace", "None", "a prepared codebook has its own")),
    (lambda: codebook_lookup(ones(2, 3), prepare_codebook(ones(2, 4))), ValueError,
     ("codebook", "3 channels", "(2, 4)")),
    *((lambda op=op: op(ones(2, 4), prepare_codebook(ones(3, 4)), whole(2)), TypeError,
       ("codebook", "a torch.Tensor, got PreparedCodebook; pass its `codebook`"))
      for op in (straight_through, rotation_trick)),
    (lambda: straight_through(ones(2, 4), ones(3, 4), whole(1)), ValueError, ("index", "(2,)", "(..., N)", "(1,)")),
]  # fmt: skip

PREPARE = [
    (lambda: codebook_lookup(ones(2, 3), written_to(ones(2, 3))), ValueError, ("codebook", "snapshot", "written to")),
    (lambda: residual_lookup(ones(2, 3), written_to(ones(1, 2, 3))), ValueError,
     ("codebook", "snapshot", "written to")),
    (lambda: prepare_codebook([1.0]), TypeError, ("codebook", "torch.Tensor", "list")),
    (lambda: prepare_codebook(ones(3)), ValueError, ("codebook", "(K, C)", "(3,)")),
    (lambda: prepare_codebook(ones(0, 3)), ValueError, ("codebook", "with a code", "(0, 3)")),
    (lambda: prepare_codebook(ones(2, 3).double()), TypeError, ("codebook", FLOATS, "float64")),
    (lambda: ops.PreparedCodebook(ones(2, 3).double()), TypeError, ("codebook", FLOATS, "float64")),
    (lambda: ops.PreparedCodebook(ones(2, 3).to("meta")), ValueError, ("codebook", "values", "meta")),
    (lambda: ops.PreparedCodebook(ones(2, 3), metric="l2"), ValueError, ("metric", "euclidean", "'l2'")),
    (lambda: ops.PreparedCodebook(ones(2, 3), subspace=ones(4, 1)), ValueError, ("subspace", "C = 3", "(4, 1)")),
    (lambda: codebook_subspace(ones(4, 8), dimensions=0), ValueError, ("dimensions", "1 to 8", "got 0")),
    (lambda: codebook_subspace(ones(4, 8), dimensions=9), ValueError, ("dimensions", "1 to 8", "got 9")),
    (lambda: codebook_subspace(ones(4, 8), dimensions=True), TypeError, ("dimensions", "an int", "got bool")),
    (lambda: codebook_subspace(ones(4, 8), dimensions=3, start=ones(8, 2)), ValueError,
     ("dimensions", "2 as start", "got 3")),
    (lambda: ops.MovingSubspace(0), ValueError, ("interval", "at least 1", "got 0")),
]  # fmt: skip

TAKE_A_SUBSPACE = (
    lambda subspace: codebook_lookup(ones(5, 8), ones(4, 8), subspace=subspace),
    lambda subspace: prepare_codebook(ones(4, 8), subspace=subspace),
    lambda subspace: codebook_subspace(ones(4, 8), start=subspace),
)
SUBSPACES = [
    (ones(8, 2).double(), TypeError, ("subspace", "float32", "float64")),
    ([1.0], TypeError, ("subspace", "torch.Tensor", "list")),
    (ones(7, 2), ValueError, ("subspace", "C = 8", "(7, 2)")),
    (ones(8, 0), ValueError, ("subspace", "C = 8", "(8, 0)")),
    (ones(8, 129), ValueError, ("subspace", "C = 8", "(8, 129)")),
    (ones(3, 8, 2), ValueError, ("subspace", "C = 8", "(3, 8, 2)")),
]
SUBSPACE = [
    (functools.partial(call, subspace), error, named)
    for (subspace, error, named), call in itertools.product(SUBSPACES, TAKE_A_SUBSPACE)
]


def look_up_by_another_metric(of, asked):
    codebook_lookup(ones(2, 3), prepare_codebook(ones(4, 3), metric=of), metric=asked)


TAKE_A_METRIC = (
    lambda **metric: codebook_lookup(ones(2, 3), ones(4, 3), **metric),
    lambda **metric: prepare_codebook(ones(4, 3), **metric),
)
METRIC = [
    *((functools.partial(call, metric=unknown), ValueError, ("metric", "euclidean, cosine, dot", f"got {unknown!r}"))
      for unknown, call in itertools.product(("l2", "Cosine", None, 1), TAKE_A_METRIC)),
    *((functools.partial(call, metric=metric, backend=name), ValueError,
       ("backend", repr(name), f"it has no metric {metric!r}"))
      for metric, name, call in itertools.product(("cosine", "dot"), ("triton", "cuda"), TAKE_A_METRIC)),
    *((functools.partial(look_up_by_another_metric, of, asked), ValueError,
       ("metric", f"expected {of!r}", "prepared", f"got {asked!r}"))
      for of, asked in itertools.permutations(("euclidean", "cosine", "dot"), 2)),
]  # fmt: skip

TOPK = [
    (lambda topk=topk, codes=codes: codebook_lookup(ones(2, 3), codes(ones(4, 3)), topk=topk), error, ("topk", *named))
    for topk, error, named in (
        (1, ValueError, ("2 to 16", "got 1")),
        (17, ValueError, ("2 to 16", "got 17")),
        (2.0, TypeError, ("an int", "got float")),
        (True, TypeError, ("an int", "got bool")),
        (5, ValueError, ("number of codes 4", "got 5")),
    )
    for codes in (torch.clone, prepare_codebook)
]

SINGLE = ones(4, 3)
RESIDUAL = [
    (lambda: residual_lookup([1.0], SINGLE[None]), TypeError, ("features", "torch.Tensor", "list")),
    (lambda: residual_lookup(SINGLE, [SINGLE]), TypeError, ("codebooks", "torch.Tensor", "list")),
    (lambda: residual_lookup(SINGLE.double(), SINGLE[None]), TypeError, ("features", FLOATS, "float64")),
    (lambda: residual_lookup(SINGLE[0], SINGLE[None]), ValueError, ("features", "at least 2 dimensions", "(3,)")),
    (lambda: residual_lookup(SINGLE, SINGLE[0]), ValueError, ("codebooks", "(L, K, C)", "(K, C)", "(3,)")),
    (lambda: residual_lookup(SINGLE, SINGLE[None, None]), ValueError, ("codebooks", "(L, K, C)", "(1, 1, 4, 3)")),
    (lambda: residual_lookup(SINGLE, ones(2, 0, 3)), ValueError, ("codebooks", "with a code", "(2, 0, 3)")),
    (lambda: residual_lookup(SINGLE, ones(2, 4, 5)), ValueError, ("codebooks", "3 channels", "(4, 3)", "(2, 4, 5)")),
    (lambda: residual_lookup(SINGLE, SINGLE), ValueError, ("num_levels", "the number of levels", "got None")),
    (lambda: residual_lookup(SINGLE, SINGLE[None], num_levels=2), ValueError, ("num_levels", "expected 1", "got 2")),
    (lambda: residual_lookup(SINGLE, SINGLE, num_levels=0), ValueError, ("num_levels", "at least 1", "got 0")),
    (lambda: residual_lookup(SINGLE, ones(0, 4, 3)), ValueError, ("num_levels", "at least 1", "got 0")),
    (lambda: residual_lookup(SINGLE, SINGLE, num_levels=2.0), TypeError, ("num_levels", "an int", "got float")),
    (lambda: residual_lookup(SINGLE.to("meta"), SINGLE[None]), ValueError, ("codebooks", "device meta", "got cpu")),
    (lambda: residual_lookup(SINGLE, prepare_codebook(SINGLE[None], metric="dot")), ValueError,
     ("codebooks", "'euclidean'", "'dot'")),
]  # fmt: skip

STATS = [
    (lambda: codebook_stats(ones(4, 2), whole(4), 0), ValueError, ("num_codes", "at least 1", "got 0")),
    (lambda: codebook_stats(ones(4, 2), whole(4), 2.0), TypeError, ("num_codes", "an int", "got float")),
    (lambda: codebook_stats(ones(4, 2), whole(4).int(), 3), TypeError, ("index", "int64", "int32")),
    (lambda: codebook_stats(ones(4, 2), whole(3), 3), ValueError, ("index", "(4,)", "(3,)")),
    (lambda: codebook_stats(ones(4, 2), whole(4), 3, valid=whole(4)), TypeError, ("valid", "bool", "int64")),
    (lambda: codebook_stats(ones(4, 2), whole(4), 3, valid=whole(2).bool()), ValueError, ("valid", "(4,)", "(2,)")),
    (lambda: codebook_stats(ones(4, 2).double(), whole(4), 3), TypeError, ("features", FLOATS, "float64")),
    (lambda: codebook_ema_(ones(3, 2).half(), ones(3), ones(3, 2), 0.5), TypeError, ("codebook", "buffers", "float16")),
    (lambda: codebook_ema_(ones(2), ones(3), ones(3, 2), 0.5), ValueError, ("codebook", "2 dimensions (K, C)", "(2,)")),
    (lambda: codebook_ema_(ones(3, 2), ones(2), ones(3, 2), 0.5), ValueError, ("counts", "(3,) = (K,)", "(2,)")),
    (lambda: codebook_ema_(ones(3, 2), ones(3), ones(3, 1), 0.5), ValueError, ("sums", "(3, 2)", "(3, 1)")),
    (lambda: codebook_ema_(ones(3, 2), ones(3), ones(3, 2), 1.5), ValueError, ("decay", "[0, 1]", "got 1.5")),
    (lambda: codebook_ema_(ones(3, 2), ones(3), ones(3, 2), ones()), TypeError, ("decay", "a Python float", "Tensor")),
    (lambda: codebook_ema_(ones(3, 2), ones(3), ones(3, 2), float("nan")), ValueError, ("decay", "[0, 1]", "got nan")),
    (lambda: scatter_mean_ema_(ones(3, 2), ones(4, 5), whole(4), 0.5), ValueError, ("features", "2 channels", "got 5")),
]

IMAGES, INDEX, TOKEN, TARGET = ones(2, 3, 4), whole(2, 3), ones(4), whole(2)
MASK = [
    (lambda: group_mask(IMAGES[0], INDEX, TOKEN, TARGET), ValueError,
     ("features", "3 dimensions (B, L, C)", "(3, 4)")),
    (lambda: group_mask(IMAGES.double(), INDEX, TOKEN, TARGET), TypeError, ("features", FLOATS, "float64")),
    (lambda: group_mask(IMAGES, INDEX.int(), TOKEN, TARGET), TypeError, ("index", "int64", "int32")),
    (lambda: group_mask(IMAGES, INDEX.t(), TOKEN, TARGET), ValueError, ("index", "(2, 3) = (B, L)", "(3, 2)")),
    (lambda: group_mask(IMAGES, INDEX, TOKEN[:2], TARGET), ValueError, ("mask_token", "(4,) = (C,)", "(2,)")),
    (lambda: group_mask(IMAGES, INDEX, TOKEN, TARGET[:1]), ValueError, ("target", "(2,) = (B,)", "(1,)")),
    (lambda: group_mask(IMAGES, INDEX, TOKEN, TARGET, valid=INDEX), TypeError, ("valid", "bool", "int64")),
    (lambda: group_mask(IMAGES[:1].expand(2, 3, 4), INDEX, TOKEN, TARGET, inplace=True), ValueError,
     ("features", "apart in memory", "expanded", "(2, 3, 4)", "strides (0, 4, 1)", "inplace=False")),
    (lambda: group_mask(IMAGES.as_strided((2, 3, 4), (4, 4, 1)), INDEX, TOKEN, TARGET, inplace=True), ValueError,
     ("features", "apart in memory", "(2, 3, 4)", "strides (4, 4, 1)")),
    (lambda: group_mask(IMAGES.clone().requires_grad_(), INDEX, TOKEN, TARGET, inplace=True), ValueError,
     ("features", "a leaf that requires a gradient", "inplace=False")),
    (lambda: sample_group(TARGET), ValueError, ("index", "2 dimensions (B, L)", "(2,)")),
    (lambda: sample_group(INDEX.float()), TypeError, ("index", "int64", "float32")),
    (lambda: sample_group(INDEX, uniform=ones(2)), TypeError, ("uniform", "float64", "float32")),
    (lambda: sample_group(INDEX, uniform=ones(3).double()), ValueError, ("uniform", "(2,)", "(3,)")),
    *((lambda value=value: sample_group(INDEX, uniform=torch.tensor([0.5, value], dtype=torch.float64)), ValueError,
       ("uniform", "values in [0, 1)", str(value)))
      for value in (-0.25, 1.0, math.inf, math.nan)),
    (lambda: sample_group(INDEX, uniform=ones(2).double(), generator=torch.Generator()), ValueError,
     ("uniform", "either", "generator", "got both")),
]  # fmt: skip

ROW = ones(1, 3)
ROTATION = [
    (lambda: rotation_trick(ROW, ROW, whole(2)), ValueError, ("index", "(1,) = (..., N)", "(2,)")),
    (lambda: rotation_trick(ROW, ROW[:, :2], whole(1)), ValueError, ("codebook", "3 channels", "(1, 2)")),
]

QUANTIZER = [
    (lambda: VectorQuantizer(6, 0), ValueError, ("codebook_size", "at least 1", "got 0")),
    (lambda: VectorQuantizer(8.0, 16), TypeError, ("dim", "an int", "got float")),
    (lambda: VectorQuantizer(6, 16, decay=2.0), ValueError, ("decay", "a value in [0, 1]", "got 2")),
    (lambda: VectorQuantizer(6, 16, restart_threshold=-1), ValueError,
     ("restart_threshold", "a number of at least 0", "got -1")),
    (lambda: VectorQuantizer(6, 16)([1.0]), TypeError, ("features", "torch.Tensor", "list")),
    (lambda: VectorQuantizer(6, 16)(ones(3, 6), whole(4).bool()), ValueError, ("valid", "shape (3,)", "(4,)")),
]  # fmt: skip

META = ones(2, 2).to("meta")
BACKEND = [
    (lambda: codebook_lookup(ones(2, 2), ones(2, 2), backend="gpu"), ValueError,
     ("backend", "reference, cpu, triton, cuda or None", "'gpu'")),
    (lambda: codebook_lookup(META, META, backend="cpu"), ValueError, ("backend", "'cpu' cannot serve codebook_lookup",
     "tensors on cpu", "meta")),
    (lambda: set_cpu_level("sse9"), ValueError,
     ("level", "scalar, neon, avx2, avx512, avx512_bf16, avx512_vnni, amx or None", "'sse9'")),
    *((lambda name=name: codebook_lookup(ones(2, 2), ones(2, 2), backend=name), ValueError,
       ("backend", f"'{name}' cannot serve codebook_lookup", "tensors on cuda", "these are on cpu"))
      for name in ("triton", "cuda")),
    *((lambda name=name: codebook_lookup(ones(2, 3), ones(4, 3), topk=2, backend=name), ValueError,
     ("backend", f"'{name}' cannot serve codebook_lookup", "it has no topk"))
      for name in ("triton", "cuda")),
    *((lambda name=name: residual_lookup(SINGLE, SINGLE[None], backend=name), ValueError,
     ("backend", f"'{name}' cannot serve residual_lookup", "it has no kernel"))
      for name in ("triton", "cuda")),
]  # fmt: skip

REFUSALS = [*LOOKUP, *PREPARE, *SUBSPACE, *METRIC, *TOPK, *RESIDUAL, *STATS, *MASK, *ROTATION, *QUANTIZER, *BACKEND]


@pytest.mark.parametrize(("call", "error", "named"), REFUSALS, ids=[" ".join(named) for _, _, named in REFUSALS])
def test_is_refused(call, error, named):
    with pytest.raises(error) as caught:
        call()
    message = str(caught.value)
    assert message.startswith(f"{named[0]}: "), message
    missing = [part for part in named if part not in message]
    assert not missing, message


class OwnTensor(torch.Tensor):
    """As those of torchvision and fastai: its values can be read."""


@pytest.mark.parametrize(
    "kind", [lambda value: torch.nn.Parameter(value, False), lambda value: value.as_subclass(OwnTensor)]
)
def test_values_of_parameters_and_of_subclasses_are_checked(kind):
    with pytest.raises(ValueError, match=r"^uniform: expected values"):
        sample_group(whole(1, 2), uniform=kind(ones(1).double()))


@pytest.mark.parametrize("strides", [(0, 1), (1, 0), (1, 1), (2, 1)], ids=str)
@pytest.mark.parametrize(
    "update",
    [
        lambda codebook: codebook_ema_(codebook, ones(4), ones(4, 3), 0.5),
        lambda codebook: scatter_mean_ema_(codebook, ones(2, 3), torch.tensor([0, 1]), 0.5),
    ],
    ids=["ema", "fused"],
)
def test_a_codebook_that_overlaps_itself_is_refused_and_not_written(update, strides):
    """Written through, an expanded row would move once for each of its codes."""
    memory = torch.full((20,), 7.0)
    with pytest.raises(ValueError, match="codebook: expected elements that lie apart in memory") as caught:
        update(memory.as_strided((4, 3), strides))
    assert f"strides {strides}" in str(caught.value)
    assert (memory == 7.0).all()


def test_numpys_whole_numbers_are_whole_numbers():
    features, codebook = torch.randn(9, 4), torch.randn(5, 4)
    index = codebook_lookup(features, codebook, topk=np.int64(2))
    assert torch.equal(index, codebook_lookup(features, codebook, topk=2))
    compiled = torch.compile(lambda k: codebook_lookup(features, codebook, topk=k), backend="eager")
    assert torch.equal(compiled(np.int64(2)), index)
    counts, _ = codebook_stats(features, index[:, 0], np.int32(5))
    assert counts.tolist() == torch.bincount(index[:, 0], minlength=5).tolist()
