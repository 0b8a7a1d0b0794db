"""Builds the demo corpus: describe, caption, draw, write, and put in place in one rename.

Of a built one it reports which object covers each patch of a grid: what the corpus knows and no caption says.
"""

import dataclasses
import functools
import hashlib
import json
import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from soho_fast.common.errors import listed, print_line
from soho_fast.common.files import new_folder, read_json
from soho_fast.data import tokenizer
from soho_fast.data.tokenizer import build_vocabulary, write_tokenizer

from .drawing import draw_scene, load_sources, place_cutout
from .options import CorpusOptions
from .questions import write_vqa
from .scenes import Scene, describe_scenes
from .writers import LICENCES, CorpusImage, assign_images, write_attribution, write_karpathy

MANIFEST = "corpus.json"
_KIND = "soho-mini corpus"
_JPEG_QUALITY = 92
# In the vocabulary beside the words of captions and questions: those of further texts that the corpus once had. With
# another vocabulary the demo's weights, and so all its figures, would be others.
_FURTHER_WORDS = (
    "be belongs born both bought came can contain contains each either exactly expensive found friend from garden has "
    "have hungry images least more name not old other plain possibly seen shows spring teacher than tired very was "
    "yesterday"
)


def read_manifest(folder: Path) -> dict | None:
    """Return the manifest of a demo corpus (complete or not), or None when the folder holds none of ours."""
    try:
        manifest = read_json(folder / MANIFEST)
    except (OSError, ValueError):
        return None
    return manifest if isinstance(manifest, dict) and manifest.get("kind") == _KIND else None


def _files_of(manifest: dict) -> set[str]:
    """The files that a manifest lists, which somebody may have edited."""
    files = manifest.get("files")
    return set(files) if isinstance(files, dict) else set()


def is_complete(folder: Path, settings: dict) -> bool:
    """Whether ``folder`` holds a whole corpus of these settings: manifest, every listed file, every image."""
    manifest = read_manifest(folder)
    if manifest is None or not manifest.get("complete") or manifest.get("settings") != settings:
        return False
    there = _inventory(folder)
    try:
        # Sizes, not contents: thousands of images are looked at before each run.
        return all(there.get(name) == size for name, size in manifest["files"].items())
    except (KeyError, AttributeError):  # a manifest that somebody has edited
        return False


@functools.cache
def _source_digest() -> str:
    """Return a digest of the source that makes a corpus: another release of the builder makes another corpus."""
    digest = hashlib.blake2b(digest_size=8)
    for path in [*sorted(Path(__file__).parent.glob("*.py")), Path(tokenizer.__file__)]:
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


def _inventory(folder: Path) -> dict[str, int]:
    """The files of a corpus, and their bytes."""
    paths = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != MANIFEST)
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in paths}


def _draw_images(folder: Path, images: Sequence[CorpusImage], side: int, progress: bool) -> None:
    """Draw every image as JPEG, in threads: Pillow resamples and encodes outside the interpreter lock."""
    for name in sorted({image.folder for image in images}):
        (folder / name).mkdir()

    def draw(image: CorpusImage) -> None:
        path = folder / image.folder / image.filename
        draw_scene(image.scene, side).save(path, "JPEG", quality=_JPEG_QUALITY, subsampling=0)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        drawn = pool.map(draw, images)
        try:
            for _ in tqdm(drawn, desc="drawing the demo corpus", total=len(images), unit="image", disable=not progress):
                pass
        finally:
            pool.shutdown(cancel_futures=True)


def build_corpus(out_dir: str | os.PathLike, *, progress: bool = True, **given: Any) -> Path:
    """Build the demo corpus "SOHO-mini", or keep it when it is already there with the same settings.

    The corpus is written into a temporary folder beside ``out_dir`` and renamed at the end, so ``out_dir`` is whole or
    absent. A corpus of other settings, or one that lost files, is replaced; any other folder is left alone.

    Args:
        out_dir: where the corpus goes. Either absent, empty, or a corpus written by this function.
        progress: print what happens and show a progress bar.
        **given: fields of `CorpusOptions`: numbers of scenes, their size and seed. The same give the same bytes;
            without any, the demo.

    Returns:
        The corpus folder.

    Raises:
        ValueError: an argument out of range, or ``out_dir`` holds something that is not a corpus of ours.
        TypeError: a count, size or seed that is not an int.
        FileNotFoundError: a package with the images is not there; the message says which.
    """
    options = CorpusOptions(**given)
    out = Path(out_dir)
    settings = {"source": _source_digest(), **dataclasses.asdict(options)}

    def tell(text: str) -> None:
        if progress:
            print_line(text)

    if out.exists() and not out.is_dir():
        raise ValueError(f"out_dir {str(out)!r} is a file; expected a folder: give another path or remove it")
    if out.is_dir() and any(out.iterdir()):
        if is_complete(out, settings):
            tell(f"demo corpus: {out} is complete with these settings and is kept")
            return out
        manifest = read_manifest(out)
        if manifest is None:
            raise ValueError(
                f"out_dir {str(out)!r} is not empty and has no {MANIFEST} of a demo corpus, so it is not overwritten: "
                "give another path or remove the folder yourself"
            )
        if strays := sorted(set(_inventory(out)) - _files_of(manifest)):
            raise ValueError(
                f"out_dir {str(out)!r} is rebuilt, as it is incomplete or has other settings, but holds "
                f"{listed(strays, 3)}, no file of a demo corpus: move it, or give another path"
            )
        tell(f"demo corpus: {out} is incomplete or has other settings and is rebuilt")
    load_sources()
    try:
        with new_folder(out) as folder:
            counts = _write_corpus(folder, settings, options, progress)
    except OSError:
        if not is_complete(out, settings):  # else another process was faster
            raise
        return out
    tell(
        f"demo corpus: {out} has {counts['images']} images of {counts['concepts']} concepts, "
        f"{counts['captions']} captions and a vocabulary of {counts['vocabulary']} tokens. "
        "Drawings: Twemoji, CC-BY-4.0 (see ATTRIBUTION.txt)"
    )
    return out


def _write_corpus(folder: Path, settings: dict, options: CorpusOptions, progress: bool) -> dict:
    """Write everything into an empty folder and its manifest last; return the counts."""
    images = assign_images(*describe_scenes(options.num_train, options.num_heldout, options.seed))
    _draw_images(folder, images, options.image_size, progress)
    captions = write_karpathy(folder / "dataset_coco.json", images, options.seed)
    questions, num_questions = write_vqa(folder / "vqa", images, options.seed)
    vocabulary = build_vocabulary([*captions, *questions, _FURTHER_WORDS])
    write_tokenizer(folder / "tokenizer", vocabulary)
    write_attribution(folder / "ATTRIBUTION.txt")
    counts = {
        "images": len(images),
        "splits": dict(sorted(Counter(image.split for image in images).items())),
        "captions": len(captions),
        "concepts": len({name for image in images for name in image.scene.counts}),
        "vocabulary": len(vocabulary),
        "vqa_questions": num_questions,
    }
    manifest = {
        "kind": _KIND,
        "complete": True,
        "settings": settings,
        "held_out": "pairs of concepts, backgrounds and placements; single concepts occur on both sides",
        "counts": counts,
        "licences": LICENCES,
        "files": _inventory(folder),
    }
    # Last: it lists all other files, and says that they are complete.
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    return counts


def corpus_scenes(folder: str | os.PathLike) -> dict[str, Scene]:
    """The scenes of a built demo corpus by their images' file names ("COCO_train2014_000000000001.jpg").

    Raises:
        FileNotFoundError: the folder holds no demo corpus.
    """
    return {image.filename: image.scene for image in corpus_images(folder)}


def corpus_images(folder: str | os.PathLike) -> list[CorpusImage]:
    """The images of a built demo corpus, as its settings describe them.

    Raises:
        FileNotFoundError: the folder holds no demo corpus.
    """
    manifest = read_manifest(Path(folder))
    if manifest is None or not manifest.get("complete"):
        raise FileNotFoundError(f"{folder} holds no demo corpus: its corpus.json is not there, or not complete")
    settings = manifest["settings"]
    return assign_images(*describe_scenes(settings["num_train"], settings["num_heldout"], settings["seed"]))


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


def objects_touching(scene: Scene, side: int, pixels_per_patch: int = 32) -> dict[str, np.ndarray]:
    """By the names of a scene's objects the patches of a grid in which some of one is seen: bool (side, side)."""
    seen = object_map(scene, side * pixels_per_patch)
    patches = seen.reshape(side, pixels_per_patch, side, pixels_per_patch)
    touched: dict[str, np.ndarray] = {}
    for number, item in enumerate(scene.objects):
        touched[item.name] = touched.get(item.name, False) | (patches == number).any((1, 3))
    return touched
