"""The folder of an exported model: two compiled stages, and what is needed to call them."""

from __future__ import annotations

import io
import json
import math
import os
import platform
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch._inductor import aoti_compile_and_package
from torch.export import Dim, export

from soho_fast.ask.pipeline import FIELDS, SohoPipeline, load_model
from soho_fast.common.checksums import SUMS, write_checksums
from soho_fast.common.errors import UserError, print_line
from soho_fast.common.files import scratch_beside
from soho_fast.common.hub import model_folder
from soho_fast.common.images import one_line
from soho_fast.common.versions import cautions, program, read_run_of
from soho_fast.export.graphs import EncodeImages, ReadTexts

_STRIDE = 32
# How a model card loads a model.
_SNIPPET = re.compile(r"```python\nfrom soho_fast\.model import .*?```", re.DOTALL)
# The most images, texts, and visual tokens of an image that a call may have.
_MOST_ROWS, _MOST_TOKENS = 1 << 16, 1 << 14


def export_model(folder: str | os.PathLike[str], output: Path, say: Callable[[str], None] = print_line) -> None:
    """Compile a model for this machine's CPU, in float32, and write it into a folder that is made when all is there.

    Args:
        folder: As of `SohoPipeline.from_pretrained`.
        output: The folder, which is not there yet.
        say: Called with each line of progress.

    Raises:
        ValueError, OSError: the model can't be loaded, can't be exported, or the folder can't be written.
    """
    model, processor, question = _loaded(folder)
    for line in cautions(model_folder(folder)):
        say(line)
    config = model.config
    with scratch_beside(output) as scratch:
        scratch.mkdir()
        say("compiling the first stage, images to visual tokens ...")
        _compile(EncodeImages(model), _images(config), scratch / "encode.pt2")
        say("compiling the second stage, visual tokens and texts to logits ...")
        _compile(ReadTexts(model), _texts(config, question), scratch / "read.pt2")
        about = {**_about(model, processor, question), "run": read_run_of(model_folder(folder))}
        (scratch / "about.json").write_text(json.dumps(about, indent=1) + "\n")
        processor.tokenizer.backend_tokenizer.save(str(scratch / "tokenizer.json"))
        shutil.copyfile(Path(__file__).with_name("run.py"), scratch / "run.py")
        write_checksums(scratch)
        card = Path(model_folder(folder)) / "README.md"
        if card.is_file():
            usage = f"python run.py {' '.join(f'{name}.ppm' for name in about['images'])} TOKEN ..."
            text = _SNIPPET.sub(lambda _: f"```bash\n{usage}\n```", card.read_text(encoding="utf-8"))
            (scratch / card.name).write_text(text, encoding="utf-8")
        os.replace(scratch, output)
    say(f"{output}: encode.pt2, read.pt2, about.json, tokenizer.json, run.py, {SUMS}")


def _loaded(folder: str | os.PathLike[str]) -> tuple[Any, Any, str]:
    """A model, its processor and its question. Raises UserError: its visual encoder is not exported."""
    model, processor = load_model(folder)
    if model.config.visual_encoder != "paper":
        raise UserError(
            f"{folder}: visual_encoder is {model.config.visual_encoder!r}; expected 'paper', the one that is exported"
        )
    return model, processor, SohoPipeline(model, processor).action


def _compile(stage: nn.Module, inputs: dict[str, tuple[torch.Tensor, dict[int, Any]]], path: Path) -> None:
    try:
        with torch.no_grad():
            program = export(
                stage.eval(),
                tuple(example for example, _ in inputs.values()),
                dynamic_shapes={name: sizes for name, (_, sizes) in inputs.items()},
            )
            compiled = io.BytesIO()  # Onto a full disk torch's writer would end the process.
            aoti_compile_and_package(program, package_path=compiled)
    except RuntimeError as error:  # What a compiler says goes over pages.
        raise UserError(f"{path.name} can't be compiled ({one_line(error)})") from error
    path.write_bytes(compiled.getbuffer())


def write_onnx(folder: str | os.PathLike[str], output: Path) -> None:
    """Write both stages of a model as graphs for ONNX, `encode.onnx` and `read.onnx`, with the inputs and outputs that
    `export_model` gives them.

    Args:
        folder: As of `SohoPipeline.from_pretrained`.
        output: The folder, which is there.

    Raises:
        ImportError: onnx or onnxscript is not installed.
        ValueError, OSError: as of `export_model`.
    """
    model, _, question = _loaded(folder)
    stages: dict[str, tuple[nn.Module, dict[str, tuple[torch.Tensor, dict[int, Any]]]]] = {
        "encode": (EncodeImages(model), _images(model.config)),
        "read": (ReadTexts(model), _texts(model.config, question)),
    }
    for name, (stage, inputs) in stages.items():
        torch.onnx.export(
            stage.eval(),
            tuple(example for example, _ in inputs.values()),
            output / f"{name}.onnx",
            input_names=list(inputs),
            dynamic_shapes={given: sizes for given, (_, sizes) in inputs.items()},
            dynamo=True,
            external_data=False,  # up to the 2 GB of a file of protobuf
            verbose=False,
        )


def _least_cells(config: Any) -> int:
    """Steps of 32 pixels along an edge of a batch: for a single token torch.export makes a program of its own."""
    return config.visual_pool + 1


def _images(config: Any) -> dict[str, tuple[torch.Tensor, dict[int, Any]]]:
    """Example inputs of the first stage, and which of their sizes may be others."""
    images = Dim("images", min=1, max=_MOST_ROWS)
    least = _least_cells(config)
    height, width = (_STRIDE * Dim(f"{name}_cells", min=least, max=_MOST_ROWS) for name in ("height", "width"))
    mask_BHW = torch.ones(2, (least + 1) * _STRIDE, (least + 2) * _STRIDE, dtype=torch.bool)
    mask_BHW[0, 70:] = False
    return {
        "pixel_values": (torch.zeros(2, 3, *mask_BHW.shape[1:]), {0: images, 2: height, 3: width}),
        "pixel_mask": (mask_BHW, {0: images, 1: height, 2: width}),
    }


def _texts(config: Any, question: str) -> dict[str, tuple[torch.Tensor, dict[int, Any]]]:
    """The same of the second stage."""
    images, texts = (Dim(name, min=1, max=_MOST_ROWS) for name in ("images", "texts"))
    cells = Dim("cells", min=1, max=_MOST_TOKENS)
    tokens = Dim("tokens", min=1, max=config.max_position_embeddings)
    index = torch.zeros(3, *(() if len(FIELDS[question]) == 2 else (2,)), dtype=torch.int64)
    return {
        "visual": (torch.zeros(2, 6, config.hidden_size), {0: images, 1: cells}),
        "valid": (torch.ones(2, 6, dtype=torch.bool), {0: images, 1: cells}),
        "input_ids": (torch.zeros(3, 5, dtype=torch.int64), {0: texts, 1: tokens}),
        "attention_mask": (torch.ones(3, 5, dtype=torch.int64), {0: texts, 1: tokens}),
        "image_index": (index, {0: texts}),
    }


def _about(model: Any, processor: Any, question: str) -> dict[str, Any]:
    """What a caller must know, for about.json."""
    images, tokenizer, config = processor.image_processor, processor.tokenizer, model.config
    *names, _ = FIELDS[question]
    labels = (
        ["not matched", "matched"] if question == "rank" else [config.id2label[n] for n in range(config.num_labels)]
    )
    has_codes = model.base().visual_dictionary is not None
    index = "int64 (texts,), the image of each text" if len(names) == 1 else "int64 (texts, 2), left and right"
    encoded = {"visual": "float32 (images, patches, channels)", "valid": "bool (images, patches)"}
    return {
        "question": question,
        "images": names,
        "labels": labels,
        "channels": config.hidden_size,
        "image": {
            "shortest_edge": images.size.shortest_edge,
            "longest_edge": images.size.longest_edge,
            "size_divisor": math.lcm(images.size_divisor, _STRIDE),
            "least_edge": _STRIDE * _least_cells(config),
            "rescale_factor": images.rescale_factor,
            "mean": list(images.image_mean),
            "std": list(images.image_std),
            "antialias": images.antialias,
        },
        "text": {
            "max_tokens": config.max_position_embeddings,
            "vocab_size": config.vocab_size,
            **{f"{name}_token": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "cls", "sep", "unk")},
        },
        "encode.pt2": {
            "inputs": {
                "pixel_values": "float32 (images, 3, height, width), normalised; 0 at padding; sides multiples of 32",
                "pixel_mask": "bool (images, height, width), true on the image",
            },
            "outputs": encoded | ({"codes": "int64 (images, patches), -1 at padding"} if has_codes else {}),
        },
        "read.pt2": {
            "inputs": encoded
            | {
                "input_ids": "int64 (texts, tokens)",
                "attention_mask": "int64 (texts, tokens), 1 at real tokens",
                "image_index": index,
            },
            "outputs": {"logits": "float32 (texts, labels)"},
        },
        "made_with": {**program(), "machine": platform.machine()},
    }
