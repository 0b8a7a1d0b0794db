"""A quantiser of a user's own in the dictionary's place, by its import path: the example of docs/extending.md."""

import re
import sys
from pathlib import Path

import pytest
import torch

from soho_fast.common.import_path import load
from soho_fast.model import SohoForPreTraining, SohoForVisualEntailment

ROOT = Path(__file__).resolve().parents[2]
LEVELS = [4, 3]
# The page's own example, in a folder of its own.
OWN = re.search(r"```python\n(# own_quantiser\.py\n.*?)```", (ROOT / "docs/extending.md").read_text(), re.DOTALL)[1]


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A folder outside of the repository with the page's module, which is the current one."""
    (tmp_path / "own_quantiser.py").write_text(OWN.replace("levels=(8, 8, 4)", f"levels={LEVELS}"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    sys.modules.pop("own_quantiser", None)


@pytest.fixture
def own_config(tiny_config):
    given = {"dictionary": "own_quantiser:OwnQuantiser", "num_codes": 12}
    return lambda **overrides: tiny_config(**given | overrides)


@pytest.fixture
def quantiser(own, own_config):
    torch.manual_seed(3)
    return load("own_quantiser:OwnQuantiser", "dictionary")(own_config(), LEVELS).train()


def test_a_feature_becomes_the_vector_of_its_code(quantiser):
    feat, valid = torch.randn(3, 7, 16, requires_grad=True), torch.rand(3, 7) > 0.3
    embed, index = quantiser(feat, valid)
    smooth = ((feat.detach() @ quantiser.down).tanh() + 1) / 2 * torch.tensor([3.0, 2.0])
    steps = torch.cartesian_prod(torch.arange(4), torch.arange(3))
    expected = (smooth[..., None, :] - steps).square().sum(-1).argmin(-1)  # the nearest point of the grid
    assert torch.equal(index, torch.where(valid, expected, -1)) and len(expected.unique()) > 3
    torch.testing.assert_close(embed, quantiser.codebook_of(0)[expected])
    assert torch.equal(quantiser.codes_of(feat)[..., 0], expected)
    away = quantiser.distances(feat, expected.unsqueeze(-1))[..., 0]
    torch.testing.assert_close(away, (feat - embed).detach().norm(dim=-1))
    grads = torch.autograd.grad(embed.square().sum(), [feat, *quantiser.parameters()])
    assert all(bool(grad.isfinite().all()) and bool(grad.any()) for grad in grads)
    assert not quantiser.codebook_of(0).requires_grad
    assert embed.dtype == torch.float32 and quantiser(feat.bfloat16(), valid)[0].dtype == torch.bfloat16


def test_usage_counts_the_real_tokens_of_applied_steps(quantiser):
    feat, valid = torch.randn(2, 50, 16), torch.rand(2, 50) > 0.2
    feat[0, 3, 5] = float("nan")
    valid[0, 3] = True
    quantiser.begin_step()
    for _ in range(2):
        quantiser(feat, valid)
    assert int(quantiser.step) == 0 and quantiser.step_statistics() == {}
    quantiser.end_step(applied=False)
    assert int(quantiser.step) == 0 and not quantiser.usage.any()
    quantiser.begin_step()
    index = quantiser(feat, valid)[1]
    quantiser.end_step(applied=True)
    count = torch.bincount(index[valid & feat.isfinite().all(-1)], minlength=12)
    torch.testing.assert_close(quantiser.statistics()[2], 12 * count / count.sum())
    assert quantiser.step_statistics()["top_share"] == pytest.approx(float(count.max() / count.sum()))
    assert quantiser.take_num_non_finite() == 3 and quantiser.take_num_non_finite() == 0
    assert int(quantiser.step) == 1
    quantiser.begin_step()
    quantiser.eval()(feat, valid)
    quantiser.end_step(applied=True)
    assert int(quantiser.step) == 1, "evaluation counts nothing"


@pytest.mark.parametrize(
    "overrides",
    [{}, {"mvm_masking": "lift", "fusion": "gate", "dictionary_batch_norm": True}],
    ids=["plain", "as mini"],
)
def test_a_model_with_it_trains_is_saved_and_is_prepared(own_config, quantiser, batch, overrides, tmp_path):
    torch.manual_seed(0)
    model = SohoForPreTraining(own_config(**overrides)).train()
    model.watch_features()
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    inputs, losses = batch(2, 2, (64, 64)), []
    for _ in range(4):
        model.begin_step()
        output = model(**inputs)
        output.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        model.end_step(applied=True)
        losses.append(float(output.loss.detach()))
    assert losses[-1] < losses[0] and output.mvm_logits.shape[1] == 12
    assert "code_error" not in model.soho.feature_watch.figures(), "its codes need not be near the features"
    assert int(model.soho.visual_dictionary.step) == 4
    model.save_pretrained(tmp_path)
    loaded = SohoForPreTraining.from_pretrained(tmp_path, dtype=torch.float32).eval()
    expected, found = model.eval()(**inputs), loaded(**inputs)
    assert torch.equal(found.index, expected.index) and torch.equal(found.usage, expected.usage)
    torch.testing.assert_close(found.loss, expected.loss)
    prepared = loaded.prepare_for_inference("float32")(**inputs)
    assert torch.equal(prepared.index, expected.index)
    torch.testing.assert_close(prepared.itm_logits, expected.itm_logits, rtol=1e-4, atol=1e-5)
    tuned, report = SohoForVisualEntailment.from_pretraining(str(tmp_path))
    assert not any(parameter.requires_grad for parameter in tuned.soho.visual_dictionary.parameters())
    assert "soho.visual_dictionary.down" in report.loaded


def test_a_model_whose_quantiser_is_not_imported_says_so(own, own_config, quantiser):
    SohoForPreTraining(own_config()).save_pretrained(own / "model")
    del sys.modules["own_quantiser"]
    with pytest.raises(ValueError, match="own_quantiser:OwnQuantiser is code that a file names"):
        SohoForPreTraining.from_pretrained(own / "model")
    assert "own_quantiser" not in sys.modules, "a file alone has nothing imported"


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("subprocess:Popen", "dictionary: expected a subclass of Module"),
        ("torch.nn:Identity", "torch.nn:Identity has no codes_of, distances, codebook_of"),
        ("own_quantiser:Bare", "has no codes_of, distances, draw_by_lift"),
        ("own_quantiser:Small", "num_codes: expected 10, as 'own_quantiser:Small' has, got 12"),
    ],
)
def test_what_is_no_quantiser_is_refused(own, own_config, path, words):
    (own / "own_quantiser.py").write_text(
        OWN + "class Small(OwnQuantiser):\n    def __init__(self, config):\n        super().__init__(config, [5, 2])\n"
        "class Bare(torch.nn.Module):\n    num_codes = num_levels = near_features = usage = age = step = 12\n"
        "    codebook_of = statistics = step_statistics = 0\n    def __init__(self, config): super().__init__()\n"
    )
    load(path, "dictionary")
    with pytest.raises(ValueError, match=words):
        SohoForPreTraining(own_config(dictionary=path))


def test_its_first_stage_is_exported_as_it_is(own_config, quantiser):
    from soho_fast.export.graphs import EncodeImages
    from soho_fast.export.package import _images

    model = SohoForPreTraining(own_config()).eval()
    pixels, mask = torch.randn(3, 3, 96, 128), torch.ones(3, 96, 128, dtype=torch.bool)
    mask[1, 64:], pixels[1, :, 64:] = False, 0.0
    inputs = _images(model.config)
    sizes = {name: sizes for name, (_, sizes) in inputs.items()}
    with torch.no_grad():
        expected = model.encode_images(pixels, mask)
        examples = tuple(example for example, _ in inputs.values())
        program = torch.export.export(EncodeImages(model), examples, dynamic_shapes=sizes)
        _, valid, codes = program.module()(pixels, mask)
    assert torch.equal(valid, expected.valid) and torch.equal(codes, expected.index)
