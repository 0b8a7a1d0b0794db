"""Quantisers in the dictionary's place: those that round channels, and a class of a user's own by its import path."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from soho_fast import ops
from soho_fast.common.import_path import load
from soho_fast.model import SohoConfig, SohoForPreTraining, SohoForVisualEntailment, VisualDictionary
from soho_fast.model.lookup_free import FiniteScalar, SignBits
from soho_fast.model.official.dictionary import OfficialDictionary
from soho_fast.model.quantiser import Quantiser

ROOT = Path(__file__).resolve().parents[2]
ROUNDED = {"fsq": ({"levels": [4, 3]}, 12), "lfq": ({"bits": 3}, 8)}
# The page's own example, in a folder of its own.
OWN = re.search(r"```python\n(# own_quantiser\.py\n.*?)```", (ROOT / "docs/extending.md").read_text(), re.DOTALL)[1]


@pytest.fixture
def config_of(tiny_config):
    def build(name, **overrides):
        options, num_codes = ROUNDED[name]
        return tiny_config(**{"dictionary": name, "dictionary_options": options, "num_codes": num_codes, **overrides})

    return build


@pytest.fixture
def made(config_of):
    def build(name):
        torch.manual_seed(3)
        return {"fsq": FiniteScalar, "lfq": SignBits}[name](config_of(name), **ROUNDED[name][0]).train()

    return build


def test_all_four_have_what_is_asked_of_a_quantiser(tiny_config, made):
    asked = {*Quantiser.__annotations__, *(name for name in vars(Quantiser) if not name.startswith("_"))}
    assert len(asked) == 16 and "codebook_of" in asked
    paper = VisualDictionary(tiny_config())
    official = OfficialDictionary(tiny_config(dictionary="official"))
    for quantiser in (paper, official, made("fsq"), made("lfq")):
        assert not [name for name in asked if not hasattr(quantiser, name)], type(quantiser)


@pytest.mark.parametrize("name", ROUNDED)
def test_a_feature_becomes_the_vector_of_its_code(made, name):
    quantiser = made(name)
    feat, valid = torch.randn(3, 7, 16, requires_grad=True), torch.rand(3, 7) > 0.3
    embed, index = quantiser(feat, valid)
    small = quantiser.project_in(feat)
    expected = ops.fsq(small, [4, 3])[0] if name == "fsq" else ops.lfq(small)[0]
    assert torch.equal(index, torch.where(valid, expected, -1)) and len(expected.unique()) > 3
    torch.testing.assert_close(embed, quantiser.codebook_of(0)[expected])
    assert torch.equal(quantiser.codes_of(feat)[..., 0], expected)
    grads = torch.autograd.grad(embed.square().sum(), [feat, *quantiser.parameters()])
    assert all(bool(grad.isfinite().all()) and bool(grad.any()) for grad in grads)
    assert not quantiser.codebook_of(0).requires_grad
    assert embed.dtype == torch.float32 and quantiser(feat.bfloat16(), valid)[0].dtype == torch.bfloat16


@pytest.mark.parametrize("name", ROUNDED)
def test_the_distance_is_of_the_channels_from_what_they_become(made, name):
    quantiser = made(name)
    with torch.no_grad():
        quantiser.project_in.weight.zero_()[0, 0] = 1.0
        quantiser.project_in.bias.zero_()
    feat = torch.zeros(1, 3, 16)
    feat[0, 1, 0], feat[0, 2, 0] = 0.3, 30.0
    index = quantiser.codes_of(feat)
    distance = quantiser.distances(feat, index)
    assert distance.shape == index.shape == (1, 3, 1)
    if name == "fsq":  # Four values: 0 is a half step below the third, as far as rounding lets it be.
        rounded = ops.fsq_codes(index[0, :, 0], [4, 3])[:, 0]
        half = 3 * (1 + 1e-3) / 2
        smooth = ((feat[0, :, 0] + torch.tensor(0.5 / half).atanh()).tanh() * half - 0.5) / 2
        torch.testing.assert_close(distance[0, :, 0], (smooth - rounded).abs(), atol=1e-6, rtol=0)
    else:
        others = 2 * 1.0  # Two channels of 0 lie 1 away from their signs.
        torch.testing.assert_close(distance[0, 1, 0], ((1 - feat[0, 1, 0].tanh()) ** 2 + others).sqrt())
    assert distance[0, 2] < distance[0, 1]


@pytest.mark.parametrize("name", ROUNDED)
def test_usage_counts_the_real_tokens_of_applied_steps(made, name):
    quantiser, num = made(name), ROUNDED[name][1]
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
    seen = index[valid & feat.isfinite().all(-1)]
    count = torch.bincount(seen, minlength=num)
    torch.testing.assert_close(quantiser.statistics()[2], num * count / count.sum())
    assert quantiser.step_statistics()["top_share"] == pytest.approx(float(count.max() / count.sum()))
    assert quantiser.take_num_non_finite() == 3 and quantiser.take_num_non_finite() == 0
    quantiser(feat, valid)
    assert int(quantiser.step) == 2, "without begin_step each forward is a step"
    quantiser.eval()(feat, valid)
    assert int(quantiser.step) == 2


@pytest.mark.parametrize("name", ROUNDED)
@pytest.mark.parametrize(
    "overrides",
    [{}, {"mvm_masking": "lift", "mvm_head": "cosine", "fusion": "gate", "dictionary_batch_norm": True}],
    ids=["plain", "as mini"],
)
def test_a_model_with_it_trains_is_saved_and_is_prepared(config_of, batch, name, overrides, tmp_path):
    torch.manual_seed(0)
    model = SohoForPreTraining(config_of(name, **overrides)).train()
    model.watch_features()
    assert model.config.num_codes == ROUNDED[name][1]
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
    assert losses[-1] < losses[0] and output.mvm_logits.shape[1] == model.config.num_codes
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
    assert "soho.visual_dictionary.project_in.weight" in report.loaded


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"dictionary": "fsq"}, r"dictionary_options: expected {levels: \[8, 8, 4\]}, .* with 'fsq', got None"),
        ({"dictionary": "fsq", "dictionary_options": {"levels": [4, 1]}}, "dictionary_options: expected {levels"),
        ({"dictionary": "lfq", "dictionary_options": {"levels": [4]}}, "dictionary_options: expected {bits: 8}"),
        (
            {"dictionary": "fsq", "dictionary_options": {"levels": [8, 8, 4]}, "num_codes": 250},
            r"num_codes: expected 256, which dictionary_options {'levels': \[8, 8, 4\]} make, got 250",
        ),
        ({"dictionary": "lfq", "dictionary_options": {"bits": 30}}, "num_codes: expected 1 to 10,000,000"),
        ({"dictionary": "lfq", "dictionary_options": {"bits": 3}, "num_levels": 2}, "num_levels: expected 1 with"),
        ({"dictionary_options": {"bits": 3}}, "dictionary_options: expected none with dictionary='paper'"),
        ({"dictionary": "sq"}, "dictionary: expected one of paper, official, fsq, lfq, got 'sq'"),
    ],
)
def test_options_that_contradict_are_refused(overrides, words):
    with pytest.raises(ValueError, match=words):
        SohoConfig.from_preset("paper", **overrides)


def test_the_number_of_codes_follows_where_none_is_given():
    assert SohoConfig(dictionary="fsq", dictionary_options={"levels": [8, 6, 5]}).num_codes == 240
    config = SohoConfig(dictionary="lfq", dictionary_options={"bits": 9})
    assert config.num_codes == 512 and SohoConfig.from_dict(config.to_dict()).num_codes == 512
    assert type(SohoConfig().num_codes) is int


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A folder outside of the repository with the page's module, which is the current one."""
    (tmp_path / "own_quantiser.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    sys.modules.pop("own_quantiser", None)


@pytest.fixture
def own_config(tiny_config):
    return lambda **overrides: tiny_config(**{"dictionary": "own_quantiser:OwnQuantiser", **overrides})


def test_a_quantiser_of_a_users_own(own, own_config, batch):
    load("own_quantiser:OwnQuantiser", "dictionary")
    model = SohoForPreTraining(own_config(dictionary_options={"scale": 0.1})).train()
    assert type(model.soho.visual_dictionary).__module__ == "own_quantiser"
    output = model(**batch(2, 2, (64, 64)))
    output.loss.backward()
    assert model.soho.visual_dictionary.codes.grad.any() and int(output.active_codes) > 0
    model.save_pretrained(own / "model")
    found = SohoForPreTraining.from_pretrained(own / "model", dtype=torch.float32)
    assert torch.equal(found.soho.visual_dictionary.codes, model.soho.visual_dictionary.codes)
    with pytest.raises(ValueError, match=r"dictionary_options: 'own_quantiser:OwnQuantiser' does not take {'size'"):
        SohoForPreTraining(own_config(dictionary_options={"size": 0.1}))
    # A file alone has nothing imported.
    program = "import sys; from soho_fast.model import SohoForPreTraining as Kind\ntry: Kind.from_pretrained('model')\n"
    program += "except ValueError as error: print(error, 'own_quantiser' in sys.modules)"
    said = subprocess.run(
        [sys.executable, "-c", program],
        cwd=own,
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "own_quantiser:OwnQuantiser is code that a file names" in said and said.endswith("False\n")


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("subprocess:Popen", "dictionary: expected a subclass of Module"),
        ("torch.nn:Identity", "torch.nn:Identity has no codes_of, distances, codebook_of"),
        ("own_quantiser:Bare", "has no codes_of, distances, draw_by_lift"),
        ("own_quantiser:Small", "num_codes: expected 5, as 'own_quantiser:Small' has, got 12"),
    ],
)
def test_what_is_no_quantiser_is_refused(own, own_config, path, words):
    (own / "own_quantiser.py").write_text(
        OWN + "class Small(OwnQuantiser):\n    def __init__(self, config):\n        super().__init__(config)\n"
        "        self.num_codes = 5\n"
        "class Bare(torch.nn.Module):\n    num_codes = num_levels = near_features = usage = age = step = 12\n"
        "    codebook_of = statistics = step_statistics = 0\n    def __init__(self, config): super().__init__()\n"
    )
    load(path, "dictionary") if path.startswith("own") else None
    with pytest.raises(ValueError, match=words):
        SohoForPreTraining(own_config(dictionary=path))


@pytest.mark.parametrize("name", ROUNDED)
def test_its_first_stage_is_exported_as_it_is(config_of, name):
    from soho_fast.export.graphs import EncodeImages
    from soho_fast.export.package import _images

    model = SohoForPreTraining(config_of(name)).eval()
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
