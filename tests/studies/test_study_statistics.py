"""What rows allow to say: intervals, Holm's correction, verdicts; a planted effect is found, a planted null is not."""

import math

import numpy as np
import pytest
from scipy.stats import ttest_rel

from soho_fast.studies.comparing import Difference, compare, holm, paired, value_of
from soho_fast.studies.matrix import Cell
from soho_fast.studies.report import page, sentence
from soho_fast.studies.study import Comparison, Condition, Stage, Study, Variant


def study_of(conditions, num_seeds, main=("tuned/small/score",), metrics=None):
    return Study(
        title="Made",
        seeds=list(range(num_seeds)),
        conditions={name: Condition() for name in conditions},
        stages={
            "tuned": Stage(
                recipe="mini_vqa",
                variants={"small": Variant(), "all": Variant()},
                metrics=metrics or {"score": "score", "size": "size (codes)"},
            )
        },
        comparisons=[Comparison(conditions[1], conditions[0], main=list(main))],
    )


def rows_of(values):
    """Rows by cell, of (condition, seed, variant): metrics."""
    return {
        Cell(condition, seed, "tuned", variant): {
            "metrics": metrics,
            "digest": f"{condition}{seed}{variant}",
            "seconds": 1.0,
        }
        for (condition, seed, variant), metrics in values.items()
    }


def made(num_seeds, effect, generator, noise=0.01):
    """Scores of two conditions that share what a seed brings and differ by an effect and noise of their own."""
    values = {}
    for seed in range(num_seeds):
        luck = generator.normal(0.5, 0.3)
        for condition, mean in (("without", 0.0), ("with", effect)):
            for variant in ("small", "all"):
                values[condition, seed, variant] = {"score": luck + mean + generator.normal(0, noise), "size": 3.0}
    return rows_of(values)


def test_the_interval_is_the_paired_t_tests():
    generator = np.random.default_rng(0)
    one, other = generator.normal(0.6, 0.1, 6), generator.normal(0.5, 0.1, 6)
    test = ttest_rel(one, other)
    interval = test.confidence_interval(0.95)
    expected = ((one - other).mean(), interval.low, interval.high, test.pvalue)
    assert paired(list(one - other)) == pytest.approx(expected, rel=1e-12)


def test_differences_that_tell_nothing_of_another_seed_have_no_interval():
    assert paired([0.0, 0.0, 0.0]) == (0.0, 0.0, 0.0, 1.0)
    # The last: the same but for the rounding of a difference, as of 30, 20 and 40 % against 20, 10 and 30 %.
    for few in ([], [0.3], [0.25, 0.25, 0.25], [0.3 - 0.2, 0.2 - 0.1, 0.4 - 0.3]):
        mean, low, high, p = paired(few)
        assert math.isnan(low) and math.isnan(high) and math.isnan(p)
        assert math.isnan(mean) if not few else mean == pytest.approx(few[0])


def test_a_metric_can_be_one_less_another():
    row = {"metrics": {"purity": 0.75, "shuffled": 0.5, "word": "none"}, "seconds": 2}
    assert value_of(row, "purity - shuffled") == 0.25
    assert value_of(row, "seconds - purity") == 1.25
    assert [value_of(row, f"purity - {name}") for name in ("missing", "word")] == [None, None]
    assert value_of(row, "missing - purity") is None


def test_holm_is_holms():
    # Holm 1979, worked by hand: 0.01 x 4, 0.02 x 3, then never smaller than what came before.
    assert holm([0.02, 0.04, 0.01, 0.025]) == pytest.approx([0.06, 0.06, 0.04, 0.06])
    assert holm([0.5, 0.9, math.nan]) == pytest.approx([1.0, 1.0, math.nan], nan_ok=True)
    # One that was declared and has no results yet is among those that could have looked so by chance.
    assert holm([0.01, math.nan, 0.02]) == pytest.approx([0.03, math.nan, 0.04], nan_ok=True)


def test_a_planted_effect_is_found_and_pairing_is_what_finds_it():
    rows = made(5, 0.05, np.random.default_rng(1))
    found = compare(study_of(["without", "with"], 5), rows)
    declared = found[0]
    assert declared.declared and declared.variant == "small" and declared.verdict == "helps"
    assert declared.low < 0.05 < declared.high
    # Not by luck of the seeds: these differ by more than the effect.
    values = [row["metrics"]["score"] for cell, row in rows.items() if cell.variant == "small"]
    assert np.std(values) > 0.05
    hurt = compare(study_of(["with", "without"], 5), rows)[0]
    assert hurt.verdict == "hurts" and hurt.mean == pytest.approx(-declared.mean)


def test_of_planted_nulls_as_many_are_found_as_the_level_says():
    generator = np.random.default_rng(2)
    study = study_of(["without", "with"], 5)
    verdicts = [compare(study, made(5, 0.0, generator))[0].verdict for _ in range(400)]
    wrong = sum(verdict in ("helps", "hurts") for verdict in verdicts)
    assert set(verdicts) <= {"helps", "hurts", "none"}
    # 5 % of 400 are 20; 99.9 % of such counts lie in this range.
    assert 8 <= wrong <= 36


def test_many_explored_metrics_do_not_make_one_that_helps():
    """Without the correction about one in three of these pages would claim something."""
    generator = np.random.default_rng(3)
    metrics = {f"m{number}": f"m{number}" for number in range(8)}
    study = study_of(["without", "with"], 5, main=(), metrics=metrics)
    claimed = uncorrected = 0
    for _ in range(100):
        rows = rows_of(
            {
                (condition, seed, variant): {name: generator.normal() for name in metrics}
                for condition in ("without", "with")
                for seed in range(5)
                for variant in ("small", "all")
            }
        )
        found = compare(study, rows)
        claimed += any(each.verdict in ("helps", "hurts") for each in found)
        uncorrected += any(each.p < 0.05 for each in found)
    assert uncorrected > 30 and claimed <= 12


def difference(**changes):
    values = {f"seed {seed}": 0.01 for seed in range(5)}
    fields = {"missing": [], "mean": 0.012, "low": 0.004, "high": 0.02, "p": 0.01, "adjusted": 0.01}
    return Difference("k", "none", "vqa", "10 %", "s", "VQA score", True, values, **{**fields, **changes})


def test_sentences_say_what_the_interval_allows_and_no_more():
    assert sentence(difference()) == "VQA score, 10 %: **k** against **none** helps by +1.2 [+0.4, +2.0] (5 seeds)."
    hurts = sentence(difference(mean=-0.012, low=-0.02, high=-0.004))
    assert "hurts by -1.2 [-2.0, -0.4]" in hurts
    nothing = sentence(difference(low=-0.015, adjusted=1.0))
    assert "no difference was found; a gain of more than 2.0 and a loss of more than 1.5 are excluded" in nothing
    assert "among 7 comparisons can be chance" in sentence(difference(adjusted=0.07, family=7))
    assert "too few results" in sentence(difference(low=math.nan, high=math.nan, adjusted=math.nan))
    assert "seed 3 missing" in sentence(difference(missing=["seed 3"]))


def test_missing_rows_are_told_and_the_rest_is_used():
    rows = made(5, 0.05, np.random.default_rng(4))
    del rows[Cell("with", 2, "tuned", "small")]
    study = study_of(["without", "with"], 5)
    declared = compare(study, rows)[0]
    assert declared.missing == ["seed 2"] and list(declared.differences) == [f"seed {n}" for n in (0, 1, 3, 4)]
    text = page("made", study, [], rows, 0, compare(study, rows))
    assert "seed 2 missing" in text and "| 4 (1 missing) | helps |" in text
    study.conditions["later"] = Condition()
    study.comparisons.append(Comparison("later", "without"))
    text = page("made", study, [], rows, 0, compare(study, rows))
    number = sum(len(stage.metrics) * len(stage.variants or [""]) for stage in study.stages.values())
    assert f"{number} more comparisons, which the correction counts, have no results yet" in text
    assert "| later | without |" not in text and "| metric | without | with |" in text


def test_a_metric_that_a_condition_cannot_have_is_not_compared():
    metrics = {"without": {"score": 0.5}, "with": {}}
    rows = rows_of({(condition, seed, "small"): metrics[condition] for condition in metrics for seed in (0, 1)})
    found = compare(study_of(["without", "with"], 2), rows)
    assert all(each.metric != "score" or each.variant != "small" for each in found)


def test_a_factor_is_compared_over_all_combinations_of_the_others():
    factors = {"init": {"random": {}, "data": {}}, "decay": {"0.9": {}, "0.99": {}}}
    conditions = ["random, 0.9", "random, 0.99", "data, 0.9", "data, 0.99"]
    study = study_of(conditions, 2)
    study.factors, study.comparisons = factors, [Comparison("data", "random", "init")]
    score = {"random, 0.9": 0.1, "random, 0.99": 0.5, "data, 0.9": 0.2, "data, 0.99": 0.7}
    rows = rows_of(
        {(condition, seed, "small"): {"score": score[condition] + seed} for condition in conditions for seed in (0, 1)}
    )
    found = next(each for each in compare(study, rows) if each.metric == "score" and each.variant == "small")
    assert found.condition == "init data" and found.against == "init random"
    assert found.differences == pytest.approx({"seed 0": 0.15, "seed 1": 0.15})
    assert "2 seeds" in sentence(found) and "pairs" not in sentence(found)
    del rows[Cell("data, 0.99", 1, "tuned", "small")]
    found = next(each for each in compare(study, rows) if each.metric == "score" and each.variant == "small")
    assert found.differences == pytest.approx({"seed 0": 0.15}) and found.missing == ["seed 1"]


def test_variants_of_a_condition_are_compared_seed_by_seed():
    rows = made(5, 0.05, np.random.default_rng(6), noise=0.001)
    for seed in range(5):
        rows[Cell("with", seed, "tuned", "all")]["metrics"]["score"] += 0.1
    study = study_of(["without", "with"], 5)
    study.comparisons = [Comparison("all", "small", variants_of="with")]
    score, size = compare(study, rows)
    assert (score.condition, score.against, score.variant) == ("with all", "with small", "")
    assert score.verdict == "helps" and score.mean == pytest.approx(0.1, abs=0.003) and size.mean == 0
    assert sentence(score).startswith("score: **with all** against **with small** helps by +10.")
    del rows[Cell("with", 2, "tuned", "small")]
    score, _ = compare(study, rows)
    assert score.missing == ["seed 2"] and len(score.differences) == 4
    study.stages["tuned"].variants["small"].conditions = ["without"]
    assert compare(study, rows) == [], "the condition has no such variant"


def test_where_a_factor_has_one_seed_its_combinations_are_the_pairs():
    conditions = ["random, 0.9", "random, 0.99", "data, 0.9", "data, 0.99"]
    study = study_of(conditions, 1)
    study.factors = {"init": {"random": {}, "data": {}}, "decay": {"0.9": {}, "0.99": {}}}
    study.comparisons = [Comparison("data", "random", "init")]
    score = dict(zip(conditions, (0.1, 0.5, 0.2, 0.7), strict=True))
    rows = rows_of({(condition, 0, "small"): {"score": score[condition]} for condition in conditions})
    found = next(each for each in compare(study, rows) if each.metric == "score" and each.variant == "small")
    assert found.differences == pytest.approx({"0.9, seed 0": 0.1, "0.99, seed 0": 0.2})
    assert "2 pairs of one seed" in sentence(found)
    assert "nothing is said of another seed" in page("made", study, [], rows, 0, [found])


def test_comparisons_of_a_single_pair_are_counted_but_not_listed():
    rows = made(3, 0.05, np.random.default_rng(7))
    study = study_of(["without", "with"], 3)
    study.conditions["later"] = Condition()
    study.comparisons.append(Comparison("later", "without"))
    rows[Cell("later", 1, "tuned", "small")] = {"metrics": {"score": 0.5}, "digest": "later"}
    text = page("made", study, [], rows, 0, compare(study, rows))
    assert "| score, all | with | without |" in text and "| later | without |" not in text
    assert "Comparisons of too few pairs for an interval, whose values stand below: 1." in text
    assert "50.0 |" in text.partition("All metrics")[2]
