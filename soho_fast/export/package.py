"""The folder of an exported model: two stages as graphs, and what is needed to call them."""

from __future__ import annotations

import io
import json
import math
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export import Dim

from soho_fast.ask.pipeline import FIELDS, SohoPipeline, load_model
from soho_fast.common.checksums import write_checksums
from soho_fast.common.errors import UserError, print_line
from soho_fast.common.files import scratch_beside
from soho_fast.common.hub import model_folder
from soho_fast.common.versions import cautions, program, read_run_of
from soho_fast.export.graphs import EncodeImages, ReadTexts

_STRIDE = 32
# How a model card loads a model.
_SNIPPET = re.compile(r"```python\nfrom soho_fast\.model import .*?```", re.DOTALL)
# The most images, texts, and visual tokens of an image that a call may have.
_MOST_ROWS, _MOST_TOKENS = 1 << 16, 1 << 14


def export_model(
    folder: str | os.PathLike[str],
    output: Path,
    *,
    onnx: bool = False,
    accept_changes: bool = False,
    say: Callable[[str], None] = print_line,
) -> None:
    """Write both stages of a model, in float32, into a folder that is made when all is there.

    Args:
        folder: As of `SohoPipeline.from_pretrained`.
        output: The folder, which is not there yet.
        onnx: Graphs for ONNX, `encode.onnx` and `read.onnx`, in place of torch.export's, `encode.pt2` and `read.pt2`.
        accept_changes: Whether own code may be another than the model was trained with.
        say: Called with each line of progress.

    Raises:
        ImportError: onnx or onnxscript is not installed, and asked for.
        ValueError, OSError: the model can't be loaded, can't be exported, or the folder can't be written.
    """
    told = cautions(model_folder(folder), accept_changes)
    model, processor = load_model(folder)
    if model.config.official is not None:
        raise UserError(
            f"{folder}: official is {model.config.official!r}; expected none: only SOHO of the paper is exported"
        )
    question = SohoPipeline(model, processor).action
    for line in told:
        say(line)
    about = {**_about(model, processor, question), "run": read_run_of(model_folder(folder))}
    with scratch_beside(output) as scratch:
        scratch.mkdir()
        for name, (stage, inputs, outputs) in _stages(model, question).items():
            file = scratch / f"{name}.{'onnx' if onnx else 'pt2'}"
            say(f"{file.name} ...")
            _write(stage.eval(), inputs, outputs, file)
        (scratch / "about.json").write_text(json.dumps(about, indent=1) + "\n")
        processor.tokenizer.backend_tokenizer.save(str(scratch / "tokenizer.json"))
        shutil.copyfile(Path(__file__).with_name("run.py"), scratch / "run.py")
        write_checksums(scratch)
        written = sorted(path.name for path in scratch.iterdir())
        card = Path(model_folder(folder)) / "README.md"
        if card.is_file():
            usage = f"python run.py {' '.join(f'{name}.jpg' for name in about['images'])} TEXT ..."
            text = _SNIPPET.sub(lambda _: f"```bash\n{usage}\n```", card.read_text(encoding="utf-8"))
            (scratch / card.name).write_text(text, encoding="utf-8")
        os.replace(scratch, output)
    say(f"{output}: {', '.join(written)}")


_Inputs = dict[str, tuple[torch.Tensor, dict[int, Any]]]


def _stages(model: Any, question: str) -> dict[str, tuple[nn.Module, _Inputs, list[str]]]:
    """Both, by name, with their inputs and the names of their outputs."""
    encoded = ["visual", "valid", *(["codes"] if model.base().visual_dictionary is not None else [])]
    return {
        "encode": (EncodeImages(model), _images(model.config), encoded),
        "read": (ReadTexts(model), _texts(model.config, question), ["logits"]),
    }


def _write(stage: nn.Module, inputs: _Inputs, outputs: list[str], path: Path) -> None:
    examples = tuple(example for example, _ in inputs.values())
    sizes = {name: sizes for name, (_, sizes) in inputs.items()}
    with torch.no_grad():
        if path.suffix == ".onnx":
            torch.onnx.export(
                stage, examples, path, input_names=list(inputs), output_names=outputs, dynamic_shapes=sizes,
                dynamo=True, external_data=False, verbose=False,
            )  # fmt: skip  # one file, of up to protobuf's 2 GB
            return
        content = io.BytesIO()  # Onto a full disk torch's writer would end the process.
        torch.export.save(torch.export.export(stage, examples, dynamic_shapes=sizes), content)
    path.write_bytes(content.getbuffer())


def _least_cells(config: Any) -> int:
    """Steps of 32 pixels along an edge of a batch: for a single token torch.export makes a program of its own."""
    return config.visual_pool + 1


def _images(config: Any) -> _Inputs:
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


def _texts(config: Any, question: str) -> _Inputs:
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
    return {
        "question": question,
        "images": names,
        "labels": labels,
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
        "text": {"max_tokens": config.max_position_embeddings, "pad_token": tokenizer.pad_token_id},
        "made_with": program(),
    }
