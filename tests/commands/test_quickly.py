"""A mistake on the command line is told before anything heavy is loaded."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from soho_fast.common.console import COMMANDS

ROOT = Path(__file__).resolve().parents[2]
SLOW = {"torch", "transformers", "deepspeed", "torchvision"}
HEAVY = SLOW | {"numpy", "PIL", "huggingface_hub"}
# Runs a command as `python -m` does, then says on stdout what was loaded.
WATCHED = """
import runpy, sys
code = 0
try:
    runpy.run_module(sys.argv.pop(1), run_name="__main__", alter_sys=True)
except SystemExit as end:
    code = end.code
print("LOADED", *sorted({name.split(".")[0] for name in sys.modules}))
sys.exit(code)
"""


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    launched = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_SIZE")  # of a process group that an earlier test left
    environment = {name: value for name, value in os.environ.items() if name not in launched}
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=environment | {"PYTHONPATH": str(ROOT)}, capture_output=True,
        text=True, timeout=120, check=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("command", "code"),
    [
        ("soho_fast.train --optim.lrr 1", 2),
        ("soho_fast.train --optim.lr fast", 2),
        ("soho_fast.train --recipe mini_vqaa", 2),
        ("soho_fast.train --recipe nowhere/recipe.yaml", 2),
        ("soho_fast.train --recipe paper", 2),
        ("soho_fast.train --help", 0),
        ("soho_fast.evaluate --run nowhere", 2),
        ("soho_fast.evaluate", 2),
        ("soho_fast.evaluate --help", 0),
        ("soho_fast.ask", 2),
        ("soho_fast.ask --help", 0),
    ],
)
def test_nothing_heavy_is_loaded_for_it(command, code):
    done = run("-c", WATCHED, *command.split())
    assert done.returncode == code, done.stderr
    loaded = set(done.stdout.splitlines()[-1].split())
    assert "argparse" in loaded and not loaded & HEAVY


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_each_command_has_an_example_and_loads_nothing_slow(name):
    done = run("-c", WATCHED, "soho_fast.common.console", name, "--help")
    assert done.returncode == 0 and f"usage: soho {name} " in done.stdout, done.stderr
    shown = " ".join(done.stdout.rpartition("options:\n")[2].split())
    assert f"soho {name}" in shown, "no example"
    assert "(default: null)" not in shown.partition("--trust-file")[0]  # of --recipe, which has a default
    assert not set(done.stdout.splitlines()[-1].split()) & SLOW


def test_soho_lists_its_commands_and_tells_what_was_meant():
    done = run("-m", "soho_fast.common.console")
    assert done.returncode == 0 and all(f"  {name} " in done.stdout for name in COMMANDS), done.stdout
    assert "\nexample: soho start my_images\n" in done.stdout
    done = run("-m", "soho_fast.common.console", "--versoin")
    assert done.returncode == 2 and "did you mean --version?" in done.stderr, done.stderr
    done = run("-m", "soho_fast.common.console", "explor", "build")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1) and "did you mean explore?" in done.stderr, done.stderr
    # As `python -m` runs it: its own mistakes are its own.
    done = run("-m", "soho_fast.common.console", "train", "--optim.lrr", "1")
    assert done.returncode == 2 and "there is no such argument; did you mean --optim.lr" in done.stderr, done.stderr


# Presses Ctrl-C when the command first imports this module, then runs it as `python -m` does.
INTERRUPTED = """
import os, runpy, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # A shell's background job ignores it.
last = sys.argv.pop()
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == last:
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Finder())
runpy.run_module(sys.argv.pop(1), run_name="__main__", alter_sys=True)
"""


@pytest.mark.parametrize(
    ("command", "module"),
    [
        ("soho_fast.train", "jsonargparse._actions"),
        ("soho_fast.train", "deepspeed.runtime"),
        ("soho_fast.ask rank soho_fast setup.py dog", "soho_fast.model"),
    ],
)
def test_ctrl_c_while_it_loads_is_one_line(command, module):
    done = run("-c", INTERRUPTED, *command.split(), module)
    assert done.returncode == 130, done.stderr
    (line,) = done.stderr.strip().splitlines()
    assert "stopped" in line


def test_making_the_pre_training_task_loads_no_part_of_others():
    code = "from soho_fast.tasks.recipe import read_recipe; read_recipe([]).make_task(print)"
    loaded = run("-c", f"{code}; import sys; print(*sys.modules)").stdout.split()
    assert "soho_fast.model.soho" in loaded
    others = ("two_stage", ".int8", "model.fast.prepared", "model.official", "model.downstream")
    assert not [name for name in loaded if name.startswith("soho_fast.") and any(part in name for part in others)]


def test_deepspeed_is_imported_without_its_warning():
    done = run("-c", "import soho_fast.engine.resume, deepspeed.accelerator as a; a.get_accelerator()")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize(
    ("code", "left_out"),
    [
        ("import soho_fast.model, soho_fast.common.console", {*HEAVY, "scipy", "yaml", "jsonargparse", "rich"}),
        ("import soho_fast.train, soho_fast.evaluate", {*HEAVY, "scipy", "matplotlib"}),
        ("import soho_fast.explore.__main__", {*HEAVY, "scipy", "matplotlib"} - {"numpy"}),
        ("import soho_fast.data.mini.builder", {*SLOW, "skimage", "sklearn", "scipy"}),
        (
            "import soho_fast.ops, soho_fast.cluster, soho_fast.adapters, soho_fast.engine.trainer",
            {"torch._dynamo", "sympy", "transformers", "torchvision", "scipy", "PIL", "tensorboard", "matplotlib"},
        ),
        # transformers' base class of models itself loads torch._dynamo, torchvision and scipy: 6 of 6.5 s of CPU.
        (
            "import soho_fast.tasks.pretraining, soho_fast.ask.pipeline",
            {"deepspeed", "matplotlib", "pandas", "skimage", "sklearn", "tensorboard", "timm", "datasets", "pyarrow"},
        ),
    ],
)
def test_an_import_loads_what_is_used(code, left_out):
    done = run("-c", f"{code}; import sys; print(*sys.modules)")
    assert done.returncode == 0, done.stderr
    loaded = set(done.stdout.split())
    assert "soho_fast" in loaded and not loaded & left_out
