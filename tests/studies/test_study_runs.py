"""A real matrix: made by two commands at once, and one killed twice; skipped, shared, divided, refused."""

import contextlib
import json
import re
import signal
import subprocess
import time

import psutil
from tiny_study import command, environment


def rows_of(folder):
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]


def told(rows):
    """What must be the same however a matrix was made: all but the times."""
    return {row["digest"]: (row["stage"], row["steps"], row["metrics"]) for row in rows}


def test_every_run_has_its_row(made):
    folder, said = made
    rows = {(row["condition"], row["stage"]): row for row in rows_of(folder)}
    # `again` has the settings of `codes`, so that its runs are those.
    names = [
        ("codes", "output"),
        ("codes", "pretraining"),
        ("codes", "vqa"),
        ("none", "pretraining"),
        ("none", "vqa"),
    ]
    assert sorted(rows) == names and len(rows_of(folder)) == 5
    _, codes, _, none, tuned = map(rows.get, names)
    assert none["steps"] == 20 and tuned["steps"] == 12
    assert codes["metrics"]["codes.lift"] >= 1 and "codes.lift" not in none["metrics"]
    assert 0 < codes["metrics"]["codes.k_means_unexplained"] < codes["metrics"]["codes.unexplained"]
    assert tuned["metrics"]["val.num_examples"] > 0
    assert all(row["seconds"] > row["training_seconds"] > 0 and row["peak_memory_gb"] > 0.1 for row in rows.values())
    assert any("5 of 5 runs, 0:00:00 left" in each for each in said)


def test_two_commands_at_once_divide_the_runs(made):
    """No run is trained twice, and neither command leaves all to the other."""
    folder, said = made
    done = [set(re.findall("^(.*): done in ", each, flags=re.MULTILINE)) for each in said]
    assert all(done) and len(done[0] | done[1]) == 5
    logs = [path.read_text() for path in folder.glob("runs/*/*/*/log.txt")]
    assert [log.count(" parameters, ") for log in logs] == [1] * 5


def test_only_models_that_others_start_from_are_kept(made):
    folder, _ = made
    kept = {path.parent.parent.name.partition("-")[0] for path in folder.glob("runs/*/*/*/training/model")}
    assert kept == {"pretraining"}
    assert not list(folder.glob("runs/*/*/*/training/checkpoints"))


def test_what_is_done_is_not_made_again(made, tiny_study, make, tmp_path):
    folder, _ = made
    before = (folder / "results.jsonl").read_bytes()
    done = make(tiny_study, "--into", folder)
    assert done.returncode == 0 and "begins" not in done.stdout, done.stdout + done.stderr
    assert (folder / "results.jsonl").read_bytes() == before
    # Rows of elsewhere count too, though nothing lies in this folder.
    done = make(tiny_study, "--into", tmp_path, "--results", folder / "results.jsonl")
    assert done.returncode == 0 and "begins" not in done.stdout, done.stdout + done.stderr
    assert "5 of 5" not in done.stdout and (tmp_path / "report.md").is_file()


def test_changed_settings_are_other_runs(made, tiny_study, make):
    folder, _ = made
    listed = make(tiny_study, "--into", folder, "--list")
    assert "0 of 5 runs to make" in listed.stdout, listed.stdout + listed.stderr
    listed = make(tiny_study, "--into", folder, "--list", "--engine.threads", 2, "--log.every_steps", 7)
    assert "0 of 5 runs to make" in listed.stdout, listed.stdout + listed.stderr
    listed = make(tiny_study, "--into", folder, "--list", "--optim.lr", 0.1)
    assert "5 of 5 runs to make" in listed.stdout, listed.stdout + listed.stderr


def everything(process):
    """The study's process and all that it has started."""
    return [process, *psutil.Process(process.pid).children(recursive=True)]


def killed_when(arguments, condition):
    """Begin the study; SIGKILL to all of its processes as soon as the condition holds."""
    process = subprocess.Popen(command(*arguments), stdout=subprocess.PIPE, text=True, env=environment())
    try:
        deadline = time.monotonic() + 300
        while not condition():
            assert process.poll() is None and time.monotonic() < deadline, process.stdout.read()
            time.sleep(0.01)
        for each in everything(process):
            with contextlib.suppress(psutil.NoSuchProcess):
                each.send_signal(signal.SIGKILL)
    finally:
        process.kill()
        process.wait()


def test_killed_in_a_run_and_between_two_it_ends_as_if_it_had_not_been(made, tiny_study, make, tmp_path):
    arguments = (tiny_study, "--into", tmp_path, "--threads", 1, "--conditions", "none")
    results = tmp_path / "results.jsonl"

    def num_rows():
        return len(results.read_text().splitlines()) if results.exists() else 0

    def trains(stage):
        """A run of this stage is between two of its checkpoints."""
        saved = tmp_path.glob(f"runs/*/*/{stage}-*/training/checkpoints/step-????????")
        return any(not (path.parents[2] / "done").exists() for path in saved)

    killed_when(arguments, lambda: trains("pretraining"))
    assert num_rows() == 0
    killed_when(arguments, lambda: num_rows() == 1)  # Between two runs.
    done = make(*arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    expected = [row for row in rows_of(made[0]) if row["condition"] == "none"]
    assert len(expected) == 2 and told(rows_of(tmp_path)) == told(expected)
    logs = "".join(path.read_text() for path in tmp_path.glob("runs/*/*/*/log.txt"))
    assert "resumed from" in logs
