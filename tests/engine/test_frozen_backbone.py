"""The span of epochs in which the backbone stands still while the rest trains on."""

from pathlib import Path

import pytest
import torch


def test_backbone_stands_still_from_and_until_the_given_epochs(launch, request_for):
    def make(name: str, steps: int, span: tuple[float, float]) -> dict:
        return request_for(name, max_steps=steps, task={"size": 64}, optim={"frozen_backbone_epochs": span})

    before, through, after = make("before", 8, (0, 0)), make("through", 12, (1, 1.5)), make("after", 13, (1, 1.5))
    done = launch(before, through, after)
    assert done.code == 0, done.text
    start, held, moved = (weights(request) for request in (before, through, after))
    assert torch.equal(held["backbone.0.weight"], start["backbone.0.weight"])
    assert not torch.equal(held["mask_vector"], start["mask_vector"])
    assert not torch.equal(moved["backbone.0.weight"], start["backbone.0.weight"])


@pytest.mark.parametrize("span", [(2, 1), (-1, 3)])
def test_impossible_span_is_refused(launch, request_for, span):
    done = launch(request_for("run", optim={"frozen_backbone_epochs": span}))
    assert done.code == 2
    assert f"optim.frozen_backbone_epochs: expected 0 <= from <= until, got [{span[0]}, {span[1]}]" in done.text


def weights(request: dict) -> dict[str, torch.Tensor]:
    """The stub as exported."""
    return torch.load(Path(request["output"]) / "model" / "weights.pt")
