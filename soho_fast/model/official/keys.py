"""Names of the released code's tensors, and ours.

K codes, C channels.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from ..codebook.usage import USAGE_DECAY

# By what a name begins with, or whole; the first that fits. `cluster_sum` is two things: there a total that nothing
# reads, here the running sums of assigned features.
NAMES = {
    "backbone.": "soho.visual_encoder.backbone.",
    "neck.conv.conv.": "soho.visual_encoder.projection.",
    "neck.conv.bn.": "soho.feature_norm.",
    "neck.pos_line.": "soho.fusion.align.",
    "neck.gate_fc.conv.": "soho.fusion.gate.",
    "neck.gate_fc.bn.": "soho.fusion.norm.",
    "neck.ln.": "soho.visual_embeddings.LayerNorm.",
    "language.bert.embeddings.": "soho.text_embeddings.",
    "language.bert.encoder.": "soho.encoder.",
    "head.match_class.": "itm_head.classifier.",
    "head.vqa.": "head.",
    "neck.vq.embed": "soho.visual_dictionary.codebook",
    "neck.vq.cluster_size": "soho.visual_dictionary.cluster_size",
    "neck.vq.embed_avg": "soho.visual_dictionary.cluster_sum",
    "neck.vq.cluster_sum": "soho.visual_dictionary.total",
    "neck.mask_emb.weight": "soho.mask_token",
}
# A 1x1 convolution there is a linear layer here, an embedding of one row a vector.
_SHAPES = {"neck.gate_fc.conv.weight": (2, -1), "neck.mask_emb.weight": (-1,)}

WORDS = "language.bert.embeddings.word_embeddings.weight"
TIED = "mask_l_fc.weight"
"""The classifier of words, which has no tensor here: it is tied to `WORDS`."""


def our_name(name: str) -> str | None:
    """What a tensor of the released code is called here; `None`: it is not of that code, or has no tensor here."""
    return _renamed(name, NAMES)


def official_name(ours: str) -> str | None:
    """What one of our tensors is called in the released code; `None`: it has no such tensor."""
    return _renamed(ours, {ours: theirs for theirs, ours in NAMES.items()})


def _renamed(name: str, names: Mapping[str, str]) -> str | None:
    found = (
        to + name.removeprefix(of) for of, to in names.items() if name == of or (of[-1] == "." and name.startswith(of))
    )
    return next(found, None)


def rename(official: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The released code's state dict under our names, in our shapes, of what has one here. Values are not looked at.

    Of `soho.visual_dictionary` only what `dictionary_counters` makes is missing then.
    """
    named = ((our_name(name), _reshaped(name, tensor)) for name, tensor in official.items())
    return {ours: tensor for ours, tensor in named if ours is not None}


def _reshaped(name: str, tensor: Tensor) -> Tensor:
    shape = _SHAPES.get(name)
    if shape is None or not tensor.numel() or tensor.numel() % math.prod(abs(size) for size in shape):
        return tensor
    return tensor.reshape(shape)


def dictionary_counters(cluster_size_K: Tensor) -> dict[str, Tensor]:
    """What our dictionary counts and the released code does not, from its running counts.

    Args:
        cluster_size_K: running count of the features assigned to each code; all zero: nothing was learnt.

    Returns:
        `usage`: each code's share in units of 1/K. `age`, `step`: so many updates that the start of `usage` is
        forgotten, 0 where nothing was learnt. `initialised`: whether something was.
    """
    total = cluster_size_K.sum()
    learnt = bool(total > 0)
    num_codes = len(cluster_size_K)
    usage_K = cluster_size_K * (num_codes / total) if learnt else torch.zeros_like(cluster_size_K)
    # What is left of the start then rounds to nothing in float32.
    updates = math.ceil(math.log(1e-8) / math.log(USAGE_DECAY)) if learnt else 0
    return {
        "soho.visual_dictionary.usage": usage_K.float(),
        "soho.visual_dictionary.age": torch.full((num_codes,), float(updates)),
        "soho.visual_dictionary.step": torch.tensor(updates),
        "soho.visual_dictionary.initialised": torch.tensor(learnt),
    }
