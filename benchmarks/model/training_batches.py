"""The shapes that are timed, and batches made like the training data's without needing a corpus.

B images, P texts, S tokens of the longest text.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from soho_fast.engine.settings import OptimSettings
from soho_fast.model import SohoConfig, SohoForPreTraining
from soho_fast.tasks.recipe import read_recipe

# Lengths in tokens of the demo corpus' captions, [CLS] and [SEP] included: captions in a thousand, from 3 tokens up.
_LENGTH_COUNTS = (5, 10, 18, 22, 59, 48, 56, 100, 109, 94, 112, 76, 84, 54, 43, 26, 29, 12, 12, 12, 6, 8, 4, 1)
_SHORTEST = 3
_FIRST_WORD = 5  # [PAD] [UNK] [CLS] [SEP] [MASK] come before the words
_CLS, _SEP, _MASK = 2, 3, 4


@dataclass
class TimedShape:
    """One shape: the model, the optimiser's rules, the batch's sizes (P = images * texts, half of them matched), the
    ratio that is asked of it, and the dropout of the steps that are timed, which comes on after the check."""

    name: str
    config: SohoConfig
    optim: OptimSettings
    images: int
    height: int
    width: int
    texts: int = 4
    max_text_length: int = 32
    masking: float = 0.15
    target: float = 3.0
    dropout: float = 0.0


def mini_shape() -> TimedShape:
    """The sizes of recipe `mini`, read from the recipe."""
    recipe = read_recipe([])
    config = SohoConfig.from_preset(recipe.model.preset, vocab_size=477, **recipe.model.changes())
    return TimedShape(
        name="mini",
        config=config,
        optim=recipe.optim,
        images=recipe.batch.global_batch_size,
        height=recipe.data.shorter_edge,
        width=recipe.data.longer_edge,
        texts=recipe.data.num_positive + recipe.data.num_negative,
        max_text_length=recipe.data.max_text_length,
        masking=recipe.data.masking.probability,
    )


def paper_like_shape(dropout: float = 0.0) -> TimedShape:
    """The paper's ablation model (ResNet-18, 3 layers of 768, k = 2048) at two images with four texts each."""
    config = SohoConfig.from_preset(
        "paper",
        backbone="resnet18",
        num_hidden_layers=3,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        dictionary_init="data",
    )
    name = f"paper-like, dropout {dropout:g}" if dropout else "paper-like"
    return TimedShape(name, config, OptimSettings(), images=2, height=256, width=320, dropout=dropout)


def official_shape(recomputed: bool = True) -> TimedShape:
    """The released code's model, rules and text length, by recipe `official`, without dropout.

    Args:
        recomputed: as in the released configuration the eager pipeline runs the CNN's blocks again in the backward
            pass, and BatchNorm's statistics move twice in both; else neither.
    """
    recipe = read_recipe(["--recipe", "official"])
    dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    values = {**recipe.model.changes(), **dropout, "official": "pretraining" if recomputed else "fine_tuning"}
    return TimedShape(
        name="official" if recomputed else "official, no block run again",
        config=SohoConfig.from_preset(recipe.model.preset, **values),
        optim=recipe.optim,
        images=2,
        height=256,
        width=320,
        texts=recipe.data.num_positive + recipe.data.num_negative,
        max_text_length=recipe.data.max_text_length,
        masking=recipe.data.masking.probability,
        target=4.0,
    )


def build_model(shape: TimedShape, seed: int = 0) -> SohoForPreTraining:
    """A model of that shape from random weights, in training."""
    torch.manual_seed(seed)
    return SohoForPreTraining(shape.config).train()


def make_batch(shape: TimedShape, seed: int) -> dict[str, Tensor]:
    """Noise images that fill their tensor, and texts of the corpus' lengths, masked as BERT masks."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(*size: int) -> Tensor:
        return torch.rand(size, generator=generator)

    B, P = shape.images, shape.images * shape.texts
    # Coarse noise, enlarged: neighbouring tokens then differ, as those of a picture do.
    coarse = torch.randn(B, 3, -(-shape.height // 16), -(-shape.width // 16), generator=generator)
    pixels_B3HW = torch.nn.functional.interpolate(coarse, (shape.height, shape.width), mode="bilinear")
    weights = torch.tensor(_LENGTH_COUNTS, dtype=torch.float32)
    length_P = torch.multinomial(weights, P, replacement=True, generator=generator) + _SHORTEST
    length_P.clamp_(max=shape.max_text_length)
    S = int(length_P.max())
    place_S = torch.arange(S)
    real_PS = place_S < length_P[:, None]
    ids_PS = (_FIRST_WORD + uniform(P, S) * (shape.config.vocab_size - _FIRST_WORD)).long()
    ids_PS[:, 0] = _CLS
    ids_PS[place_S == length_P[:, None] - 1] = _SEP
    word_PS = real_PS & (place_S > 0) & (place_S < length_P[:, None] - 1)
    chosen_PS = word_PS & (uniform(P, S) < shape.masking)
    chosen_PS[:, 1] = True
    itm_labels_P = (torch.arange(P) % shape.texts < shape.texts // 2).long()
    if shape.config.official is None:
        labels_PS = torch.where(chosen_PS & (itm_labels_P == 1)[:, None], ids_PS, -100)
    else:
        labels_PS = torch.where(chosen_PS, ids_PS, -100)
    ids_PS = torch.where(chosen_PS & (uniform(P, S) < 0.8), _MASK, ids_PS)
    mask_uniform_B = torch.rand(B, dtype=torch.float64, generator=generator)
    official = {}
    if shape.config.official is not None:
        # One place for all images, and the pairs that are masked there, of which there is one at least.
        official["mask_pairs"] = (uniform(P) < 0.015) | (torch.arange(P) == 0)
        mask_uniform_B = mask_uniform_B[:1].expand(B).clone()
    return {
        "pixel_values": pixels_B3HW,
        "pixel_mask": torch.ones(B, shape.height, shape.width, dtype=torch.bool),
        "input_ids": torch.where(real_PS, ids_PS, 0),
        "attention_mask": real_PS.long(),
        "image_index": torch.arange(B).repeat_interleave(shape.texts),
        "mlm_labels": labels_PS,
        "itm_labels": itm_labels_P,
        "mask_uniform": mask_uniform_B,
        **official,
    }
