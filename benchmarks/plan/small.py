"""A recipe at a size that a CPU trains in a second, and batches of values in the shapes that a plan takes for it."""

import torch
from torch import Tensor

from soho_fast.plan.recipes import Given, Work

ACCUMULATED = 2
_RECIPE = (
    "--recipe paper_r18 --data.shorter_edge 192 --data.longer_edge 256 --batch.global_batch_size 8 "
    f"--batch.gradient_accumulation_steps {ACCUMULATED}"
).split()
_MODEL = (
    "{backbone: resnet18, hidden_size: 256, num_hidden_layers: 3, num_attention_heads: 4, intermediate_size: 1024, "
    "num_codes: 256, vocab_size: 4000, dictionary_init: random, visual_pool: 1}"
)


def small_work(gpus: int = 1) -> Work:
    """Recipe paper_r18, three layers of 256 channels, images of 192 x 256; 4 images a micro-batch, on two ranks 2."""
    return Work([*_RECIPE, "--model.config", _MODEL], gpus, Given(text_length=16), [])


def real_inputs(work: Work, num_images: int) -> dict[str, Tensor]:
    """The plan's batch with values; the images' right quarter is padding."""
    generator = torch.Generator().manual_seed(0)
    batch = work.inputs(work.largest, num_images)
    P = len(batch["input_ids"])
    batch["pixel_values"].normal_(generator=generator)
    batch["pixel_mask"].fill_(True)[:, :, 192:] = False
    batch["input_ids"].random_(5, 4000, generator=generator)
    batch["attention_mask"].fill_(1)
    batch["image_index"].copy_(torch.arange(num_images).repeat_interleave(P // num_images))
    batch["mlm_labels"].random_(5, 4000, generator=generator)
    batch["mlm_positions"].copy_(torch.arange(len(batch["mlm_positions"])))
    batch["itm_labels"].copy_(torch.arange(P) % 4 < 2)
    batch["mask_uniform"].uniform_(generator=generator)
    return batch
