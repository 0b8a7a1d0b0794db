"""What runs without --full."""

from collections.abc import Iterable
from typing import Any

import pytest


def first_by_default(cases: Iterable) -> list[Any]:
    """For `parametrize` and fixtures: the first of the cases, and the others where --full asks for them."""
    first, *others = cases
    return [first, *(pytest.param(case, marks=pytest.mark.full) for case in others)]
