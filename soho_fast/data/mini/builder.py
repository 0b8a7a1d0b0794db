"""Builds the demo corpus: describe, caption, draw, write, and put in place in one rename."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import shutil
import socket
import tempfile
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from soho_fast.common.files import process_is_alive
from soho_fast.data import tokenizer
from soho_fast.data.tokenizer import build_vocabulary, write_tokenizer

from .captions import write_captions
from .concepts import CONCEPTS
from .drawing import check_sources, draw_scene, load_cutout, load_photo
from .hypotheses import write_snli_ve
from .licences import licences_of, write_attribution
from .options import DRAWINGS, SceneOptions, style_name
from .questions import write_vqa
from .scenes import describe_scenes, photos_of
from .statements import link_or_copy, write_nlvr2
from .style_folders import copy_style
from .writers import STYLES, Picture, assign_pictures, write_json, write_karpathy_coco, write_karpathy_flickr

MANIFEST = "corpus.json"
_KIND = "soho-mini corpus"
_JPEG_QUALITY = 92
_PICTURE_SUFFIXES = (".jpg", ".png")
# Training pictures that also appear in the Flickr30K-style files (all held-out pictures do).
_MAX_FLICKR_TRAIN = 1500


def read_manifest(folder: Path) -> dict | None:
    """Return the manifest of a demo corpus (complete or not), or None when the folder holds none of ours."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return manifest if isinstance(manifest, dict) and manifest.get("kind") == _KIND else None


def is_complete(folder: Path, settings: dict) -> bool:
    """Whether ``folder`` holds a whole corpus of these settings: manifest, every listed file, every picture."""
    manifest = read_manifest(folder)
    if manifest is None or not manifest.get("complete") or manifest.get("settings") != settings:
        return False
    for name, size in manifest["files"].items():
        if not (folder / name).is_file() or (folder / name).stat().st_size != size:
            return False
    for name, (number, size) in manifest["picture_folders"].items():
        if not (folder / name).is_dir() or list(_folder_size(folder / name)) != [number, size]:
            return False
    return True


@functools.cache
def _source_digest() -> str:
    """Return a digest of the source that makes a corpus: another release of the builder makes another corpus."""
    digest = hashlib.blake2b(digest_size=8)
    for path in [*sorted(Path(__file__).parent.glob("*.py")), Path(tokenizer.__file__)]:
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


def _folder_size(folder: Path) -> tuple[int, int]:
    """Return how many files a flat folder holds, and their bytes."""
    sizes = [entry.stat().st_size for entry in os.scandir(folder)]
    return len(sizes), sum(sizes)


def _remove_leftovers(out: Path) -> None:
    """Remove half-written folders that an interrupted build of ``out`` left beside it on this machine."""
    for folder in out.parent.glob(f".{out.name}.building-*"):
        builder = (read_manifest(folder) or {}).get("builder")
        if builder and builder["host"] == socket.gethostname() and not process_is_alive(builder["process_id"]):
            shutil.rmtree(folder, ignore_errors=True)


def _check_number(name: str, value: int, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, got {type(value).__name__}: {value!r}")
    if not low <= value <= high:
        raise ValueError(f"{name} must be between {low} and {high}, got {value}")


def _draw_pictures(
    folder: Path, pictures: Sequence[Picture], image_size: int, options: SceneOptions, progress: bool
) -> None:
    """Draw every picture as JPEG, in threads: Pillow resamples and encodes outside the interpreter lock."""
    for name in CONCEPTS:
        for style in (*options.styles, *options.heldout_styles):
            load_cutout(name, style)
    for held_out in (False, True):
        for photo in photos_of(held_out, options.monuments):
            load_photo(photo)
    for name in sorted({picture.folder for picture in pictures}):
        (folder / name).mkdir()

    def draw(picture: Picture) -> None:
        path = folder / picture.folder / picture.filename
        draw_scene(picture.scene, image_size).save(path, "JPEG", quality=_JPEG_QUALITY, subsampling=0)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        done = pool.map(draw, pictures)
        if progress:
            from tqdm import tqdm

            done = tqdm(done, total=len(pictures), desc="drawing the demo corpus", unit="picture")
        for _ in done:
            pass


def build_corpus(
    out_dir: str | os.PathLike,
    *,
    num_train: int = 4000,
    num_heldout: int = 500,
    image_size: int = 128,
    seed: int = 0,
    progress: bool = True,
    **options: Any,
) -> Path:
    """Build the demo corpus "SOHO-mini", or keep it when it is already there with the same settings.

    The corpus is written into a temporary folder beside ``out_dir`` and renamed at the end, so ``out_dir`` is whole or
    absent. A corpus of other settings, or one that lost files, is replaced; any other folder is left alone.

    Args:
        out_dir: where the corpus goes. Either absent, empty, or a corpus written by this function.
        num_train: training scenes (Karpathy splits train and restval).
        num_heldout: held-out scenes, half val and half test; other object pairs, backgrounds and placements.
        image_size: side of the square pictures in pixels.
        seed: fixes everything; the same arguments give the same bytes.
        progress: print what happens and show a progress bar.
        **options: fields of `SceneOptions`: drawing styles, more objects, photographs, noise. Without any, the demo.

    Returns:
        The corpus folder.

    Raises:
        ValueError: an argument out of range, or ``out_dir`` holds something that is not a corpus of ours.
        TypeError: a count, size or seed that is not an int, or an option of another type.
        FileNotFoundError: a package or folder with the pictures is not there; the message says which.
    """
    _check_number("num_train", num_train, 2, 10**6)
    _check_number("num_heldout", num_heldout, 2, 10**6)
    _check_number("image_size", image_size, 32, 1024)
    _check_number("seed", seed, 0, 2**63 - 1)
    scene_options = SceneOptions(**options)
    out = Path(out_dir)
    settings = {
        "source": _source_digest(),
        "num_train": num_train,
        "num_heldout": num_heldout,
        "image_size": image_size,
        "seed": seed,
        **scene_options.changed(),
    }

    def tell(text: str) -> None:
        if progress:
            print(text, flush=True)

    if out.exists() and not out.is_dir():
        raise ValueError(f"out_dir {str(out)!r} is a file; expected a folder: give another path or remove it")
    if out.is_dir() and any(out.iterdir()):
        if is_complete(out, settings):
            tell(f"demo corpus: {out} is complete with these settings and is kept")
            return out
        if read_manifest(out) is None:
            raise ValueError(
                f"out_dir {str(out)!r} is not empty and has no {MANIFEST} of a demo corpus, so it is not overwritten: "
                "give another path or remove the folder yourself"
            )
        tell(f"demo corpus: {out} is incomplete or has other settings and is rebuilt")
    check_sources(scene_options)
    out.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(out)
    building = Path(tempfile.mkdtemp(prefix=f".{out.name}.building-", dir=out.parent))
    try:
        building.chmod(0o755)
        builder = {"host": socket.gethostname(), "process_id": os.getpid()}
        write_json(building / MANIFEST, {"kind": _KIND, "complete": False, "builder": builder})
        counts = _write_corpus(building, settings, scene_options, progress)
        _put_in_place(building, out, settings)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    tell(
        f"demo corpus: {out} has {counts['pictures']} pictures of {counts['concepts']} concepts, "
        f"{counts['captions']} captions and a vocabulary of {counts['vocabulary']} tokens. "
        f"Drawings: {', '.join(['Twemoji, CC-BY-4.0', *map(style_name, scene_options.folders)])} (see ATTRIBUTION.txt)"
    )
    return out


def _put_in_place(building: Path, out: Path, settings: dict) -> None:
    """Rename the finished corpus to ``out``; when another process finished the same one first, keep that."""
    if is_complete(out, settings):
        return
    if out.is_dir() and read_manifest(out) is not None:
        old = Path(tempfile.mkdtemp(prefix=f".{out.name}.building-", dir=out.parent))
        try:
            os.rename(out, old / "replaced")
            os.rename(building, out)
        finally:
            shutil.rmtree(old, ignore_errors=True)
        return
    try:
        os.rename(building, out)  # also onto an empty folder
    except OSError:
        if not is_complete(out, settings):
            raise


def _choose_flickr_pictures(pictures: Sequence[Picture]) -> list[Picture]:
    train = [picture for picture in pictures if picture.split == "train"][:_MAX_FLICKR_TRAIN]
    return train + [picture for picture in pictures if picture.split in ("val", "test", STYLES)]


def _write_corpus(folder: Path, settings: dict, options: SceneOptions, progress: bool) -> dict:
    """Write everything into an empty folder and its manifest last; return the counts."""
    seed = settings["seed"]
    licences = licences_of(options)
    train, held_out = describe_scenes(settings["num_train"], settings["num_heldout"], seed, options)
    pictures = assign_pictures(
        [(scene, write_captions(scene, seed)) for scene in train],
        [(scene, write_captions(scene, seed)) for scene in held_out],
    )
    texts = [caption for picture in pictures for caption in picture.captions]
    _draw_pictures(folder, pictures, settings["image_size"], options, progress)
    for style in options.folders:
        copy_style(style, folder / DRAWINGS / style_name(style))
    write_karpathy_coco(folder / "dataset_coco.json", pictures)
    flickr = _choose_flickr_pictures(pictures)
    (folder / "flickr30k-images").mkdir()
    for picture in flickr:
        link_or_copy(
            folder / picture.folder / picture.filename, folder / "flickr30k-images" / f"{picture.flickr_id}.jpg"
        )
    write_karpathy_flickr(folder / "dataset_flickr30k.json", flickr)
    question_texts, num_questions = write_vqa(folder / "vqa", pictures, seed, options.texts)
    statement_texts, num_statements = write_nlvr2(folder, pictures, seed, options.texts)
    hypothesis_texts, num_hypotheses = write_snli_ve(folder / "snli_ve", flickr, seed, options.texts)
    vocabulary = build_vocabulary([*texts, *question_texts, *statement_texts, *hypothesis_texts])
    write_tokenizer(folder / "tokenizer", vocabulary)
    write_attribution(folder / "ATTRIBUTION.txt", licences)
    counts = {
        "pictures": len(pictures),
        "splits": dict(sorted(Counter(picture.split for picture in pictures).items())),
        "captions": sum(len(picture.captions) for picture in pictures),
        "concepts": len({name for picture in pictures for name in picture.scene.counts}),
        "vocabulary": len(vocabulary),
        "vqa_questions": num_questions,
        "nlvr2_examples": num_statements,
        "snli_ve_examples": num_hypotheses,
    }
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    picture_folders = sorted({path.parent for path in files if path.suffix in _PICTURE_SUFFIXES})
    manifest = {
        "kind": _KIND,
        "complete": True,
        "settings": settings,
        "held_out": "pairs of concepts, backgrounds and placements; single concepts occur on both sides"
        + ("; drawing styles in split styles" if options.heldout_styles else ""),
        "counts": counts,
        "licences": licences,
        "files": {
            path.relative_to(folder).as_posix(): path.stat().st_size
            for path in files
            if path.suffix not in _PICTURE_SUFFIXES
        },
        "picture_folders": {path.relative_to(folder).as_posix(): list(_folder_size(path)) for path in picture_folders},
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    return counts
