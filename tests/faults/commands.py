"""Every command killed, asked to stop, or read no more, at some moment; then the same command again, to its end.

Held: asked to stop it leaves no process, nothing half made and no stack trace; the same command then comes to what
nothing disturbed, however it was ended.
"""

import contextlib
import os
import random
import signal
import sys
import time
from pathlib import Path

from corruption import picture
from tiny_runs import Bench, Finished, LostError, run, start, watch

sys.path += [str(Path(__file__).resolve().parents[1] / room) for room in ("data",)]

from tiny_shards import write_karpathy_set

COMMANDS = ("corpus", "many", "explore", "index", "train", "export")
WAYS = ("SIGHUP", "closed", "SIGKILL", "SIGINT")
_EXPORTED = ("README.md", "SHA256SUMS", "about.json", "encode.pt2", "read.pt2", "run.py", "tokenizer.json")
# What makes the same bytes each time; of the others the files' names are compared.
_SAME_BYTES = ("corpus", "many")
# So many changes of a folder are drawn from for the moment; a command with fewer is not struck, and comes to its end.
_MOMENTS = {"corpus": 120, "many": 4, "explore": 60, "index": 12, "train": 70, "export": 6}
_SECONDS = 300


def attempt(bench: Bench, seed: int, folder: Path) -> int:
    """The seed counts through commands, each with another way to be ended in turn."""
    name, way, moments = what(seed)
    out = folder / "out"
    try:
        _prepare(bench, name, out)
        expected = _undisturbed(bench, name)
        for at in moments:
            if (out / "exported").exists():  # which is not written over
                break
            _struck(_command(bench, name, out), out, way, at)
            left = sorted(path.name for path in out.rglob("*") if ".partial" in path.name)
            # Training may be written over as it was left.
            if left and way != "SIGKILL" and name != "train":
                raise LostError(f"left {', '.join(left[:3])}")
        before = _without_compiler if name == "export" else None
        if not (out / "exported").exists():  # which is not written over
            run(_command(bench, name, out), before=before, timeout=_SECONDS).expect(0, where="again")
        found = _contents(name, out)
        if odd := sorted(path for path in {**expected, **found} if expected.get(path) != found.get(path)):
            raise LostError(f"another end than undisturbed: {', '.join(odd[:5])}")
    except LostError as lost:
        raise LostError(f"{name}, {way}: {lost}") from None
    return 1


def what(seed: int) -> tuple[str, str, list[int]]:
    """The command, the way it is ended, and before which change of its folder, one time after another."""
    draw, name = random.Random(seed), COMMANDS[seed % len(COMMANDS)]
    times = draw.choice((1, 1, 2))
    moments = [draw.randint(1, _MOMENTS[name]) for _ in range(times)]
    # Each command in each way, whatever their numbers have in common.
    return name, WAYS[(seed % len(COMMANDS) + seed // len(COMMANDS)) % len(WAYS)], moments


def _struck(arguments: list[str], out: Path, way: str, at: int) -> None:
    read, write = os.pipe()

    def end() -> None:
        os.close(read) if way == "closed" else os.kill(os.getpid(), getattr(signal, way))

    def act(number: int, event: str, path: str) -> None:
        if number == at:
            end()

    def before() -> None:
        # The only reader of its output is this process itself, until it closes it.
        if way == "closed":
            os.dup2(write, 1)
        os.close(write)
        watch(out, act)()
        if arguments[0] == "export":
            _without_compiler()

    command = start(arguments, before=before)
    os.close(read)
    os.close(write)
    done = command.wait(_SECONDS)
    _expect_no_process(command.output)
    if way == "SIGKILL":
        # Of `index` one of the processes may be struck that it has started, which it tells.
        done.expect(0, -signal.SIGKILL, *((2,) if "index" in arguments else ()), where="killed")
        return
    number = signal.SIGPIPE if way == "closed" else getattr(signal, way)
    # `train` saves and stops as by SIGTERM where nobody reads it; before its first step a signal ends it.
    done.expect(0, 128 + number, *((128 + signal.SIGTERM, -number) if arguments[0] == "train" else ()), where="ended")
    _expect_one_line(done)


def _without_compiler() -> None:
    """What torch's compiler would make in a minute is a file of its name."""
    from soho_fast.export import package

    package._compile = lambda stage, inputs, path: path.write_bytes(bytes(1000))


def _expect_one_line(done: Finished) -> None:
    told = [line for line in done.text.splitlines() if line.lstrip().startswith(("stopped", "error"))]
    if len(told) > 1:
        raise LostError(f"{len(told)} lines: {' | '.join(told)[:200]}")


def _expect_no_process(output: Path) -> None:
    """What a command has started writes to the same file; it has five seconds to end too."""
    deadline = time.monotonic() + 5
    while left := [pid for pid in filter(str.isdigit, os.listdir("/proc")) if _has_open(pid, str(output))]:
        if time.monotonic() > deadline:
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
            raise LostError(f"left {len(left)} processes")
        time.sleep(0.05)


def _has_open(pid: str, path: str) -> bool:
    try:
        return os.readlink(f"/proc/{pid}/fd/2") == path
    except OSError:
        return False


def _contents(name: str, out: Path) -> dict[str, bytes]:
    """All below a folder by name, with its bytes where these are the same each time. Of checkpoints the newest: one
    that was saved when a run was asked to stop may have taken the place of an older one."""
    found, older = {}, sorted(out.glob("run/checkpoints/step-*"))[:-1]
    for path in out.rglob("*"):
        if any(path.is_relative_to(checkpoint) for checkpoint in older):
            continue
        same = name in _SAME_BYTES and path.is_file() and not path.name.endswith((".index", "about.json"))
        found[str(path.relative_to(out))] = path.read_bytes() if same else b""
    return found


def _undisturbed(bench: Bench, name: str) -> dict[str, bytes]:
    """What is in the folder when nothing disturbs the command."""
    if name == "export":
        return {"exported": b"", **{f"exported/{file}": b"" for file in _EXPORTED}}
    return _contents(name, made(bench, name))


def made(bench: Bench, name: str) -> Path:
    """What nothing disturbed; made by the first fault that asks."""
    known = bench.folder / f"commands-{name}"
    if not known.exists():
        new = Path(os.environ["FAULTS_FOLDER"]) / "undisturbed"
        _prepare(bench, name, new)
        run(_command(bench, name, new), timeout=_SECONDS).expect(0, where="undisturbed")
        with contextlib.suppress(OSError):  # made by another fault meanwhile
            new.rename(known)
    return known


def _prepare(bench: Bench, name: str, out: Path) -> None:
    out.mkdir()
    if name == "index":
        write_karpathy_set(out / "shards", bench.corpus, ["train"], per_shard=6)
        for path in (out / "shards").glob("*.index"):
            path.unlink()


def _command(bench: Bench, name: str, out: Path) -> list[str]:
    if name == "index":
        return ["shards", "index", *map(str, sorted((out / "shards").glob("*.tar"))), "--workers", "2"]
    if name == "corpus":
        return ["corpus", "--out", str(out / "corpus"), "--num-train", "24", "--num-heldout", "8", "--image-size", "32"]
    if name == "many":
        questions = bench.folder / "questions.jsonl"
        shown = picture(bench)
        line = f'{{"image": "{shown.name}", "question": "how many dogs are there?"}}\n'
        if not questions.exists():
            questions.write_text(line * 40)
        files = [str(bench.folder / "vqa"), str(questions), str(out / "results.jsonl")]
        return ["ask", "many", *files, "--images", str(shown.parent), "--workers", "2", "--batch_size", "1"]
    if name == "explore":
        return ["explore", "build", str(bench.folder / "pretraining"), "--into", str(out / "explorer")]
    if name == "export":
        return ["export", str(bench.folder / "vqa"), str(out / "exported")]
    return bench.train("pretraining", out / "run")
