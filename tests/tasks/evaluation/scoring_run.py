"""A tiny model that scores pairs, and images and texts of several sizes for it."""

import numpy as np
import torch

from soho_fast.data.text import EncodedText
from soho_fast.model import SohoConfig, SohoForImageTextRetrieval
from soho_fast.tasks.evaluation.pair_scoring import ImageBlocks, PairScorer


def model(**overrides):
    """A model whose logits depend on image and text."""
    torch.manual_seed(0)
    sizes = {
        "backbone": "resnet10", "visual_pool": 1, "vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 4, "intermediate_size": 64, "num_codes": 8, "contrastive_weight": 1.0,
        "use_dictionary_output": False,
    }  # fmt: skip
    made = SohoForImageTextRetrieval(SohoConfig.from_preset(**{**sizes, **overrides})).eval()
    with torch.no_grad():
        for weight in (*made.soho.encoder.parameters(), *made.itm_head.parameters()):
            weight.mul_(15.0 if weight.dim() > 1 else 1.0)
    return made


def texts():
    """Nine texts of three lengths."""
    rng = np.random.default_rng(0)
    return [EncodedText(rng.integers(5, 50, 3 + n % 3), np.zeros(0)) for n in range(9)]


def scorer(**options):
    return PairScorer(model(), texts(), **options)


def images(count):
    """Images of two sizes."""
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(3, 64, (96, 64)[n % 2], generator=generator) for n in range(count)]


def pixels(chosen):
    """A batch, padded to the widest."""
    values, mask = torch.zeros(len(chosen), 3, 64, 96), torch.zeros(len(chosen), 64, 96, dtype=torch.bool)
    for row, image in enumerate(chosen):
        values[row, :, :, : image.shape[2]] = image
        mask[row, :, : image.shape[2]] = True
    return {"pixel_values": values, "pixel_mask": mask}


def blocks(scorer, chosen):
    return ImageBlocks(len(chosen), lambda b: scorer.encode(pixels([chosen[n] for n in b])), block_images=2)
