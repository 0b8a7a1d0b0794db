"""Scoring many image-text pairs by image-text matching, from cached visual tokens.

Shapes: I images, N texts, P pairs of one call, T tokens of a pair, D channels, H heads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.models.bert.modeling_bert import BertLayer

from soho_fast.data.text import EncodedText


def matched_odds(output: Any) -> Tensor:
    """Log-odds of "matched" from a model's two ITM logits: float32 (P,) on the CPU."""
    logits_P2 = output.itm_logits.float()
    return (logits_P2[:, 1] - logits_P2[:, 0]).cpu()


@contextmanager
def first_token_only(model: nn.Module) -> Iterator[None]:
    """Within it, the last Transformer layer computes the first token ([CLS]) alone.

    Matching reads nothing else, and the layer then costs its keys and values only: 2 of its 12 D x D products per
    token, which with 3 layers saves 28 % of the Transformer. Hidden states of other tokens must not be asked for. No
    effect on a model whose last layer is not a BertLayer under scaled-dot-product attention.
    """
    encoder = getattr(getattr(model, "soho", None), "encoder", None)
    layer = encoder.layer[-1] if isinstance(getattr(encoder, "layer", None), nn.ModuleList) else None
    usable = isinstance(layer, BertLayer) and layer.attention.self.config._attn_implementation in ("sdpa", "eager")
    if not usable:
        yield
        return

    def forward(hidden_states: Tensor, attention_mask: Tensor | None = None, *_: Any, **__: Any) -> Tensor:
        attention = layer.attention.self
        first_P1D = hidden_states[:, :1]

        def heads(projected: Tensor) -> Tensor:
            return projected.unflatten(-1, (attention.num_attention_heads, -1)).transpose(1, 2)

        context_PH1d = F.scaled_dot_product_attention(
            heads(attention.query(first_P1D)),
            heads(attention.key(hidden_states)),
            heads(attention.value(hidden_states)),
            attn_mask=None if attention_mask is None else attention_mask[:, :, :1],
            scale=attention.scaling,
        )
        context_P1D = context_PH1d.transpose(1, 2).flatten(2)
        return layer.feed_forward_chunk(layer.attention.output(context_P1D, first_P1D))

    layer.forward = forward
    try:
        yield
    finally:
        del layer.forward


def score_all_pairs(
    score: Callable[..., Any],
    image_batches: Sequence[tuple[Any, int]],
    texts: Sequence[EncodedText],
    *,
    pair_batch: int,
    progress: Callable[[str, int, int], None] | None = None,
) -> torch.Tensor:
    """ITM log-odds of every image with every text.

    A call takes texts of one length only, so that nothing is spent on padding (and attention needs no mask where the
    images have none), and expands them over as many images of a batch as `pair_batch` allows.

    Args:
        score: (visual tokens, texts' ids, image_index) -> output with `itm_logits` (P, 2).
        image_batches: Cached visual tokens of a batch of images, and how many of its first images to score.
        texts: The N texts.
        pair_batch: Pairs scored in one call.
        progress: Called with ("retrieval", images done, all).

    Returns:
        float32 (all images, N).
    """
    rows_by_length: dict[int, list[int]] = {}
    for row, text in enumerate(texts):
        rows_by_length.setdefault(len(text.ids), []).append(row)
    groups = [
        rows[begin : begin + pair_batch]
        for rows in rows_by_length.values()
        for begin in range(0, len(rows), pair_batch)
    ]
    num_images = sum(count for _, count in image_batches)
    scores_IN = torch.empty(num_images, len(texts))
    done = 0
    for visual, count in image_batches:
        for group in groups:
            step = max(1, pair_batch // len(group))
            for begin in range(0, count, step):
                places = np.arange(begin, min(begin + step, count))
                texts_ids = [texts[row].ids for row in group] * len(places)
                odds_P = matched_odds(score(visual, texts_ids, np.repeat(places, len(group))))
                scores_IN[done + begin : done + begin + len(places), group] = odds_P.view(len(places), len(group))
        done += count
        if progress is not None:
            progress("retrieval", done, num_images)
    return scores_IN
