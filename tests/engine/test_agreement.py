"""Ranks that were started in different ways are told apart before the first step, and told which field it is."""

import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from soho_fast import train
from soho_fast.common.errors import UserError
from soho_fast.engine.changes import digest_of, refuse_disagreement

SCRIPT = Path(train.__file__)


def refused(launch, recipe, *own: str, both: tuple[str, ...] = (), script: Path = SCRIPT) -> str:
    done = launch(script=script, arguments=["--recipe", str(recipe), *both], of_rank={1: list(own)}, processes=2)
    assert done.code == 2, done.text
    # A launcher would have ended the other rank, which prints the same as its own.
    other, line = sorted(line for line in done.text.splitlines() if line.startswith("error"))
    assert other == line.replace("error:", "error on rank 1:")
    assert "step 1/" not in done.text and "Traceback" not in done.text
    return line


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_on_every_rank_the_first_that_differs_is_named(rank):
    values = [{"seed": 0, "optim.lr": 0.1}, {"seed": 3, "optim.lr": 0.5}, {"seed": 0, "optim.lr": 0.2}]
    handed_in = [[digest_of(each) for each in values], values]

    class Ranks:
        def gather(self, item):
            everyones = handed_in.pop(0)
            assert everyones[rank] == item
            return everyones

    with pytest.raises(
        UserError, match=r"^the processes do not agree: rank 1 has (seed 3, not 0|optim\.lr 0\.5, not 0\.1)"
    ):
        refuse_disagreement(Ranks(), values[rank])
    handed_in[:] = [[digest_of(values[0])] * 3]
    refuse_disagreement(Ranks(), values[0])


# Of fields that differ four are named.
@pytest.mark.parametrize(
    "others",
    [
        {"optim.lr": "0.5, not 0.0016", "seed": "3, not 0", "max_steps": "5, not 3",
         "checkpoint.every_steps": "1, not 0"},
        {"batch.global_batch_size": "4, not 8", "optim.frozen_backbone_epochs": "[0.0, 2.0], not [0.0, 0.0]",
         "model.config.ema_decay": "0.25, not nothing", "data.masking.probability": "0.5, not 0.3"},
    ],
)  # fmt: skip
def test_other_settings_are_one_line_with_rank_and_fields(launch, small_recipe, others):
    own = [word for field, told in others.items() for word in (f"--{field}", told.partition(", not")[0])]
    line = refused(launch, small_recipe, *own)
    assert all(f"{field} {told}" in line for field, told in others.items()), line
    assert line.startswith("error: the processes do not agree: rank 1 has ")
    assert line.endswith(", as rank 0 has; start all by the same command, recipe, data and version")


def test_so_are_other_sources_of_the_same_version(launch, small_recipe, tmp_path):
    script = tmp_path / "train.py"
    script.write_text(
        "import os, runpy\n"
        "from soho_fast.common import versions\n"
        "if os.environ['RANK'] == '1':\n"
        "    versions.digest_of_files = lambda folder, pattern: 'others' * (pattern == '*.py')\n"
        f"runpy.run_path({str(SCRIPT)!r}, run_name='__main__')\n"
    )
    assert "rank 1 has sources others, not " in refused(launch, small_recipe, script=script)


def test_places_and_cores_may_differ_but_what_is_read_there_may_not(launch, small_recipe, tmp_path):
    """A second machine has the data in another folder."""
    done = launch(script=SCRIPT, arguments=["--recipe", str(small_recipe), "--max_steps", "1"])
    assert done.code == 0, done.text
    there = shutil.copytree(tmp_path / "corpus", tmp_path / "there")
    own = ["--data_roots.corpus", str(there), "--batch.workers", "0"]
    command = ["--recipe", str(small_recipe), "--output", str(tmp_path / "two")]
    done = launch(script=SCRIPT, arguments=command, of_rank={1: own}, processes=2)
    assert done.code == 0, done.text
    start = shutil.copytree(tmp_path / "run/model", tmp_path / "start")
    weights = load_file(start / "model.safetensors")
    weights["itm_head.classifier.bias"][0] += 1
    save_file(weights, start / "model.safetensors", {"format": "pt"})
    own = ["--model.pretrained", str(start)]
    both = ("--output", str(tmp_path / "three"), "--model.pretrained", str(tmp_path / "run/model"))
    line = refused(launch, small_recipe, *own, both=both)
    assert "rank 1 has model.pretrained weights " in line and ", not weights " in line
