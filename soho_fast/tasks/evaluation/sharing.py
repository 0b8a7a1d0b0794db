"""Work shared among processes in parts that do not depend on how many there are, kept on disk as it goes.

A result must not depend on who computed it: the parts are cut before they are dealt out, every part is computed by
exactly one process, and what is kept is found by the part's number alone, so that a run that was killed is taken up by
any number of processes.
"""

import contextlib
import hashlib
import io
import json
import pickle
import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import torch

from soho_fast.common.files import read_json, write_atomically
from soho_fast.common.limits import met_limit
from soho_fast.common.processes import Processes
from soho_fast.common.workers import loaded_ahead
from soho_fast.data.overlap import content_of
from soho_fast.data.readers.records import ImageRef
from soho_fast.engine.changes import refuse_disagreement

_DIGEST_BYTES = hashlib.sha256().digest_size

ReportProgress = Callable[[int, int], None]
"""Called with the parts that this process has done, and of how many."""


class PartialResults:
    """Results of parts in a folder, each a file that is whole or absent.

    Args:
        folder: Where; on a disk that all processes share. Results in it of another identity are deleted.
        identity: What the results depend on (JSON values).
        processes: All make the call.

    Raises:
        UserError: They depend on something else on another process.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any], processes: Processes) -> None:
        self.folder = folder
        refuse_disagreement(processes, identity)
        wanted = json.loads(json.dumps(dict(identity)))
        # What a part is of, beside its number: one that came here from elsewhere is as good as damaged.
        self._seal = json.dumps(wanted, sort_keys=True)
        if processes.rank == 0:
            try:
                found = read_json(folder / "identity.json")
            except (OSError, ValueError) as error:
                if met_limit(error):
                    raise
                found = None
            # Of another model or other settings: none of it can be used.
            if found != wanted:
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir(parents=True)
                write_atomically(folder / "identity.json", json.dumps(wanted, indent=1))
        processes.wait()

    def read(self) -> dict[int, Any]:
        """The results of the parts that are here, each as it was written; damaged ones are to be computed again."""
        found = {}
        for path in self.folder.glob("part-*"):
            name = re.fullmatch(r"part-(\d{6,})\.pt", path.name)
            # Nothing is unpickled whose checksum does not fit.
            with contextlib.suppress(OSError, pickle.UnpicklingError):
                content = path.read_bytes()
                # The SHA-256 that a part's file begins with.
                if name and content[:_DIGEST_BYTES] == self._digest(int(name[1]), content[_DIGEST_BYTES:]):
                    found[int(name[1])] = torch.load(io.BytesIO(content[_DIGEST_BYTES:]), weights_only=True)
        return found

    def save(self, number: int, result: Any) -> None:
        """Keep the result of a part: tensors, numbers, strings, lists and dicts of them."""
        # In memory first: torch's own writer reports a full disk as an error of another kind.
        content = io.BytesIO()
        torch.save(result, content)
        digest = self._digest(number, content.getbuffer())
        write_atomically(self._path(number), digest + content.getbuffer())

    def _path(self, number: int) -> Path:
        return self.folder / f"part-{number:06d}.pt"

    def _digest(self, number: int, content: bytes | memoryview) -> bytes:
        digest = hashlib.sha256(f"{self._seal}\0{number}\0".encode())
        digest.update(content)
        return digest.digest()


@dataclass(frozen=True)
class Sharing:
    """How an evaluation is carried out.

    Args:
        processes: Who shares the work; all make the call and get the same.
        progress: Called after each part.
        keep_in: Folder for results as they come, so that a run that was killed can be taken up.
        identity: What the results depend on, beside what the task knows (the model, the program).
        kept: Parts that need not be computed again; gets those that are.
    """

    processes: Processes = field(default_factory=Processes)
    progress: ReportProgress | None = None
    keep_in: Path | None = None
    identity: Mapping[str, Any] = field(default_factory=dict)
    kept: PartialResults | None = None

    def keeping(self, about: Mapping[str, Any], images: Iterable[ImageRef], name: str = "") -> Self:
        """The same with the results of `about` and of these images, which are read to know them, kept, where there is a
        folder for them; `name`: within it."""
        if self.keep_in is None:
            return self
        identity = {**about, "images": content_of(images), **self.identity}
        return replace(self, kept=PartialResults(self.keep_in / name, identity, self.processes))

    def forget(self) -> None:
        """Delete what was kept."""
        if self.keep_in is not None:
            shutil.rmtree(self.keep_in, ignore_errors=True)


def compute_parts(
    num_parts: int,
    compute: Callable[[int, Any], Any],
    sharing: Sharing,
    *,
    load: Callable[[int], Any] | None = None,
    workers: int = 0,
) -> list[Any]:
    """The results of parts 0 to `num_parts` - 1, in order, on every process; each part is computed by one of them.

    Args:
        num_parts: How many.
        compute: The result of a part, from its number and what `load` gave of it (None without it); must not depend
            on the process. What `PartialResults.save` takes, where results are kept.
        sharing: By whom, and where they are kept.
        load: What a part needs of the disk; runs on the CPU, ahead of `compute`. See `loaded_ahead`.
        workers: Processes that load, for each of those that compute; 0 loads in these.
    """
    processes, kept = sharing.processes, sharing.kept
    # By rank 0 alone: ranks that look at different moments would deal out different parts.
    here = processes.gather(kept.read() if kept is not None and processes.rank == 0 else {})[0]
    open_parts = [number for number in range(num_parts) if number not in here]
    own = open_parts[processes.rank :: processes.world]
    computed: dict[int, Any] = {}
    pin = processes.device.type == "cuda"
    with contextlib.closing(
        loaded_ahead(load or (lambda _: None), own, workers=workers if load else 0, pin=pin)
    ) as items:
        for done, (number, item) in enumerate(zip(own, items, strict=True), start=1):
            computed[number] = compute(number, item)
            if kept is not None:
                kept.save(number, computed[number])
            if sharing.progress is not None:
                sharing.progress(done, len(own))
    results = here | {number: result for part in processes.gather(computed) for number, result in part.items()}
    return [results[number] for number in range(num_parts)]
