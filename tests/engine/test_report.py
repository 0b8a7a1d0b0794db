"""What is said of a run at its start and its end."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from soho_fast.common.processes import Processes
from soho_fast.engine.report import report_run, say_start


@pytest.mark.parametrize(("total_steps", "warned"), [(14, True), (15, False)])
def test_a_run_that_ends_within_its_first_phase_is_told(capsys, total_steps, warned):
    """Ten steps an epoch, and 1.4 epochs in which a part learns alone."""
    engine = SimpleNamespace(module=torch.nn.Linear(2, 1), zero_optimization_stage=lambda: 0)
    run = SimpleNamespace(
        step=SimpleNamespace(engine=engine, precision="float32"),
        plan=SimpleNamespace(global_batch_size=8, steps_per_epoch=10),
        task=SimpleNamespace(phase=lambda epoch: "the encoder learns alone" if epoch < 1.4 else ""),
        total_steps=total_steps, processes=Processes(), folder=Path("run"),
    )  # fmt: skip
    say_start(run, "mini")
    said = capsys.readouterr().out
    assert said.startswith(f"recipe mini: 0.0 M parameters, {total_steps} steps of 8 images")
    assert ("warning: until the last step the encoder learns alone; raise --epochs or" in said) == warned


def test_the_next_commands_of_a_run_with_code_of_a_user_s_own_import_it(tmp_path, capsys):
    asked = [
        "soho evaluate --run run",
        'soho explore build run  # needs: pip install "soho_fast[explore]"',
        "soho ask rank run IMAGE TEXT",
        "soho train --recipe own_vqa --model.pretrained run/model  # where lines have questions",
    ]
    task = SimpleNamespace(next_commands=lambda folder: asked, num_missing=lambda: 0, at_chance=lambda metrics: "")
    run = SimpleNamespace(
        task=task, folder=tmp_path, finished=None, total_steps=2,
        checkpoints=SimpleNamespace(identity={}), step=SimpleNamespace(precision="float32"),
        plan=SimpleNamespace(global_batch_size=8, steps_per_epoch=10),
        progress=SimpleNamespace(step=2, seconds=1.0, corrupt_images=0, best=None),
    )  # fmt: skip
    report_run(run, {})
    assert f"  {asked[0]}\n" in capsys.readouterr().out
    report_run(run, {}, [("model.config.dictionary", "own.codes:Own"), ("model.config.backbone", "net:Net")])
    named = "--model.config.dictionary own.codes:Own --model.config.backbone net:Net"
    told = capsys.readouterr().out
    for command in (
        f"{asked[0]} --trust-file\n", f"{asked[1].replace('  #', ' --trust-file  #')}\n",
        f"{asked[2]} --import own.codes --import net\n", f"{asked[3].replace('  #', f' {named}  #')}\n",
    ):  # fmt: skip
        assert f"  {command}" in told, command
    # The model has nothing of a loss; training it once more does.
    report_run(run, {}, [("model.losses.focal.path", "own:Focal")])
    told = capsys.readouterr().out
    assert all(f"  {command}\n" in told for command in asked)
