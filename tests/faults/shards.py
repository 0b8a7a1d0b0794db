"""Tar shards that are torn, whose index is missing or damaged; runs on shards that are killed.

Held: the end of a run that nothing disturbed, or one line that refuses. A tar has no checksum of what is in it, so what
turns a picture into another one, or into none that is then told as corrupt, nobody can call damaged.
"""

import contextlib
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

import yaml
from damage import KINDS, damage
from tiny_runs import Bench, LostError, differing, digest, run, start

sys.path.append(str(Path(__file__).resolve().parents[1] / "data"))

from tiny_shards import write_karpathy_set

# Of a tar: these may be within a picture.
_UNNOTICED = ("flipped", "zeroed")


def attempt(bench: Bench, seed: int, folder: Path) -> int:
    """Half of the seeds kill a run on shards, half of them damage a file of a set first, or while the run is dead."""
    draw = random.Random(seed)
    sound, expected = made(bench)
    shutil.copytree(sound / "shards", folder / "shards")
    arguments = train(bench, folder / "shards", folder / "run")
    if seed % 2:
        command = start(arguments)
        deadline = time.monotonic() + draw.uniform(0.2, 1.0) * bench.seconds["pretraining"]
        while time.monotonic() < deadline and not command.poll():
            time.sleep(0.01)
        command.send(signal.SIGKILL)
        command.wait()
    what = kind = None
    if seed % 4 != 1:
        files = sorted((folder / "shards").iterdir())
        path, kind = files[seed // 2 % len(files)], KINDS[seed // 2 // len(files) % len(KINDS)]
        damage(
            path, kind, draw, draw.choice([other for other in files if other.suffix == path.suffix and other != path])
        )
        what = f"{path.name} {kind}"
    done = run(arguments).expect(*((0,) if what is None else (0, 2)), where=what or "killed")
    if done.code == 2 or (what is not None and ".index" not in what and kind in _UNNOTICED):
        return 1
    lines = differing(expected, digest(folder / "run"))
    if lines and "skipped: " not in done.text:
        raise LostError(f"{what or 'killed'}: another end than undisturbed: " + "; ".join(lines)[:300])
    return 1


def made(bench: Bench) -> tuple[Path, dict[str, Any]]:
    """A folder with shards of the corpus and a run on them; made by the first fault that asks."""
    known = bench.folder / "on-shards"
    if not known.exists():
        new = Path(os.environ["FAULTS_FOLDER"]) / "made"
        write(new / "shards", bench.corpus)
        run(train(bench, new / "shards", new / "run")).expect(0, where="undisturbed, on shards")
        with contextlib.suppress(OSError):  # made by another fault meanwhile
            new.rename(known)
    return known, digest(known / "run")


def write(folder: Path, corpus: Path) -> None:
    """Write shards of a corpus with their indexes."""
    write_karpathy_set(folder, corpus, ["train", "restval"], per_shard=6)


def train(bench: Bench, shards: Path, output: Path) -> list[str]:
    """The command that trains on shards."""
    recipe = yaml.safe_load(bench.recipes["pretraining"].read_text())
    paths = f"{shards}/{{00000..00003}}.tar"
    recipe["data"]["sources"] = [{"annotations": paths, "format": "webdataset", "name": "shards"}]
    path = output.with_name("on-shards.yaml")
    path.write_text(yaml.safe_dump(recipe))
    return ["train", "--recipe", str(path), "--output", str(output)]
