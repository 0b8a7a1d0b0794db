"""log.jsonl: damaged lines are skipped and counted, good lines after them are kept. Trackers by name: what a run tells
a module of wandb's shape, and what it does with one that fails."""

import json
from pathlib import Path

import pytest

from soho_fast.common.files import read_log
from soho_fast.engine.logs import RunLog


def _train(step: int, **values) -> dict:
    return {"kind": "train", "step": step, "loss": 2.0 / step, "lr": {"rest": 1e-4}, "grad_norm": 3.0} | values


def _line(step: int) -> bytes:
    return json.dumps(_train(step)).encode() + b"\n"


JUNK = [
    b"\x00\xff\xfe\x80 junk \x1b\n", _line(3)[:30] + b"\n", b"[1, 2]\n", b"7\n", b"\n", b"[" * 100_000 + b"\n",
    b'{"kind": "train", "loss": 1.0, "lr": {}}\n', b'{"step": 4, "loss": 1.0}\n',
    b'{"kind": "train", "step": "4", "lr": {}}\n', b'{"kind": ["train"], "step": 4, "lr": {}}\n',
    b'{"kind": "train", "step": 4, "lr": 0.1}\n', b'{"kind": "evaluation", "step": 4, "metrics": [0.5]}\n',
    b'{"kind": "event", "step": 4}\n',
]  # fmt: skip


@pytest.mark.parametrize("junk", JUNK)
def test_a_damaged_line_is_skipped_and_what_follows_is_kept(tmp_path, junk):
    path = tmp_path / "log.jsonl"
    path.write_bytes(_line(1) + _line(2) + junk + _line(5) + _line(6)[:-20])
    records, num_damaged = read_log(path)
    assert records == [_train(1), _train(2), _train(5)] and num_damaged == 1


def test_a_last_line_without_its_end_is_kept_where_it_is_whole(tmp_path):
    (tmp_path / "log.jsonl").write_bytes(_line(1) + _line(2)[:-1])
    assert read_log(tmp_path / "log.jsonl") == ([_train(1), _train(2)], 0)
    assert read_log(tmp_path / "none.jsonl") == ([], 0)


def _resume(folder: Path) -> list[bytes]:
    log = RunLog(folder, 5, 10)
    log.close()
    return (folder / "log.jsonl").read_bytes().splitlines(keepends=True)


def test_a_resumed_run_counts_damaged_lines_in_one_line(tmp_path, capsys):
    path = tmp_path / "log.jsonl"
    path.write_bytes(_line(1) + b"".join(JUNK) + _line(5) + _line(6))
    event = {"kind": "event", "step": 5, "event": "resumed"}
    assert _resume(tmp_path) == [_line(1), _line(5), json.dumps(event).encode() + b"\n"]
    assert capsys.readouterr().out == f"{path}: {len(JUNK)} damaged lines were left out\n"
    _resume(tmp_path)
    assert capsys.readouterr().out == "", "told once"


def test_an_evaluation_that_is_made_again_is_told_once(tmp_path):
    """A run is killed between its last evaluation and its end."""
    for value in (0.5, 0.5, 0.25):
        log = RunLog(tmp_path, 5, 5)
        log.record("evaluation", 5, {"metrics": {"itm": value}})
        log.close()
    measured = [record["metrics"]["itm"] for record in read_log(log.path)[0] if record["kind"] == "evaluation"]
    assert measured == [0.5, 0.25]


def test_tensorboard_reads_the_numbers_and_hides_those_that_a_resumed_run_makes_again(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for first, last in ((0, 4), (2, 6)):
        log = RunLog(tmp_path, first, 6)
        for step in range(first + 1, last + 1):
            log.record("train", step, {"loss": step / 8 + first, "lr": {"rest": 0.5}, "note": "text"})
        log.close()
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert sorted(board.Tags()["scalars"]) == ["train/loss", "train/lr/rest"]
    read = [(event.step, event.value) for event in board.Scalars("train/loss")]
    assert read == [(1, 0.125), (2, 0.25), (3, 2.375), (4, 2.5), (5, 2.625), (6, 2.75)]


MODULE = """
import json
from types import SimpleNamespace

FILE, FAILS_AT = {file!r}, {fails_at!r}

def tell(*call):
    with open(FILE, "a") as file:
        file.write(json.dumps(call) + "\\n")

def init(project, name=None, id=None, resume=None, config=None):
    tell("init", {{"project": project, "name": name, "id": id, "resume": resume, "config": config}})
    return SimpleNamespace(id=id or f"id of {{name}}", name=name, url=object())

def log(values, step=None):
    if step == FAILS_AT:
        raise ConnectionError("no\\nroute")
    tell("log", step, values)

def finish():
    tell("finish")
"""


@pytest.fixture
def tracker(tmp_path, monkeypatch):
    """Write a module that can be imported in the runs of the test; returns what reads the calls it got."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "modules"))
    (tmp_path / "modules").mkdir()

    def write(name: str, fails_at: int | None = None):
        file = tmp_path / f"{name}.calls"
        (tmp_path / "modules" / f"{name}.py").write_text(MODULE.format(file=str(file), fails_at=fails_at))
        return lambda: [json.loads(line) for line in file.read_text().splitlines()]

    return write


def test_a_run_and_its_continuation_are_one_run_of_a_tracker(launch, request_for, tracker, losses):
    calls, failing = tracker("boards"), tracker("elsewhere", fails_at=2)
    log = {"trackers": ["boards", "elsewhere"]}
    shorter = request_for("run", log=log, max_steps=4)
    going_on = request_for("run", log=log, max_steps=6, resume="changed", evaluation={"at_end": True})
    done = launch(shorter, going_on)
    assert done.code == 0, done.text
    assert done.text.count("log.trackers: elsewhere failed and is left out from here on: no route") == 1, done.text
    assert {result["step"] for result in done.results()} == {4, 6}, done.text

    made = calls()
    kinds = [call[0] for call in made]
    assert kinds.count("init") == kinds.count("finish") == 2 and kinds[-1] == "finish"
    first, again = (call[-1] for call in made if call[0] == "init")
    assert (first["project"], first["name"], first["id"], first["resume"]) == ("soho_fast", "run", None, None)
    assert (again["name"], again["id"], again["resume"]) == ("run", "id of run", "allow")
    assert first["config"]["optim"]["lr"] == 1e-2 and first["config"]["log"]["trackers"] == log["trackers"]

    told = [(step, values) for kind, step, values in (call for call in made if call[0] == "log")]
    by_step = {step: values for step, values in told if "train/loss" in values}
    assert [by_step[step]["train/loss"] for step in range(1, 7)] == losses(going_on)
    assert by_step[1]["train/lr/rest"] > 0 and by_step[1]["train/images_per_second"] > 0
    assert (4, {"event": "resumed"}) in told
    assert any(name.startswith("evaluation/metrics/") for step, values in told for name in values if step == 6)
    steps = [call[1] for call in failing() if call[0] == "log"]
    assert 1 in steps and 3 not in steps and 6 in steps, "left out from where it failed to the end of that run"


def test_what_is_no_tracker_is_refused_before_training(launch, request_for, tracker, tmp_path):
    (tmp_path / "modules" / "folder").mkdir()
    (tmp_path / "modules" / "broken.py").write_text("1 / 0")
    names = ["nowhere", "folder", "broken", ""]
    requests = [
        {**request_for(f"run-{number}", log={"trackers": [name]}), "fails": True} for number, name in enumerate(names)
    ]
    done = launch(*requests)
    assert done.code == 0, done.text
    for words in (
        "log.trackers: there is no module nowhere, neither in the current folder",
        "log.trackers: folder has no init, log, finish; expected a module or class of wandb's shape",
        "log.trackers: 'broken' cannot be imported: division by zero",
        "log.trackers: '' cannot be imported",
    ):
        assert words in done.text, done.text
    assert not any(Path(request["output"]).exists() for request in requests)
