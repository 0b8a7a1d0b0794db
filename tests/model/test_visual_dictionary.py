"""The dictionary against equations 2 to 5, its statistics, data init, dead-code reset, eval, recomputation."""

import pytest
import torch

from soho_fast.export.graphs import PlainDictionary
from soho_fast.model import SohoForPreTraining, VisualDictionary, visual_dictionary
from soho_fast.model.codebook import usage


def dictionary(tiny_config, **overrides) -> VisualDictionary:
    made = VisualDictionary(tiny_config(**{"dictionary_init": "random", **overrides})).train()
    made.codebook.normal_()
    return made


@pytest.fixture
def tuned(monkeypatch):
    """Sets what is a constant of the dictionary."""

    def tune(*, patience: int = 10, limit: int = 256, decay: float = 0.99) -> None:
        monkeypatch.setattr(visual_dictionary, "_PATIENCE", patience)
        monkeypatch.setattr(visual_dictionary, "_MOST_RESET", limit)
        monkeypatch.setattr(usage, "USAGE_DECAY", decay)

    return tune


def features(num_images: int = 3, num_tokens: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    valid = torch.ones(num_images, num_tokens, dtype=torch.bool)
    valid[0, 4:] = False
    feat = torch.randn(num_images, num_tokens, 16)
    return feat.masked_fill(~valid.unsqueeze(-1), 1e6), valid


def test_paper_update_is_equation_4_and_the_answer_uses_the_old_codebook(tiny_config):
    made = dictionary(tiny_config, ema_decay=0.7)
    old = made.codebook.clone()
    feat, valid = features()
    embed, index = made(feat, valid)
    expected_index = torch.cdist(feat[valid].double(), old.double()).argmin(-1)
    assert torch.equal(index[valid], expected_index)
    assert (index[~valid] == -1).all()
    assert torch.equal(embed[valid], old[expected_index])
    expected = old.clone()
    for code in range(12):
        members = feat[valid][expected_index == code]
        if len(members):
            expected[code] = 0.7 * old[code] + 0.3 * members.mean(0)
    torch.testing.assert_close(made.codebook, expected, rtol=1e-6, atol=1e-6)
    unused = [code for code in range(12) if code not in expected_index]
    assert unused
    assert torch.equal(made.codebook[unused], old[unused])


def test_what_a_step_used_is_told_apart_from_the_running_usage(tiny_config):
    made = dictionary(tiny_config)
    assert made.step_statistics() == {}
    feat, valid = features()
    _, index = made(feat, valid)
    share = torch.bincount(index[valid], minlength=12).double() / int(valid.sum())
    told = made.step_statistics()
    assert float(told["step_perplexity"]) == pytest.approx(float(torch.exp(-torch.special.xlogy(share, share).sum())))
    assert float(told["top_share"]) == pytest.approx(float(share.max()))
    made.begin_step()
    assert made.step_statistics() == {}


def test_usage_perplexity_and_active_codes(tiny_config, tuned):
    tuned(decay=0.5)
    made = dictionary(tiny_config)
    made.codebook.zero_()
    made.codebook[:, 0] = torch.arange(12.0) * 10
    feat = torch.zeros(1, 4, 16)
    feat[0, :, 0] = torch.tensor([0.0, 0.0, 10.0, 20.0])
    valid = torch.ones(1, 4, dtype=torch.bool)
    made(feat, valid)
    perplexity, live, usage = made.statistics()
    share = torch.tensor([0.5, 0.25, 0.25])
    torch.testing.assert_close(usage[:3], share * 12)
    assert perplexity.item() == pytest.approx(torch.exp(-(share * share.log()).sum()).item())
    assert live == 3
    feat[0, :, 0] = 30.0
    made(feat, valid)
    # Decay 0.5, seen twice: weights 1/3 for the first batch and 2/3 for the second.
    torch.testing.assert_close(made.statistics()[2][:4], torch.tensor([0.5, 0.25, 0.25, 2.0]) * 12 / 3)


def test_usage_of_a_code_is_a_mean_over_its_own_updates(tiny_config, tuned):
    tuned(decay=0.5)
    made = dictionary(tiny_config)
    made.step.fill_(9)
    made.usage.fill_(0.75)
    made.age.copy_(torch.tensor([0.0, 1.0] + [2.0] * 10))
    assert made.unbiased_usage().tolist() == [0.0, 1.5] + [1.0] * 10


def test_a_batch_of_padding_only_changes_no_code(tiny_config):
    made = dictionary(tiny_config)
    old = made.codebook.clone()
    _, index = made(torch.randn(1, 3, 16), torch.zeros(1, 3, dtype=torch.bool))
    assert (index == -1).all()
    assert torch.equal(made.codebook, old)
    assert torch.equal(made.usage, torch.zeros(12))
    assert made.statistics()[0].isfinite()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_codebook_stays_float32_and_keeps_its_bits(tiny_config, dtype):
    made = dictionary(tiny_config)
    old = made.codebook.clone()
    made.to(dtype)
    assert torch.equal(made.codebook, old)
    assert {b.dtype for b in made.buffers() if b.is_floating_point()} == {torch.float32}
    feat, valid = features()
    feat = feat.masked_fill(~valid.unsqueeze(-1), 0.0).to(dtype)
    embed, index = made(feat, valid)
    assert embed.dtype == dtype
    assert torch.equal(index[valid], torch.cdist(feat[valid].double(), old.double()).argmin(-1))
    with torch.autocast("cpu", dtype):
        made(feat.float(), valid)
    assert made.codebook.dtype == torch.float32


def test_data_init_takes_features_whatever_the_order_and_padding_of_the_batch(tiny_config):
    feat, valid = features(4, 6)
    key = torch.rand(4, dtype=torch.float64)
    made = dictionary(tiny_config, dictionary_init="data", ema_decay=1.0)
    made(feat, valid, key)
    rows = {tuple(row.tolist()) for row in feat[valid]}
    assert all(tuple(row.tolist()) in rows for row in made.codebook)
    assert len({tuple(row.tolist()) for row in made.codebook}) == 12
    assert bool(made.initialised)

    order = torch.tensor([2, 0, 3, 1])
    wider = torch.nn.functional.pad(feat[order], (0, 0, 0, 3), value=5.0)
    wider_valid = torch.nn.functional.pad(valid[order], (0, 3))
    other = dictionary(tiny_config, dictionary_init="data", ema_decay=1.0)
    other(wider, wider_valid, key[order])
    assert torch.equal(other.codebook, made.codebook)

    made(torch.randn_like(feat), valid, key)
    assert torch.equal(other.codebook, made.codebook), "data init ran a second time"


def test_data_init_with_fewer_features_than_codes_gives_distinct_codes(tiny_config):
    made = dictionary(tiny_config, dictionary_init="data", ema_decay=1.0)
    feat = torch.randn(1, 5, 16)
    made(feat, torch.ones(1, 5, dtype=torch.bool))
    assert torch.equal(made.codebook[:5].sort(0).values, feat[0].sort(0).values)
    assert (torch.cdist(made.codebook, made.codebook) + torch.eye(12) * 9).min() > 1e-3


def test_data_init_keeps_codes_that_learnt_from_a_random_start(tiny_config):
    """As those of a pre-trained model, or of a run that goes on with other settings; others are drawn."""
    trained = dictionary(tiny_config)
    for learnt in (False, True):
        if learnt:
            trained(*features())
        made = dictionary(tiny_config, dictionary_init="data", ema_decay=1.0)
        made.load_state_dict(trained.state_dict())
        for _ in range(2):
            made(*features())
        assert torch.equal(made.codebook, trained.codebook) == learnt


def test_a_dictionary_that_trained_forgets_it_when_a_state_is_loaded(tiny_config, tuned):
    """What it draws for the reset depends on the number of its steps, whose mirror must follow the buffer."""
    tuned(patience=1, limit=2)
    made, trained = (dictionary(tiny_config, code_reset_threshold=0.9) for _ in range(2))
    feat, valid = features(3, 16)
    made(feat, valid)
    for _ in range(4):
        trained(feat, valid)
    torch.nn.ModuleDict({"inner": trained}).load_state_dict({f"inner.{n}": t for n, t in made.state_dict().items()})
    for either in (made, trained):
        either(feat, valid)
    assert torch.equal(made.codebook, trained.codebook)


def test_dead_codes_are_reseeded_from_the_batch_and_start_afresh(tiny_config, tuned):
    tuned(patience=2, decay=0.5)
    made = dictionary(tiny_config, code_reset_threshold=0.1)
    made.codebook[8:] += 1e4
    feat, valid = features(3, 16)
    made(feat, valid)
    assert (made.codebook[8:] > 1e3).all(), "reset before its patience was over"
    made(feat, valid)
    rows = {tuple(row.tolist()) for row in feat[valid]}
    assert all(tuple(row.tolist()) in rows for row in made.codebook[8:])
    assert torch.equal(made.usage[8:], torch.zeros(4))
    assert torch.equal(made.age[8:], torch.zeros(4))


def test_the_reset_is_bounded(tiny_config, tuned):
    tuned(patience=1, limit=3)
    made = dictionary(tiny_config, code_reset_threshold=0.1)
    made.codebook[4:] += 1e4
    feat, valid = features(3, 16)
    for expected_far in (5, 2, 0):
        made(feat, valid)
        assert int((made.codebook[:, 0] > 1e3).sum()) == expected_far


def test_recomputation_updates_once(tiny_config):
    made = dictionary(tiny_config, ema_decay=0.5)
    plain = dictionary(tiny_config, ema_decay=0.5)
    plain.codebook.copy_(made.codebook)
    feat, valid = features()
    feat.requires_grad_()
    embed = torch.utils.checkpoint.checkpoint(lambda x: made(x, valid)[0] * 2, feat, use_reentrant=False)
    embed.square().sum().backward()
    plain(feat, valid)
    assert torch.equal(made.codebook, plain.codebook)
    assert made.step == 1


def test_wrong_width_is_named(tiny_config):
    with pytest.raises(ValueError, match="expected 16 channels"):
        dictionary(tiny_config)(torch.randn(1, 2, 8), torch.ones(1, 2, dtype=torch.bool))


@pytest.mark.parametrize("bad", [torch.inf, -torch.inf, torch.nan])
def test_a_token_that_is_not_finite_moves_nothing(tiny_config, tuned, bad):
    tuned(patience=1, decay=0.5)
    made, without = (dictionary(tiny_config, code_reset_threshold=0.9) for _ in range(2))
    without.load_state_dict(made.state_dict())
    feat, valid = features(3, 16)
    key = torch.rand(3, dtype=torch.float64)
    broken = feat.clone()
    broken[1, -1, 3] = bad
    shorter = valid.clone()
    shorter[1, -1] = False
    for _ in range(3):
        made(broken, valid, key)
        without(feat, shorter, key)
    for name, value in without.state_dict().items():
        assert torch.equal(made.state_dict()[name], value), name
    assert made.take_num_non_finite() == 3
    assert made.take_num_non_finite() == 0 == without.take_num_non_finite()


def test_data_init_draws_no_token_that_is_not_finite(tiny_config):
    made = dictionary(tiny_config, dictionary_init="data", ema_decay=1.0)
    valid = torch.ones(1, 14, dtype=torch.bool)
    made(torch.full((1, 14, 16), torch.nan), valid)
    assert not bool(made.initialised) and made.codebook.isfinite().all()
    feat = torch.randn(1, 14, 16)
    feat[0, 5:7, 0] = torch.inf
    made(feat, valid)
    rows = {tuple(row.tolist()) for row in feat[0]}
    assert made.codebook.isfinite().all()
    assert all(tuple(row.tolist()) in rows for row in made.codebook)


# Sums of multiples of 1/64 below 8 are exact in float32, in any order: whatever is equal is so bit for bit.
def exact_features(step: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    feat = (torch.randn(8, 6, 16, generator=generator) * 64).round().clamp(-500, 500) / 64
    valid = torch.rand(8, 6, generator=generator) < 0.8
    return feat, valid, torch.rand(8, dtype=torch.float64, generator=generator)


def test_a_step_in_one_part_is_a_forward_without_steps(tiny_config, tuned):
    tuned(patience=2)
    options = {"code_reset_threshold": 0.5, "dictionary_init": "data"}
    plain, stepped = (dictionary(tiny_config, **options) for _ in range(2))
    stepped.load_state_dict(plain.state_dict())
    for step in range(5):
        feat, valid, _ = exact_features(step)
        stepped.begin_step()
        answers = [made(feat, valid) for made in (plain, stepped)]
        stepped.end_step(applied=True)
        assert all(torch.equal(a, b) for a, b in zip(*answers, strict=True))
        for name, value in plain.state_dict().items():
            assert torch.equal(stepped.state_dict()[name], value), name


def test_images_without_a_key_are_numbered_through_the_step(tiny_config):
    """By these they are drawn from: with the same numbers, the same places of each micro-batch would be."""
    made, (feat, valid) = dictionary(tiny_config), features()
    made.begin_step()
    first = made._tokens(feat, valid, None).image_B
    made(feat, valid)
    second = made._tokens(feat, valid, None).image_B
    assert len({*first.tolist(), *second.tolist()}) == 6


def test_a_step_that_is_not_applied_moves_nothing(tiny_config, tuned):
    tuned(patience=0)
    made = dictionary(tiny_config, code_reset_threshold=1.0)
    before = {name: value.clone() for name, value in made.state_dict().items()}
    made.begin_step()
    made(*features())
    made.end_step(applied=False)
    assert all(torch.equal(before[name], value) for name, value in made.state_dict().items())
    made.begin_step()
    made(*features())  # An interrupted step leaves nothing to the next.
    made.begin_step()
    made.end_step(applied=True)
    assert all(torch.equal(before[name], value) for name, value in made.state_dict().items())
    made.eval()(*features())
    assert all(torch.equal(before[name], value) for name, value in made.state_dict().items()), "nor does evaluation"
    made.train()(*features())
    assert made.step == 1, "without steps every forward moves"


def levels(tiny_config, **overrides) -> VisualDictionary:
    """Two levels of twelve codes, drawn."""
    made = VisualDictionary(tiny_config(num_levels=2, **overrides)).train()
    for _ in range(3):
        made(*features())
    return made


def test_a_second_level_codes_what_the_first_leaves_and_moves_by_it(tiny_config):
    made = levels(tiny_config, ema_decay=0.7)
    assert int(made.initialised) == 2
    first, second = (made.codebook_of(level).double().clone() for level in range(2))
    feat, valid = features()
    feat.requires_grad_()
    embed, index = made(feat, valid)
    rows = feat.detach()[valid].double()
    code = torch.cdist(rows, first).argmin(-1)
    rest = rows - first[code]
    rest_code = torch.cdist(rest, second).argmin(-1)
    assert torch.equal(index[valid], code) and (index[~valid] == -1).all()
    assert (embed[valid].double() - (first[code] + second[rest_code])).abs().max() < 1e-5
    embed.sum().backward()
    assert torch.equal(feat.grad, torch.ones_like(feat))
    for level, (old, looked_up, number) in enumerate(((first, rows, code), (second, rest, rest_code))):
        for each in range(12):
            members = looked_up[number == each]
            expected = 0.7 * old[each] + 0.3 * members.mean(0) if len(members) else old[each]
            torch.testing.assert_close(made.codebook_of(level)[each].double(), expected, rtol=1e-5, atol=1e-5)
    assert made.eval().codes_of(feat)[valid].shape == (int(valid.sum()), 2)


def test_a_second_level_is_drawn_from_what_is_left_a_step_after_the_first(tiny_config):
    made = VisualDictionary(tiny_config(num_levels=2)).train()
    made(*features())
    assert int(made.initialised) == 1
    assert made.codebook_of(1).count_nonzero(1).le(16).sum() and not made.codebook_of(1)[1:].any()
    first = made.codebook_of(0).clone()
    feat, valid = features()
    made(feat, valid)
    assert int(made.initialised) == 2
    left = feat[valid] - first[torch.cdist(feat[valid].double(), first.double()).argmin(-1)]
    # Each is what is left of a feature, moved towards its members a tenth of the way.
    assert torch.cdist(made.codebook_of(1), left).min(1).values.max() < 0.2 * left.norm(dim=1).mean()
    assert int((made.age[12:] == 1).sum()) == 12 and int((made.age[:12] == 2).sum()) == 12


@pytest.mark.parametrize("num_steps", [1, 3])
def test_levels_go_on_from_what_was_saved(tiny_config, num_steps):
    """After one step the second level is still to be drawn, after three it is not drawn again."""
    made, again = (VisualDictionary(tiny_config(num_levels=2)).train() for _ in range(2))
    for _ in range(num_steps):
        made(*features())
    again.load_state_dict(made.state_dict())
    feat, valid = features()
    for each in (made, again):
        each(feat, valid)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in made.state_dict().items())


def test_each_level_has_its_usage_and_its_resets(tiny_config, tuned):
    tuned(patience=0, decay=0.5)
    made = levels(tiny_config, code_reset_threshold=0.5)
    with torch.no_grad():
        made.codebook_of(1)[5] = 1e4  # Far from all that is left.
    made(*features())
    made.begin_step()
    feat, valid = features()
    made(feat, valid)
    made.end_step(applied=True)
    assert float(made.codebook_of(1)[5].norm()) < 100 and float(made.age[12 + 5]) <= 1
    tuned(decay=0.0)
    made = levels(tiny_config)  # It remembers the last step alone.
    feat, valid = features()
    used = made.codes_of(feat)[valid]
    made(feat, valid)
    for level in range(2):
        share = torch.bincount(used[:, level], minlength=12) / int(valid.sum())
        torch.testing.assert_close(made.statistics(level)[2], 12 * share)


@pytest.mark.parametrize("wrong", [{"dictionary_init": "random"}, {"official": "pretraining"}, {"num_levels": 0}])
def test_levels_that_cannot_be_are_refused(tiny_config, wrong):
    with pytest.raises(ValueError, match="num_levels: expected"):
        tiny_config(**{"num_levels": 2, **wrong})


@pytest.fixture
def trained(tiny_model, batch):
    """Two levels of twelve codes that have all been drawn, in evaluation mode."""
    model = tiny_model(num_levels=2).train()
    for _ in range(3):
        model(**batch(num_images=6))
    return model.eval()


def test_the_first_level_is_masked_and_predicted(trained, batch):
    inputs = batch(num_images=6)
    output = trained(**inputs)
    visual = trained.encode_images(inputs["pixel_values"], inputs.get("pixel_mask"))
    dictionary = trained.soho.visual_dictionary
    first = torch.cdist(visual.features.double(), dictionary.codebook_of(0).double()).argmin(-1)
    assert torch.equal(output.index[output.valid], first[visual.valid])
    assert output.mvm_logits.shape[1] == 12 and 0 <= int(output.mvm_targets.min()) <= int(output.mvm_targets.max()) < 12
    codes = dictionary.codes_of(visual.features)
    summed = sum(dictionary.codebook_of(level)[codes[..., level]] for level in range(2))
    torch.testing.assert_close(visual.embedding[visual.valid], summed[visual.valid], rtol=1e-6, atol=1e-6)
    assert output.usage.shape == (12,)


def test_a_saved_model_and_a_prepared_one_give_the_same(trained, batch, tmp_path):
    trained.save_pretrained(tmp_path)
    loaded = SohoForPreTraining.from_pretrained(tmp_path).eval()
    inputs = batch(num_images=6)
    expected = trained.encode_images(inputs["pixel_values"], inputs.get("pixel_mask"))
    prepared = SohoForPreTraining.from_pretrained(tmp_path).eval().prepare_for_inference(precision="float32")
    for model in (loaded, prepared):
        found = model.encode_images(inputs["pixel_values"], inputs.get("pixel_mask"))
        assert torch.equal(found.index, expected.index)
        torch.testing.assert_close(found.embedding, expected.embedding, rtol=1e-4, atol=1e-4)
    # The packed codes follow a codebook that is written to.
    with torch.no_grad():
        prepared.soho.visual_dictionary.codebook_of(1).zero_()
    found = prepared.encode_images(inputs["pixel_values"], inputs.get("pixel_mask"))
    first = prepared.soho.visual_dictionary.codebook_of(0)[found.index.clamp(min=0)]
    assert torch.equal(found.embedding[found.valid], first[found.valid])


def test_the_exported_dictionary_is_the_models(trained):
    feat, valid = torch.randn(4, 9, 16), torch.rand(4, 9) < 0.8
    plain = PlainDictionary(trained.soho.visual_dictionary)
    embed, index = plain(feat, valid)
    expected, expected_index = trained.soho.visual_dictionary(feat, valid)
    assert torch.equal(index, expected_index)
    assert torch.equal(embed[valid], expected[valid])
