"""What a run is trained on and from, told by its contents, so that a folder that moved is no change."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from soho_fast.data.readers.records import ImageRef
from soho_fast.data.shards.records import JoinedRecords, ShardRecords

# By pattern of a recipe's field: why two runs that differ there train the same, or what is compared instead.
NOT_COMPARED = {
    "data_roots.*": "where things lie; what is read from there is compared",
    "corpus.folder": "where it lies",
    "data.sources.*": "the records read from there are compared",
    "data.heldout.*": "the records read from there are compared",
    "data.splits.*": "the records read from there are compared",
    "data.missing_images": "the records that are left are compared",
    "data.tokenizer": "its words are compared",
    "data.quick_images": "how much is measured in mid-training, which chooses no best model",
    "data.image_batch": "how much is measured at a time",
    "data.text_batch": "how much is measured at a time",
    "data.pair_batch": "how much is measured at a time",
    "model.pretrained": "its weights are compared",
    "model.text_encoder": "its weights are compared",
    "model.backbone": "its weights are compared",
}

# Fields of SohoConfig that change which tensors there are.
SIZES = (
    "backbone",
    "use_dictionary",
    "num_codes",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "vocab_size",
    "max_position_embeddings",
    "ema_variant",
    "dictionary_batch_norm",
    "visual_layer_norm",
    "visual_encoder",
    "dictionary",
    "fusion",
    "mlm_head",
    "mvm_head",
    "itm_bias",
)
FIXED = (
    "data.tokenizer", "labels", "model.preset", "model.bag_of_words_head", *(f"model.config.{name}" for name in SIZES)
)  # fmt: skip

# A best model is chosen by what is measured, so these are compared; but `evaluate` takes them without training.
MEASURES_BY = (
    "held-out data", "data.heldout_images", "data.heldout_candidates", "data.validate", "data.folds",
    "data.scoring", "data.max_loss", "data.choice_images", "data.precision", "data.measured_images",
)  # fmt: skip

_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth")


def records_identity(records: Sequence[Any]) -> str:
    """Number and hash of records in their order: names of images, texts, labels; not where the images lie, nor the
    images themselves, which may be mended while a run stands still."""
    if isinstance(records, ShardRecords):
        return records.identity()
    if isinstance(records, JoinedRecords):
        parts = [records_identity(part) for part in records.parts]
        return f"{len(records):,} records, {hashlib.sha256(repr(parts).encode()).hexdigest()[:12]}"
    digest = hashlib.sha256()
    names: dict[type, list[str]] = {}
    for record in records:
        kind = type(record)
        if kind not in names:
            # The source is what messages call it.
            names[kind] = [field.name for field in fields(kind) if field.name != "source"]
        values = [getattr(record, name) for name in names[kind]]
        digest.update("\0".join(v.name if isinstance(v, ImageRef) else repr(v) for v in values).encode() + b"\1")
    return f"{len(records):,} records, {digest.hexdigest()[:12]}"


def weights_identity(name_or_path: str | None) -> str | None:
    """A hash of the weights in a file or folder; what is neither, such as a hub name, stands for itself."""
    if name_or_path is None:
        return None
    path = Path(name_or_path)
    files = [path] if path.is_file() else sorted(each for each in path.glob("*") if each.suffix in _WEIGHTS)
    if not files:
        return name_or_path
    digest = hashlib.sha256()
    for each in files:
        with each.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return f"weights {digest.hexdigest()[:12]}"


def words_identity(tokenizer: PreTrainedTokenizerBase) -> str:
    """Number and hash of a tokenizer's words."""
    words = sorted(tokenizer.get_vocab().items(), key=lambda pair: pair[1])
    digest = hashlib.sha256("\n".join(f"{number} {word}" for word, number in words).encode("utf-8", "replace"))
    return f"{len(words):,} words, {digest.hexdigest()[:12]}"
