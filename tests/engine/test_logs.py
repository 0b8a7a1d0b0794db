"""log.jsonl: damaged lines are skipped and counted, good lines after them are kept."""

import json
from pathlib import Path

import pytest

from soho_fast.common.files import read_log
from soho_fast.engine.logs import RunLog
from soho_fast.engine.report import draw_curves
from soho_fast.engine.settings import LogSettings


def _train(step: int, **values) -> dict:
    return {"kind": "train", "step": step, "loss": 2.0 / step, "lr": {"rest": 1e-4}, "grad_norm": 3.0} | values


def _line(step: int) -> bytes:
    return json.dumps(_train(step)).encode() + b"\n"


JUNK = [
    b"\x00\xff\xfe\x80 junk \x1b\n",
    _line(3)[:30] + b"\n",
    b"[1, 2]\n",
    b"7\n",
    b"\n",
    b"[" * 100_000 + b"\n",
    b'{"kind": "train", "loss": 1.0, "lr": {}}\n',
    b'{"step": 4, "loss": 1.0}\n',
    b'{"kind": "train", "step": "4", "lr": {}}\n',
    b'{"kind": ["train"], "step": 4, "lr": {}}\n',
    b'{"kind": "train", "step": 4, "lr": 0.1}\n',
    b'{"kind": "evaluation", "step": 4, "measures": [0.5]}\n',
    b'{"kind": "event", "step": 4}\n',
    b'{"kind": "snapshot", "step": 4, "values": [1]}\n',
]


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
    log = RunLog(folder, LogSettings(tensorboard=False), 5, 10)
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
        log = RunLog(tmp_path, LogSettings(tensorboard=False), 5, 5)
        log.record("evaluation", 5, {"measures": {"itm": value}})
        log.close()
    measured = [record["measures"]["itm"] for record in read_log(log.path)[0] if record["kind"] == "evaluation"]
    assert measured == [0.5, 0.25]


def test_curves_are_drawn_of_a_damaged_log(tmp_path):
    odd = [_train(2, loss="2.0"), _train(3, grad_norm=[1]), _train(4, lr={"rest": None}), _train(5, lr={"best": 1e-4})]
    lines = [json.dumps(record).encode() + b"\n" for record in odd]
    (tmp_path / "log.jsonl").write_bytes(_line(1) + b"".join(JUNK) + b"".join(lines) + _line(6))
    draw_curves(tmp_path / "log.jsonl", tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
