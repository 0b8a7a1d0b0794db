"""The span of epochs in which the backbone is frozen while the rest trains on."""

import pytest
import torch
from run_files import events, records, weights

from soho_fast.tasks.recipe import read_recipe


def test_the_backbone_stands_still_from_and_until_the_given_epochs_and_its_batch_norm_learns_again(launch, request_for):
    def make(name: str, steps: int, span: tuple[float, float] = (1, 1.5), **engine: bool) -> dict:
        optim = {"frozen_backbone_epochs": span}
        return request_for(name, max_steps=steps, task={"size": 64}, optim=optim, engine=engine)

    before, through, after = make("before", 8, (0, 0)), make("through", 12), make("after", 14)
    runs = [before, through, after, make("still", 14, freeze_batch_norm=True)]
    done = launch(*runs)
    assert done.code == 0, done.text
    stands = (8, "the backbone is frozen")
    assert [events(run) for run in (before, through)] == [[], [stands]]
    assert events(after) == [stands, (12, "no longer: the backbone is frozen")]
    start, held, moved, never = map(weights, runs)
    weight, mean = "backbone.0.weight", "backbone.1.running_mean"
    assert torch.equal(held[weight], start[weight]) and not torch.equal(moved[weight], start[weight])
    assert not torch.equal(moved[mean], held[mean]), "BatchNorm learns again too"
    assert not torch.equal(held["mask_vector"], start["mask_vector"])
    assert not never[mean].any()


def test_a_span_to_the_end_outlasts_more_epochs(launch, request_for):
    runs = [request_for(f"{steps}", max_steps=steps, optim={"frozen_backbone_epochs": (1, "end")}) for steps in (8, 20)]
    done = launch(*runs)
    assert done.code == 0, done.text
    assert [events(run) for run in runs] == [[(5, "the backbone is frozen")]] * 2
    assert torch.equal(*(weights(run)["backbone.0.weight"] for run in runs))


@pytest.mark.parametrize("name", ["mini_vqa", "mini_retrieval", "own", "own_vqa"])
def test_a_longer_run_of_a_recipe_whose_backbone_is_frozen_does_not_unfreeze_it(name):
    begin, end = read_recipe(["--recipe", name, "--epochs", "100000"]).optim.frozen_span()
    assert begin <= 1.4 and end == float("inf")
    given = read_recipe(["--recipe", name, "--optim.frozen_backbone_epochs", "[2, end]"]).optim
    assert given.frozen_span() == (2, float("inf"))


def test_the_log_tells_of_phases_rate_steps_and_warnings(launch, request_for):
    schedule = {"decay": "step", "step_epochs": [1.0], "step_factor": 0.1}
    request = request_for("told", max_steps=10, task={"size": 64, "reported": True}, schedule=schedule)
    done = launch(request)
    assert done.code == 0, done.text
    told = [
        (0, "the first epoch"),
        (3, "it goes wrong"),
        (8, "no longer: the first epoch"),
        (8, "learning rates x 0.1"),
    ]
    assert events(request) == told
    assert done.text.count("warning: step 3: it goes wrong; do something") == 1


def test_the_gradient_norm_is_logged_with_and_without_partitions(launch, request_for):
    none, partitioned = (request_for(f"zero{stage}", max_steps=3, engine={"zero_stage": stage}) for stage in (0, 1))
    done = launch(none, partitioned)
    assert done.code == 0, done.text
    norms = [[record["grad_norm"] for record in records(request)] for request in (none, partitioned)]
    assert len(norms[0]) == 3 and min(norms[0]) > 0
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)


@pytest.mark.parametrize("span", [(2, 1), (-1, 3)])
def test_impossible_span_is_refused(launch, request_for, span):
    done = launch(request_for("run", optim={"frozen_backbone_epochs": span}))
    assert done.code == 2
    assert f"optim.frozen_backbone_epochs: expected 0 <= from <= until, got [{span[0]}, {span[1]}]" in done.text
