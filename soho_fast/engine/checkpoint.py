"""Checkpoints that are either complete or absent, and are loaded only as they were written.

Layout, in the run's folder:

    checkpoints/step-00000120/      DeepSpeed's files (weights, buffers, optimiser, loss scale),
                                    rank-00000.pt (of one rank: RNG states, and which parameters lie where in its
                                    optimiser's tensors), checkpoint.json (written last)
    checkpoints/step-00000130.partial/   being written or deleted, or left by a crash: never read

Everything is written to the `.partial` folder, which is renamed when every rank has reported success. DeepSpeed saves
between barriers, so a rank that raised inside would leave the others waiting: writers therefore note their error, all
ranks hear of it, and all raise the same one.

checkpoint.json is the manifest: size and SHA-256 of every file, taken when it was written, and a SHA-256 of the
manifest itself. Nothing is unpickled but plain data and the inert classes that DeepSpeed puts among it.
"""

import hashlib
import json
import os
import random
import re
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from deepspeed import DeepSpeedEngine
from deepspeed.runtime.checkpoint_engine import TorchCheckpointEngine
from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
from deepspeed.utils.tensor_fragment import fragment_address

from soho_fast.common.checksums import sha256_of
from soho_fast.common.errors import UserError, listed
from soho_fast.common.files import PARTIAL, delete, write_atomically
from soho_fast.common.limits import met_limit
from soho_fast.common.processes import Processes
from soho_fast.engine.changes import SHARDING
from soho_fast.engine.resharding import fragments_of, load_resharded

FORMAT = 4
MANIFEST = "checkpoint.json"
_NAME = re.compile(r"step-(\d{8,})")
# Classes in DeepSpeed's own files. They hold numbers and do nothing when they are made.
_INERT = [DynamicLossScaler, LossScaler, fragment_address]


@dataclass
class Progress:
    """Where a run stands: optimiser steps done, training seconds used, hashes of what was said of each unreadable
    image, the step of the last full evaluation, the best model so far; `sound` where nothing of it was lost when this
    was saved."""

    step: int = 0
    seconds: float = 0.0
    corrupt: list[str] = field(default_factory=list)
    evaluated_step: int = 0
    best_step: int = 0
    best: float | None = None
    sound: bool = True

    @property
    def corrupt_images(self) -> int:
        """How many images were unreadable; each counts once, however often it is met."""
        return len(self.corrupt)


class _Files(TorchCheckpointEngine):
    """How DeepSpeed and this module write and read the files of a checkpoint.

    Attributes:
        error: The first write that failed, noted instead of raised; see the module's docstring.
        written: What the manifest holds of each file written here, by name.
    """

    def __init__(self) -> None:
        super().__init__()
        self.error: str | None = None
        self.written: dict[str, dict[str, Any]] = {}

    def save(self, state_dict: Any, path: str) -> None:
        if self.error is not None:
            return
        try:
            with open(path, "wb") as file:
                torch.save(_plain(state_dict), file)
                file.flush()
                # Before the rename that makes it a checkpoint: a power cut could leave the name without the bytes.
                os.fsync(file.fileno())
            with torch.serialization.safe_globals(_INERT):
                odd = torch.serialization.get_unsafe_globals_in_checkpoint(path)
            # Found now, the checkpoint before this one is still there; found on loading, it may have been pruned.
            if odd:
                self.error = f"{path}: it would not be loaded again: {listed(odd)} is no plain data"
            self.written[Path(path).name] = {"bytes": os.path.getsize(path), "sha256": sha256_of(Path(path))}
        # torch's zip writer reports a full disk as a RuntimeError, whose context is the error with the number.
        except (OSError, RuntimeError) as error:
            cause = error if isinstance(error, OSError) else error.__context__
            self.error = f"{path}: {getattr(cause, 'strerror', None) or next(iter(str(error).splitlines()), '')}"

    def load(self, path: str, map_location: Any = None, mmap: bool = False) -> Any:
        try:
            with torch.serialization.safe_globals(_INERT):
                return torch.load(path, map_location=map_location, weights_only=True, mmap=mmap)
        # What a reader meets in a file of another kind has no common type; a pickle that would run code is one.
        except Exception as error:
            if met_limit(error):
                raise
            refused = re.search(r"GLOBAL (\S+)", str(error))
            reason = (
                f"it asks for {refused[1]}, which is no plain data, and is not loaded"
                if refused
                else f"it cannot be read ({next(iter(str(error).splitlines()), '')[:200]})"
            )
            raise UserError(
                f"{path}: {reason}; the file is not as a training run wrote it. Delete this checkpoint to continue "
                "from the one before it"
            ) from error

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        try:
            os.makedirs(path, exist_ok=exist_ok)
        except OSError as error:
            self.error = self.error or f"{path}: {error.strerror}"


def rng_state(device: torch.device) -> dict[str, Any]:
    """States of every generator a training step may draw from on this rank: numbers, strings, tensors, tuples."""
    name, keys, *rest = np.random.get_state()
    # As a tensor: a load of plain data alone refuses arrays of numpy.
    numpy_state = (name, torch.from_numpy(keys), *rest)
    state = {"python": random.getstate(), "numpy": numpy_state, "torch": torch.get_rng_state()}
    if device.type != "cpu":
        state["device"] = torch.get_device_module(device).get_rng_state(device)
    return state


def seed_everything(seed: int) -> None:
    """Seed python's, numpy's and torch's global generators (CPU and device)."""
    random.seed(seed)
    # numpy takes 32 bits.
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def set_rng_state(state: Mapping[str, Any], device: torch.device) -> None:
    """Undo `rng_state`."""
    random.setstate(state["python"])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy(), *rest))
    torch.set_rng_state(state["torch"])
    if device.type != "cpu" and "device" in state:
        torch.get_device_module(device).set_rng_state(state["device"], device)


class Checkpoints:
    """The checkpoints of one run.

    Args:
        folder: `checkpoints` folder of the run.
        processes: this run's ranks.
        keep: newest checkpoints kept; 0 keeps all.

    Attributes:
        identity: what those saved from now on are trained with, by field name (JSON values).
    """

    def __init__(self, folder: Path, processes: Processes, keep: int) -> None:
        self.folder = folder
        self.processes = processes
        self.keep = keep
        self.identity: Mapping[str, Any] = {}
        # Found at the start, they have the right sizes: without this they would count as checkpoints that are kept.
        self._altered: set[Path] = set()

    def newest(self, *, sound: bool = False) -> Path | None:
        """The newest complete checkpoint (sound: of a run that was), or None, by what is there and its sizes, without
        those found altered; the same on all ranks."""
        paths = self._named() if self.processes.is_main else []
        # `_fault` looks at names and sizes alone: an altered file of the right size is known from `_choose` only.
        intact = [path for path in paths if path not in self._altered and _fault(path) is None]
        found = next((path for path in reversed(intact) if not sound or _is_sound(path)), None)
        return self.processes.gather(found)[0]

    def choose(self, say: Callable[[str], None]) -> Path | None:
        """The newest checkpoint whose every file has its checksum, or None; the same on all ranks.

        Args:
            say: Called on rank 0 with a line on each thing that is left aside.

        Raises:
            UserError: on all ranks: the folder cannot be read, or there are checkpoints and all of them are damaged.
        """

        def choose() -> Path | None:
            try:
                return self._choose(say)
            except OSError as error:
                raise UserError(f"{error.filename}: the checkpoints cannot be read: {error.strerror}") from error

        return self.processes.gather(self.processes.on_main(choose))[0]

    def about(self, path: Path) -> tuple[dict[str, Any], Progress]:
        """What a complete checkpoint was trained with, and how far; the same on all ranks."""
        manifest = self.processes.gather(_read_manifest(path) if self.processes.is_main else None)[0]
        return manifest["identity"], Progress(**manifest["progress"])

    def save(self, engine: DeepSpeedEngine, progress: Progress) -> Path:
        """Write a checkpoint on all ranks together, then prune.

        Raises:
            UserError: the disk is full or the folder not writable, on all ranks alike; earlier checkpoints are intact.
        """
        final = self.folder / f"step-{progress.step:08d}"
        partial = final.with_name(final.name + PARTIAL)
        writer = _Files()
        if self.processes.is_main:
            # A try that failed may have left files here, and one too many is a fault of the whole checkpoint.
            shutil.rmtree(partial, ignore_errors=True)
            writer.makedirs(str(partial), exist_ok=True)
        # No rank may write before the folder is cleared: the `rmtree` above would take its files away.
        self.processes.wait()
        # The recovery scripts that DeepSpeed copies beside its files are in every installation; on a full disk the copy
        # would raise on one rank between barriers.
        engine.checkpoint_engine, engine._copy_recovery_script = writer, lambda save_path: None
        engine.save_checkpoint(str(self.folder), tag=partial.name, save_latest=False)
        of_rank = rng_state(self.processes.device) | {"fragments": list(map(tuple, fragments_of(engine)))}
        writer.save(of_rank, str(partial / _rank_file(self.processes.rank)))
        # Also the barrier: past it every file of every rank is whole and on disk.
        self._raise_first(writer.error)
        files = {name: record for part in self.processes.gather(writer.written) for name, record in part.items()}
        error = None
        if self.processes.is_main:
            try:
                manifest = {
                    "format": FORMAT,
                    "progress": asdict(progress),
                    "identity": self.identity,
                    "files": dict(sorted(files.items())),
                }
                # The digest is of the manifest without it; `_read_manifest` takes it out before it compares.
                sealed = {**manifest, "sha256": _digest(manifest)}
                write_atomically(partial / MANIFEST, json.dumps(sealed, indent=1))
                # Pruning deletes older ones for this one's sake.
                error = _fault(partial)
                if error is None:
                    # As where a signal comes right after a run was resumed, or this step's checkpoint was found
                    # altered.
                    if final.exists():
                        shutil.rmtree(final)
                    os.rename(partial, final)
                    # The name stands for the new files now.
                    self._altered.discard(final)
                    self.prune(final)
            except OSError as failure:
                error = f"{failure.filename}: {failure.strerror}"
        # Rank 0 alone has written: what it met is raised on all.
        self._raise_first(error)
        return final

    def load(self, engine: DeepSpeedEngine, path: Path) -> None:
        """Restore engine, optimiser, loss scale and this rank's RNG from a complete checkpoint.

        Raises:
            UserError: a file holds anything but plain data, or the checkpoint lacks what another number of processes
                or another ZeRO stage needs.
        """
        reader = _Files()
        identity, _ = self.about(path)
        saved_world, rank, device = identity["processes"], self.processes.rank, self.processes.device
        of_rank = reader.load(str(path / _rank_file(rank % saved_world)))
        if all(identity.get(name) == self.identity.get(name) for name in SHARDING):
            engine.checkpoint_engine = reader
            # DeepSpeed reads what a run of this stage and this number of ranks would have written.
            engine.load_checkpoint(str(path.parent), tag=path.name, load_lr_scheduler_states=False)
        else:
            load_resharded(engine, path, lambda file: reader.load(str(file), "cpu", mmap=True))
        # Where there were fewer ranks, the ones beyond them begin from another's state, and draw on below.
        set_rng_state(of_rank, device)
        if rank >= saved_world:
            # Random numbers of its own for a rank that was not there, the same in each attempt to go on from here.
            seed_everything(int(torch.randint(2**48, ())) + rank)

    def _choose(self, say: Callable[[str], None]) -> Path | None:
        # Killed while `save` put a whole one in its place, from which it first deletes what is there.
        for partial in self.folder.glob(f"*{PARTIAL}"):
            final = partial.with_name(partial.name.removesuffix(PARTIAL))
            if _NAME.fullmatch(final.name) and _fault(partial) is None and _fault(final):
                shutil.rmtree(final, ignore_errors=True)
                with suppress(OSError):  # What is there is a user's link or file.
                    partial.rename(final)
        present = sorted(os.listdir(self.folder)) if self.folder.exists() else []
        half = [name for name in present if name.endswith(PARTIAL) and _NAME.fullmatch(name.removesuffix(PARTIAL))]
        for name in half:
            say(f"ignored: {self.folder / name}: half-written, from a run that was cut off")
        named = self._named()
        foreign = sorted(set(present) - set(half) - {path.name for path in named})
        if foreign:
            say(f"{self.folder} also holds {listed(foreign)}, which no run has written; left alone")
        faults: list[str] = []
        # From the newest on, and no further than the first intact one: hashing takes as long as reading it all.
        while named and (fault := _fault(named[-1]) or _altered(named[-1])):
            self._altered.add(path := named.pop())
            faults.append(f"{path.name} ({fault})")
        chosen = named[-1] if named else None
        if faults and chosen is None:
            raise UserError(
                f"{self.folder}: none of the checkpoints can be used: {listed(faults)}; delete the run or give another "
                "--output to start again"
            )
        if faults and chosen is not None:
            say(f"ignored: {self.folder}: {listed(faults)}; the newest intact checkpoint, {chosen.name}, is taken")
        return chosen

    def _named(self) -> list[Path]:
        """The folders that have a checkpoint's name, by step; without any where the folder cannot be listed."""
        steps = {int(match[1]): path for path in self.folder.glob("*") if (match := _NAME.fullmatch(path.name))}
        return [steps[step] for step in sorted(steps) if steps[step].is_dir()]

    def delete_partial(self) -> None:
        """Delete what is half-written or half-deleted."""
        for path in self.folder.glob(f"*{PARTIAL}"):
            if _NAME.fullmatch(path.name.removesuffix(PARTIAL)):
                shutil.rmtree(path, ignore_errors=True)

    def prune(self, saved: Path) -> None:
        """Delete what is older than the newest `keep` checkpoints, but for the newest sound one.

        One that has just been written is the last of them: what has a later step was found altered at the start, or is
        incomplete, and is replaced when the run comes to that step.
        """
        self.delete_partial()
        earlier = [path for path in self._named() if int(path.name[5:]) <= int(saved.name[5:]) and _fault(path) is None]
        intact = [path for path in earlier if path not in self._altered]
        # -0 is 0: where `keep` is 0 these are all, and nothing is deleted below.
        kept = intact[-self.keep :]
        if self.keep and kept:
            sound = next((path for path in reversed(intact) if _is_sound(path)), None)
            # Altered ones go with those that they lie among, once all that are kept are newer.
            for path in earlier[: earlier.index(kept[0])]:
                if path != sound:
                    delete(path)

    def _raise_first(self, error: str | None) -> None:
        errors = [text for text in self.processes.gather(error) if text]
        if errors:
            if self.processes.is_main:
                self.delete_partial()
            # All ranks have the same list of errors, so all come to the gather in here.
            kept = self.newest()
            raise UserError(
                f"the checkpoint could not be written ({errors[0]}); free some space or choose another --output. "
                + (f"The last complete checkpoint is {kept}" if kept else "There is no earlier checkpoint")
            )


def _is_sound(path: Path) -> bool:
    return Progress(**_read_manifest(path)["progress"]).sound


def _rank_file(rank: int) -> str:
    return f"rank-{rank:05d}.pt"


def _plain(value: Any) -> Any:
    """Numbers and texts of a recipe, and DeepSpeed's enums, are of types of their own, which a plain load does not
    know."""
    if type(value) is dict:
        return {name: _plain(item) for name, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(map(_plain, value))
    # bool stands before int, of which it is a subclass.
    own = next((kind for kind in (bool, int, float, str) if isinstance(value, kind)), None)
    return value if own is None else own(value)


class _DamagedError(ValueError):
    """Why a folder is no complete checkpoint."""


def _digest(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of a checkpoint, without its own checksum."""
    try:
        manifest = json.loads((path / MANIFEST).read_bytes())
    except FileNotFoundError as error:
        raise _DamagedError(f"{MANIFEST} is missing") from error
    except (OSError, ValueError, RecursionError) as error:
        if met_limit(error):
            raise
        raise _DamagedError(f"{MANIFEST} cannot be read: {error}") from error
    if not isinstance(manifest, dict) or "format" not in manifest:
        raise _DamagedError(f"{MANIFEST} is not a checkpoint's")
    if manifest["format"] != FORMAT:
        raise _DamagedError(f"it has format {str(manifest['format'])[:60]}, this version reads {FORMAT}")
    # Left to right: the checksum is out of the manifest before the rest is hashed.
    if manifest.pop("sha256", None) != _digest(manifest):
        raise _DamagedError(f"{MANIFEST} differs from its own checksum")
    try:
        # For their errors alone: a manifest that matches its checksum may be of a version with other fields.
        Progress(**manifest["progress"])
        {**manifest["identity"]}
        for record in manifest["files"].values():
            int(record["bytes"]), str(record["sha256"])
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise _DamagedError(f"{MANIFEST} lacks what this version writes") from error
    return manifest


def _fault(path: Path) -> str | None:
    """What shows at a glance that a folder is no complete checkpoint, or None."""
    try:
        files = _read_manifest(path)["files"]
        for name, record in files.items():
            size = (path / name).stat().st_size
            if size != record["bytes"]:
                return f"{name} has {size:,} bytes, expected {record['bytes']:,}"
        # DeepSpeed goes by the names it finds, so one too many would change what it loads.
        odd = sorted(name for name in {*os.listdir(path)} - {*files, MANIFEST} if not name.startswith("."))
        return f"{listed(odd)} does not belong to it" if odd else None
    except _DamagedError as error:
        return str(error)
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except OSError as error:
        if met_limit(error):
            raise
        return f"{Path(error.filename).name} cannot be read: {error.strerror}"


def _altered(path: Path) -> str | None:
    """Which file of a complete checkpoint differs from its checksum, or None. Reads all of it."""
    for name, record in _read_manifest(path)["files"].items():
        try:
            if sha256_of(path / name) != record["sha256"]:
                return f"{name} differs from its checksum"
        except OSError as error:
            if met_limit(error):
                raise
            return f"{name} cannot be read: {error.strerror}"
    return None
