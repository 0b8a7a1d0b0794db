"""One step, one meaning: the same training from any number of ranks and micro-batches, at every ZeRO stage.

Expected is always what one process does at stage 0 with the whole batch at once. BatchNorm is frozen, or left out: what
its batches do is another matter (docs/training.md).
"""

import itertools

import numpy as np
import pytest
import torch
from run_files import records, weights

# Epochs of five steps. Words alone until step 6; then without visual labels until 12; the CNN is trained before 3 and
# from 17 on.
EPOCHS = {"bag_of_words_epochs": 1.2, "mvm_from_epoch": 2.4}
FROZEN = (0.6, 3.4)
STEPS = 24
# The same in a sixth of the steps.
SHORT = {
    "max_steps": 4, "task": {"bag_of_words_epochs": 0.2, "mvm_from_epoch": 0.4, "pixels": 32},
    "optim": {"frozen_backbone_epochs": (0.2, 0.6)},
}  # fmt: skip
# Small enough for the clock, and with every loss and state that a recipe can switch on.
TASK = {
    "soho": True, "dropout": 0.0, "pixels": 64, "mask_pairs": True, **EPOCHS,
    "config": {
        "dictionary_batch_norm": False, "bag_of_words_weight": 0.05, "contrastive_weight": 1.0,
        "contrastive_reads": "transformer", "num_levels": 2, "mvm_masking": "lift",
        "mvm_margin": 1,
    },
}  # fmt: skip
# Adam's epsilon: what has no gradient but rounding (a key's bias, say) would be moved by the sign of rounding.
OPTIM = {
    "lr": 1e-2, "backbone_lr": 1e-2, "weight_decay": 1.0, "eps": 1e-3,
    "frozen_backbone_epochs": FROZEN,
}  # fmt: skip


@pytest.fixture
def cell(request_for):
    """A request: so many micro-batches, at this ZeRO stage."""

    def make(name: str, parts: int, stage: int, **changes: object) -> dict:
        values = {
            "max_steps": STEPS, "task": TASK, "optim": OPTIM, "batch": {"gradient_accumulation_steps": parts},
            "engine": {"zero_stage": stage, "freeze_batch_norm": True},
        }  # fmt: skip
        for key, value in changes.items():
            values[key] = {**values[key], **value} if isinstance(value, dict) and key in values else value
        return request_for(name, **values)

    return make


LOSSES = (
    "loss", "mlm_loss", "mvm_loss", "itm_loss", "bag_of_words_loss", "contrastive_loss",
)  # fmt: skip
# By part of the model in which share of the steps it is: all, those after the words alone, those with visual labels.
PARTS = {"": 1, "pairs": 3 / 4, "labels": 1 / 2}


def differ(request: dict, expected: dict, rtol: float = 1e-5) -> str:
    """Where the losses of any step or the final weights are not those expected, in words."""
    found = []
    for mine, one in zip(records(request), records(expected), strict=True):
        assert mine["step"] == one["step"]
        for name in LOSSES:
            assert (name in mine) == (name in one), name
            if name in one and not np.isclose(mine[name], one[name], rtol=rtol, atol=1e-7):
                found.append(f"step {one['step']} {name} {mine[name] / one[name] - 1:.1e}")
    mine, one = weights(request), weights(expected)
    for name, value in one.items():
        # Of the same size for all elements: a bias that hardly moves has few digits.
        apart, allowed = (mine[name].double() - value.double()).norm(), 1e-6 * value.numel() ** 0.5
        if apart > rtol * value.double().norm() + allowed:
            found.append(f"{name} {float(apart / value.double().norm()):.1e}")
    return "; ".join(found)


def check(launch, cell, *cells: tuple[int, int, int], **changes: object) -> None:
    """That (processes, micro-batches, ZeRO stage) train as one process with one micro-batch at stage 0."""
    expected = cell("expected", 1, 0, **changes)
    runs = {(processes, *each): cell(f"{processes}-{each}", *each, **changes) for processes, *each in cells}
    for processes in (1, 2):
        wanted = [run for (number, *_), run in runs.items() if number == processes]
        done = launch(*[expected] * (processes == 1), *wanted, processes=processes)
        assert done.code == 0, done.text
        for result in done.results():
            steps = result["steps_of_parts"]
            # Partitioned, not every rank has something of each part.
            assert all(steps[part] == [expected["max_steps"] * PARTS[part]] for part in steps) and steps, result
    assert [name for name in LOSSES if name not in records(expected)[-1]] == []
    assert len({tuple(sorted(set(LOSSES) & set(record))) for record in records(expected)}) == 3, "three phases"
    told = {run: differ(request, expected) for run, request in runs.items()}
    assert not any(told.values()), {run: text[:300] for run, text in told.items() if text}


def test_divided_and_partitioned_training_is_that_of_one_process(launch, cell):
    check(launch, cell, (1, 2, 1), (2, 2, 3), **SHORT)


def test_a_dictionary_in_the_space_of_the_words_trains_as_one_process(launch, cell, monkeypatch):
    """Its copy of the head is read at the beginning of a step; under ZeRO 3 no rank holds the head then."""
    config = {**TASK["config"], "num_levels": 1, "dictionary": "words"}
    monkeypatch.setitem(TASK, "config", config)
    check(launch, cell, (1, 2, 2), (2, 2, 3))


def test_every_division_at_every_stage_trains_as_one_process(launch, cell):
    check(launch, cell, *(set(itertools.product((1, 2), (1, 2), (0, 1, 2, 3))) - {(1, 1, 0)}))


def test_precisions_and_steps_that_overflow_count_as_float32(launch, cell):
    """fp16 of which steps overflow, and bf16: no part counts a step before its phase, nor one that was left out."""

    def make(precision: str, stage: int, power: int = 8) -> dict:
        engine = {"precision": precision, "zero_stage": stage, "loss_scale_power": power}
        return cell(f"{precision}-{stage}", 1, 0, engine=engine)

    runs = [make("fp16", 1, 24), make("fp16", 3, 24), make("bf16", 0), make("bf16", 2), make("bf16", 3)]
    done = launch(*runs)
    assert done.code == 0, done.text
    for request, result in zip(runs, done.results(), strict=True):
        left_out = [record["skipped_steps"] for record in records(request)]
        assert (left_out[-1] > 2) == ("fp16" in request["output"]), left_out
        # Up to the last step before the part's phase.
        begin = {"": 0, "pairs": 6, "labels": 12}
        before = {part: left_out[step - 1] if step else 0 for part, step in begin.items()}
        counted = {part: [24 - step - (left_out[-1] - before[part])] for part, step in begin.items()}
        assert result["steps_of_parts"] == counted, request["output"]


def test_a_run_goes_on_in_the_middle_of_each_phase_and_at_other_stages(launch, cell):
    """Stopped and resumed four times: to the bit at one stage, and from stage 0 to 2 to 1 as at stage 0."""
    whole, cut = cell("whole", 2, 2), cell("cut", 2, 2)
    expected = cell("expected", 2, 0)

    def stopped(request: dict, at: int | None, stage: int) -> dict:
        return {
            **request, "task": {**TASK, "signal_at": at}, "engine": {**request["engine"], "zero_stage": stage}
        }  # fmt: skip

    first = launch(whole, expected)
    assert first.code == 0, first.text
    stops = (2, 9, 15, 21, None)
    for at, stage in zip(stops, (0, 2, 1, 1, 0), strict=True):
        done = launch(stopped(cut, at, 2), stopped(cell("moved", 2, 0), at, stage))
        assert done.code in (0, 128 + 15), done.text
        assert done.text.count("resumed from") == 2 * (at != 2), done.text
    assert [r["loss"] for r in records(cut)] == [r["loss"] for r in records(whole)]
    assert all(torch.equal(value, weights(whole)[name]) for name, value in weights(cut).items())
    assert not differ(cell("moved", 2, 0), expected)
