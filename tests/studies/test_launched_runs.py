"""Training commands of several processes, behind the words of a launcher: the study's, or a condition's own."""

import json
import signal
import sys
from pathlib import Path
from unittest.mock import MagicMock

import pytest
import yaml
from tiny_study import TINY

from soho_fast.studies import one
from soho_fast.studies.matrix import runs_of
from soho_fast.studies.results import read_rows
from soho_fast.studies.running import Place, Runner
from soho_fast.studies.study import read_study

LAUNCHER = """
import json, sys
from types import SimpleNamespace
sys.path.insert(0, {here!r})
from tiny_study import trained
with open({told!r}, "w") as file:
    json.dump(sys.argv[1:], file)
sys.exit(trained(SimpleNamespace(folder={folder!r}), "train", []))
"""


@pytest.fixture()
def signals():
    """What a launched command hears is put back."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_its_words_stand_before_the_command(tmp_path, monkeypatch, signals):
    monkeypatch.setattr(one, "_versions", dict)
    folder, told, script = tmp_path / "run", tmp_path / "told.json", tmp_path / "launch.py"
    folder.mkdir()
    script.write_text(LAUNCHER.format(here=str(Path(__file__).parent), told=str(told), folder=str(folder)))
    row = {"study": "s", "condition": "a", "seed": 0, "stage": "one", "digest": "d"}
    launcher = f"{sys.executable} {script} --processes 2"
    rows = tmp_path / "rows.jsonl"
    job = one.Job(row, {}, {}, 0, str(folder), str(rows), [], keep_model=False, launcher=launcher)
    assert one._make(job, folder) == 0
    program = str(Path(one.__file__).parent.parent / "train.py")
    words = ["--processes", "2", program, "--recipe", str(folder / "recipe.yaml"), "--trust-file"]
    assert json.loads(told.read_text()) == words
    assert [each["launcher"] for each in read_rows([rows])] == [launcher]


@pytest.mark.parametrize("of_all", ["", "deepspeed --num_gpus 8"])
def test_a_conditions_own_goes_before_the_studys(tmp_path, of_all):
    conditions = {"none": {}, "codes": {"launcher": "deepspeed --num_accelerators 2"}}
    path = tmp_path / "made.yaml"
    path.write_text(yaml.safe_dump({**TINY, "conditions": conditions, "comparisons": []}, sort_keys=False))
    runs = [run for run in runs_of(read_study(path)) if run.cell.stage == "pretraining"]
    runner, context = Runner("made", runs, Place(tmp_path, launcher=of_all), print), MagicMock()
    for run in runs:
        runner._begin(run, context, 1)
    jobs = [call.kwargs["args"][0] for call in context.Process.call_args_list]
    assert [(job.row["condition"], job.launcher) for job in jobs] == [
        ("none", of_all),
        ("codes", conditions["codes"]["launcher"]),
    ]


def test_a_run_that_begins_while_a_stop_is_heard_is_stopped_too(tmp_path):
    path = tmp_path / "made.yaml"
    path.write_text(yaml.safe_dump({**TINY, "comparisons": []}, sort_keys=False))
    runs = [run for run in runs_of(read_study(path)) if run.cell.stage == "pretraining"]
    runner, context = Runner("made", runs, Place(tmp_path, jobs=len(runs)), print), MagicMock()
    process = context.Process.return_value
    process.start.side_effect = lambda: runner._hear(signal.SIGINT, None)

    def is_alive():
        assert process.terminate.called, "it would go on to its end"
        return False

    process.is_alive.side_effect = is_alive
    process.exitcode = 0
    runner._loop(context)
    assert len(runs) > 1 and process.start.call_count == 1
