"""What was deleted of a study's folder is made again, and what is asked for brings all that it starts from."""

import os
import shutil

from tiny_study import trained

from soho_fast.studies import one
from soho_fast.studies.matrix import Cell, Run, chosen
from soho_fast.studies.results import append_row, read_rows
from soho_fast.studies.running import Place, Runner


def test_a_model_or_a_row_that_was_deleted_is_made_again(tmp_path, monkeypatch):
    monkeypatch.setattr(one, "_call", trained)
    monkeypatch.setattr(one, "_versions", dict)
    row = {"study": "s", "condition": "a", "seed": 0, "stage": "one", "digest": "d"}
    folder, results = tmp_path / "run", tmp_path / "results.jsonl"
    folder.mkdir()
    job = one.Job(row, {}, {}, 0, str(folder), str(results), [], keep_model=True, launcher="")
    assert one._make(job, folder) == 0 and len(read_rows([results])) == 1
    shutil.rmtree(folder / "training" / "model")
    assert one._make(job, folder) == 0 and (folder / "training" / "model").is_dir()
    assert len(read_rows([results])) == 1, "it has its row"
    results.unlink()
    assert one._make(job, folder) == 0 and len(read_rows([results])) == 1


def test_what_is_asked_for_brings_all_that_it_starts_from():
    runs = []
    for stage in ("one", "two", "three"):
        runs.append(Run(Cell("a", 0, stage), "mini", {"stage": stage}, {}, 0, runs[-1] if runs else None))
    assert chosen(runs, "stage", ["three"]) == runs


def test_what_a_run_was_killed_at_clearing_is_cleared_by_the_next_command(tmp_path):
    run, place = Run(Cell("a", 0, "one"), "mini", {}, {}, 0, None), Place(tmp_path)
    row = {"study": "s", "condition": "a", "seed": 0, "stage": "one", "digest": run.digest}
    append_row(place.results, row | {"metrics": {}})
    training = run.folder(tmp_path) / "training"
    for name in ("checkpoints.partial", "best", "kept"):
        (training / name / "step-1").mkdir(parents=True)
    assert Runner("s", [run], place, print).make() == 0
    assert os.listdir(training) == ["kept"]
