"""The suites' rules, against what their published evaluation code computes example by example."""

import math

import pytest
import torch

from soho_fast.tasks.evaluation.suites import RULES, suite_metrics

# Of one image: ties within and between, both signs, and a foil of exactly 0.
ONE = [[2.0, 1.0], [1.0, 1.0], [-1.0, 2.0], [-1.0, -2.0], [3.0, 0.0], [0.0, -1.0], [-3.0, -3.0]]


def one_image(rows):
    return torch.tensor(rows)[:, None]


@pytest.mark.parametrize("suite", ["sugarcrepe", "aro_relation"])
def test_a_tie_is_wrong(suite):
    # SugarCrepe: 1 if positive > negative else 0. ARO: argmax over [false, true] == 1, the first of equal ones.
    right = [max((false, 0), (true, 0.5), key=lambda each: each[0])[1] == 0.5 for true, false in ONE]
    assert suite_metrics(suite, one_image(ONE), ["a"] * 7).all == {"accuracy": sum(right) / 7}
    assert sum(right) == 4


def test_valse_counts_as_its_code():
    count = accuracy = fits = detected = pairwise = 0
    for caption, foil in ONE:
        # Two logits each, whose difference is the log-odds.
        cross = [[0.0, caption], [0.0, foil]]
        if cross[1][0] == cross[1][1]:
            continue
        if cross[0][0] < cross[0][1]:
            accuracy, fits = accuracy + 1, fits + 1
        if cross[1][0] >= cross[1][1]:
            detected, accuracy = detected + 1, accuracy + 1
        pairwise += cross[0][1] > cross[1][1]
        count += 1
    expected = {
        "pairwise": pairwise / count, "accuracy": accuracy / count / 2, "caption_precision": fits / count,
        "foil_precision": detected / count,
    }  # fmt: skip
    assert suite_metrics("valse", one_image(ONE), ["a"] * 7).all == pytest.approx(expected)
    assert (count, pairwise, fits, detected) == (6, 3, 2, 3)
    with pytest.raises(ValueError, match="output is constant"):
        suite_metrics("valse", torch.zeros(2, 1, 2), ["a", "a"])


def test_winoground_by_strict_inequalities():
    tables = torch.randint(0, 3, (400, 2, 2), generator=torch.Generator().manual_seed(0)).float()  # with many ties
    text = image = group = 0
    for (c0_i0, c1_i0), (c0_i1, c1_i1) in tables.tolist():
        is_text = c0_i0 > c1_i0 and c1_i1 > c0_i1
        is_image = c0_i0 > c0_i1 and c1_i1 > c1_i0
        text, image, group = text + is_text, image + is_image, group + (is_text and is_image)
    found = suite_metrics("winoground", tables, ["a"] * 400).all
    assert found == pytest.approx({"text": text / 400, "image": image / 400, "group": group / 400})
    assert 0 < group < min(text, image) and text != image


def test_chance_is_what_random_scores_get():
    draw = torch.Generator().manual_seed(0)
    for suite, rule in RULES.items():
        images = 2 if suite == "winoground" else 1
        scores = torch.randn(40_000, images, 2, generator=draw)
        assert suite_metrics(suite, scores, ["a"] * 40_000).all == pytest.approx(rule.chance, abs=0.01)


def test_groups_their_mean_and_all():
    found = suite_metrics("aro_relation", one_image(ONE), ["b", "a", "a", "b", "b", "b", "b"])
    assert found.groups == {"b": {"accuracy": 4 / 5}, "a": {"accuracy": 0.0}} and list(found.groups) == ["b", "a"]
    assert found.mean == {"accuracy": 2 / 5} and found.all == {"accuracy": 4 / 7}


def test_attributes_of_fewer_than_25_cases_are_left_out():
    scores = one_image([[1.0, 0.0]] * 25 + [[0.0, 1.0]] * 24)
    groups = ["red_blue"] * 25 + ["old_new"] * 24
    found = suite_metrics("aro_attribution", scores, groups)
    assert found.groups == {"red_blue": {"accuracy": 1.0}} and found.mean == {"accuracy": 1.0}
    assert found.all == {"accuracy": pytest.approx(25 / 49)}
    assert len(suite_metrics("aro_relation", scores, groups).groups) == 2
    few = suite_metrics("aro_attribution", scores[:3], groups[:3])
    assert not few.groups and not few.mean and few.all == {"accuracy": 1.0}


def test_what_can_not_be_counted_is_refused():
    for value in (math.nan, math.inf):
        with pytest.raises(ValueError, match="not finite"):
            suite_metrics("sugarcrepe", one_image([[value, 0.0]]), ["a"])
