"""A model that is wrong in one row of what the released code does differently fails the comparison with the fixture."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from comparison import differences
from released_model import batch_norm_statistics, gradients, pretraining_inputs, run_pretraining, run_vqa
from torch import nn

from soho_fast import ops
from soho_fast.model import SohoForPreTraining, Texts, VisualDictionary, VisualEncoder
from soho_fast.model.backbones import grid_mask
from soho_fast.model.official import released_encoder
from soho_fast.model.official.dictionary import OfficialDictionary
from soho_fast.model.parts import Parts

Patch = Callable[[SohoForPreTraining, pytest.MonkeyPatch], object]

plain_pool = nn.functional.max_pool2d


def pool_before_projection(change: Callable) -> Callable:
    """The pool of the neck alone; the CNN's own has other arguments."""
    return lambda x, *args, **kwargs: change(x) if args == (2,) else plain_pool(x, *args, **kwargs)


def projection_before_pool(model: SohoForPreTraining, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(nn.functional, "max_pool2d", pool_before_projection(lambda x: x))
    projection = model.soho.visual_encoder.projection
    patch.setattr(projection, "forward", lambda x: plain_pool(type(projection).forward(projection, x), 2))


def pool_rounds_up(model: SohoForPreTraining, patch: pytest.MonkeyPatch) -> None:
    change = pool_before_projection(lambda x: plain_pool(x, 2, ceil_mode=True))
    patch.setattr(nn.functional, "max_pool2d", change)


def padding_masked_in_the_cnn(model: SohoForPreTraining, patch: pytest.MonkeyPatch) -> None:
    encoder, pixel_mask = model.soho.visual_encoder, pretraining_inputs("eval_landscape")["pixel_mask"]
    patch.setattr(encoder, "backbone_output", lambda x: VisualEncoder.backbone_output(encoder, x, pixel_mask))


def true_mask(model: SohoForPreTraining, patch: pytest.MonkeyPatch) -> None:
    def mask(height_B, width_B, side, rows, columns):
        pixel_mask = pretraining_inputs("eval_portrait")["pixel_mask"]
        return grid_mask(pixel_mask, 64)[:, :rows, :columns]

    patch.setattr(released_encoder, "released_mask", mask)


def frozen_batch_norm(model: SohoForPreTraining, patch: pytest.MonkeyPatch) -> None:
    norm = model.soho.feature_norm
    patch.setattr(norm, "train", lambda mode: type(norm).train(norm, False))


def features_zero_at_padding(model: SohoForPreTraining, patch: pytest.MonkeyPatch) -> None:
    norm = model.soho.feature_norm

    def forward(feat, valid, num_texts):
        return type(norm).forward(norm, feat, valid, num_texts).masked_fill(~valid.unsqueeze(-1), 0.0)

    patch.setattr(norm, "forward", forward)


def dictionary_of_valid_tokens(model: SohoForPreTraining, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(model.soho.visual_encoder, "counted", lambda valid: valid)


def images_counted_once(model: SohoForPreTraining, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Texts, "per_image", lambda *_: None)


def codebook_before_the_update(model: SohoForPreTraining, patch: pytest.MonkeyPatch) -> None:
    def forward(self: OfficialDictionary, feat_BLC: torch.Tensor, *args: torch.Tensor) -> tuple:
        before_KC = self.codebook.clone()
        _, index_BL = VisualDictionary.forward(self, feat_BLC, *args)
        return ops.straight_through(feat_BLC, before_KC, index_BL), index_BL

    patch.setattr(OfficialDictionary, "forward", forward)


def decay_of_the_other_side(model: SohoForPreTraining, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(model.config, "ema_decay", 0.6)


def one_member_at_the_start(model: SohoForPreTraining, patch: pytest.MonkeyPatch) -> None:
    dictionary = model.soho.visual_dictionary
    for value in (dictionary.cluster_size, dictionary.total):
        value.fill_(1.0)
    dictionary.cluster_sum.copy_(dictionary.codebook)


def no_gate(model: SohoForPreTraining, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(model.soho.fusion, "forward", lambda embed, feat, num_texts: embed)


def gate_the_other_way_round(model: SohoForPreTraining, patch: pytest.MonkeyPatch) -> None:
    gate = model.soho.fusion.gate
    patch.setattr(gate, "forward", lambda x: type(gate).forward(gate, x.roll(x.shape[-1] // 2, -1)))


def all_pairs_masked(model: SohoForPreTraining, patch: pytest.MonkeyPatch) -> None:
    plain = model.soho.mask
    patch.setattr(model.soho, "mask", lambda visual, texts, uniform, pairs: plain(visual, texts, uniform))


def a_label_of_those_present(model: SohoForPreTraining, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(model.soho.parts, "label_to_mask", partial(Parts.label_to_mask, model.soho.parts))


def position_zero_where_masked(model: SohoForPreTraining, patch: pytest.MonkeyPatch) -> None:
    embeddings, token = model.soho.visual_embeddings, model.soho.mask_token

    def forward(embed, position):
        masked = (embed == token).all(-1, keepdim=True)
        return type(embeddings).forward(embeddings, embed, position.masked_fill(masked, 0.0))

    patch.setattr(embeddings, "forward", forward)


def words_through_a_transform(model: SohoForPreTraining, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(model.mlm_head.transform, "forward", nn.functional.gelu)


def a_temperature_for_codes(model: SohoForPreTraining, patch: pytest.MonkeyPatch) -> None:
    plain = model.code_logits
    patch.setattr(model, "code_logits", lambda hidden: plain(hidden) / 0.1)


def a_bias_of_matching(model: SohoForPreTraining, patch: pytest.MonkeyPatch) -> None:
    classifier = model.itm_head.classifier
    patch.setattr(classifier, "forward", lambda x: type(classifier).forward(classifier, x) + torch.tensor([0.1, 0.0]))


def losses_of_matched_pairs(model: SohoForPreTraining, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(model.soho.parts, "only_matched", True)


def statistics_move_once(model: SohoForPreTraining, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(model.soho.visual_encoder, "recomputed_batch_norm", False)


# The variant, the case that it is tried on, and a stage that must be far off.
WRONG: list[tuple[Patch, str, str]] = [
    (projection_before_pool, "eval_landscape", "features"),
    (pool_rounds_up, "eval_landscape", "grid"),
    (padding_masked_in_the_cnn, "eval_landscape", "backbone"),
    (true_mask, "eval_portrait", "visual_mask"),
    (frozen_batch_norm, "fresh_2", "features"),
    (features_zero_at_padding, "eval_portrait", "index"),
    (dictionary_of_valid_tokens, "fresh_1", "after.cluster_size"),
    (images_counted_once, "fresh_1", "after.cluster_size"),
    (codebook_before_the_update, "fresh_1", "quantised"),
    (decay_of_the_other_side, "fresh_1", "after.cluster_size"),
    (one_member_at_the_start, "fresh_1", "after.embed.norm"),
    (no_gate, "eval_portrait", "masked"),
    (gate_the_other_way_round, "eval_portrait", "gate"),
    (all_pairs_masked, "eval_landscape", "mvm_labels"),
    (a_label_of_those_present, "eval_landscape", "mvm_labels"),
    (position_zero_where_masked, "eval_landscape", "visual_input"),
    (words_through_a_transform, "eval_portrait", "loss.mlm"),
    (a_temperature_for_codes, "eval_portrait", "loss.mvm"),
    (a_bias_of_matching, "eval_portrait", "itm_logits"),
    (losses_of_matched_pairs, "eval_landscape", "mvm_logits"),
]


@pytest.mark.parametrize(("wrong", "case", "stage"), WRONG, ids=[wrong.__name__ for wrong, *_ in WRONG])
def test_a_wrong_variant_is_told(model, monkeypatch, wrong, case, stage):
    if case == "fresh_1":
        dictionary = model.soho.visual_dictionary
        for statistics in (dictionary.cluster_size, dictionary.cluster_sum, dictionary.total):
            statistics.zero_()
    wrong(model, monkeypatch)
    assert differences(case, run_pretraining(model, case), only=(stage,))[stage] > 2


def test_statistics_that_move_once_are_told(model, monkeypatch):
    statistics_move_once(model, monkeypatch)
    run_pretraining(model, "train")["loss"].backward()
    far = differences("train", batch_norm_statistics(model, "after_backward"), only=("after_backward",))
    assert {name for name in far if "layer4" in name} and not any("layer2.0" in name for name in far)


def test_a_gradient_that_is_not_straight_through_is_told(model, monkeypatch):
    plain = OfficialDictionary.forward
    monkeypatch.setattr(OfficialDictionary, "forward", lambda *args: tuple(x.detach() for x in plain(*args)))
    run_pretraining(model, "train")["loss"].backward()
    assert differences("train", gradients(model), only=("grad.",))["grad.norm"] > 100


def test_another_classifier_of_answers_is_told(questions_model, monkeypatch):
    monkeypatch.setitem(questions_model.head._modules, "1", nn.GELU())
    assert differences("vqa_portrait", run_vqa(questions_model, "vqa_portrait"))["logits"] > 100
