"""Models whose JSON files hold other values of every kind, as an editor or a converter leaves them: used, or refused in
one line; never a stack trace."""

import json
import random
from pathlib import Path

from corruption import without_checkpoints
from pickles import reading
from settings import VALUES, mutated, put
from tiny_runs import Bench, LostError, limit_memory, run

_MORE = ("{{", 2**31, 2**63, 2**70, -7, 0.3, "[UNK]", "int8", ["a", "b"], {"0": 1}, [[1, 2], [3]], "a" * 5000)
_KEYS = (
    "id2label", "label2id", "num_labels", "model_max_length", "image_mean", "image_std", "size", "resample",
    "dtype", "quantization_config", "vocab_size", "architectures", "model_type", "added_tokens", "truncation",
    "padding", "do_rescale", "rescale_factor", "pad_token", "mask_token", "preset", "0", "",
)  # fmt: skip
# What is tried first: file, place, value.
KNOWN = (
    ("config.json", "hidden_size", "wide"), ("config.json", "id2label", 5), ("config.json", "id2label", ["a"]),
    ("processor_config.json", "image_processor.image_std", [0.5, 0.5]), ("config.json", "num_hidden_layers", None),
    ("tokenizer_config.json", "model_max_length", "long"), ("processor_config.json", "image_processor.size", 7),
)  # fmt: skip
_SECONDS = 60


def attempt(bench: Bench, seed: int, folder: Path) -> int:
    """The seed counts through the commands; file, place and value are drawn."""
    draw, how = random.Random(seed), ("evaluate", "ask", "pretrained")[seed % 3]
    task, part = ("pretraining", "model") if how == "pretrained" else ("vqa", "best")
    source = without_checkpoints(bench.folder / task, folder / "source")
    (source / part / "SHA256SUMS").unlink()
    path = draw.choice(sorted((source / part).glob("*.json")))
    if seed < len(KNOWN):
        path = source / part / KNOWN[seed][0]
    content = json.loads(path.read_text())
    # Of a tokenizer nearly all places are words.
    words = (
        content.get("model", {}).pop("vocab", None) if path.name == "tokenizer.json" and draw.random() < 0.8 else None
    )
    if seed < len(KNOWN):
        said = [put(content, *KNOWN[seed][1:])]
    else:
        said = [mutated(content, draw, (*VALUES, *_MORE), _KEYS) for _ in range(draw.choice((1, 1, 2)))]
    if words is not None and isinstance(content.get("model"), dict):
        content["model"].setdefault("vocab", words)
    path.write_text(json.dumps(content, default=repr))
    done = run(reading(bench, source, how, folder), before=lambda: limit_memory(12), timeout=_SECONDS)
    try:
        done.expect(0, 2, where=how)
    except LostError as lost:
        raise LostError(f"{path.name}: {'; '.join(said)[:300]}: {lost}") from None
    return 1
