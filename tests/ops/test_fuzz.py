"""Random small problems, bounded in time: every implementation agrees with the float64 rule and with the others."""

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from soho_fast.ops import codebook_lookup, triton_backend

BOUNDED = settings(
    max_examples=8 if triton_backend.INTERPRETING else 60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
SPECIAL = (0.0, -0.0, 1.0, -1.0, 1e-45, 1e-38, 3.4e38, -3.4e38, 1e15, 1e-15, 1e4, float("nan"), float("inf"))


def _numbers(draw, shape, generator):
    """Random normal, small integers with many ties, or special values, with an offset and a scale."""
    kind = draw(st.sampled_from(["normal", "integers", "special", "cluster"]))
    if kind == "integers":
        return torch.randint(-2, 3, shape, generator=generator).float()
    values = torch.randn(shape, generator=generator)
    if kind == "special":
        picked = torch.tensor(SPECIAL)[torch.randint(len(SPECIAL), shape, generator=generator)]
        return torch.where(torch.rand(shape, generator=generator) < 0.05, picked, values)
    if kind == "cluster":
        return 1 + values * 2.0**-23
    return values * 10.0 ** draw(st.integers(-12, 12)) + draw(st.sampled_from([0.0, 1.0, 1e4]))


@st.composite
def lookups(draw):
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    num_rows, num_codes, num_channels = (draw(st.integers(low, 40)) for low in (0, 1, 1))
    types = st.sampled_from([torch.float32, torch.float32, torch.bfloat16, torch.float16])
    features = _numbers(draw, (num_rows, num_channels), generator).to(draw(types))
    codebook = _numbers(draw, (num_codes, num_channels), generator)
    if draw(st.booleans()):
        codebook = codebook[torch.randint(num_codes, (num_codes,), generator=generator)]
    return features, codebook.to(draw(types))


@BOUNDED
@given(case=lookups())
def test_lookup(case, at_every_level, exact_lookup, same_bits):
    features, codebook = case
    assert same_bits(
        at_every_level(codebook_lookup, features, codebook, return_distance=True), exact_lookup(features, codebook)
    )
