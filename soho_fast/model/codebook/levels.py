"""Levels of codes, each for what the ones before leave of a feature (residual quantisation; the paper has one level).

N features, Q levels of K codes, C channels.
"""

from torch import Tensor


def rests(feat_NC: Tensor, index_NQ: Tensor, books_QKC: Tensor) -> list[Tensor]:
    """What each level looks up: the features, then what the levels before have left of them, float32; Q of (N, C)."""
    found = [feat_NC]
    # What the last level leaves is looked up by none.
    for level, codes_KC in enumerate(books_QKC[:-1]):
        # In float32 and one after another, as `ops.residual_lookup` subtracts: the same bits.
        found.append(found[-1].float() - codes_KC[index_NQ[..., level]])
    return found
