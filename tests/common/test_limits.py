"""An error at a resource limit names the limit and how to raise it, whichever library raised the error."""

import errno
import resource
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch

from soho_fast.common.errors import CorruptImageError, UserError
from soho_fast.common.limits import SHARED_MEMORY, in_words, met_limit
from soho_fast.common.workers import loaded_ahead

ROOT = Path(__file__).resolve().parents[2]
UNSHARE = ("unshare", "--user", "--map-root-user", "--mount")
COMMAND = """
import resource, sys
import torch
from soho_fast.common.command_line import exit_code
from soho_fast.common.workers import loaded_ahead

def run(arguments):
    files, addresses, size, workers = map(int, arguments)
    if files:
        resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
    if addresses:
        resource.setrlimit(resource.RLIMIT_AS, (addresses << 20,) * 2)
    for loaded in loaded_ahead(lambda number: torch.zeros(size), range(4), workers=workers):
        print(loaded.numel())
    return 0

sys.exit(exit_code(run, None))
"""


def _ended(*numbers, in_shared_memory=""):
    """(exit code, standard error) of loads with so many files, MiB of addresses, numbers a load and processes."""
    command = [sys.executable, "-c", COMMAND, *map(str, numbers)]
    if in_shared_memory:
        mount = f'mount -t tmpfs -o {in_shared_memory} tmpfs {SHARED_MEMORY} && exec "$@"'
        command = [*UNSHARE, "sh", "-c", mount, "sh", *command]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    return done.returncode, done.stderr


def _may_mount():
    command = [*UNSHARE, "mount", "-t", "tmpfs", "tmpfs", SHARED_MEMORY]
    return subprocess.run(command, capture_output=True).returncode == 0


@pytest.mark.parametrize("files", [8, 12, 16])
def test_too_few_open_files_for_loader_processes_are_one_line(files):
    said = f"error: open files: {files} are too few for this process; `ulimit -n 4096` before the command allows more\n"
    assert _ended(files, 0, 10, 2) == (2, said)


def test_enough_open_files_are_enough():
    assert _ended(64, 0, 10, 2) == (0, "")


def test_limited_memory_is_one_line():
    code, said = _ended(0, 3000, 10**9, 0)
    assert code == 2 and said.startswith("error: memory: `ulimit -v` leaves this process 3,000 MiB, "), said
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "size", "room"),
    [("ro", 10, "read-only"), ("size=8k", 10, "0 of 8 KiB are free"), ("size=256k", 100_000, "of 256 KiB are free")],
)
def test_shared_memory_without_room_is_one_line_and_does_not_hang(options, size, room):
    if not _may_mount():
        pytest.skip("this user cannot mount a tmpfs")
    code, said = _ended(0, 0, size, 2, in_shared_memory=options)
    assert (code, said.count("\n")) == (2, 1), said
    assert said.startswith(f"error: {SHARED_MEMORY}: ") and room in said, said


def test_what_has_no_room_in_shared_memory_is_raised_where_it_was_asked_for(monkeypatch):
    """torch shares a batch in a thread of its loader process, which would print the error and send nothing."""

    def full(_):
        raise RuntimeError("unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)")

    monkeypatch.setattr(torch.Tensor, "share_memory_", full)
    with pytest.raises(RuntimeError, match=r"^unable to allocate") as raised:
        next(loaded_ahead(lambda _: {"pixels": [torch.zeros(10)]}, [0], workers=1))
    assert met_limit(raised.value).startswith(f"{SHARED_MEMORY}: ")


@pytest.mark.parametrize(
    ("error", "begin"),
    [
        (OSError(errno.EMFILE, "Too many open files", "a.py"), "open files: "),
        (RuntimeError("[gloo/device.cc:1] socket: Too many open files"), "open files: "),
        (RuntimeError("received 0 items of ancdata"), "open files: "),
        (OSError(errno.EROFS, "Read-only file system", SHARED_MEMORY), f"{SHARED_MEMORY}: "),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "memory: "),
        (MemoryError(), "memory: no more could be had; "),
        (RuntimeError("Resource temporarily unavailable"), "threads and processes: "),
        (RuntimeError("can't start new thread"), "threads and processes: "),
        (torch.OutOfMemoryError("CUDA out of memory. Tried 2 GiB. GPU 0 has"), "memory of the GPU: CUDA out"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), "memory: no more could be"),
    ],
)
def test_errors_that_tell_of_a_limit(error, begin):
    assert met_limit(error).startswith(begin)


@pytest.mark.parametrize(
    ("module", "arguments"),
    [("soho_fast.train", ["--recipe", "own.yaml"]), ("soho_fast.tasks.check", [".", "--recipe", "own.yaml"])],
)
def test_a_file_that_cannot_be_opened_is_named_and_so_is_the_limit(module, arguments, tmp_path, monkeypatch, capsys):
    main, opened = import_module(module).main, open
    (tmp_path / "own.yaml").write_text("task: pretraining\n")
    monkeypatch.chdir(tmp_path)

    def refuse(file, *rest, **options):
        if str(file) == "own.yaml":
            raise OSError(errno.EMFILE, "Too many open files", "own.yaml")
        return opened(file, *rest, **options)

    monkeypatch.setattr("builtins.open", refuse)
    monkeypatch.setattr("io.open", refuse)
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert "own.yaml: Too many open files" in said and "`ulimit -n 4096` before the command" in said, said
    assert said.count("\n") == 1, said


def test_what_is_said_already_is_not_said_again():
    try:
        try:
            raise OSError(errno.EMFILE, "Too many open files", "a.json")
        except OSError as error:
            raise UserError("a.json: no") from error
    except UserError as error:
        said = in_words(error)
    assert said.startswith("a.json: no; open files: ") and said.count("open files: ") == 1
    assert in_words(UserError("a.json: no")) == "a.json: no"


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device", "runs/log.jsonl"),
        CorruptImageError("a.jpg: can't be decoded as an image: std::bad_alloc"),
        UserError("a.yaml: Too many open files"),
        OSError(errno.ENOENT, "No such file or directory", SHARED_MEMORY),
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
        RuntimeError("could not create a primitive"),
        SystemError("error return without exception set"),
        ImportError("libx.so: failed to map segment from shared object"),
    ],
)
def test_other_errors_are_none_of_its_own(error):
    assert resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY
    assert met_limit(error) is None
