"""Which object of a demo scene lies under each cell of a grid: what the corpus knows and no caption says."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from .builder import read_manifest
from .drawing import place_cutout
from .options import SceneOptions
from .scenes import Scene, describe_scenes
from .writers import assign_pictures


def corpus_scenes(folder: str | os.PathLike) -> dict[str, Scene]:
    """The scenes of a built demo corpus by their pictures' file names ("COCO_train2014_000000000001.jpg").

    Raises:
        FileNotFoundError: the folder holds no demo corpus.
    """
    manifest = read_manifest(Path(folder))
    if manifest is None or not manifest.get("complete"):
        raise FileNotFoundError(f"{folder} holds no demo corpus: its corpus.json is not there, or not complete")
    settings = manifest["settings"]
    options = SceneOptions.of_corpus(Path(folder), settings)
    train, held_out = describe_scenes(settings["num_train"], settings["num_heldout"], settings["seed"], options)
    pictures = assign_pictures([(scene, ()) for scene in train], [(scene, ()) for scene in held_out])
    return {picture.filename: picture.scene for picture in pictures}


def object_map(scene: Scene, side: int) -> np.ndarray:
    """int8 (side, side): the number in ``scene.objects`` of what is seen at each pixel, -1 for the background.

    Later objects lie over earlier ones, as they are drawn; a pixel is an object's where its drawing is more opaque than
    not.
    """
    seen = np.full((side, side), -1, dtype=np.int8)
    for number, item in enumerate(scene.objects):
        art, left, top = place_cutout(item, side)
        opaque = np.asarray(art.getchannel("A")) > 127
        y, x = max(top, 0), max(left, 0)
        part = opaque[y - top : side - top, x - left : side - left]
        seen[y : y + part.shape[0], x : x + part.shape[1]][part] = number
    return seen


def objects_under_cells(scene: Scene, rows: int, columns: int, pixels_per_cell: int = 32) -> np.ndarray:
    """What covers most of each cell: int8 (rows, columns), a number in ``scene.objects``, -1 for the background.

    Args:
        scene: the scene.
        rows, columns: of the grid, which covers the whole picture; alike, since pictures are square.
        pixels_per_cell: how finely areas are counted. Of equal areas the background comes first, then the object that
            was drawn first.

    Raises:
        ValueError: the grid is not square.
    """
    if rows != columns:
        raise ValueError(f"rows, columns: expected as many of each, since pictures are square; got {rows} x {columns}")
    seen = object_map(scene, rows * pixels_per_cell)
    cells = seen.reshape(rows, pixels_per_cell, columns, pixels_per_cell).swapaxes(1, 2).reshape(rows, columns, -1)
    areas = np.stack([(cells == number).sum(-1) for number in range(-1, len(scene.objects))])
    return (areas.argmax(0) - 1).astype(np.int8)
