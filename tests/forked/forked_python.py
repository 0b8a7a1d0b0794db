"""Starts `python ...` by forking a process that has imported the libraries, which takes longer than most programs here.

What runs is a process of its own, in a session of its own, that ends as any other. Of this project it finds nothing
imported; of its environment it finds too late what libraries read when they are loaded (OMP_NUM_THREADS).
"""

import atexit
import contextlib
import gc
import importlib
import json
import os
import runpy
import signal
import subprocess
import sys
import threading
import warnings
from pathlib import Path
from typing import IO

LIMIT_S = 900


class ForkedPython:
    """The process that is forked.

    Args:
        environment: Its environment variables.
        modules: What it imports beforehand.
    """

    def __init__(self, environment: dict[str, str], *modules: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__, *modules], env=environment, text=True, bufsize=1, stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )  # fmt: skip
        self._writing, self._reading = threading.Lock(), threading.Lock()
        self._number, self._statuses = 0, {}

    def run(self, arguments: list[str], folder: Path, environment: dict[str, str], stdout: Path, stderr: Path) -> int:
        """The exit status of `python ...`, negative for a signal; both files may be one. Threads may each run one."""
        streams = [stdout, stderr]
        request = {"arguments": arguments, "folder": folder, "environment": environment, "streams": streams}
        with self._writing:
            self._number += 1
            number = self._number
            self._process.stdin.write(json.dumps({"number": number, **request}, default=str) + "\n")
        with self._reading:
            while number not in self._statuses:
                ended, status = map(int, self._process.stdout.readline().split())
                self._statuses[ended] = status
            return self._statuses.pop(number)

    def close(self) -> None:
        self._process.communicate()


def _end(code: int) -> None:
    """As Python ends, but for taking apart all that is loaded: that would copy the memory that was forked."""
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _run(arguments: list[str]) -> None:
    name, *options = arguments
    if name == "-m":
        name, *options = options
        sys.argv[:], sys.path[0] = [name, *options], os.getcwd()
        runpy.run_module(name, run_name="__main__", alter_sys=True)
    else:
        # As with -W error::RuntimeWarning:__main__.
        warnings.filterwarnings("error", category=RuntimeWarning, module="__main__$")
        sys.argv[:], sys.path[0] = [name, *options], str(Path(name).resolve().parent)
        runpy.run_path(name, run_name="__main__")


def _report(number: int, child: int, replies: IO[str]) -> None:
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    replies.write(f"{number} {status}\n")


if __name__ == "__main__":
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    nowhere = os.open(os.devnull, os.O_RDWR)
    os.dup2(nowhere, 1)
    for module in sys.argv[1:]:
        importlib.import_module(module)
    gc.freeze()
    for line in sys.stdin:
        request = json.loads(line)
        if (child := os.fork()) == 0:
            break
        threading.Thread(target=_report, args=(request["number"], child, replies)).start()
    else:
        sys.exit()
    os.setsid()
    signal.alarm(LIMIT_S)
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    paths = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    sys.path[1:1] = [path for path in paths if path not in sys.path]
    os.dup2(nowhere, 0)
    for stream, path in enumerate(request["streams"], start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
    try:
        _run(request["arguments"])
    except SystemExit as ended:
        if not isinstance(ended.code, int | None):
            raise
        _end(ended.code or 0)
    _end(0)
