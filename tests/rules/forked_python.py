"""Starts `python ...` by forking a process that has imported the libraries, which takes longer than most commands.

Reads a JSON line a program, {"arguments": [...], "folder": ..., "stdout": file, "stderr": file}, and answers with its
exit status. What runs is a process of its own that ends as any other; of this project it finds nothing imported.
"""

import importlib
import json
import os
import runpy
import signal
import sys
import warnings
from pathlib import Path

LIMIT_S = 300

if __name__ == "__main__":
    for name in ("torchvision", "transformers.models.bert.modeling_bert"):
        importlib.import_module(name)
    for line in sys.stdin:
        request = json.loads(line)
        if (child := os.fork()) == 0:
            break
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
    else:
        sys.exit()
    signal.alarm(LIMIT_S)
    os.chdir(request["folder"])
    for stream, path in ((0, os.devnull), (1, request["stdout"]), (2, request["stderr"])):
        os.dup2(os.open(path, os.O_RDONLY if stream == 0 else os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
    name, *options = request["arguments"]
    if name == "-m":
        name, *options = options
        sys.argv[:], sys.path[0] = [name, *options], os.getcwd()
        runpy.run_module(name, run_name="__main__", alter_sys=True)
    else:
        # What `-W error::RuntimeWarning:__main__` says: a snippet does not do what is warned of.
        warnings.filterwarnings("error", category=RuntimeWarning, module="__main__$")
        sys.argv[:], sys.path[0] = [name, *options], str(Path(name).resolve().parent)
        runpy.run_path(name, run_name="__main__")
