"""What a run says of its features: against plain formulas, over the thaw, in what is saved."""

import pytest
import torch

from soho_fast.model import SohoForPreTraining
from soho_fast.model.feature_watch import FeatureWatch

B, L, C = 4, 6, 16


def features(seed: int, shift: float = 0.0, scale: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    valid = torch.ones(B, L, dtype=torch.bool)
    valid[0, 4:] = False
    feat = torch.randn(B, L, C, generator=generator) * scale + shift
    return feat.masked_fill(~valid.unsqueeze(-1), 1e6), valid


def one_step(watch: FeatureWatch, *seen: tuple) -> dict[str, float]:
    watch.begin_step()
    for each in seen:
        watch.see(*each)
    watch.end_step(applied=True)
    return {name: float(value) for name, value in watch.figures().items()}


def test_the_figures_are_those_of_all_features_of_a_step():
    watch = FeatureWatch(C).train()
    watch.mean.normal_()
    watch.variance.uniform_(0.5, 2.0)
    watch.num_updates.fill_(100)
    (first, valid), (second, _) = features(0, 0.5), features(1, 0.7, 1.5)
    feat = torch.cat([first[valid], second[valid]]).double()
    codes = torch.randn(2, B, L, C)
    figures = one_step(watch, (first, valid, codes[0]), (second, valid, codes[1]))
    variance = feat.var(0, correction=0).sum()
    error = (feat - torch.cat([codes[0][valid], codes[1][valid]]).double()).square().sum(1).mean()
    drift = ((feat.mean(0) - watch.mean.double()).square().sum() / watch.variance.double().sum()).sqrt()
    assert figures == {
        "feature_drift": pytest.approx(float(drift), rel=1e-5),
        "feature_spread": pytest.approx(float(variance / watch.variance.double().sum()), rel=1e-5),
        "code_error": pytest.approx(float(error / variance), rel=1e-5),
    }


def test_without_codes_there_is_no_code_error_and_without_features_nothing():
    watch = FeatureWatch(C).train()
    assert set(one_step(watch, (*features(0), None))) == {"feature_drift", "feature_spread"}
    assert one_step(watch) == {}
    watch.begin_step()
    watch.see(*features(0), None)
    before = watch.mean.clone()
    watch.end_step(applied=False)
    assert watch.figures() == {} and torch.equal(watch.mean, before)
    watch.eval().see(*features(0), None)
    watch.end_step(applied=True)
    assert watch.figures() == {}


def test_the_reference_follows_closely_while_the_backbone_is_frozen_and_slowly_afterwards():
    watch = FeatureWatch(C).train()
    watch.backbone_frozen = True
    for step in range(150):
        frozen = one_step(watch, (*features(step, step / 50), None))
    assert frozen["feature_drift"] < 1.5 and 0.5 < frozen["feature_spread"] < 2
    watch.backbone_frozen = False
    stood = watch.mean.clone()
    moved = [one_step(watch, (*features(200 + step, 3 + step, 0.5), None)) for step in range(3)]
    assert 0 < float((watch.mean - stood).abs().max()) < 0.2
    drifts = [step["feature_drift"] for step in moved]
    assert drifts[1] - drifts[0] == pytest.approx(1, abs=0.3) and drifts[2] - drifts[1] == pytest.approx(1, abs=0.3)
    assert all(step["feature_spread"] == pytest.approx(0.25, abs=0.1) for step in moved)


def lost_after(num_sound: int, shift: float, scale: float, code: float | None) -> list[int]:
    """Lost steps in a row, over thirty steps of such features after sound ones; `code` stands for all of them."""
    watch = FeatureWatch(C).train()
    counted = []
    for step in range(num_sound + 30):
        feat, valid = features(step, *((shift, scale) if step >= num_sound else (0.0, 1.0)))
        codes = None
        if code is not None:
            codes = feat + 0.5 if step < num_sound else torch.full_like(feat, code)
        one_step(watch, (feat, valid, codes))
        counted.append(watch.steps_lost())
    assert set(counted[:num_sound]) == {0}
    return counted[num_sound:]


def test_features_that_become_alike_are_lost_with_codes_and_without():
    for code in (None, 3.0):
        assert lost_after(120, 3.0, 0.2, code) == list(range(1, 31))
    assert lost_after(120, 0.0, 0.1, None) == list(range(1, 31)), "where they are does not matter"
    assert lost_after(50, 3.0, 0.2, None)[:20] == [0] * 20, "a run that begins has nothing to lose"
    assert not any(lost_after(120, 3.0, 1.0, None)), "they only moved"


def test_codes_that_stand_for_nothing_are_lost_where_they_once_stood_for_something():
    assert lost_after(120, 2.0, 1.0, 0.0) == list(range(1, 31))
    watch = FeatureWatch(C).train()
    for step in range(300):  # Random codes, as the paper's, far from all features.
        feat, valid = features(step)
        one_step(watch, (feat, valid, torch.full_like(feat, 5.0)))
    assert watch.steps_lost() == 0


def matching_step(watch: FeatureWatch, step: int, *losses: float, num_matched: int = 4) -> int:
    watch.begin_step()
    watch.see(*features(step), None)
    for loss in losses:  # of micro-batches of eight pairs
        watch.see_matching(torch.tensor(8.0 * loss), torch.tensor(8.0), torch.tensor(num_matched))
    watch.end_step(applied=True)
    return watch.steps_lost()


def test_matching_that_falls_back_to_chance_is_lost_where_it_was_learnt():
    learnt, unlearnt, better = FeatureWatch(C).train(), FeatureWatch(C).train(), FeatureWatch(C).train()
    for step in range(200):
        assert matching_step(learnt, step, 0.5, 0.3) == 0 and matching_step(unlearnt, step, 0.66) == 0
        matching_step(better, step, 0.5)
        assert learnt.is_sound() and unlearnt.is_sound()
    assert float(learnt.matching) == pytest.approx(0.4, abs=0.01), "a mean over the pairs of all micro-batches"
    lost, sound = [], []
    for step in range(200):
        lost.append(matching_step(learnt, 200 + step, 0.7))
        sound.append(learnt.is_sound())
    first = lost.index(1)
    assert 15 < sound.index(False) < 50 and not any(sound[50:]), "long before it counts as lost"
    assert lost[first:] == list(range(1, 201 - first)) and 100 < first < 140, "the running mean is past 0.68"
    for step in range(150):
        matching_step(learnt, 400 + step, 0.4)
    assert learnt.is_sound()
    assert not any(matching_step(unlearnt, 200 + step, 0.7) for step in range(200)), "it has nothing to lose"
    assert not any(matching_step(better, 200 + step, 0.67) for step in range(200)), "worse, but not at chance"
    assert not any(matching_step(better, 400 + step) for step in range(9)), "a step without pairs tells nothing"
    before = float(better.matching)
    matching_step(better, 409, 0.7, num_matched=2)
    assert float(better.matching) == before, "where a quarter matches, chance is another loss"
    matching_step(better, 410, float("nan"))
    assert float(better.matching) == before, "a NaN would stay in the mean"


def test_matching_that_a_run_loses_at_its_beginning_is_not_lost():
    watch = FeatureWatch(C).train()  # As of one that starts from a trained model, and unfreezes its CNN at once.
    for step in range(20):
        matching_step(watch, step, 0.4)
    assert float(watch.least_matching) < 0.62
    counted = [matching_step(watch, 20 + step, 0.9) for step in range(90)]
    assert counted[:80] == [0] * 80 and counted[80:] == list(range(1, 11))


def test_a_sound_step_begins_the_count_anew_and_it_survives_saving():
    watch = FeatureWatch(C).train()
    for step in range(130):
        one_step(watch, (*features(step, *((3.0, 0.2) if step >= 120 else (0.0, 1.0))), None))
    assert watch.steps_lost() == 10 and not watch.is_sound()
    again = FeatureWatch(C).train()
    again.load_state_dict(watch.state_dict())
    for each in (watch, again):
        figures = one_step(each, (*features(7, 3.0, 0.2), None))
    assert again.steps_lost() == watch.steps_lost() == 11
    assert figures == {name: float(value) for name, value in watch.figures().items()}
    one_step(watch, (*features(8), None))
    assert watch.steps_lost() == 0 and watch.is_sound()


def test_a_watched_model_trains_and_saves_as_an_unwatched_one(tiny_config, batch, tmp_path):
    torch.manual_seed(0)
    plain = SohoForPreTraining(tiny_config()).train()
    torch.manual_seed(0)
    watched = SohoForPreTraining(tiny_config()).train()
    watched.watch_features()
    losses = []
    for model in (plain, watched):
        model.begin_step()
        torch.manual_seed(1)
        loss = model(**batch()).loss
        loss.backward()
        model.end_step(applied=True)
        losses.append(loss.detach())
    assert torch.equal(*losses)
    assert set(watched.base().feature_watch.figures()) == {"feature_drift", "feature_spread", "code_error"}
    kept = {name for name in watched.state_dict() if name not in plain.state_dict()}
    assert kept == {
        f"soho.feature_watch.{name}"
        for name in ("mean", "variance", "num_updates", "num_coded", "matching", "least_matching", "num_lost")
    }
    assert float(watched.base().feature_watch.matching) != float(FeatureWatch(C).matching), "the model tells its loss"
    watched.save_pretrained(tmp_path)
    loaded, info = SohoForPreTraining.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["unexpected_keys"] and not info["missing_keys"]
    assert loaded.base().feature_watch is None


def test_the_models_freezing_tells_the_watch(tiny_config):
    model = SohoForPreTraining(tiny_config())
    model.watch_features()
    model.freeze_backbone()
    assert model.base().feature_watch.backbone_frozen
    model.freeze_backbone(False)
    assert not model.base().feature_watch.backbone_frozen
