"""What only the Triton lookup does, under Triton's interpreter; test_triton.py starts the process.

The interpreter multiplies matrices by numpy. Here it errs as much as the bound of the lookup allows a matrix unit to.
"""

import numpy as np
import pytest
import torch

from soho_fast.ops import codebook_lookup, codebook_subspace, prepare_codebook, triton_backend

pytestmark = pytest.mark.skipif(not triton_backend.INTERPRETING, reason="Triton is not interpreted here")


def _random(num_rows, num_codes, num_channels, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(num_rows, num_channels, generator=generator),
        torch.randn(num_codes, num_channels, generator=generator),
    )


@pytest.fixture
def rough_matrix_unit(monkeypatch):
    """Each step over C channels is off, up or down, by 2.5 C 2^-23 times the sizes of its products and of the sum so
    far."""
    from triton.runtime import interpreter

    random = np.random.default_rng(0)
    exact = interpreter.InterpreterBuilder.create_dot

    def create_dot(self, a, b, d, *options):
        result = exact(self, a, b, d, *options)
        sizes = np.abs(a.data.astype(np.float32)) @ np.abs(b.data.astype(np.float32)) + np.abs(d.data)
        sign = random.choice(np.float32([-1, 1]), size=sizes.shape)
        result.data = result.data + sign * sizes * np.float32(2.5 * a.data.shape[1] * 2.0**-23)
        return result

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", create_dot)


def _near_ties():
    """Pairs of codes whose distances to the features between them differ by little."""
    codebook = _random(0, 40, 200)[1]
    step = torch.randn(40, 200, generator=torch.Generator().manual_seed(1)) * 1e-3
    between = codebook[torch.arange(60) % 40] + step[torch.arange(60) % 40] / 2
    noise = torch.randn(60, 200, generator=torch.Generator().manual_seed(2))
    return between + noise * 1e-4, torch.cat([codebook, codebook + step])


def _exact_in_float16():
    """Whole numbers round their mean 0: nothing is lost in the rounding, and the matrix unit alone may err."""
    generator = torch.Generator().manual_seed(0)
    base = torch.randint(-8, 9, (10, 512), generator=generator).float()
    near = base + torch.nn.functional.one_hot(torch.arange(10), 512)
    features = base + torch.randint(-1, 2, (10, 512), generator=generator)
    return features, torch.cat([base, near, -base, -near])


PROBLEMS = {
    "exact in float16": _exact_in_float16,
    "near ties": _near_ties,
    "one cluster": lambda: (_random(20, 1, 64)[0], 1 + _random(1, 300, 64)[1] * 2.0**-16),
    "far offset": lambda: tuple(t + 1e3 for t in _random(40, 60, 64)),
}


@pytest.mark.parametrize("name", PROBLEMS)
def test_triton_is_exact_with_the_roughest_matrix_unit(name, rough_matrix_unit, exact_lookup):
    features, codebook = PROBLEMS[name]()
    index = codebook_lookup(features, codebook, backend="triton")
    assert torch.equal(index, exact_lookup(features, codebook)[0])


def _open_rows(monkeypatch, features, codebook):
    """How many rows the screening leaves to the comparison in float64."""
    from soho_fast.ops.codebook_lookup import triton as lookup

    counters = []

    def launch(kernel, num_programs, /, **arguments):
        triton_backend.launch(kernel, num_programs, **arguments)
        counters.extend(value for name, value in arguments.items() if name == "num_open")

    codebook_lookup(features, codebook, backend="triton")  # which tries the backend before the first use
    monkeypatch.setattr(lookup, "launch", launch)
    codebook_lookup(features, codebook, backend="triton")
    return int(counters[-1].sum())


@pytest.mark.parametrize(
    ("features", "codebook", "most"),
    [
        (*_random(300, 500, 64), 15), (*(t + 100 for t in _random(300, 500, 64)), 30),
        (*(t * 1e20 for t in _random(300, 500, 64)), 15), (*(t.bfloat16() for t in _random(300, 500, 64)), 15),
        (torch.randn(300, 8), torch.zeros(300, 8), 0), (torch.full((300, 8), torch.nan), torch.randn(300, 8), 0),
    ],
    ids=["normal", "offset", "large", "bfloat16", "copies", "not finite"],
)  # fmt: skip
def test_triton_screening_settles_most_rows(features, codebook, most, monkeypatch):
    assert _open_rows(monkeypatch, features, codebook) <= most


def test_triton_leaves_the_work_to_float64_where_nothing_can_be_screened(monkeypatch):
    features, codebook = torch.full((10, 4), 3e38), torch.tensor([[3e38, 3e38, -3e38, 3e38], [-3e38] * 4])
    assert _open_rows(monkeypatch, features, codebook) == 10


def test_triton_takes_subspace_and_warm_start_and_does_without_them():
    features, codebook = _random(30, 40, 64)
    subspace, expected = (
        codebook_subspace(codebook, dimensions=16),
        codebook_lookup(features, codebook, backend="reference"),
    )
    index = codebook_lookup(features, codebook, subspace=subspace, warm_start=(expected + 1) % 40, backend="triton")
    assert torch.equal(index, expected)
    prepared = prepare_codebook(codebook, subspace=subspace, backend="triton")
    assert torch.equal(codebook_lookup(features, prepared, backend="triton"), expected)


def test_triton_does_not_read_what_another_backend_packed():
    features, codebook = _random(30, 40, 8)
    prepared = prepare_codebook(codebook, backend="reference")
    expected = codebook_lookup(features, codebook, backend="reference")
    assert torch.equal(codebook_lookup(features, prepared, backend="triton"), expected)
