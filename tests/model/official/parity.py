"""The numbers that the released modules compute from weights and images by rule (`official_parity_rule.py`)."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

_FILE = Path(__file__).with_name("official_parity.safetensors")


@cache
def fixture() -> dict[str, torch.Tensor]:
    """All 455 tensors by name; not to be changed in place."""
    with safe_open(_FILE, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


@cache
def fixture_info() -> dict[str, Any]:
    """What the file says of itself: names and shapes of both state dicts, names of the gradients, strides."""
    with safe_open(_FILE, "pt") as file:
        return json.loads(file.metadata()["info"])
