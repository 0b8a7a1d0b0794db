"""A run goes on with another number of processes and at another ZeRO stage: the same losses, and nothing is lost."""

import re
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from run_files import records, weights

# No dropout: its random numbers are each process's own. BatchNorm of the backbone stands still: in training its
# statistics are of each process's own images.
SOHO = {"soho": True, "dropout": 0.0, "pixels": 32, "size": 34}
STEPS = 12
OFFICIAL = {
    "official": "pretraining", "fusion": "gate", "backbone_frozen_stages": 1, "dictionary_batch_norm": False,
}  # fmt: skip


@pytest.fixture
def run(request_for):
    """A request: two micro-batches a step, four steps an epoch, SGD beside AdamW, a checkpoint every three steps."""

    def make(name: str, stage: int, **changes) -> dict:
        settings = {
            "max_steps": STEPS,
            "task": {**SOHO, "config": {"dictionary_batch_norm": False}},
            "engine": {"freeze_batch_norm": True, "zero_stage": stage},
            "batch": {"gradient_accumulation_steps": 2},
            "checkpoint": {"every_steps": 3, "keep": 0},
            "optim": {"lr": 1e-3, "backbone_lr": 1e-3},
        }
        for key, value in changes.items():
            settings[key] = {**settings.get(key, {}), **value} if isinstance(value, dict) else value
        return request_for(name, **settings)

    return make


def copy_at(request: dict, step: int, stage: int) -> dict:
    """A copy of the run as if it had been killed behind a checkpoint, to go on at another stage."""
    folder = Path(f"{request['output']}-to-{stage}")
    shutil.copytree(request["output"], folder)
    for path in (folder / "checkpoints").iterdir():
        if int(path.name[5:]) > step:
            shutil.rmtree(path)
    return {**request, "output": str(folder), "engine": {**request["engine"], "zero_stage": stage}}


def test_two_processes_one_and_two_again_at_each_zero_stage(launch, run, losses):
    """Each of four runs on two processes goes on alone at the next stage, and on two at the one after that.

    SIGTERM stops them in mid-epoch, SIGKILL the last one.
    """

    def part(number: int, at: int | None) -> list[dict]:
        # A signal is heard in the next step.
        ends = [{}] * 4 if at is None else [{"signal_at": at}] * 3 + [{"kill_at": at + 1}]
        return [run(f"from-{stage}", (stage + number) % 4, task=end) for stage, end in enumerate(ends)]

    through = [run(f"through-{stage}", stage) for stage in (0, 3)]
    first = launch(*through, *part(0, 4), processes=2)
    assert first.code, first.text
    second = launch(*part(1, 6))
    assert second.code == -signal.SIGKILL, second.text
    last = part(2, None)
    third = launch(*last, processes=2)
    assert third.code == 0, third.text
    for done, processes in ((second, "2 -> 1"), (third, "1 -> 2")):
        assert done.text.count(f", processes {processes}") == 4, done.text
        assert len(re.findall(r"resharded: engine.zero_stage \d -> \d", done.text)) == 4, done.text
    assert second.text.count("(step 5 of 12)") == 3 and second.text.count("(step 3 of 12)") == 1, second.text
    assert third.text.count("(step 7 of 12)") == 3 and third.text.count("(step 6 of 12)") == 1, third.text
    expected = losses(through[0])
    assert len(expected) == STEPS and expected[0] - expected[-1] > 0.3
    np.testing.assert_allclose(losses(through[1]), expected, rtol=1e-6)
    for request in last:
        np.testing.assert_allclose(losses(request), expected, rtol=1e-6, err_msg=request["output"])


def test_the_released_codes_model_and_half_precision_go_on_at_another_stage(launch, run, losses):
    """The model has another dictionary, BatchNorm and optimiser, and a part of the backbone that is never trained.

    Half precision has float32 weights in the optimiser, and fp16 a loss scale.
    """
    official = {
        "task": {"config": OFFICIAL, "pixels": 64, "size": 16}, "optim": {"rule": "bert_adamw"}, "max_steps": 5,
    }  # fmt: skip
    half = {"loss_scale_power": 30}
    through = {(None, stage): run(f"official-{stage}", stage, **official) for stage in range(4)}
    for precision, stage in (("fp16", 1), ("fp16", 3), ("bf16", 2)):
        engine = half | {"precision": precision}
        through[precision, stage] = run(f"{precision}-{stage}", stage, max_steps=5, engine=engine)
    done = launch(*through.values())
    assert done.code == 0, done.text

    # In float32 those that the runs above leave out.
    ways = {(None, 0): (3,), (None, 1): (0,), (None, 2): (1,), (None, 3): (2,)}
    ways |= {("fp16", 1): (3,), ("fp16", 3): (2,), ("bf16", 2): (1,)}
    others = {(key, stage): copy_at(through[key], 3, stage) for key, stages in ways.items() for stage in stages}
    done = launch(*others.values())
    assert done.code == 0, done.text
    for (key, stage), request in others.items():
        what, expected, found = f"{key} -> {stage}", losses(through[key]), losses(request)
        states = [weights(each) for each in (through[key], request)]
        if key[0] is None:
            np.testing.assert_allclose(found, expected, rtol=1e-6, err_msg=what)
            for name in states[0]:
                # A hundredth of a step, with a learning rate of 1e-3.
                torch.testing.assert_close(
                    *[state[name] for state in states], rtol=1e-6, atol=1e-5, msg=f"{what}, {name}"
                )
        else:
            # Of the same float32 weights those in half are the same to the bit; a loss may have another last digit.
            np.testing.assert_allclose(found[:4], expected[:4], rtol=2e-7, err_msg=what)
            scales = [[record["loss_scale"] for record in records(each)] for each in (through[key], request)]
            assert scales[0] == scales[1] and (key[0] == "bf16" or len(set(scales[0])) > 2), (what, scales)


def test_an_optimiser_by_import_path_goes_on_at_each_stage(launch, run, losses):
    """Adagrad fills its state when it is made, and Adam counts its steps in a tensor of its own."""
    optim = {"rule": "torch.optim:Adam", "backbone_rule": "torch.optim:Adagrad"}
    through = [run(f"through-{stage}", stage, optim=optim, max_steps=6) for stage in range(4)]
    done = launch(*through)
    assert done.code == 0, done.text
    expected = losses(through[0])
    assert len(expected) == 6 and expected[0] - expected[-1] > 0.1
    others = [copy_at(through[stage], 3, to) for stage, to in ((0, 0), (1, 1), (2, 2), (3, 3), (0, 3), (1, 0), (3, 2))]
    done = launch(*others)
    assert done.code == 0 and done.text.count("(step 3 of 6)") == len(others), done.text
    for request in [*through, *others]:
        np.testing.assert_allclose(losses(request), expected, rtol=1e-5, err_msg=request["output"])
    other = {**through[0], "optim": {**through[0]["optim"], "rule": "adamw"}, "resume": "changed", "max_steps": 8}
    done = launch(other)
    assert done.code and "optimiser's state cannot change within a run" in done.text, done.text


def test_muon_steps_matrices_alike_however_zero_cuts_them(launch, run, losses):
    """One process and two at stages 0 to 2, and on from each at another one."""
    made = {"optim": {"rule": "muon/adamw", "lr": 5e-3}, "max_steps": 6}
    alone = [run(f"alone-{stage}", stage, **made) for stage in (0, 1, 2)]
    together = [run(f"together-{stage}", stage, **made) for stage in (0, 1, 2)]
    done = launch(*alone)
    assert done.code == 0, done.text
    done = launch(*together, processes=2)
    assert done.code == 0, done.text
    expected = losses(alone[0])
    assert len(expected) == 6 and expected[0] - expected[-1] > 0.1
    others = [copy_at(together[stage], 3, to) for stage, to in ((0, 1), (1, 0), (2, 2))]
    done = launch(*others)
    assert done.code == 0 and done.text.count("(step 3 of 6)") == len(others), done.text
    for request in [*alone, *together, *others]:
        np.testing.assert_allclose(losses(request), expected, rtol=1e-5, err_msg=request["output"])
