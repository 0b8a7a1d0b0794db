"""The authors' published checkpoint, read without running anything of it, as a model of this package.

Their training code writes one `torch.save` of `{"meta", "state_dict", "optimizer", "amp"}`. All that is read of it are
numbers, texts and tensors: what would call anything else is refused by its name. Every tensor is accounted for by its
name there; one that is missing, unexpected, of another size, or holds what no trained model has, is refused too.

transformers' checkpoint-conversion mapping was weighed: it renames on loading, but knows neither the dict around the
tensors nor a tensor that must equal another one, and takes what is missing or unexpected for a warning.
"""

import hashlib
import re
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.torch_version import TorchVersion

from soho_fast.common.errors import listed
from soho_fast.common.hub import no_such_path
from soho_fast.model.config import SohoConfig
from soho_fast.model.downstream import SohoForQuestionAnswering
from soho_fast.model.soho import SohoForPreTraining

from . import keys

_EXPECTED = "expected what the authors' code saved: a dict with a state_dict, or a state_dict alone"
_MODELS = {"official": "pre-training model", "official_vqa": "VQA model"}
_META = ("epoch", "iter", "torch_version", "time")
_NOT_NEGATIVE = (".running_var", "neck.vq.cluster_size")
# What the authors' loader does without.
_OPTIONAL = ".num_batches_tracked"
_HASH_IN_NAME = re.compile(r"-([0-9a-f]{8,64})$")


@dataclass
class Checkpoint:
    """What a published file holds.

    Attributes:
        path: The file.
        tensors: By the authors' names, without the prefix `module.` of data-parallel training; on the CPU.
        meta: What it says of itself: epoch, iter, torch_version, time; of each what can be shown in a line.
        not_used: Its other entries.
        digest: SHA-256 of the file, in hexadecimal.
    """

    path: Path
    tensors: dict[str, Tensor]
    meta: dict[str, str]
    not_used: list[str]
    digest: str

    @property
    def preset(self) -> str:
        """Of the model that it holds: `"official"` (pre-training) or `"official_vqa"`."""
        return "official_vqa" if any(name.startswith("head.vqa.") for name in self.tensors) else "official"

    def other_hash(self) -> str | None:
        """The first digits of a SHA-256 that the file's name ends with, where the file has another one."""
        named = _HASH_IN_NAME.search(self.path.stem)
        return None if named is None or self.digest.startswith(named[1]) else named[1]


@dataclass
class Conversion:
    """A converted model, and what became of every tensor of the checkpoint.

    Attributes:
        checkpoint: What was converted.
        model: In eval mode, in float32.
        loaded: Names of this package by the authors' names.
        dropped: Reasons by the authors' names.
        missing: The authors' names that the checkpoint does without, as their own loader allows.
        made: Names of this package that have no counterpart there.
        num_zero_codes: Codes that are the zero vector; None without a dictionary.
    """

    checkpoint: Checkpoint
    model: SohoForPreTraining | SohoForQuestionAnswering
    loaded: dict[str, str]
    dropped: dict[str, str]
    missing: list[str]
    made: list[str]
    num_zero_codes: int | None

    def report(self) -> list[str]:
        """What became of every tensor, line by line."""
        meta = "".join(f", {name} {value}" for name, value in self.checkpoint.meta.items())
        lines = [
            f"{self.checkpoint.path.name}: the authors' {_MODELS[self.checkpoint.preset]}{meta}",
            f"{len(self.checkpoint.tensors)} tensors: {len(self.loaded)} loaded, {len(self.dropped)} dropped, "
            f"{len(self.missing)} missing, 0 unexpected",
        ]
        for theirs, ours in keys.NAMES.items():
            num = sum(name == theirs or (theirs[-1] == "." and name.startswith(theirs)) for name in self.loaded)
            if num:
                lines.append(f"  {num:3} loaded   {theirs:27} -> {ours}")
        lines += [f"    1 dropped  {name}: {reason}" for name, reason in self.dropped.items()]
        if self.missing:
            lines.append(
                f"  {len(self.missing):3} missing, which the authors' loader allows: {', '.join(self.missing)}"
            )
        if self.made:
            lines.append(f"  {len(self.made):3} made here  {', '.join(self.made)}")
        if self.checkpoint.not_used:
            lines.append(f"not used: {', '.join(self.checkpoint.not_used)}")
        if self.num_zero_codes is not None:
            num_codes = self.model.config.num_codes
            lines.append(f"{self.num_zero_codes:,} of {num_codes:,} codes are unused: the zero vector")
        return lines

    def warnings(self) -> list[str]:
        """What is odd, and no reason to refuse the checkpoint."""
        lines, other = [], self.checkpoint.other_hash()
        if other is not None:
            lines.append(
                f"the file's name says that its SHA-256 begins with {other}, and it begins with "
                f"{self.checkpoint.digest[: len(other)]}: it was changed, or named by hand"
            )
        names: Any = self.model.config.id2label  # Its keys are numbers.
        if self.checkpoint.preset == "official_vqa" and names[0] == "LABEL_0":
            lines.append("its answers have numbers for names; give --answers FILE")
        return lines


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read a file that the authors' code saved, from any device, by any torch, in its zip or its older format.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no checkpoint, is damaged, or asks for something to be called.
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{path} is a folder; expected the file of a checkpoint")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: {no_such_path(path)}")
    content = _load(path)
    whole = content if isinstance(content, dict) else {}
    state = whole.get("state_dict", whole)
    if not isinstance(state, dict) or not state or not all(isinstance(name, str) for name in state):
        raise ValueError(f"{path}: {_EXPECTED}; got {_kind_of(content)}")
    odd = [f"{name} is {_kind_of(value)}" for name, value in state.items() if not _is_plain(value)]
    if odd:
        raise ValueError(f"{path}: {_EXPECTED}; {_listed('entries that are no plain tensors', odd)}")
    if next(iter(state)).startswith("module."):  # As the authors' loader decides.
        plain = {name.removeprefix("module."): tensor for name, tensor in state.items()}
        if len(plain) < len(state):
            raise ValueError(f"{path}: it holds tensors of one name twice, with the prefix module. and without it")
        state = plain
    meta = whole.get("meta") if state is not whole else None
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return Checkpoint(
        path,
        dict(state),
        {name: _one_line(value) for name, value in meta.items() if name in _META} if isinstance(meta, dict) else {},
        [str(name) for name in whole if "state_dict" in whole and name not in ("meta", "state_dict")],
        digest,
    )


def _load(path: Path) -> Any:
    with path.open("rb") as file:
        beginning = file.read(4)
    if not beginning:
        raise ValueError(f"{path} is empty")
    is_zip = zipfile.is_zipfile(path)
    if beginning == b"PK\x03\x04" and not is_zip:
        raise ValueError(f"{path} is cut off: its end is missing; copy it again")
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals([TorchVersion]):
            warnings.simplefilter("ignore")  # Of the pickle's protocol.
            # Files of before torch 1.6 can't be mapped.
            return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    # What a reader meets in a file of another kind has no common type; a pickle that would run code is one.
    except Exception as error:
        refused = re.search(r"GLOBAL (\S+)", str(error))
        if refused is not None:
            raise ValueError(
                f"{path} asks for {refused[1]}, which is no plain data, and is not loaded: a checkpoint of the "
                "authors' needs nothing of the kind"
            ) from error
        reason = re.search(r"Unsupported [^\n]*|unexpected EOF[^\n]*", str(error))
        said = reason[0] if reason else f"{type(error).__name__}: {error}".splitlines()[0]
        raise ValueError(f"{path} can't be read as a file of torch.save, or is damaged ({said[:200]})") from error


def _is_plain(value: object) -> bool:
    return isinstance(value, Tensor) and value.layout == torch.strided and value.device.type == "cpu"


def _one_line(value: object) -> str:
    """What a file says, fit to be printed."""
    return "".join(letter if letter.isprintable() else "?" for letter in f"{value!s:.160}")


def _kind_of(value: object) -> str:
    if isinstance(value, dict):
        return f"a dict with {listed(list(map(_one_line, value)), 5) or 'nothing'}"
    return f"a {type(value).__name__}"


def _form_of(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"


def _listed(what: str, names: list[str]) -> str:
    return f"{len(names)} {what}: {listed(list(map(_one_line, names)), 5)}"


@torch.no_grad()
def convert(checkpoint: Checkpoint, *, answers: Sequence[str] | None = None, **overrides: Any) -> Conversion:
    """The model that a checkpoint holds, in eval mode.

    Args:
        checkpoint: What `read_checkpoint` gave.
        answers: Of a VQA model, the names of its outputs, in their order; numbers if None.
        overrides: Other fields of the preset's `SohoConfig`.

    Raises:
        ValueError: The tensors are not those of the model; with lists of what is wrong.
    """
    config = SohoConfig.from_preset(checkpoint.preset, **overrides)
    if answers is not None:
        if len(answers) != config.num_labels or len(set(answers)) != len(answers):
            raise ValueError(
                f"answers: expected {config.num_labels:,} different ones, got {len(answers):,} with "
                f"{len(set(answers)):,} different ones"
            )
        config.id2label = dict(enumerate(answers))
        config.label2id = {answer: number for number, answer in enumerate(answers)}
    kind = SohoForPreTraining if checkpoint.preset == "official" else SohoForQuestionAnswering
    with torch.device("meta"):
        # Names and sizes alone: nothing is allocated.
        own = kind(config).state_dict()
    renamed = keys.rename(checkpoint.tensors)
    missing = _check(checkpoint, renamed, own)
    state, codes_KC = dict(renamed.state), checkpoint.tensors.get("neck.vq.embed")
    if codes_KC is not None:
        state |= keys.dictionary_counters(checkpoint.tensors["neck.vq.cluster_size"])
    model = kind(config).eval()
    # Not strict: a tied weight has no entry of its own, and of all else `_check` has found what may be missing.
    model.load_state_dict(state, strict=False)
    return Conversion(
        checkpoint,
        model,
        loaded={theirs: ours for ours, theirs in renamed.source.items()},
        dropped=renamed.dropped,
        missing=missing,
        made=[name for name in state if name not in renamed.source],
        num_zero_codes=None if codes_KC is None else int((codes_KC == 0).all(1).sum()),
    )


def _check(checkpoint: Checkpoint, renamed: keys.Renamed, own: Mapping[str, Tensor]) -> list[str]:
    """The authors' names that are missing, and may be. Raises ValueError: the tensors are not those of the model."""
    tensors, path = checkpoint.tensors, checkpoint.path
    if not renamed.state:
        raise ValueError(f"{path}: none of its {len(tensors)} tensors has a name of SOHO's; got {_kind_of(tensors)}")
    expected = {theirs: own[ours] for ours in own if (theirs := keys.official_name(ours)) is not None}
    if checkpoint.preset == "official":
        expected[keys.TIED] = expected[keys.WORDS]
    missing = [name for name in expected if name not in tensors]
    here = {renamed.source[ours]: tensor for ours, tensor in renamed.state.items()}
    here |= {name: tensors[name] for name in renamed.dropped}
    known = {name: (tensor, expected[name]) for name, tensor in here.items() if name in expected}
    wrong = {
        "missing": [name for name in missing if not name.endswith(_OPTIONAL)],
        "unexpected": [name for name in tensors if name not in expected],
        "of another size or type": [
            f"{name} is {_form_of(tensor)}, expected {_form_of(like)}"
            for name, (tensor, like) in known.items()
            if _form_of(tensor) != _form_of(like)
        ],
    }
    if not any(wrong.values()):  # Only then are values looked at.
        wrong = {
            "with values that are not finite": [
                n for n, tensor in tensors.items() if not bool(tensor.isfinite().all())
            ],
            "with negative values": [
                name for name, tensor in tensors.items() if name.endswith(_NOT_NEGATIVE) and bool((tensor < 0).any())
            ],
            f"unequal to {keys.WORDS}, to which it is tied": [
                name for name in renamed.dropped if not torch.equal(tensors[name], tensors[keys.WORDS])
            ],
        }
    lists = [_listed(what, names) for what, names in wrong.items() if names]
    if lists:
        kind = f"the authors' {_MODELS[checkpoint.preset]} (preset {checkpoint.preset})"
        raise ValueError(f"{path}: not the tensors of {kind}: {'; '.join(lists)}")
    return missing
