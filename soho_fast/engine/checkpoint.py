"""Checkpoints that are either complete or absent.

Layout, in the run's folder:

    checkpoints/step-00000120/      DeepSpeed's files (weights, buffers, optimiser, loss scale),
                                    rank-00000.pt (RNG states of one rank), checkpoint.json (written last)
    checkpoints/step-00000130.partial/   being written, or left by a crash: never read
    checkpoints/latest              name of the newest complete one

Everything is written to the `.partial` folder and renamed when every rank has reported success; `latest` is replaced
last. DeepSpeed saves between barriers, so a rank that raised inside would leave the others waiting: writers therefore
note their error, all ranks hear of it, and all raise the same one.
"""

import json
import os
import random
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from deepspeed import DeepSpeedEngine
from deepspeed.runtime.checkpoint_engine import TorchCheckpointEngine

from soho_fast.engine.errors import UserError
from soho_fast.engine.processes import Processes

FORMAT = 1
MANIFEST = "checkpoint.json"
PARTIAL = ".partial"


@dataclass
class Progress:
    """Where a run stands: optimiser steps done, training seconds used, unreadable images met, the step of the last
    full evaluation, the best model so far."""

    step: int = 0
    seconds: float = 0.0
    broken_images: int = 0
    evaluated_step: int = 0
    best_step: int = 0
    best: float | None = None


def write_atomically(path: Path, text: str) -> None:
    """Replace `path` by `text` so that a reader sees the old file or the new one, never a part."""
    scratch = path.with_name(path.name + PARTIAL)
    with scratch.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(scratch, path)


class _NotingWriter(TorchCheckpointEngine):
    """DeepSpeed's torch writer that notes a failed write instead of raising it; see the module's docstring."""

    def __init__(self) -> None:
        super().__init__()
        self.error: str | None = None

    def save(self, state_dict: Any, path: str) -> None:
        if self.error is not None:
            return
        try:
            with open(path, "wb") as file:
                torch.save(state_dict, file)
                file.flush()
                os.fsync(file.fileno())
        # torch's zip writer reports a full disk as a RuntimeError, whose context is the error with the number.
        except (OSError, RuntimeError) as error:
            cause = error if isinstance(error, OSError) else error.__context__
            self.error = f"{path}: {getattr(cause, 'strerror', None) or str(error).splitlines()[0]}"

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        try:
            os.makedirs(path, exist_ok=exist_ok)
        except OSError as error:
            self.error = self.error or f"{path}: {error.strerror}"


def rng_state(device: torch.device) -> dict[str, Any]:
    """States of every generator a training step may draw from on this rank."""
    state = {"python": random.getstate(), "numpy": np.random.get_state(), "torch": torch.get_rng_state()}
    if device.type != "cpu":
        state["device"] = torch.get_device_module(device).get_rng_state(device)
    return state


def set_rng_state(state: Mapping[str, Any], device: torch.device) -> None:
    """Undo `rng_state`."""
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    if device.type != "cpu" and "device" in state:
        torch.get_device_module(device).set_rng_state(state["device"], device)


class Checkpoints:
    """The checkpoints of one run.

    Args:
        folder: `checkpoints` folder of the run.
        processes: this run's ranks.
        identity: what a checkpoint must share with the run that loads it, by field name (JSON values).
        keep: newest checkpoints kept; 0 keeps all.
    """

    def __init__(self, folder: Path, processes: Processes, identity: Mapping[str, Any], keep: int) -> None:
        self.folder = folder
        self.processes = processes
        self.identity = json.loads(json.dumps(dict(identity)))
        self.keep = keep

    def complete(self) -> list[Path]:
        """Complete checkpoints, oldest first."""
        return [path for path in self._named() if self._fault(path) is None]

    def ignored(self) -> list[str]:
        """One line for each folder here that is not a complete checkpoint."""
        lines = [f"{path}: {self._fault(path)}" for path in self._named() if self._fault(path) is not None]
        partial = sorted(self.folder.glob(f"step-*{PARTIAL}"))
        return lines + [f"{path}: half-written, from a run that was cut off" for path in partial]

    def newest(self) -> Path | None:
        """The newest complete checkpoint, or None; the same on all ranks."""
        found = self.complete() if self.processes.is_main else []
        return self.processes.gather(found[-1] if found else None)[0]

    def save(self, engine: DeepSpeedEngine, progress: Progress) -> Path:
        """Write a checkpoint on all ranks together, then prune.

        Raises:
            UserError: the disk is full or the folder not writable, on all ranks alike; earlier checkpoints are intact.
        """
        final = self.folder / f"step-{progress.step:08d}"
        partial = final.with_name(final.name + PARTIAL)
        writer = _NotingWriter()
        if self.processes.is_main:
            shutil.rmtree(partial, ignore_errors=True)
            writer.makedirs(str(partial), exist_ok=True)
        self.processes.wait()
        # The recovery scripts that DeepSpeed copies beside its files are in every installation; on a full disk the copy
        # would raise on one rank between barriers.
        engine.checkpoint_engine, engine._copy_recovery_script = writer, lambda save_path: None
        engine.save_checkpoint(str(self.folder), tag=partial.name, save_latest=False)
        writer.save(rng_state(self.processes.device), str(partial / self._rank_file()))
        self._raise_first(writer.error)
        error = None
        if self.processes.is_main:
            try:
                manifest = {
                    "format": FORMAT,
                    "progress": asdict(progress),
                    "identity": self.identity,
                    "files": {path.name: path.stat().st_size for path in sorted(partial.iterdir())},
                }
                write_atomically(partial / MANIFEST, json.dumps(manifest, indent=1))
                if final.exists():
                    shutil.rmtree(final)
                os.rename(partial, final)
                write_atomically(self.folder / "latest", final.name + "\n")
                self._prune()
            except OSError as failure:
                error = f"{failure.filename}: {failure.strerror}"
        self._raise_first(error)
        return final

    def load(self, engine: DeepSpeedEngine, path: Path) -> Progress:
        """Restore engine, optimiser, loss scale and this rank's RNG from a complete checkpoint.

        Raises:
            UserError: the checkpoint belongs to a run of another identity; the message names every field that differs.
        """
        manifest = json.loads((path / MANIFEST).read_text())
        saved = manifest["identity"]
        fields = [key for key in {**saved, **self.identity} if saved.get(key) != self.identity.get(key)]
        if fields:
            listed = "; ".join(
                f"{key} is {_shown(saved.get(key))} there and {_shown(self.identity.get(key))} here" for key in fields
            )
            raise UserError(
                f"{path}: this checkpoint is of another run: {listed}. Give the same values, another --output folder, "
                "or --resume false --overwrite to start anew"
            )
        engine.load_checkpoint(str(path.parent), tag=path.name, load_lr_scheduler_states=False)
        set_rng_state(torch.load(path / self._rank_file(), weights_only=False), self.processes.device)
        return Progress(**manifest["progress"])

    def _named(self) -> list[Path]:
        return sorted(path for path in self.folder.glob("step-*") if not path.name.endswith(PARTIAL))

    def _rank_file(self) -> str:
        return f"rank-{self.processes.rank:05d}.pt"

    def _fault(self, path: Path) -> str | None:
        try:
            manifest = json.loads((path / MANIFEST).read_text())
            if manifest["format"] != FORMAT:
                return f"format {manifest['format']}, this version reads {FORMAT}"
            for name, size in manifest["files"].items():
                if (path / name).stat().st_size != size:
                    return f"{name} has {(path / name).stat().st_size} bytes, expected {size}"
        except FileNotFoundError as error:
            return f"{Path(error.filename).name} is missing"
        except (OSError, ValueError, KeyError) as error:
            return f"{MANIFEST} cannot be read: {error}"
        return None

    def _prune(self) -> None:
        for path in self.folder.glob(f"step-*{PARTIAL}"):
            shutil.rmtree(path, ignore_errors=True)
        if self.keep:
            for path in self.complete()[: -self.keep]:
                shutil.rmtree(path, ignore_errors=True)

    def _raise_first(self, error: str | None) -> None:
        errors = [text for text in self.processes.gather(error) if text]
        if errors:
            if self.processes.is_main:
                for path in self.folder.glob(f"step-*{PARTIAL}"):
                    shutil.rmtree(path, ignore_errors=True)
            kept = self.newest()
            raise UserError(
                f"the checkpoint could not be written ({errors[0]}); free some space or choose another --output. "
                + (f"The last complete checkpoint is {kept}" if kept else "There is no earlier checkpoint")
            )


def _shown(value: Any) -> str:
    text = "absent" if value is None else str(value)
    return text if len(text) <= 60 else text[:57] + "..."
