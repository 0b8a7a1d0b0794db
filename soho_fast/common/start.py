"""From a folder of images with captions to a model in the browser, by the commands that a user could type.

soho start my_images
soho start my_images --epochs 60    what follows the folder is handed to `soho train`

Asks nothing. Each step is printed as its command, and left out where its result is there; the same command goes on
where the last one was stopped.
"""

import json
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

from soho_fast.common.command_line import Parser, exit_code
from soho_fast.common.errors import UserError, print_line
from soho_fast.common.extras import MissingExtraError, command_needs, install_command
from soho_fast.common.hub import no_such_path
from soho_fast.common.versions import read_run_of

# What the steps import, of the extras that they need.
_NEEDED = ("deepspeed", "transformers", "scipy", "matplotlib", "gradio")
_LINE = json.dumps({"file": "a.jpg", "captions": ["a dog on a beach"]})


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line; returns the exit code: 0 done, that of a step that failed, 2 a mistake of the user, 130 when
    stopped."""
    return exit_code(_run, arguments, "stopped; the same command goes on from here")


def _run(arguments: list[str]) -> int:
    parser = Parser(
        prog="soho start",
        description="From a folder of images with captions to a model in the browser.",
        epilog="Fields of recipe own can be given too, as in training. Example: soho start my_images",
    )
    parser.add_argument("folder", type=Path, help="Folder with images.jsonl (docs/own_data.md).")
    parser.add_argument("--output", type=Path, default=Path("runs/own"), help="Folder of the run (default: runs/own).")
    options, fields = parser.parse_known_args(arguments)
    folder, run = options.folder, options.output
    if not folder.is_dir():
        raise UserError(f"folder: {folder}: {no_such_path(folder)}; expected one of images, with images.jsonl")
    if not (folder / "images.jsonl").is_file():
        raise UserError(
            f"folder: {folder} has no images.jsonl; expected one with a line for each image, such as {_LINE} "
            "(docs/own_data.md)"
        )
    command_needs("train,app")
    if missing := [name for name in _NEEDED if not find_spec(name)]:
        raise MissingExtraError(f"soho start needs {', '.join(missing)}; install with: {install_command('app')}")
    if (images := _images_of(run)) and images.resolve() != folder.resolve():
        raise UserError(f"output: {run} is a run of {images}; give another --output")
    for command, stands in _steps(folder, run, fields):
        print_line(f"$ {shlex.join(['soho', *command])}{'   (done)' if stands else ''}")
        if not stands and (code := _call(command)):
            return code
    return 0


def _steps(folder: Path, run: Path, fields: list[str]) -> Iterator[tuple[list[str], bool]]:
    """Each command, and whether its result is there, by what it writes last."""
    data = ["--recipe", "own", "--data_roots.images", str(folder)]
    tokenizer, model = folder / "tokenizer", run / "model"
    yield ["tokenizer", str(folder / "images.jsonl"), str(tokenizer)], (tokenizer / "vocab.txt").is_file()
    yield ["check", str(folder)], (run / "recipe.yaml").is_file()
    output = [] if run == Path("runs/own") else ["--output", str(run)]
    # With fields of the user's, training itself says what of them is done.
    yield ["train", *data, *output, *fields], (run / "metrics.json").is_file() and not fields
    yield ["explore", "build", str(run)], _explored(run) == read_run_of(model)
    yield ["app", str(run)], False


def _images_of(run: Path) -> Path | None:
    """The folder that a run was started with; None where there is no run."""
    import yaml

    try:
        return Path(yaml.safe_load((run / "recipe.yaml").read_text(encoding="utf-8"))["data_roots"]["images"])
    except (OSError, KeyError, TypeError):
        return None


def _explored(run: Path) -> object:
    """Of which step of which run the explorer's model was; "" where there is no explorer."""
    try:
        text = (run / "explorer" / "data" / "meta.js").read_text(encoding="utf-8")
        return json.loads(text[text.index("{") : text.rindex("}") + 1])["run"]
    except (OSError, ValueError, KeyError):
        return ""


def _call(command: Sequence[str]) -> int:
    """The exit code of a command, which hears Ctrl-C too, and is waited for."""
    with subprocess.Popen([sys.executable, "-m", "soho_fast.common.console", *command]) as process:
        while True:
            try:
                return process.wait()
            except KeyboardInterrupt:
                process.terminate()
                process.wait()
                raise


if __name__ == "__main__":
    sys.exit(main())
