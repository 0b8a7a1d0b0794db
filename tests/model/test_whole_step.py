"""A step in several micro-batches is the step of one batch: losses, gradients, what moves without a gradient."""

import copy

import pytest
import torch
from torch import nn

from soho_fast.model import (
    SohoForImageTextRetrieval,
    SohoForPreTraining,
    SohoForQuestionAnswering,
    SohoForVisualEntailment,
)
from soho_fast.model.added_losses import add_losses

EVERYTHING = {
    "backbone_stride": 16, "bag_of_words_weight": 0.05, "contrastive_weight": 1.0,
    "mvm_margin": 1, "mvm_masking": "lift",
}  # fmt: skip


def uneven(batch, num_images: int = 8) -> dict:
    """Images with one to four texts, whose labels are as uneven, and some texts that are read with masked images."""
    inputs = batch(num_images)
    kept = torch.tensor([text % 4 <= text // 4 % 4 for text in range(4 * num_images)])
    for name in ("input_ids", "attention_mask", "image_index", "mlm_labels", "itm_labels"):
        inputs[name] = inputs[name][kept]
    return inputs | {"mask_pairs": torch.arange(int(kept.sum())) % 3 > 0}


def divided(inputs: dict, parts: int, of_images=("pixel_values", "pixel_mask", "mask_uniform")) -> list[dict]:
    """The same images and texts as micro-batches."""
    num = len(inputs["pixel_values"]) // parts
    found = []
    for first in range(0, parts * num, num):
        texts = (inputs["image_index"] >= first) & (inputs["image_index"] < first + num)
        part = {name: x[first : first + num] if name in of_images else x[texts] for name, x in inputs.items()}
        found.append(part | {"image_index": part["image_index"] - first})
    return found


class Seeded(list):
    """Micro-batches, each time with the random state of its own."""

    def __iter__(self):
        for seed, inputs in enumerate(super().__iter__()):
            torch.manual_seed(seed)
            yield inputs


def step(model: nn.Module, micro_batches: list[dict]) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    """Losses and gradients of a step, as an engine takes it, and what moved."""
    model.train().begin_step()
    if len(micro_batches) > 1:
        model.survey(micro_batches)
    losses: dict[str, float] = {}
    for inputs in micro_batches:
        output = model(**inputs)
        (output.loss / len(micro_batches)).backward()
        for name, value in output.items():
            if name.endswith("loss") and value is not None:
                losses[name] = losses.get(name, 0.0) + value.item() / len(micro_batches)
    model.end_step(applied=True)
    assert model.whole_step is None
    moved = {name: value.double() for name, value in model.named_buffers() if "num_batches" not in name}
    return losses, moved | {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def assert_alike(one, other):
    assert one[0].keys() == other[0].keys() and one[1].keys() == other[1].keys()
    assert other[0] == pytest.approx(one[0], rel=2e-6, abs=1e-7)
    for name, value in one[1].items():
        # What is no more than rounding, as the gradient of a key's bias, has no digit to compare.
        apart = float((other[1][name] - value).norm())
        assert apart <= 5e-5 * float(value.norm()) + 1e-7, name


@pytest.mark.parametrize(
    "changes",
    [
        {}, {"num_levels": 2}, {"contrastive_reads": "embeddings", "mvm_margin": 0}, {"dictionary": "none"},
        {"dictionary_init": "random", "fusion": "features"},
        {"mvm_masking": "label"},
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("parts", [2, 4])
def test_micro_batches_are_one_batch(tiny_model, batch, changes, parts):
    config = EVERYTHING | changes
    if changes.get("dictionary") == "none":
        config |= {"mvm_margin": 0, "mvm_masking": "label"}
    inputs, models = uneven(batch), [tiny_model(**config) for _ in range(2)]
    for model in models:
        model.freeze_batch_norm()
        model.watch_features()
    # Twice: the second level's codes are drawn in the second step.
    for _ in range(2):
        one, other = (step(model, divided(inputs, num)) for model, num in zip(models, (1, parts), strict=True))
        assert_alike(one, other)
    assert len(one[0]) == (5 if config.get("dictionary") == "none" else 6)


@pytest.mark.parametrize("phase", ["words alone", "no visual labels"])
def test_phases_of_micro_batches_are_those_of_one_batch(tiny_model, batch, phase):
    models = [tiny_model(**EVERYTHING) for _ in range(2)]
    for model in models:
        model.freeze_batch_norm()
        model.bag_of_words_only, model.masks_visual_tokens = phase == "words alone", False
    one, other = (step(model, divided(uneven(batch), parts)) for model, parts in zip(models, (1, 4), strict=True))
    assert_alike(one, other)
    assert ("contrastive_loss" in one[0]) == (phase != "words alone") and "mvm_loss" not in one[0]


def test_a_survey_leaves_no_trace(tiny_model, batch):
    """With BatchNorm learning, of the CNN and before the dictionary, and dropout: but for the counts a step is what it
    is without one, to the bit."""
    config = EVERYTHING | {
        "contrastive_weight": 0.0, "dictionary_batch_norm": True, "fusion": "gate", "backbone_dropout_prob": 0.3,
        "code_reset_threshold": 0.5, "dictionary_init": "random",
    }  # fmt: skip
    surveyed, plain = (tiny_model(**config).train() for _ in range(2))
    micro_batches, indices = Seeded(divided(uneven(batch), 2)), []
    for model in (surveyed, plain):
        for _ in range(3):
            model.begin_step()
            if model is surveyed:
                model.survey(micro_batches)
            indices += [model(**inputs).index for inputs in micro_batches]
            model.end_step(applied=True)
    for mine, one in zip(indices[:6], indices[6:], strict=True):
        assert torch.equal(mine, one)
    state = plain.state_dict()
    assert [name for name, value in surveyed.state_dict().items() if not torch.equal(value, state[name])] == []


def test_tokens_that_are_not_finite_are_counted_once(tiny_model, batch):
    model, inputs = tiny_model(**EVERYTHING, dictionary_init="random").train(), uneven(batch)
    model.freeze_batch_norm()
    inputs["pixel_values"][5] = torch.nan
    model.begin_step()
    model.survey(divided(inputs, 2))
    assert model.take_num_non_finite() == 0
    model(**inputs)
    assert model.take_num_non_finite() == 6 * 4


def test_a_survey_counts_the_tokens_that_are_masked_in_training(tiny_model, batch):
    """By the features of a batch of its own BatchNorm and dropout."""
    model = tiny_model(**EVERYTHING | {"backbone_dropout_prob": 0.5, "dictionary_batch_norm": True}).train()
    micro_batches, counts = Seeded(divided(uneven(batch), 2)), set()
    for _ in range(3):
        model.begin_step()
        model.survey(micro_batches)
        counts.add(count := float(model.whole_step.counts["mvm_loss"]))
        assert sum(len(model(**inputs).mvm_targets) for inputs in micro_batches) == count > 0
        model.end_step(applied=True)
    assert len(counts) > 1, "codes move"


@pytest.mark.parametrize("reads", ["transformer", "embeddings"])
def test_vectors_of_a_survey_are_those_of_the_forwards(tiny_model, batch, reads):
    """With BatchNorm in the gate, weighted by the texts of each image, and dropout everywhere."""
    dropout = {"backbone_dropout_prob": 0.3, "hidden_dropout_prob": 0.2, "attention_probs_dropout_prob": 0.2}
    config = EVERYTHING | dropout | {"fusion": "gate", "dictionary_batch_norm": True, "contrastive_reads": reads}
    model = tiny_model(**config).train()
    micro_batches, seen = Seeded(divided(uneven(batch), 2)), []
    head = model.contrastive_head.loss
    model.contrastive_head.loss = lambda *given: (seen.append(given[:3]), head(*given))[1]
    model.begin_step()
    model.survey(micro_batches)
    vectors = model.whole_step.vectors
    places = list(vectors.places)
    for inputs, (image, text) in zip(micro_batches, places, strict=True):
        model(**inputs)
        image_BE, text_TE, own_T = seen[-1]
        for all_XE, own_XE, begin in ((vectors.image_AE, image_BE, image), (vectors.text_UE, text_TE, text)):
            torch.testing.assert_close(own_XE, all_XE[begin : begin + len(own_XE)], rtol=1e-5, atol=1e-6)
        own_U = vectors.own_image_U[text : text + len(own_T)]
        assert torch.equal(own_U, torch.where(own_T < 0, own_T, own_T + image))
    assert not vectors.places and (own_T < 0).any() and (own_T >= 0).any()


def test_a_dictionary_that_moves_in_each_forward_makes_each_a_step(tiny_official, batch):
    model = tiny_official().train()
    state = copy.deepcopy(model.state_dict())
    model.begin_step()
    model.survey(divided(batch(4), 2))
    assert model.whole_step is None
    assert [name for name, value in model.state_dict().items() if not torch.equal(value, state[name])] == []


def test_fine_tuning_in_micro_batches_is_that_of_one_batch(tiny_config, batch):
    inputs = batch(8)
    shared = {name: inputs[name] for name in ("pixel_values", "pixel_mask", "input_ids", "attention_mask")}
    shared |= {"image_index": inputs["image_index"]}
    scores = torch.rand(32, 5)
    labels = torch.arange(32) % 3
    labels[:7] = -100
    targets = {
        SohoForQuestionAnswering: {"answer_scores": scores},
        SohoForVisualEntailment: {"labels": labels},
        SohoForImageTextRetrieval: {"itm_labels": inputs["itm_labels"].masked_fill(torch.arange(32) < 7, -100)},
    }
    for kind, target in targets.items():
        names = {"id2label": {n: str(n) for n in range(5)}} if kind is SohoForQuestionAnswering else {}
        model = kind(tiny_config(use_dictionary_output=False, **names))
        model.freeze_batch_norm()
        models = [model, copy.deepcopy(model)]
        one, other = (step(model, divided(shared | target, parts)) for model, parts in zip(models, (1, 4), strict=True))
        assert_alike(one, other)


def test_vectors_of_retrieval_are_compared_over_the_whole_step(tiny_config, batch):
    """The pairs of aligned images and texts are those of a micro-batch; the vectors are those of the step."""
    inputs = batch(8, texts_per_image=1)
    names = ("pixel_values", "pixel_mask", "input_ids", "attention_mask")
    # Each text describes an image of its own half.
    own = torch.tensor([0, 1, 2, 0, 1, 3, 2, 2])
    parts = [{name: inputs[name][rows] for name in names} for rows in (slice(0, 4), slice(4, 8))]
    for part, rows in zip(parts, (slice(0, 4), slice(4, 8)), strict=True):
        part["own_image"] = own[rows]
    whole = {name: inputs[name] for name in names} | {"own_image": own + torch.arange(8) // 4 * 4}
    model = SohoForImageTextRetrieval(tiny_config(use_dictionary_output=False, contrastive_weight=1.0))
    model.freeze_batch_norm()
    one, other = step(copy.deepcopy(model), [whole]), step(model, parts)
    assert other[0]["contrastive_loss"] == pytest.approx(one[0]["contrastive_loss"], rel=2e-6)
    head = [name for name in one[1] if name.startswith("contrastive_head.")]
    assert len(head) == 5
    for name in head:
        torch.testing.assert_close(other[1][name], one[1][name], rtol=1e-4, atol=1e-7)


class Share(nn.Module):
    """A loss of a user's own, with a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, outputs, batch):
        return self.scale * outputs.itm_logits.square().mean()


@pytest.mark.parametrize(
    "changes",
    [
        {}, {"num_levels": 2, "fusion": "gate", "dictionary_batch_norm": True},
        {"dictionary": "none", "mvm_margin": 0, "mvm_masking": "label"},
        {"bag_of_words_weight": 0.0}, {"contrastive_weight": 0.0},
    ],
    ids=str,
)  # fmt: skip
def test_what_waits_is_what_gets_no_gradient(tiny_model, batch, changes):
    """In each phase: a parameter that waits and is trained, or is not trained and does not wait, would not be the same
    at every ZeRO stage."""
    model = tiny_model(**EVERYTHING | changes).train()
    add_losses(model, {"share": Share()}, {"share": 0.5})
    seen = set()
    for alone in (True, False) if model.bag_of_words_head is not None else (False,):
        for masks in (False, True):
            model.bag_of_words_only, model.masks_visual_tokens = alone, masks
            model.zero_grad()
            model(**uneven(batch)).loss.backward()
            for group in model.parameter_groups():
                for name, parameter in zip(group["names"], group["params"], strict=True):
                    waits = group["part"] in model.waiting_parts
                    assert waits == (parameter.grad is None), (alone, masks, name)
            seen.add(model.waiting_parts)
    assert len(seen) == (2 if model.bag_of_words_head is None else 3)


def test_other_models_wait_for_nothing(tiny_config):
    for kind in (SohoForVisualEntailment, SohoForImageTextRetrieval):
        model = kind(tiny_config())
        assert not model.waiting_parts and {group["part"] for group in model.parameter_groups()} == {""}
    assert {group["part"] for group in SohoForPreTraining(tiny_config()).parameter_groups()} == {"", "labels"}
