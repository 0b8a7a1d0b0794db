"""Our model against what the authors' released modules compute: every tensor of the fixture."""

import copy
from pathlib import Path

import official_parity_rule as rule
import pytest
import torch
from comparison import differences
from parity import fixture
from released_model import (
    PRETRAINING_CASES,
    VQA_CASES,
    batch_norm_statistics,
    dictionary_found,
    gradients,
    outputs_found,
    pretraining_inputs,
    run_pretraining,
    run_vqa,
)
from torch import nn

from soho_fast.model import SohoConfig
from soho_fast.model.fast.cpu import speed_up_on_cpu
from soho_fast.model.official.dictionary import OfficialDictionary
from soho_fast.model.official.released_encoder import released_mask

PROBE_TOLERANCE = 1e-6

# Who else compares with the fixture, by what its names begin with: the training step, and images to pixels.
ELSEWHERE = {
    "optimizer.": "engine/test_released_training.py",
    "schedule.": "engine/test_released_training.py",
    "geometry": "data/test_released_images.py",
    "pipeline.": "data/test_released_images.py",
}
# What the cases are made of, so that they would differ.
INPUTS = ("captions.", "questions.", "weights.", "rule.sum", "rule_vqa.sum", "landscape.", "portrait.", "probe.")


@pytest.mark.parametrize("case", ["eval_landscape", "eval_portrait"])
def test_evaluation(model, case):
    assert differences(case, run_pretraining(model, case)) == {}


def test_a_training_step(model):
    """Losses, the dictionary's update, gradients, and BatchNorm's statistics after the backward pass."""
    found = run_pretraining(model, "train")
    found["loss"].backward()
    found |= batch_norm_statistics(model) | gradients(model)
    assert differences("train", found) == {}


def test_the_first_two_steps(model):
    """The statistics start empty: unused codes become zero, and then tie with one another."""
    dictionary = model.soho.visual_dictionary
    for statistics in (dictionary.cluster_size, dictionary.cluster_sum, dictionary.total):
        statistics.zero_()
    assert differences("fresh_1", run_pretraining(model, "fresh_1")) == {}
    assert int((dictionary.codebook == 0).all(1).sum()) == 2013
    assert differences("fresh_2", run_pretraining(model, "fresh_2")) == {}


def test_sped_up_on_a_cpu(model):
    """BatchNorm as a part of the convolutions in evaluation, the packed Transformer in training."""
    fast = speed_up_on_cpu(copy.deepcopy(model))
    assert differences("eval_landscape", run_pretraining(fast, "eval_landscape")) == {}
    # Nothing is recorded meanwhile: hooks would have the Transformer run unpacked.
    output = fast.train()(**pretraining_inputs("train"))
    output.loss.backward()
    found = outputs_found(output, pretraining_inputs("train")) | dictionary_found(fast)
    found |= batch_norm_statistics(fast) | gradients(fast)
    read = ("loss", "log.", "mlm_logits", "mvm_logits", "itm_logits", "after.", "after_backward.", "grad.")
    assert differences("train", found | {"after.rows": fixture()["train.after.rows"]}, only=read) == {}


@pytest.mark.parametrize("case", VQA_CASES)
def test_question_answering(questions_model, case):
    assert differences(case, run_vqa(questions_model, case)) == {}


def test_the_dictionary_alone():
    """18 updates from nothing and a look-up in evaluation: exact ties among dead codes, and codes that fade out."""
    config = SohoConfig.from_preset("official", num_codes=16, hidden_size=8, num_attention_heads=1)
    dictionary, found = OfficialDictionary(config), {}
    dictionary.codebook.copy_(torch.from_numpy(rule.centred("probe.vd.embed", (16, 8), 0, 1)))
    for step in range(19):
        span = (0, 1) if step < 3 else (0.6, 0.4)
        feat_BLC = torch.from_numpy(rule.centred(f"probe.vd.features/{step}", (20, 8), *span)).unsqueeze(0)
        output_BLC, index_BL = dictionary.train(step < 18)(feat_BLC, torch.ones(1, 20, dtype=torch.bool))
        values = {"output": output_BLC[0], "index": index_BL[0], "embed": dictionary.codebook}
        values |= {"cluster_size": dictionary.cluster_size, "embed_avg": dictionary.cluster_sum}
        for name, value in values.items():
            found.setdefault(name, []).append(value.clone())
    found = {name: torch.stack(values) for name, values in found.items()} | {"cluster_sum": dictionary.total}
    expected = {n.removeprefix("probe.vd."): value for n, value in fixture().items() if n.startswith("probe.vd.")}
    assert found.keys() == expected.keys()
    assert torch.equal(found["index"], expected["index"])
    for name, value in expected.items():
        # Sums are rounded once here, and after each token there.
        torch.testing.assert_close(
            found[name], value, rtol=3e-7, atol=PROBE_TOLERANCE, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_epsilons(model):
    """Values so small that an epsilon decides: in the whole model a wrong one stays below every tolerance."""
    soho, probe = model.eval().soho, torch.from_numpy(rule.centred("probe.eps", (2, 768), 0, 1))
    soho.feature_norm.running_var.fill_(2.0**-16)
    with torch.no_grad():
        found = {
            "neck_ln": soho.visual_embeddings(probe / 2**8, torch.zeros(1)),
            "bert_ln": soho.encoder.layer[0].output.LayerNorm(probe / 2**20),
            "neck_bn": soho.feature_norm(probe.unsqueeze(0))[0],
        }
    for name, value in found.items():
        expected = fixture()[f"probe.eps.{name}"]
        assert float((value - expected).abs().max()) <= PROBE_TOLERANCE * float(expected.abs().max())


def test_the_mask_of_one_image_alone():
    """Rows and columns that the released mask keeps, of 14 sizes; the shrinking is torch's in two dimensions."""
    for _, _, height, width, _, _, rows, columns, valid_rows, valid_columns in fixture()["geometry"].tolist():
        side = -(-height // 32) * 32
        sizes = torch.tensor([height]), torch.tensor([width])
        mask_RS = released_mask(*sizes, side, rows, columns)[0]
        assert (int(mask_RS.any(1).sum()), int(mask_RS.any(0).sum())) == (valid_rows, valid_columns)
        canvas = torch.zeros(1, 1, side, side)
        canvas[:, :, :height, :width] = 1
        shrunk = nn.functional.interpolate(canvas, size=(rows, columns), mode="nearest")
        assert torch.equal(shrunk[0, 0].bool(), mask_RS)


def test_every_tensor_is_compared_with():
    """The cases compare all that the fixture has under their names; what begins otherwise is read by a test."""
    cases = tuple(f"{case}." for case in (*PRETRAINING_CASES, *VQA_CASES))
    here = {name for name in fixture() if name.startswith((*cases, *INPUTS)) or name == "geometry"}
    elsewhere = {name for name in fixture() if name.startswith(tuple(ELSEWHERE))}
    assert len(here | elsewhere) == len(fixture()) == 455
    for begins, file in ELSEWHERE.items():
        assert f'"{begins}' in (Path(__file__).parents[2] / file).read_text(), f"{file} reads nothing of {begins}"
