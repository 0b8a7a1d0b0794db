"""What a run leaves in its folder, for the tests that compare it."""

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file


def _of_kind(request: dict, kind: str) -> list[dict[str, Any]]:
    lines = (Path(request["output"]) / "log.jsonl").read_text().splitlines()
    return [record for record in map(json.loads, lines) if record["kind"] == kind]


def records(request: dict) -> list[dict[str, Any]]:
    """What the log has of each step."""
    return _of_kind(request, "train")


def events(request: dict) -> list[tuple[int, str]]:
    """(step, event) of what the log tells of."""
    return [(record["step"], record["event"]) for record in _of_kind(request, "event")]


def evaluations(request: dict) -> list[tuple[int, dict]]:
    """(step, metrics) of each evaluation in the log."""
    return [(record["step"], record["metrics"]) for record in _of_kind(request, "evaluation")]


def checkpoints(request: dict) -> list[str]:
    """Names in the folder of checkpoints, sorted."""
    return sorted(os.listdir(f"{request['output']}/checkpoints"))


def weights(request: dict, name: str = "model") -> dict[str, torch.Tensor]:
    """The exported model: of the stub, or of SOHO."""
    folder = Path(request["output"]) / name
    stub = folder / "weights.pt"
    return torch.load(stub) if stub.exists() else load_file(folder / "model.safetensors")
