"""soho explore build RUN_OR_MODEL: the explorer of a model and the data sets of its recipe.

What it reads follows from a recipe: the run's own, or one that is named. Every field of it can be given too, as in
training: --data_roots.coco FOLDER.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from soho_fast.common.command_line import Parser, quiet_transformers
from soho_fast.common.errors import UserError, print_line
from soho_fast.common.extras import from_extra
from soho_fast.common.hub import RUN_MODELS, check_name, run_model
from soho_fast.common.versions import cautions, read_run_of
from soho_fast.explore.bundle import FOLDER

TAKES_FIELDS = True
_FLAGS = ("--accept-changes", "--recipe", "--checkpoint", "--split", "--images", "--into", "--title", "--licence")


def add_data_arguments(parser: Parser) -> None:
    """Which model, and which images: of every command that looks at a model's images."""
    parser.epilog = "Every field of the recipe can be given too, as in training (train.py --recipe ... --help)."
    what = "Folder of a run or of a model, or a name on the hub."
    parser.add_argument("model", metavar="RUN_OR_MODEL", help=what)
    parser.add_argument("--recipe", help="Name or path of the recipe that names the data (default: the run's own).")
    parser.add_argument("--checkpoint", choices=list(RUN_MODELS), help="Model of the run (default: best, else last).")
    parser.add_argument("--split", nargs="+", default=[], help="Of the recipe: training, heldout (default: all).")
    parser.add_argument("--images", type=int, default=0, help="Maximum number of images, evenly spaced (default: all).")
    parser.take_changes()


def add_arguments(parser: Parser) -> None:
    """What `build` takes."""
    add_data_arguments(parser)
    parser.add_argument("--into", help=f"Folder for the explorer (default: {FOLDER}/ in the run or model).")
    parser.add_argument("--title", help="Title of the pages.")
    parser.add_argument("--licence", help="Licence and credit of all images (default: licences.json beside them).")


@dataclass
class Opened:
    """A model's folder, its recipe with all paths, and the recipe's task; nothing is read yet."""

    folder: str
    run: Path | None
    recipe: Any
    task: Any
    splits: list[str]
    most: int
    licence: str | None

    def source(self, title: str, say: Callable[[str], None]) -> Any:
        """The model with the images of its task, a `ModelSource`; both are loaded here."""
        from soho_fast.explore.from_model import ModelSource, TaskImages

        with from_extra("train"):
            import torch

        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        model = self.task.load_model(self.folder).to(device)
        self.task.speed_up(model, device)
        images = TaskImages(self.task, self.splits, most=self.most, licence=self.licence)
        return ModelSource(self.task, model, images, title=title, called=self.folder, say=say)


def open_model(options: argparse.Namespace, say: Callable[[str], None]) -> Opened:
    """Find a model and its recipe, from what `add_data_arguments` takes and `options.fields`.

    Raises:
        UserError: one of them is not there, or an option is wrong.
    """
    with from_extra("train"):
        from soho_fast.tasks.recipe import load_recipe

        quiet_transformers()
    run, folder = _find_model(options.model, options.checkpoint)
    named = options.recipe or (str(run / "recipe.yaml") if run else None)
    if named is None:
        told = "is no folder of a run, whose recipe.yaml would say what the data are; give --recipe NAME"
        raise UserError(f"recipe: {options.model} {told}")
    recipe = load_recipe(["--recipe", named, *options.fields], flags=_FLAGS)
    task = recipe.make_task(say)
    licence = getattr(options, "licence", None)
    return Opened(folder, run, recipe, task, list(options.split), options.images, licence)


def _find_model(name: str, checkpoint: str | None) -> tuple[Path | None, str]:
    """(the run, the model's folder or hub name)."""
    path = Path(name)
    try:
        check_name(name, needs_owner=True)
        if (path / "recipe.yaml").is_file():
            return path, run_model(path, checkpoint)[0]
    except FileNotFoundError as error:
        raise UserError(f"model: {error}") from error
    if checkpoint is not None:
        raise UserError(f"checkpoint: {name} is no run, which would have several models; leave it out")
    # A run's model is known by the recipe beside it.
    beside = path.resolve().parent
    return (beside if (beside / "recipe.yaml").is_file() else None), name


def run(options: argparse.Namespace) -> int:
    """Build, and say where to look."""
    from soho_fast.explore.assemble import assemble, check_folder

    folder = Path(options.into) if options.into else default_folder(options.model)
    check_folder(folder)
    opened = open_model(options, print_line)
    for line in cautions(opened.folder, options.accept_changes):
        print_line(line)
    title = options.title or f"What the codes of {opened.run.name if opened.run else Path(opened.folder).name} mean"
    source = opened.source(title, print_line)
    print_line(f"looking at {source.num_images:,} images with {source.num_codes:,} codes")
    assemble(source, folder, run=read_run_of(opened.folder))
    print_line(f"open {folder / 'index.html'}")
    return 0


def default_folder(model: str) -> Path:
    """Where the explorer of a run or of a model goes, unless another is named."""
    if not Path(model).is_dir():
        return Path(FOLDER) / Path(model).name
    # Beside a run's model, not in it: what is in it has checksums.
    inside = (Path(model).resolve().parent / "recipe.yaml").is_file() and not (Path(model) / "recipe.yaml").is_file()
    return Path(os.path.relpath(Path(model).resolve().parent / FOLDER)) if inside else Path(model) / FOLDER
