"""The authors' published checkpoint, read without running anything of it, as a model of this package.

Their training code writes one `torch.save` of `{"meta", "state_dict", "optimizer", "amp"}`. All that is read of it are
tensors: what would call anything else is refused by its name. Every tensor is accounted for by its name there; one that
is missing, unexpected, of another size, or not finite, is refused too.

transformers' checkpoint-conversion mapping was weighed: it renames on loading, but knows neither the dict around the
tensors nor a tensor that must equal another one, and takes what is missing or unexpected for a warning.
"""

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

from soho_fast.common.checksums import sha256_of
from soho_fast.common.errors import listed
from soho_fast.common.hub import no_such_path
from soho_fast.model.config import SohoConfig
from soho_fast.model.downstream import SohoForQuestionAnswering
from soho_fast.model.pretrained import check_finite
from soho_fast.model.soho import SohoForPreTraining

from . import keys

_EXPECTED = "expected what the authors' code saved: a dict with a state_dict, or a state_dict alone"
_MODELS = {"official": "pre-training model", "official_vqa": "VQA model"}
# What the authors' loader does without.
_OPTIONAL = ".num_batches_tracked"
_HASH_IN_NAME = re.compile(r"-([0-9a-f]{8,64})$")


@dataclass
class Checkpoint:
    """What a published file holds.

    Attributes:
        path: The file.
        tensors: By the authors' names, without the prefix `module.` of data-parallel training; on the CPU.
    """

    path: Path
    tensors: dict[str, Tensor]

    @property
    def preset(self) -> str:
        """Of the model that it holds: `"official"` (pre-training) or `"official_vqa"`."""
        return "official_vqa" if any(name.startswith("head.vqa.") for name in self.tensors) else "official"

    def report(self) -> list[str]:
        """What it is, and a warning where the file's name ends with the first digits of another SHA-256 than its."""
        lines = [f"{self.path.name}: the authors' {_MODELS[self.preset]}, {len(self.tensors)} tensors"]
        named = _HASH_IN_NAME.search(self.path.stem)
        if named is not None and not (digest := sha256_of(self.path)).startswith(named[1]):
            lines.append(
                f"warning: the file's name says that its SHA-256 begins with {named[1]}, and it begins with "
                f"{digest[: len(named[1])]}: it was changed, or named by hand"
            )
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
    state = content.get("state_dict", content) if isinstance(content, dict) else content
    if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
        raise ValueError(f"{path}: {_EXPECTED}; got a {type(content).__name__}")
    odd = [name for name, value in state.items() if not isinstance(value, Tensor) or value.layout != torch.strided]
    if odd:
        raise ValueError(f"{path}: {_EXPECTED}; {len(odd)} entries are no plain tensors: {listed(odd, 5)}")
    return Checkpoint(path, {name.removeprefix("module."): tensor for name, tensor in state.items()})


def _load(path: Path) -> Any:
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals([TorchVersion]):
            warnings.simplefilter("ignore")  # Of the pickle's protocol.
            # Files of before torch 1.6 can't be mapped.
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
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


@torch.no_grad()
def convert(
    checkpoint: Checkpoint, *, answers: Sequence[str] | None = None, **overrides: Any
) -> SohoForPreTraining | SohoForQuestionAnswering:
    """The model that a checkpoint holds, in eval mode, in float32.

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
    model = kind(config).eval()
    state = keys.rename(checkpoint.tensors)
    _check(checkpoint, state, model.state_dict())
    if (size_K := checkpoint.tensors.get("neck.vq.cluster_size")) is not None:
        state |= keys.dictionary_counters(size_K)
    # Not strict: a tied weight has no entry of its own, and of all else `_check` has found what may be missing.
    model.load_state_dict(state, strict=False)
    check_finite(model, str(checkpoint.path))
    return model


def _check(checkpoint: Checkpoint, state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
    """Raises ValueError: the tensors, `state` by our names, are not those of the model, which are its `own`."""
    tensors = checkpoint.tensors
    expected = [theirs for ours in own if (theirs := keys.official_name(ours)) is not None]
    expected += [keys.TIED] * (checkpoint.preset == "official")
    wrong = {
        "missing": [name for name in expected if name not in tensors and not name.endswith(_OPTIONAL)],
        "unexpected": [name for name in tensors if name not in expected],
        "of another size or type": [
            f"{keys.official_name(ours)} is {_form_of(tensor)}, expected {_form_of(own[ours])}"
            for ours, tensor in state.items()
            if ours in own and _form_of(tensor) != _form_of(own[ours])
        ],
    }
    if not any(wrong.values()) and keys.TIED in tensors and not torch.equal(tensors[keys.TIED], tensors[keys.WORDS]):
        wrong[f"unequal to {keys.WORDS}, to which it is tied"] = [keys.TIED]
    if lists := [f"{len(names)} {what}: {listed(names, 5)}" for what, names in wrong.items() if names]:
        kind = f"the authors' {_MODELS[checkpoint.preset]} (preset {checkpoint.preset})"
        raise ValueError(f"{checkpoint.path}: not the tensors of {kind}: {'; '.join(lists)}")


def _form_of(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"
