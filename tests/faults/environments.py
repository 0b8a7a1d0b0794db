"""Variables of the environment with nonsense, and python's own options: one line and exit code 2, or a run; never a
stack trace, and nobody waits without end."""

import os
import random
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

from pickles import reading
from tiny_runs import COMMANDS, Bench, Finished, run

ROOT = Path(__file__).resolve().parents[2]
_OF_A_LAUNCHER = ("RANK", "WORLD_SIZE", "MASTER_PORT", "MASTER_ADDR", "LOCAL_RANK", "LOCAL_SIZE", "LOCAL_WORLD_SIZE")
_VALUES = (
    "", " ", "-1", "abc", "1e3", "5", "2", "1", "0", "99999", "65535", "9" * 30, "\u0663", "1.0", "0x1", "\udcff",
    "a b", "localhost", "256.1.1.1", "nowhere.invalid", "[::1]", "127.0.0.1", "-", "None", "2147483648",
)  # fmt: skip
# What is read while a process begins, with values of the name's own kind.
_AT_THE_START = {
    "DS_ACCELERATOR": ("nonsense", "", "cuda", "xpu", "CPU", "cpu", "hpu", "mps"),
    "OMP_NUM_THREADS": ("", "abc", "-1", "0", "99999", "1,2", "1.5"),
    "CUDA_VISIBLE_DEVICES": ("", "-1", "99", "abc", "GPU-0", "0,0"),
    "PYTHONPATH": ("/nowhere", "::", "{folder}/file", "\udcff", "{folder}/odd", "."),
    "TMPDIR": ("/nowhere", "{folder}/file"), "HF_HOME": ("{folder}/file", ""), "GOMP_SPINCOUNT": ("abc", "-1"),
}  # fmt: skip
_OPTIONS = ((), ("-OO",), ("-O",), ("-X", "utf8=0"), ("-P",), ("-b",))
_SECONDS = 200


def attempt(bench: Bench, seed: int, folder: Path) -> int:
    """Two of three seeds try what launchers set, the third an interpreter of its own."""
    draw = random.Random(seed)
    how, changed = launched(draw)
    arguments = bench.train("vqa", folder / "run", "--max_steps", "1", "--engine.threads", "0")
    if how != "train":
        arguments = reading(bench, bench.folder / "vqa", how, folder)
    if seed % 3 < 2:
        done = run(arguments, before=_be_impatient, timeout=_SECONDS, **changed)
        # Who waits for the others says that they have not come.
        done.expect(0, 2, where=f"{how} with {changed}")
        return 1
    (folder / "odd").mkdir()
    for name in ("data", "engine", "model", "images", "file"):
        (folder / f"odd/{name}.py").write_text("raise RuntimeError('another module of this name')\n")
    (folder / "file").write_text("nothing")
    number = seed // 3
    options = _OPTIONS[number % len(_OPTIONS)] if number % 2 == 0 else ()
    name = list(_AT_THE_START)[number // 2 % len(_AT_THE_START)]
    changed = {} if options else {name: draw.choice(_AT_THE_START[name]).format(folder=folder)}
    environment = {"PYTHONPATH": str(ROOT), **{name: os.environ[name] for name in os.environ if "FAULTS" not in name}}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [changed.pop("PYTHONPATH", ""), str(ROOT)]))
    command = [sys.executable, *options, "-m", COMMANDS[arguments[0]].removesuffix(".__main__"), *arguments[1:]]
    try:
        done = subprocess.run(
            command, env={**environment, **changed}, cwd=ROOT, capture_output=True, timeout=_SECONDS, check=False
        )
        code, said = done.returncode, (done.stdout + done.stderr).decode(errors="replace")
    except subprocess.TimeoutExpired as late:
        code, said = None, str(late.output)
    Finished(code, said).expect(0, 2, where=f"{how} under python {' '.join(options)} {changed}")
    return 1


def launched(draw: random.Random) -> tuple[str, dict[str, str]]:
    """A command, and what launchers set around it."""
    how, names = draw.choice(("train", "train", "evaluate", "ask")), list(_OF_A_LAUNCHER)
    return how, {name: draw.choice(_VALUES) for name in draw.sample(names, draw.choice((1, 1, 2, 3, 4)))}


def _be_impatient() -> None:
    """Whoever waits for other ranks gives up after seconds, instead of minutes."""
    os.environ.pop("OMP_NUM_THREADS", None)
    from soho_fast.engine import distributed

    assert distributed._PATIENCE, "how long ranks wait for each other has another name now"
    distributed._PATIENCE = timedelta(seconds=5)
