"""A stage that asks for photographs has their metrics in its rows, or says before any training what is missing."""

import json

import numpy as np
import pytest
from tiny_study import trained

from soho_fast.common.errors import UserError
from soho_fast.studies import one, photos


@pytest.fixture()
def job(tmp_path, monkeypatch):
    """A run that asks for photographs, and the commands that it calls."""
    called = []

    def call(job, command, arguments):
        called.append(command)
        return trained(job, command, arguments)

    monkeypatch.setattr(one, "_call", call)
    monkeypatch.setattr(one, "_versions", dict)
    folder = tmp_path / "run"
    folder.mkdir()
    row = {"study": "s", "arm": "a", "seed": 0, "stage": "one", "variant": "", "digest": "d"}
    made = one.Job(row, {}, {}, 0, True, str(folder), str(tmp_path / "rows.jsonl"), [], keep_model=False, launcher="")
    return made, folder, called


def test_the_row_has_them(job, monkeypatch):
    made, folder, _ = job
    monkeypatch.setattr(photos, "classified_photographs", lambda: [("fish", b""), ("fish", b"")])
    # Photographs of one class share three of four cells, and two of different classes one.
    codes = [np.array(cells) for cells in ([0, 1, 2, 3], [0, 1, 2, 4], [5, 5, 5, 3], [5, 5, 5, 6])]
    found = photos.consistency(codes, ["fish", "fish", "mill", "mill"], 8)
    monkeypatch.setattr(photos, "photo_metrics", lambda run: found)
    assert one._make(made, folder) == 0
    row = json.loads((folder.parent / "rows.jsonl").read_text())
    metrics = row["metrics"]
    assert metrics["score"] == 0.5 and metrics["photos.same_class"] == 0.75
    assert metrics["photos.lift"] == pytest.approx(0.75 / (0.25 / 4))


def test_that_they_are_missing_is_told_before_the_training(job, monkeypatch):
    made, folder, called = job
    monkeypatch.setattr("soho_fast.data.mini.photographs.FOLDER", folder / "nowhere")
    monkeypatch.setattr(photos, "read_photographs", photos.read_photographs.__wrapped__)
    with pytest.raises(UserError, match="apt-get install --no-install-recommends gcompris-qt-data"):
        one._make(made, folder)
    assert called == []
