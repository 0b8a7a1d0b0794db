"""What rows allow to say: signs turned around, intervals, verdicts; a planted effect is found, a null is not."""

import math
from itertools import product

import numpy as np
import pytest

from soho_fast.studies.comparing import Difference, compare, logit, turn_signs, value_of
from soho_fast.studies.matrix import Cell
from soho_fast.studies.report import page, sentence
from soho_fast.studies.study import Comparison, Condition, Stage, Study


def study_of(conditions, num_seeds, composite=("small/score",), metrics=None):
    return Study(
        title="Made",
        seeds=list(range(num_seeds)),
        conditions={name: Condition() for name in conditions},
        stages={
            stage: Stage(
                recipe="mini_vqa",
                metrics=metrics or {"score": f"score, {stage}", "size": f"size, {stage} (codes)"},
            )
            for stage in ("small", "all")
        },
        composite=list(composite),
        comparisons=[Comparison(conditions[1], conditions[0])],
    )


def rows_of(values):
    """Rows by cell, of (condition, seed, stage): metrics."""
    return {
        Cell(condition, seed, stage): {"metrics": metrics, "digest": f"{condition}{seed}{stage}", "seconds": 1.0}
        for (condition, seed, stage), metrics in values.items()
    }


def made(num_seeds, effect, generator, noise=0.01):
    """Scores of two conditions that share what a seed brings and differ by an effect and noise of their own."""
    values = {}
    for seed in range(num_seeds):
        luck = generator.normal(0.5, 0.3)
        for condition, mean in (("without", 0.0), ("with", effect)):
            for stage in ("small", "all"):
                values[condition, seed, stage] = {"score": luck + mean + generator.normal(0, noise), "size": 3.0}
    return rows_of(values)


def names(count):
    return [f"seed {seed}" for seed in range(count)]


def test_p_is_the_share_of_signs_that_give_as_much():
    values = np.random.default_rng(0).normal(0.8, 1.0, 7)
    low, high, p, adjusted = turn_signs([values], [names(7)])[0]
    means = [abs(np.mean(values * signs)) for signs in product((1, -1), repeat=7)]
    assert p == adjusted == np.mean([mean >= abs(values.mean()) - 1e-12 for mean in means])
    assert low < values.mean() < high and low + high == pytest.approx(2 * values.mean())
    # The least that so many seeds can give: of 2^6 ways, the observed one and its opposite.
    assert turn_signs([np.arange(1.0, 7.0)], [names(6)])[0][2] == 2 / 64


def test_of_many_seeds_some_ways_stand_for_all():
    values = np.random.default_rng(1).normal(0.5, 1.0, 24)
    _, _, p, _ = turn_signs([values], [names(24)])[0]
    assert p == turn_signs([values], [names(24)])[0][2] and 0 < p < 0.1


def test_differences_that_tell_nothing_of_another_seed_have_no_interval():
    assert turn_signs([[0.0] * 3], [names(3)]) == [(0.0, 0.0, 1.0, 1.0)]
    # Five seeds have 32 ways, of which two are 6 %. The last: the same but for the rounding of a difference.
    for few in ([], [0.3], [0.1, 0.2, 0.3, 0.4, 0.5], [0.25] * 8, [0.3 - 0.2, 0.2 - 0.1, 0.4 - 0.3] * 3):
        assert all(math.isnan(value) for value in turn_signs([few], [names(len(few))])[0])


def test_the_largest_of_a_family_counts_and_what_hangs_together_costs_nothing():
    one, other = np.random.default_rng(2).normal(0.9, 1.0, (2, 8))
    alone = turn_signs([one], [names(8)])[0]
    same = turn_signs([one, one * 3], [names(8)] * 2)
    assert same[0] == pytest.approx(alone) and same[1][3] == alone[3]
    low, high, p, adjusted = turn_signs([one, other], [names(8)] * 2)[0]
    assert p == alone[2] and adjusted >= p and high - low > alone[1] - alone[0]
    # Seeds of their own have signs of their own; those without results do not stand in the way.
    apart = turn_signs([one, [], other], [names(8), [], [f"other {name}" for name in names(8)]])
    assert apart[0][3] >= p and all(math.isnan(value) for value in apart[1])


def test_intervals_hold_together_as_often_as_they_say():
    generator = np.random.default_rng(3)
    inside = 0
    for _ in range(400):
        family = generator.normal(size=(4, 8)) + generator.normal(size=8)
        found = turn_signs(list(family), [names(8)] * 4)
        inside += all(low <= 0 <= high for low, high, _, _ in found)
    # 95 % of 400 are 380; 99.9 % of such counts lie in this range.
    assert 364 <= inside <= 394


def test_the_composite_is_the_mean_logit_of_its_shares():
    study = study_of(["without", "with"], 8, composite=["small/score", "all/score"])
    shares = {"without": (0.5, 0.8), "with": (0.6, 1.0)}
    rows = rows_of(
        {
            (condition, seed, stage): {"score": shares[condition][place]}
            for condition in shares
            for seed in range(8)
            for place, stage in enumerate(("small", "all"))
        }
    )
    found = compare(study, rows)[0]
    before = (math.log(0.5 / 0.5) + math.log(0.8 / 0.2)) / 2
    assert found.declared and found.base == pytest.approx(before)
    # A share of 1 counts as 0.999.
    assert found.mean == pytest.approx((math.log(0.6 / 0.4) + math.log(0.999 / 0.001)) / 2 - before)
    assert logit(0.0) == pytest.approx(-logit(1.0)) and logit(0.3) == pytest.approx(math.log(3 / 7))
    del rows[Cell("with", 2, "all")]
    assert compare(study, rows)[0].missing == ["seed 2"], "a seed without one of the shares has no composite"


def test_a_metric_can_be_one_less_another():
    row = {"metrics": {"purity": 0.75, "shuffled": 0.5, "word": "none"}, "seconds": 2}
    assert value_of(row, "purity - shuffled") == 0.25
    assert value_of(row, "seconds - purity") == 1.25
    assert [value_of(row, f"purity - {name}") for name in ("missing", "word")] == [None, None]
    assert value_of(row, "missing - purity") is None


def test_a_metric_that_is_not_a_number_is_not_there():
    assert value_of({"metrics": {"purity": math.nan, "other": 1.0}}, "purity") is None
    study = study_of(["without", "with"], 8)
    rows = made(8, 0.1, np.random.default_rng(0))
    rows[Cell("with", 2, "all")]["metrics"]["score"] = math.nan
    found = next(each for each in compare(study, rows) if (each.stage, each.metric) == ("all", "score"))
    assert found.missing == ["seed 2"] and len(found.differences) == 7 and found.verdict == "helps"


def test_a_planted_effect_is_found_and_pairing_is_what_finds_it():
    rows = made(8, 0.05, np.random.default_rng(1))
    declared, *explored = compare(study_of(["without", "with"], 8), rows)
    assert declared.declared and declared.label == "composite (logits)" and declared.verdict == "helps"
    score = next(each for each in explored if (each.stage, each.metric) == ("small", "score"))
    assert not score.declared and score.verdict == "helps" and score.low < 0.05 < score.high
    # Not by luck of the seeds: these differ by more than the effect.
    values = [row["metrics"]["score"] for cell, row in rows.items() if cell.stage == "small"]
    assert np.std(values) > 0.05
    hurt = compare(study_of(["with", "without"], 8), rows)[0]
    assert hurt.verdict == "hurts" and hurt.mean == pytest.approx(-declared.mean)


def test_of_planted_nulls_as_many_are_found_as_the_level_says():
    generator = np.random.default_rng(2)
    study = study_of(["without", "with"], 8)
    verdicts = [compare(study, made(8, 0.0, generator))[0].verdict for _ in range(400)]
    wrong = sum(verdict in ("helps", "hurts") for verdict in verdicts)
    assert set(verdicts) <= {"helps", "hurts", "none", "unclear"}
    # 4.7 % of 400 (12 of 256 ways) are 19; 99.9 % of such counts lie in this range.
    assert 6 <= wrong <= 35


def test_many_explored_metrics_do_not_make_one_that_helps():
    """Each comparison for itself, about one in three of these pages would claim something."""
    generator = np.random.default_rng(3)
    metrics = {f"m{number}": f"m{number}" for number in range(8)}
    study = study_of(["without", "with"], 8, composite=(), metrics=metrics)
    claimed = uncorrected = 0
    for _ in range(100):
        rows = rows_of(
            {
                (condition, seed, stage): {name: generator.normal() for name in metrics}
                for condition in ("without", "with")
                for seed in range(8)
                for stage in ("small", "all")
            }
        )
        found = compare(study, rows)
        claimed += any(each.verdict in ("helps", "hurts") for each in found)
        uncorrected += any(each.p < 0.05 for each in found)
    assert uncorrected > 30 and claimed <= 12


def difference(**changes):
    values = {f"seed {seed}": 0.01 for seed in range(5)}
    fields = {"missing": [], "mean": 0.012, "low": 0.004, "high": 0.02, "p": 0.01, "adjusted": 0.01}
    named = dict(
        zip(
            ("condition", "against", "stage", "metric", "label", "declared"),
            ("k", "none", "vqa", "s", "VQA score", False),
            strict=True,
        )
    )
    return Difference(**{**named, "differences": values, **fields, **changes})


def test_sentences_say_what_the_interval_allows_and_no_more():
    assert sentence(difference()) == "VQA score: **k** against **none** helps: +1.2 [+0.4, +2.0] (5 seeds)."
    hurts = sentence(difference(mean=-0.012, low=-0.02, high=-0.004))
    assert "hurts: -1.2 [-2.0, -0.4]" in hurts
    nothing = sentence(difference(low=-0.015, adjusted=1.0))
    assert "no difference was found; a gain of more than 2.0 and a loss of more than 1.5 are excluded" in nothing
    assert "among 7 comparisons can be chance" in sentence(difference(adjusted=0.07, family=7))
    assert "too few results" in sentence(difference(low=math.nan, high=math.nan, adjusted=math.nan))
    assert "seed 3 missing" in sentence(difference(missing=["seed 3"]))
    declared = difference(declared=True, label="composite (logits)", base=0.0, mean=1.0, low=0.5, high=1.5)
    told = sentence(declared)
    assert "helps: +1 logits [+0.5 logits, +1.5 logits], as from 50.0 % to 73.1 % (5 seeds)" in told


def test_missing_rows_are_told_and_the_rest_is_used():
    rows = made(8, 0.05, np.random.default_rng(4))
    del rows[Cell("with", 2, "small")]
    study = study_of(["without", "with"], 8)
    declared = compare(study, rows)[0]
    assert declared.missing == ["seed 2"] and list(declared.differences) == [f"seed {n}" for n in (0, 1, 3, 4, 5, 6, 7)]
    text = page("made", study, [], rows, 0, compare(study, rows))
    assert "seed 2 missing" in text and "| 7 (1 missing) | helps |" in text
    study.conditions["later"] = Condition()
    study.comparisons.append(Comparison("later", "without"))
    text = page("made", study, [], rows, 0, compare(study, rows))
    number = sum(len(stage.metrics) for stage in study.stages.values())
    assert f"{number} more comparisons have no results yet" in text
    assert "| score, small | later | without |" not in text and "| metric | without | with |" in text


def test_a_metric_that_a_condition_cannot_have_is_not_compared():
    metrics = {"without": {"score": 0.5}, "with": {}}
    rows = rows_of({(condition, seed, "small"): metrics[condition] for condition in metrics for seed in (0, 1)})
    found = compare(study_of(["without", "with"], 2), rows)
    assert all(each.metric != "score" or each.stage != "small" for each in found)


def test_a_factor_is_compared_over_all_combinations_of_the_others():
    factors = {"init": {"random": {}, "data": {}}, "decay": {"0.9": {}, "0.99": {}}}
    conditions = ["random, 0.9", "random, 0.99", "data, 0.9", "data, 0.99"]
    study = study_of(conditions, 2)
    study.factors, study.comparisons = factors, [Comparison("data", "random", "init")]
    score = {"random, 0.9": 0.1, "random, 0.99": 0.5, "data, 0.9": 0.2, "data, 0.99": 0.7}
    rows = rows_of(
        {(condition, seed, "small"): {"score": score[condition] + seed} for condition in conditions for seed in (0, 1)}
    )
    found = next(each for each in compare(study, rows) if each.metric == "score" and each.stage == "small")
    assert found.condition == "init data" and found.against == "init random"
    assert found.differences == pytest.approx({"seed 0": 0.15, "seed 1": 0.15})
    assert "2 seeds" in sentence(found) and "pairs" not in sentence(found)
    del rows[Cell("data, 0.99", 1, "small")]
    found = next(each for each in compare(study, rows) if each.metric == "score" and each.stage == "small")
    assert found.differences == pytest.approx({"seed 0": 0.15}) and found.missing == ["seed 1"]


def test_where_a_factor_has_one_seed_its_combinations_are_the_pairs():
    conditions = ["random, 0.9", "random, 0.99", "data, 0.9", "data, 0.99"]
    study = study_of(conditions, 1)
    study.factors = {"init": {"random": {}, "data": {}}, "decay": {"0.9": {}, "0.99": {}}}
    study.comparisons = [Comparison("data", "random", "init")]
    score = dict(zip(conditions, (0.1, 0.5, 0.2, 0.7), strict=True))
    rows = rows_of({(condition, 0, "small"): {"score": score[condition]} for condition in conditions})
    found = next(each for each in compare(study, rows) if each.metric == "score" and each.stage == "small")
    assert found.differences == pytest.approx({"0.9, seed 0": 0.1, "0.99, seed 0": 0.2})
    assert "2 pairs of one seed" in sentence(found)
    assert "nothing is said of another seed" in page("made", study, [], rows, 0, [found])


def test_comparisons_of_a_single_pair_are_counted_but_not_listed():
    rows = made(6, 0.05, np.random.default_rng(7))
    study = study_of(["without", "with"], 6)
    study.conditions["later"] = Condition()
    study.comparisons.append(Comparison("later", "without"))
    rows[Cell("later", 1, "small")] = {"metrics": {"score": 0.5}, "digest": "later"}
    text = page("made", study, [], rows, 0, compare(study, rows))
    assert "| score, all | with | without |" in text and "| score, small | later | without |" not in text
    assert "Comparisons of too few pairs for an interval, whose values stand below: 1." in text
    assert "50.0 |" in text.partition("All metrics")[2]
