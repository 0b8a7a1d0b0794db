"""The lookup without shapes that depend on values, for graphs of ONNX: in operations that torch has itself.

Letters: N features, K codes, C channels, R candidates.
"""

import torch
from torch import Tensor

from soho_fast.ops.codebook_lookup import reference

# So many codes of each feature are compared to the last bit: those which rounding could confuse are fewer.
CANDIDATES = 16


def codebook_lookup(
    features: Tensor,
    codebook: Tensor,
    return_distance: bool,
    return_codes: bool,
    packed: Tensor | None = None,
    subspace: Tensor | None = None,
    warm_start: Tensor | None = None,
    metric: int = 0,
    topk: int = 1,
) -> tuple[Tensor, Tensor, Tensor]:
    """As the reference, unless more than CANDIDATES codes are the nearest ones but for the rounding of float64."""
    if topk > 1:
        raise ValueError("topk: expected None in a graph for ONNX, which finds the nearest code alone")
    name = reference.METRICS[metric]
    usable_K, usable_N = codebook.isfinite().all(-1), features.isfinite().all(-1)
    feat_NC = features.double().where(usable_N.unsqueeze(-1), 0.0)
    code_KC = codebook.double().where(usable_K.unsqueeze(-1), 0.0)
    compared_KC = code_KC / reference.norm(code_KC).unsqueeze(-1) if name == "cosine" else code_KC
    score_NK = feat_NC @ compared_KC.transpose(-1, -2)
    if name == "euclidean":
        score_NK = score_NK - code_KC.square().sum(-1).unsqueeze(-2) / 2
    score_NK = score_NK.where(usable_K.unsqueeze(-2), -torch.inf)
    score_NR, code_NR = score_NK.topk(min(CANDIDATES, codebook.shape[-2]), dim=-1)
    # By the differences of each pair, in the specified order of summation: the product above chooses candidates alone.
    pair_NRC = feat_NC.unsqueeze(-2).expand(*code_NR.shape, feat_NC.shape[-1])
    value_NR = reference.metric_value(pair_NRC, reference.gather(code_KC, code_NR), name)
    value_NR = -value_NR if name == "euclidean" else value_NR
    # An unusable code is zeros here, which may be the nearest.
    value_NR = value_NR.where(score_NR > -torch.inf, -torch.inf)
    is_best_NR = value_NR == value_NR.amax(-1, keepdim=True)
    # The lowest of equals: K is above every code.
    index_N = code_NR.where(is_best_NR, codebook.shape[-2]).amin(-1).where(usable_N, 0)
    distance_N = reference.chosen_value(features, codebook, index_N, name) if return_distance else features.new_empty(0)
    return distance_N, index_N, reference.gather(codebook, index_N) if return_codes else codebook.new_empty(0)


def straight_through(features: Tensor, codebook: Tensor, index: Tensor) -> Tensor:
    """As the reference, which looks at the index."""
    chosen = reference.gather(codebook, index.clamp(min=0))
    return chosen.where((index >= 0).unsqueeze(-1), 0.0).to(features.dtype)
