"""While the backbone stands still, what it gives for an image is computed once; the losses are those without."""

import signal
from pathlib import Path

import pytest

# Five steps an epoch: the backbone stands still from step 2 on, for two epochs.
SPAN = {"optim": {"frozen_backbone_epochs": (0.4, 2.4)}, "max_steps": 15}


@pytest.fixture
def make(request_for):
    """A request that keeps outputs within these budgets."""

    def request(name: str, memory: float = 0, disk: float = 0, task: dict | None = None, **changes: object) -> dict:
        engine = {"backbone_cache_gb": memory, "backbone_cache_disk_gb": disk}
        task = {"soho": True, "pixels": 32, "keepable": True, **(task or {})}
        return request_for(name, task=task, **{**SPAN, "engine": engine, **changes})

    return request


def test_losses_of_two_ranks_are_those_without(launch, make, losses):
    many = {"batch": {"gradient_accumulation_steps": 2}}
    runs = [make("without", **many), make("memory", memory=1, **many), make("disk", memory=1e-6, disk=1, **many)]
    done = launch(*runs, processes=2)
    assert done.code == 0, done.text
    assert losses(runs[0]) == losses(runs[1]) == losses(runs[2])
    assert done.text.count("kept the backbone's output for 40 images (") == 2
    assert "kept in memory (engine.backbone_cache_gb 1)" in done.text
    assert f"kept in {runs[2]['output']} (engine.backbone_cache_disk_gb 1)" in done.text
    assert not list(Path(runs[2]["output"]).glob("backbone-outputs*"))


def test_a_run_goes_on_within_the_span_and_what_is_not_kept_is_said(launch, make, losses):
    every = {"checkpoint": {"every_steps": 4}}
    through, once = make("through", memory=1e-5, disk=2e-5), make("once", memory=1, max_steps=7)
    done = launch(through, once, make("run", memory=1, task={"signal_in_pass": 24}, **every))
    assert done.code == 128 + signal.SIGTERM, done.text
    # 512 channels of one place in float32, for 40 images.
    assert (
        "takes 8.19e-05 GB, more than engine.backbone_cache_gb (1e-05) and engine.backbone_cache_disk_gb (2e-05) allow"
    ) in done.text
    assert "the backbone stands still for 5 steps, at most one pass over the 40 images" in done.text
    assert "kept the backbone's output" not in done.text
    (saved,) = [line for line in done.text.splitlines() if line.startswith("asked to stop: saved")]
    assert saved.endswith("step-00000002; the same command continues from here")
    done = launch(make("run", memory=1, task={"kill_at": 7}, **every))
    assert done.code == -signal.SIGKILL and "step 2 of 15" in done.text and "kept the" in done.text, done.text
    run = make("run", memory=1, **every)
    done = launch(run)
    assert done.code == 0 and "step 4 of 15" in done.text and "kept the" in done.text, done.text
    assert losses(run) == losses(through)
