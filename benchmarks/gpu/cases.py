"""What is timed on a GPU, and beside what: cases of the ops, their baselines, and the card's own limits.

Letters: N feature vectors, K codes, C channels, B images, L tokens per image.
"""

import importlib.util
import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from soho_fast import ops

LOOKUPS = ((65536, 2048, 768), (65536, 1024, 64), (16384, 8192, 256), (65536, 512, 128), (1 << 20, 8192, 64))
BATCHED = ((12, 8192, 1024, 64), (8, 4096, 2048, 256))  # codebooks, rows and codes of each, channels
UPDATES = ((65536, 2048, 768), (1 << 20, 1024, 64))
MASKS = ((256, 160, 768),)
LAYERS = ((16384, 2048, 768),)
CHECKED_ROWS = 4096


def seconds_of(run: Callable[[], object], device: str, budget: float = 0.6) -> float:
    """Fastest of some runs in `budget` seconds, after one that warms up; on a GPU by its own clock."""
    run()
    best, end = float("inf"), time.perf_counter() + budget
    while True:
        if device == "cuda":
            start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            run()
            stop.record()
            stop.synchronize()
            taken = start.elapsed_time(stop) / 1e3
        else:
            before = time.perf_counter()
            run()
            taken = time.perf_counter() - before
        best = min(best, taken)
        if time.perf_counter() > end:
            return best


def our_backends(device: str) -> list[str]:
    """Backends with kernels for tensors on `device`, in the order in which they are preferred."""
    wanted = ("cuda", "triton") if device == "cuda" else ("cpu",)
    return [name for name in wanted if name in ops.available_backends()]


def eager_lookup(features: Tensor, codebook: Tensor) -> Tensor:
    """What people write: N x K scores in the type of the input, then argmin."""
    return torch.addmm(codebook.square().sum(-1), features, codebook.T, alpha=-2).argmin(-1)


def _lookup_baselines(features: Tensor, codebook: Tensor, device: str) -> dict[str, Callable[[], Tensor]]:
    compiled = torch.compile(eager_lookup)
    baselines = {
        "torch eager": lambda: eager_lookup(features, codebook),
        "torch.compile": lambda: compiled(features, codebook),
    }
    if device == "cuda" and importlib.util.find_spec("flash_kmeans"):
        from flash_kmeans.assign_euclid_triton import euclid_assign_triton

        square = features.float().square().sum(-1)
        baselines["flash-kmeans"] = lambda: euclid_assign_triton(features[None], codebook[None], square[None])[0]
    return baselines


def _timed(methods: dict[str, Callable], device: str, budget: float, check: Callable[[object], dict]) -> dict:
    """Seconds of each method, what `check` says of its result; where a baseline fails, its error."""
    rows = {}
    for name, run in methods.items():
        try:
            rows[name] = {**check(run()), "seconds": seconds_of(run, device, budget)}
        except Exception as error:
            if name in ("cuda", "triton", "cpu"):
                raise
            rows[name] = {"error": f"{type(error).__name__}: {error}"[:200]}
    return rows


def lookup_case(shape: tuple[int, int, int], dtype: torch.dtype, device: str, budget: float) -> dict:
    """One size of codebook_lookup. `wrong` is the share of rows that are not the float64 argmin; ours must be 0.

    Raises:
        AssertionError: a backend of ours differs from the reference.
    """
    num_rows, num_codes, num_channels = shape
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(num_rows, num_channels, generator=generator).to(device, dtype)
    codebook = torch.randn(num_codes, num_channels, generator=generator).to(device, dtype)
    exact = ops.codebook_lookup(features[:CHECKED_ROWS], codebook, backend="reference")

    def check(index: Tensor) -> dict:
        return {"wrong": float((index[:CHECKED_ROWS].long() != exact).double().mean())}

    ours = {
        name: lambda name=name: ops.codebook_lookup(features, codebook, backend=name) for name in our_backends(device)
    }
    prepared = {name: ops.prepare_codebook(codebook, backend=name) for name in ours}
    for name in list(ours):
        ours[f"{name} prepared"] = lambda name=name: ops.codebook_lookup(features, prepared[name], backend=name)
    rows = _timed(ours | _lookup_baselines(features, codebook, device), device, budget, check)
    for name in ours:
        assert rows[name]["wrong"] == 0.0, f"codebook_lookup {shape} {dtype}: {name} differs from the float64 argmin"
    flops = 2.0 * num_rows * num_codes * num_channels
    return {
        "op": "codebook_lookup", "shape": list(shape), "dtype": str(dtype).removeprefix("torch."), "flops": flops,
        "methods": rows,
    }  # fmt: skip


def batched_case(shape: tuple[int, int, int, int], device: str, budget: float) -> dict:
    """Several codebooks in one call beside a call for each.

    Raises:
        AssertionError: a backend of ours differs from the reference.
    """
    num_books, num_rows, num_codes, num_channels = shape
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(num_books, num_rows, num_channels, generator=generator).to(device)
    codebook = torch.randn(num_books, num_codes, num_channels, generator=generator).to(device)
    exact = ops.codebook_lookup(features, codebook, backend="reference")

    def one_by_one(name: str) -> Tensor:
        pairs = zip(features, codebook, strict=True)
        return torch.stack([ops.codebook_lookup(x, d, backend=name) for x, d in pairs])

    methods = {}
    for name in our_backends(device):
        methods[name] = lambda name=name: ops.codebook_lookup(features, codebook, backend=name)
        methods[f"{name} one by one"] = lambda name=name: one_by_one(name)
    rows = _timed(methods, device, budget, lambda index: {"wrong": float((index != exact).double().mean())})
    for name in methods:
        assert rows[name].get("wrong") == 0.0, f"batched codebooks {shape}: {name} differs from the float64 argmin"
    return {
        "op": "codebook_lookup, batched", "shape": list(shape), "dtype": "float32",
        "flops": 2.0 * num_books * num_rows * num_codes * num_channels, "methods": rows,
    }  # fmt: skip


def gradient_case(shape: tuple[int, int, int], device: str, budget: float) -> dict:
    """The gradient of a codebook through the distance, whose bits are those of the statistics on each run.

    Raises:
        AssertionError: two runs differ.
    """
    num_rows, num_codes, num_channels = shape
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(num_rows, num_channels, generator=generator).to(device)
    codebook = torch.randn(num_codes, num_channels, generator=generator).to(device).requires_grad_()

    def gradient(name: str) -> Tensor:
        distance = ops.codebook_lookup(features, codebook, return_distance=True, backend=name)[1]
        return torch.autograd.grad(distance.sum(), codebook)[0]

    methods = {name: lambda name=name: gradient(name) for name in our_backends(device)}
    for name, run in methods.items():
        assert torch.equal(run(), run()), f"gradient of the codebook {shape}: two runs of {name} differ"
    rows = _timed(methods, device, budget, lambda grad: {"finite": bool(grad.isfinite().all())})
    return {"op": "codebook gradient", "shape": list(shape), "dtype": "float32", "methods": rows}


def update_case(shape: tuple[int, int, int], device: str, budget: float) -> dict:
    """One size of codebook_stats and codebook_ema_; `bytes` is one read of the features."""
    num_rows, num_codes, num_channels = shape
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(num_rows, num_channels, generator=generator).to(device)
    index = torch.randint(num_codes, (num_rows,), generator=generator).to(device)
    codebook = torch.randn(num_codes, num_channels, generator=generator).to(device)
    exact = torch.zeros(num_codes, num_channels, dtype=torch.float64, device=device)
    exact.index_add_(0, index, features.double())

    def ours(name: str) -> Tensor:
        counts, sums = ops.codebook_stats(features, index, num_codes, backend=name)
        ops.codebook_ema_(codebook, counts, sums, 0.99, backend=name)
        return sums

    def eager() -> Tensor:
        sums = torch.zeros_like(codebook).index_add_(0, index, features)
        counts = torch.bincount(index, minlength=num_codes)
        mean = sums / counts.clamp(min=1)[:, None]
        torch.where(counts[:, None] > 0, codebook * 0.99 + mean * 0.01, codebook)
        return sums

    def check(sums: Tensor) -> dict:
        return {"largest_error": float((sums - exact).abs().max())}

    methods = {name: lambda name=name: ours(name) for name in our_backends(device)} | {"torch eager": eager}
    rows = _timed(methods, device, budget, check)
    return {
        "op": "codebook_update", "shape": list(shape), "dtype": "float32", "bytes": features.numel() * 4.0,
        "methods": rows,
    }  # fmt: skip


def mask_case(shape: tuple[int, int, int], device: str, budget: float) -> dict:
    """One size of group_mask, out of place and in place."""
    num_images, num_tokens, num_channels = shape
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(*shape, generator=generator).to(device)
    index = torch.randint(64, (num_images, num_tokens), generator=generator).to(device)
    token, target = torch.zeros(num_channels, device=device), index[:, 0].clone()
    expected = torch.where((index == target[:, None])[..., None], token, features)
    copy = features.clone()

    def check(masked: Tensor) -> dict:
        return {"same": bool(torch.equal(masked, expected))}

    methods = {}
    for name in our_backends(device):
        methods[name] = lambda name=name: ops.group_mask(features, index, token, target, backend=name)[0]
        methods[f"{name} in place"] = lambda name=name: ops.group_mask(
            copy, index, token, target, inplace=True, backend=name
        )[0]
    methods["torch where"] = lambda: torch.where((index == target[:, None])[..., None], token, features)
    rows = _timed(methods, device, budget, check)
    return {"op": "group_mask", "shape": list(shape), "dtype": "float32", "methods": rows}


def layer_case(shape: tuple[int, int, int], device: str, budget: float) -> dict:
    """A training forward of the quantiser: lookup, statistics, moving average, straight-through."""
    num_rows, num_codes, num_channels = shape
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(num_rows, num_channels, generator=generator).to(device).requires_grad_()
    codebook = torch.randn(num_codes, num_channels, generator=generator).to(device)

    def ours(name: str) -> Tensor:
        index = ops.codebook_lookup(features, codebook, backend=name)
        quantized = ops.straight_through(features, codebook, index, backend=name)
        counts, sums = ops.codebook_stats(features, index, num_codes, backend=name)
        ops.codebook_ema_(codebook, counts, sums, 0.99, backend=name)
        return quantized

    methods = {name: lambda name=name: ours(name) for name in our_backends(device)}
    if importlib.util.find_spec("vector_quantize_pytorch"):
        from vector_quantize_pytorch import VectorQuantize

        layer = VectorQuantize(dim=num_channels, codebook_size=num_codes, decay=0.99).to(device).train()
        methods["vector-quantize-pytorch"] = lambda: layer(features[None])[0]
    rows = _timed(methods, device, budget, lambda quantized: {"finite": bool(quantized.isfinite().all())})
    return {"op": "training forward", "shape": list(shape), "dtype": "float32", "methods": rows}


def machine_limits(device: str, budget: float, size: int = 8192, copied: int = 1 << 30) -> dict:
    """The card's own bfloat16 matrix product, in FLOP/s, and copy bandwidth, in bytes read and written per second."""
    left, right = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    source = torch.zeros(copied, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return {
        "bf16_flops_per_second": 2.0 * size**3 / seconds_of(lambda: left @ right, device, budget),
        "copy_bytes_per_second": 2.0 * copied / seconds_of(lambda: target.copy_(source), device, budget),
    }


def exact_rows(device: str, budget: float, most: int = 10**8, chunk: int = 1 << 20) -> dict:
    """Random rows looked up by each backend and by the float64 reference, until `most` or the time is spent."""
    generator = torch.Generator(device).manual_seed(0)
    codebook = torch.randn(512, 64, generator=generator, device=device)
    subspace = ops.codebook_subspace(codebook, dimensions=16)
    names, rows, different, end = our_backends(device), 0, 0, time.perf_counter() + budget
    while rows < most and time.perf_counter() < end:
        features = torch.randn(min(chunk, most - rows), 64, generator=generator, device=device)
        exact = ops.codebook_lookup(features, codebook, backend="reference")
        for name in names:
            for given in (None, subspace):
                different += int((ops.codebook_lookup(features, codebook, subspace=given, backend=name) != exact).sum())
        rows += features.shape[0]
    return {"rows": rows, "backends": names, "different": different}


def all_cases(device: str, budget: float) -> Iterator[Callable[[], dict]]:
    """Every case, each as a function that runs it with `budget` seconds a method."""
    for shape in LOOKUPS:
        for dtype in (torch.float32, torch.bfloat16):
            yield lambda shape=shape, dtype=dtype: lookup_case(shape, dtype, device, budget)
    for shape in BATCHED:
        yield lambda shape=shape: batched_case(shape, device, budget)
    yield lambda: gradient_case(UPDATES[0], device, budget)
    for shape in UPDATES:
        yield lambda shape=shape: update_case(shape, device, budget)
    for shape in MASKS:
        yield lambda shape=shape: mask_case(shape, device, budget)
    for shape in LAYERS:
        yield lambda shape=shape: layer_case(shape, device, budget)
