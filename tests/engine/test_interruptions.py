"""Runs that are killed, stopped, resumed, or lose their disk."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch
from run_files import checkpoints, evaluations, events, records, weights
from safetensors import SafetensorError

from soho_fast import train
from soho_fast.common.errors import UserError
from soho_fast.common.files import this_host
from soho_fast.common.processes import Processes
from soho_fast.engine import trainer as training
from soho_fast.engine import watchdog as stopping
from soho_fast.engine.checkpoint import Checkpoints, Progress
from soho_fast.engine.settings import OptimSettings
from soho_fast.engine.trainer import Run

SCRIPT = Path(train.__file__)
ENGINE_RUN = Path(__file__).with_name("engine_run.py")

SOHO = {"soho": True, "dropout": 0.1, "pixels": 32}


def test_kill_and_resume_continues_the_same_losses(launch, request_for, losses):
    """kill -9 in mid-training, dropout on: what follows equals the uninterrupted run, exactly."""
    every = {
        "checkpoint": {"every_steps": 3, "keep": 1},
        "batch": {"workers": 1, "gradient_accumulation_steps": 2},
        "max_steps": 9,
    }
    # Five steps an epoch: the run is killed in its second epoch, two steps past its checkpoint.
    through = request_for("through", task=SOHO, evaluation={"quick_every_steps": 3}, **every)
    killed = request_for("killed", task=SOHO | {"kill_at": 8}, **every)
    resumed = request_for("killed", task=SOHO, **every)
    done = launch(through, killed)
    assert done.code == -signal.SIGKILL, done.text
    assert checkpoints(killed) == ["step-00000006"]
    half_written = Path(killed["output"]) / "checkpoints" / "step-00000009.partial"
    half_written.mkdir()
    (half_written / "mp_rank_00_model_states.pt").write_bytes(b"half")
    (Path(killed["output"]) / f".best.{this_host()}.{2**22 + 1}.partial" / "new").mkdir(parents=True)
    done = launch(resumed)
    assert not list(Path(killed["output"]).rglob("*.partial"))
    assert done.code == 0, done.text
    assert "half-written, from a run that was cut off" in done.text
    assert "resumed from" in done.text and "step 6 of 9" in done.text
    assert losses(resumed) == losses(through)
    assert checkpoints(resumed) == ["step-00000009"]


def test_a_signal_saves_and_stops_at_the_next_step(launch, request_for, losses):
    names = ("SIGTERM", "SIGINT", "SIGHUP")
    asked = [request_for(name, task={"signal_at": 4, "signal": name}) for name in names]
    done = launch(*asked)
    assert done.code == 128 + signal.SIGHUP, done.text
    assert [result["signal"] for result in done.results()] == [getattr(signal, name) for name in names]
    assert done.text.count("asked to stop: saved") == 3
    for request in asked:
        assert len(losses(request)) in (4, 5)
        assert checkpoints(request) == [f"step-0000000{len(losses(request))}"]
        assert not (Path(request["output"]) / "model").exists()


def test_a_reader_of_the_output_that_ends_saves_and_stops(forked, request_for, losses, clean_environment, tmp_path):
    """As by `| head -n 3`: no stack trace, a checkpoint, and one line where errors go."""
    # Each evaluation prints a line.
    options = {"task": {"size": 400, "selection": "loss"}, "evaluation": {"every_epochs": 0.1}}
    request, pipe, stderr = request_for("run", max_steps=5000, **options), tmp_path / "pipe", tmp_path / "stderr"
    os.mkfifo(pipe)
    with ThreadPoolExecutor(1) as other:
        arguments = [str(ENGINE_RUN), json.dumps([request])]
        code = other.submit(forked.run, arguments, tmp_path, clean_environment, pipe, stderr)
        with pipe.open() as output:
            assert any(line.startswith("step ") for line in output)
        assert code.result() == 128 + signal.SIGTERM
    said = stderr.read_text()
    assert "Traceback" not in said and "BrokenPipe" not in said
    assert said.splitlines().count("stopped: what read this command's output has ended") == 1, said
    assert 0 < len(losses(request)) < 5000 and checkpoints(request)[-1] == f"step-{len(losses(request)):08d}"


def test_a_stop_where_an_evaluation_is_due_leaves_the_same_best_model(launch, request_for, losses):
    # Five steps an epoch, evaluated after each two; asked to stop in the third, the run hears it in the fourth.
    often = {"evaluation": {"every_epochs": 0.4, "at_end": True}, "max_steps": 7}
    through = request_for("through", task={"selection": "loss"}, **often)
    stopped = request_for("stopped", task={"selection": "loss", "signal_at": 3}, **often)
    resumed = request_for("stopped", task={"selection": "loss"}, **often)
    done = launch(through, stopped)
    assert done.code == 128 + signal.SIGTERM, done.text
    assert [step for step, _ in evaluations(stopped)] == [2]
    assert launch(resumed).code == 0
    assert losses(resumed) == losses(through)
    assert events(through) == [] and events(resumed) == [(4, "resumed")]
    found = evaluations(through)
    assert [step for step, _ in found] == [2, 4, 6, 7] and evaluations(resumed) == found
    best, worst = (choose(found, key=lambda evaluation: evaluation[1]["loss"])[0] for choose in (max, min))
    assert best != worst, "a best model that is no other than the last would show nothing"
    one, two = (weights(run, "best") for run in (through, resumed))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_what_best_holds_is_the_best_however_a_run_ends_and_goes_on(launch, request_for):
    """Killed behind its first evaluation and before the first save; and finished with its best, then trained on."""
    options = {"seed": 10, "evaluation": {"every_epochs": 0.4, "at_end": True}}
    killed = request_for("killed", task={"selection": "random", "kill_at": 3}, max_steps=5, **options)
    assert launch(killed).code == -signal.SIGKILL
    run = request_for("killed", task={"selection": "random"}, max_steps=5, **options)
    longer = request_for("killed", task={"selection": "random"}, max_steps=9, resume="changed", **options)
    done = launch(run)
    assert done.code == 0, done.text
    of_step_5 = weights(run)
    done = launch(longer)
    assert done.code == 0, done.text
    value = {step: metrics["random"] for step, metrics in evaluations(longer)}
    assert list(value) == [2, 4, 5, 6, 8, 9] and value[5] > value[8] > max(value[2], value[4]), value
    best = weights(run, "best")
    assert all(torch.equal(best[name], of_step_5[name]) for name in best), "of step 8: 5 was measured behind the save"


def test_a_best_model_that_was_deleted_is_told_and_another_takes_its_place(launch, request_for):
    options = {"seed": 10, "evaluation": {"every_epochs": 0.4, "at_end": True}}
    run = request_for("run", task={"selection": "random"}, max_steps=5, **options)
    assert launch(run).code == 0
    best = Path(run["output"]) / "best"
    shutil.rmtree(best)
    done = launch(request_for("run", task={"selection": "random"}, max_steps=6, resume="changed", **options))
    assert done.code == 0 and best.is_dir(), done.text
    assert len(re.findall(rf"{best}, of step [24], is not there any more: the best model from here on", done.text)) == 1


def test_machines_and_stops_under_the_launcher_leave_the_losses_as_they_are(start, small_recipe, losses):
    """`deepspeed soho_fast/train.py` on two machines by a hostfile (both are this one), against two ranks of one
    machine that get Ctrl-C, are started again, get SIGTERM to the `deepspeed` command, and go on to their end.

    Ctrl-C signals the whole process group. SIGTERM leaves the launcher and the ranks behind as orphans.
    """
    folder = small_recipe.parent

    def run(name: str, *options: str) -> subprocess.Popen:
        arguments = ["--recipe", str(small_recipe), "--max_steps", "20", "--evaluation.at_end", "false"]
        return start(SCRIPT, [*arguments, "--output", str(folder / name)], *options, processes=2)

    def end(launcher: subprocess.Popen) -> str:
        # The pipe closes when the last of the ranks has ended.
        return launcher.communicate(timeout=300)[0]

    through, stopped = {"output": str(folder / "through")}, {"output": str(folder / "stopped")}
    (folder / "hosts").write_text("first slots=1\nsecond slots=1\n")
    by_hand = ("--hostfile", str(folder / "hosts"), "--no_ssh", "--master_addr", "127.0.0.1", "--node_rank")
    machines = [run("through", *by_hand, number) for number in "01"]
    texts = [end(machine) for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], "\n".join(texts)
    assert "2 process(es)" in texts[0] and "process(es)" not in texts[1], "only the first rank speaks"

    log, steps = folder / "stopped" / "log.jsonl", 0
    for send in (lambda launcher: os.killpg(launcher.pid, signal.SIGINT), subprocess.Popen.terminate):
        launcher = run("stopped")
        deadline = time.monotonic() + 300
        while not (log.exists() and len(log.read_text().splitlines()) >= steps + 4):
            assert time.monotonic() < deadline, "training did not begin"
            time.sleep(0.05)
        send(launcher)
        text = end(launcher)
        assert f"(step {steps} of 20)" in text or not steps, text
        steps = len(losses(stopped))
        assert f"stopped/checkpoints/step-{steps:08d}; the same command continues from here" in text, text
        assert not re.search('File ".*soho_fast', text), "a stack trace of ours"
        assert f"step-{steps:08d}" in checkpoints(stopped)
        assert not (folder / "stopped" / "model").exists()
    launcher = run("stopped")
    text = end(launcher)
    assert launcher.returncode == 0 and f"(step {steps} of 20)" in text, text
    assert losses(stopped) == losses(through)


def test_a_killed_loader_process_is_told_in_a_line_and_the_run_goes_on(start, small_recipe, losses):
    output = small_recipe.parent / "lost"
    arguments = ["--recipe", str(small_recipe), "--max_steps", "2000", "--output", str(output)]
    run = start(SCRIPT, [*arguments, "--batch.workers", "1", "--checkpoint.every_minutes", "0.01"])
    deadline = time.monotonic() + 300
    while not list(output.glob("checkpoints/step-*[0-9]")):
        assert time.monotonic() < deadline and run.poll() is None, "no checkpoint came"
        time.sleep(0.05)
    (worker,) = psutil.Process(run.pid).children()
    worker.kill()
    text = run.communicate(timeout=120)[0]
    assert run.returncode == 75, text
    died = r"DataLoader worker \(pid.*\d+\) (is killed by signal: Killed|exited unexpectedly)"
    told = rf"^error: {died}, as where memory runs out: .*; the same command continues from the newest checkpoint$"
    assert re.search(told, text, re.MULTILINE), text
    assert "Traceback" not in text
    steps = len(losses({"output": str(output)}))
    arguments[arguments.index("2000")] = str(steps + 3)
    run = start(SCRIPT, [*arguments, "--evaluation.at_end", "false", "--resume", "changed"])
    text = run.communicate(timeout=300)[0]
    assert run.returncode == 0 and "step-" in text, text
    assert len(losses({"output": str(output)})) == steps + 3


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_outside_of_steps_ends_a_command_in_a_line(name):
    """As while it reads its data, or evaluates."""
    code = (
        "import sys, time\nfrom soho_fast.engine.watchdog import run_command\n"
        "with run_command('the same command goes on') as command:\n"
        "    print('on', flush=True)\n    while True: time.sleep(0.01)\n"
        "sys.exit(command.code)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "on\n"
    process.send_signal(getattr(signal, name))
    said = process.communicate(timeout=30)[1]
    assert (process.returncode, said) == (128 + getattr(signal, name), "\nstopped; the same command goes on\n")


@pytest.mark.parametrize("name", ["SIGINT", "SIGHUP"])
def test_a_signal_that_was_ignored_before_training_began_does_not_stop_it(name):
    """Ctrl-C does not reach what a script left in the background, nor a closed terminal what nohup started."""
    before = signal.signal(getattr(signal, name), signal.SIG_IGN)
    try:
        with stopping.StopRequest() as stop:
            os.kill(os.getpid(), getattr(signal, name))
            assert stop.pending() == 0
            os.kill(os.getpid(), signal.SIGTERM)
            assert stop.pending() == signal.SIGTERM
    finally:
        signal.signal(getattr(signal, name), before)


def test_second_interrupt_stops_at_once(monkeypatch):
    ended, now = [], [100.0]
    monkeypatch.setattr(stopping.os, "_exit", ended.append)
    monkeypatch.setattr(stopping, "time", SimpleNamespace(monotonic=lambda: now[0]))
    before = signal.getsignal(signal.SIGINT)
    with stopping.StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        assert (stop.pending(), ended) == (signal.SIGINT, []), "one key press arrives as several signals"
        now[0] += 0.6
        os.kill(os.getpid(), signal.SIGTERM)
        assert ended == []
        os.kill(os.getpid(), signal.SIGINT)
        assert ended == [130]
    assert signal.getsignal(signal.SIGINT) is before


def test_full_disk_on_one_rank_is_one_error_and_keeps_what_was_saved(launch, request_for):
    """The second of two ranks cannot write: both stop with one message, and the earlier checkpoint still loads."""
    full = request_for(
        "full", task={"small_files_at": 6, "width": 64}, checkpoint={"every_steps": 4}, engine={"zero_stage": 2}
    )
    done = launch(full, processes=2, by_launcher=True)
    assert done.code == 2, done.text
    errors = [line for line in done.text.splitlines() if line.startswith("error")]
    assert len(errors) == 1, done.text
    assert "could not be written" in errors[0] and "File too large" in errors[0] and "step-00000004" in errors[0]
    assert "Traceback" not in done.text
    assert checkpoints(full) == ["step-00000004"]
    again = request_for("full", task={"width": 64}, engine={"zero_stage": 2})
    done = launch(again, processes=2)
    assert done.code == 0, done.text
    assert "step 4 of 10" in done.text


def test_a_checkpoint_of_another_size_names_what_differs(launch, request_for):
    """Whatever ZeRO stage saved it and whichever would load it."""
    small = [request_for(f"zero{stage}", max_steps=2, engine={"zero_stage": stage}) for stage in range(4)]
    other = {"task": {"width": 16}, "max_steps": 3, "fails": True}
    asked = [{**run, **other, "resume": "changed"} for run in small]
    resharded = {**asked[1], "engine": {"zero_stage": 0}}
    done = launch(*small, {**small[0], **other}, *asked, resharded)
    assert done.code == 0, done.text
    told = [json.loads(line)["error"] for line in done.text.splitlines() if '"error"' in line]
    changed = "model.width: trained with 8, now 16"
    assert len(told) == 6 and "trained with 2, now 3. Give the same values, another" in told[0]
    for line in told[1:]:
        assert "does not fit the changed settings (" in line and changed in line, line
    assert all(checkpoints(run) == ["step-00000002"] for run in small)


def test_starting_anew_spares_an_existing_run(launch, request_for, losses):
    first = request_for("run", max_steps=2)
    anew = request_for("run", max_steps=3, resume=False)
    none = request_for("empty", resume=True)
    assert launch(first).code == 0
    done = launch(anew)
    assert done.code == 2
    assert "already holds a run (checkpoints, tensorboard, model, log.jsonl); delete it" in done.text
    assert len(losses(first)) == 2
    done = launch(none)
    assert done.code == 2 and "no complete checkpoint" in done.text


def test_a_broken_file_is_one_however_often_it_is_met(launch, request_for):
    """Sixty steps of five in an epoch, and a second start of the run, meet the same file."""
    run = request_for("run", max_steps=60, task={"skip_always": 2}, checkpoint={"every_steps": 30})
    done = launch(run, {**run, "max_steps": 90, "resume": "changed"})
    assert done.code == 0, done.text
    assert done.text.count("skipped: ") == 1
    assert {record["corrupt_images"] for record in records(run)} == {1}


def test_a_model_that_a_full_disk_refuses_is_one_line(tmp_path, monkeypatch):
    def export(module, state, folder: Path) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    run = object.__new__(Run)
    run.processes, run.folder, run.task = Processes(), tmp_path, SimpleNamespace(export=export)
    run.checkpoints, run.progress = Checkpoints(tmp_path, run.processes, 0), Progress()
    run._evaluated_step = -1
    run.step = SimpleNamespace(engine=None, model=None)
    run.settings = SimpleNamespace(optim=OptimSettings())
    monkeypatch.setattr(training, "whole_state", lambda engine: {})
    with pytest.raises(UserError, match=r"/model: the model could not be written: .* No space left on device"):
        run.export("model")
