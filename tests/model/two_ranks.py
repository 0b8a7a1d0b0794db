"""One process of test_two_ranks.py: `python two_ranks.py FOLDER RANK`, with RANK 0, 1 or `alone`."""

import sys

import torch
import torch.distributed as dist
from conftest import TINY, make_batch

from soho_fast.model import SohoConfig, SohoForPreTraining, VisualDictionary, visual_dictionary
from soho_fast.model.feature_watch import FeatureWatch

STEPS, PARTS = 4, (1, 2, 4)
visual_dictionary._PATIENCE, visual_dictionary._MOST_RESET = 1, 3
# With a threshold of half the uniform share codes are reset at every step from the second on.
KINDS = ("paper", "official")
OPTIONS = {"dictionary_batch_norm": True, "code_reset_threshold": 0.5, "contrastive_weight": 0.5}


def config(kind: str) -> SohoConfig:
    """A small one of the paper's model, with all that ranks exchange, or of the released one."""
    if kind == "paper":
        return SohoConfig(**{**TINY, **OPTIONS})
    return SohoConfig.from_preset("official", **{**TINY, "dictionary_init": "random"})


def share(step: int, rank: int | None, kind: str) -> dict:
    """The batch of a step: of all (`None`), or of one rank.

    The first rank has the larger images and all the labelled words. The paper's model gets images padded no further
    than a rank's own need; the released one feels the padding, so it gets that of the whole batch, and its images have
    three, one, two and two texts, of which some are read with masked images.
    """
    whole = make_batch(num_images=4, texts_per_image=2, size=(96, 128))
    generator = torch.Generator().manual_seed(100 + step)
    whole["pixel_values"] = torch.randn(whole["pixel_values"].shape, generator=generator)
    whole["mask_uniform"] = torch.rand(4, dtype=torch.float64, generator=generator)
    whole["mlm_labels"][4:] = -100
    whole["pixel_mask"][2:, 64:] = 0
    whole["pixel_mask"][2:, :, 96:] = 0
    if kind == "official":
        whole["image_index"] = torch.tensor([0, 0, 0, 1, 2, 2, 3, 3])
        whole["mask_pairs"] = torch.tensor([1, 0, 0, 1, 0, 1, 0, 0]).bool()
        whole["mask_uniform"][2] = whole["mask_uniform"][0]  # A forward masks at the place of its first image.
    if rank is None:
        return whole
    images, texts = slice(2 * rank, 2 * rank + 2), slice(4 * rank, 4 * rank + 4)
    part = {k: v[images] if k in ("pixel_values", "pixel_mask", "mask_uniform") else v[texts] for k, v in whole.items()}
    part["image_index"] = part["image_index"] - 2 * rank
    if rank == 1 and kind == "paper":
        part["pixel_values"], part["pixel_mask"] = part["pixel_values"][..., :64, :96], part["pixel_mask"][:, :64, :96]
    return part


def train(rank: int | None, kind: str) -> dict:
    torch.set_num_threads(1)
    torch.manual_seed(7)
    model = SohoForPreTraining(config(kind))
    if rank == 1:
        model.soho.visual_dictionary.codebook.add_(1.0)  # seeded differently, by mistake
    model.soho.visual_encoder.freeze_batch_norm()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    losses, num_reset = [], 0
    for step in range(STEPS):
        optimizer.zero_grad()
        out = model(**share(step, rank, kind))
        out.loss.backward()
        if rank is not None:
            for parameter in model.parameters():
                if parameter.requires_grad:
                    dist.all_reduce(parameter.grad)
                    parameter.grad /= 2
        optimizer.step()
        named = [out.mlm_loss, out.mvm_loss, out.itm_loss, out.contrastive_loss]
        losses.append(torch.stack([loss for loss in named if loss is not None]).detach())
        num_reset += int((model.soho.visual_dictionary.age == 0).sum())
    return {"state": model.state_dict(), "losses": torch.stack(losses), "num_reset": num_reset}


def accumulate(rank: int | None, parts: int) -> dict:
    """The dictionary after ten steps in `parts` micro-batches over features that are the same whoever holds them.

    They are multiples of 1/64 below 8, whose sums are exact in float32 in any order.
    """
    torch.manual_seed(7)
    made = VisualDictionary(SohoConfig(**{**TINY, **OPTIONS, "dictionary_init": "random"})).train()
    watch = FeatureWatch(16).train()
    generator = torch.Generator().manual_seed(3)
    num_reset = 0
    for _ in range(10):
        feat = (torch.randn(8, 6, 16, generator=generator) * 64).round().clamp(-500, 500) / 64
        valid = torch.rand(8, 6, generator=generator) < 0.8
        batch = (feat, valid, torch.rand(8, dtype=torch.float64, generator=generator))
        if rank is not None:
            batch = tuple(tensor[4 * rank : 4 * rank + 4] for tensor in batch)
        for part in (made, watch):
            part.begin_step()
        for micro_batch in zip(*(tensor.chunk(parts) for tensor in batch), strict=True):
            watch.see(*micro_batch[:2], made(*micro_batch)[0])
        for part in (made, watch):
            part.end_step(applied=True)
        num_reset += int((made.age == 0).sum())
    assert num_reset
    return {"state": made.state_dict(), "figures": {**made.step_statistics(), **watch.figures()}}


def results(rank: int | None) -> dict:
    dictionaries = {parts: accumulate(rank, parts) for parts in PARTS}
    return {**{kind: train(rank, kind) for kind in KINDS}, "dictionaries": dictionaries}


if __name__ == "__main__":
    folder, name = sys.argv[1:]
    if name == "alone":
        torch.save(results(None), f"{folder}/{name}.pt")
    else:
        dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=int(name), world_size=2)
        torch.save(results(int(name)), f"{folder}/{name}.pt")
        dist.destroy_process_group()
