"""A run that has met Inf or NaN ends at its next record or save, on all ranks, and names the last finite checkpoint."""

import json
import math
from pathlib import Path

from run_files import checkpoints, records

SOHO = {"soho": True, "dropout": 0.0, "pixels": 32}
STILL = {"freeze_batch_norm": True}
# A save is due at step 9; the record of step 10 is never written.
SAVES = {"log": {"every_steps": 5}, "checkpoint": {"every_steps": 3, "keep": 2}, "evaluation": {"at_end": True}}


def errors(text: str) -> list[str]:
    return [json.loads(line)["error"] for line in text.splitlines() if line.startswith('{"rank"') and "error" in line]


def assert_ended_well(request: dict, error: str, found: str) -> None:
    """At step 9, by the name of what was found, with the checkpoints of steps 3 and 6 and no model."""
    output = Path(request["output"])
    assert error.startswith("step 9: not finite") and found in error, error
    assert f"The newest checkpoint is {output / 'checkpoints' / 'step-00000006'}" in error, error
    assert checkpoints(request) == ["step-00000003", "step-00000006"]
    assert not (output / "model").exists()
    assert "\n" not in error


def test_whatever_is_not_finite_ends_the_run_before_it_is_saved(launch, request_for):
    cases = {
        "weights": (9, "tensors (never_used.bias)"),
        "moments": (9, "tensors (exp_avg of "),
        "statistics": (9, "tensors (backbone.1.running_var)"),
        "gradients": (8, "the gradients (norm nan)"),
    }
    requests = [
        request_for(what, fails=True, max_steps=20, task={"poison": [what, step, 0]}, **SAVES)
        for what, (step, _) in cases.items()
    ]
    requests[-1]["log"]["every_steps"] = 3  # A gradient's norm is there where a record is due.
    found = [what for _, what in cases.values()]
    # A loss that stays finite: tokens of NaN are given code 0.
    poisoned = SOHO | {"poison": ["pixels", 8, 0]}
    requests.append(request_for("pixels", fails=True, max_steps=20, engine=STILL, task=poisoned, **SAVES))
    found.append("visual tokens")
    start = request_for("start", fails=True, task={"poison": "start"})
    # DeepSpeed's ZeRO leaves a step of NaN out in float32 too, and would go on so for ever.
    left_out = request_for(
        "left_out", fails=True, engine={"zero_stage": 1}, task={"poison": ["gradients", 3, 0]}, log={"every_steps": 100}
    )
    done = launch(*requests, start, left_out)
    assert done.code == 0, done.text
    told = errors(done.text)
    assert len(told) == len(requests) + 2, done.text
    for request, error, what in zip(requests, told, found, strict=False):
        assert_ended_well(request, error, what)
    assert told[-2].startswith("step 0, before training: not finite: 1 of 17 tensors (norm.weight)"), told[-2]
    assert told[-1].startswith("step 4: not finite: the gradients (norm inf), so the run has diverged"), told[-1]


def test_ranks_end_together_when_one_of_them_is_not_finite(launch, request_for):
    cases = [("weights", 0), ("statistics", 0), ("moments", 1), ("weights", 3), ("moments", 3), ("pixels", 0)]
    requests = []
    for what, stage in cases:
        options = SOHO if what == "pixels" else {}
        step = 8 if what == "pixels" else 9
        requests.append(
            request_for(
                f"{what}{stage}", fails=True, max_steps=20, engine=STILL | {"zero_stage": stage},
                task=options | {"poison": [what, step, 1]}, **SAVES,
            )
        )  # fmt: skip
    done = launch(*requests, processes=2)
    assert done.code == 0, done.text
    told = errors(done.text)
    assert len(told) == 2 * len(cases), done.text
    for (what, _), request in zip(cases, requests, strict=True):
        mine = [error for error in told if request["output"] + "/" in error]
        assert len(mine) == 2 and len(set(mine)) == 1, (what, told)
        assert_ended_well(request, mine[0], "on rank 1: visual tokens (1)" if what == "pixels" else "on rank 1: 1 of ")


def test_in_fp16_features_end_a_run_overflows_do_not(launch, request_for):
    """A step that overflows is left out and moves no code; where no smaller scale is left, one line says so."""
    fp16 = STILL | {"precision": "fp16", "loss_scale_power": 60}
    low, blind = fp16 | {"loss_scale_power": 2}, {"poison": ["pixels", 1, 0]}
    skips = [request_for(f"skip{steps}", max_steps=steps, engine=fp16, task=SOHO) for steps in (1, 3)]
    features = request_for("features", fails=True, engine=low, task=SOHO | blind)
    scale = request_for("scale", fails=True, max_steps=40, engine=low, task=blind, log={"every_steps": 100})
    done = launch(*skips, features, scale)
    assert done.code == 0, done.text
    one, three = done.results()[:2]
    assert (one["skipped_steps"], three["skipped_steps"]) == (1, 3)
    assert one["codebook"] == three["codebook"], "as it was drawn for the first lookup"
    assert [record["skipped_steps"] for record in records(skips[1])] == [1, 2, 3]
    of_features, of_scale = errors(done.text)
    assert of_features.startswith("step 2: not finite: visual tokens (1)"), of_features
    assert "the gradients overflow at the smallest loss scale of fp16, so the run has diverged" in of_scale, of_scale


def test_the_last_gradient_norm_of_a_limited_time_is_recorded(launch, request_for):
    """Without partitions a norm is lost unless it is measured, and when the time is over is not known beforehand."""
    request = request_for("timed", max_minutes=0.1, task={"seconds_a_step": 1.0}, log={"every_steps": 1000})
    done = launch(request)
    assert done.code == 0, done.text
    (last,) = records(request)
    assert last["step"] == 6, "of ten"
    assert math.isfinite(last["grad_norm"]) and last["grad_norm"] > 0


def test_a_lost_run_ends_and_names_the_last_sound_checkpoint_which_was_kept(launch, request_for):
    each = {"log": {"every_steps": 3}, "checkpoint": {"every_steps": 1, "keep": 2}, "evaluation": {"at_end": True}}
    lost = request_for("lost", fails=True, max_steps=20, task={"lost_after": 7}, **each)
    never = request_for("never", max_steps=14, **each)
    alone = {"log": {"every_steps": 3}, "checkpoint": {"every_steps": 0, "every_minutes": 0}}
    unsaved = request_for("unsaved", fails=True, max_steps=20, task={"lost_after": 7}, **alone)
    done = launch(lost, never, unsaved)
    assert done.code == 0, done.text
    # At step 11 it is seen, before that step is saved.
    assert checkpoints(lost) == ["step-00000007", "step-00000009", "step-00000010"]
    assert checkpoints(never) == ["step-00000013", "step-00000014"]
    error, without = errors(done.text)
    sound = Path(lost["output"]) / "checkpoints" / "step-00000007"
    assert error == (
        "step 11: for 4 steps all was lost; lower optim.lr or optim.backbone_lr, or give schedule.warmup_steps more "
        f"(docs/failures.md). Delete all newer than {sound}, and --resume changed goes on from it"
    )
    assert without.startswith("step 12: ") and "before: give another --output to start again" in without
    assert not (Path(lost["output"]) / "model").exists()
    assert [record["steps"] for record in records(never)] == [3, 6, 9, 12, 14], "figures are logged"
