"""The pages of studies show what the committed rows say."""

import csv
import json
import re
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from statistics import fmean

from scipy.special import logit
from scipy.stats import ttest_1samp

from benchmarks.studies_page import PAGES, RESULTS, ROOT, rendered
from soho_fast.studies.comparing import compare, composite_of, turn_signs
from soho_fast.studies.comparing import logit as log_odds
from soho_fast.studies.matrix import runs_of
from soho_fast.studies.report import rows_by_cell
from soho_fast.studies.study import find_study, read_study

TEXT = "\n".join(page.read_text() for page in PAGES)
OTHERS = ("README.md", "docs/index.md", "docs/paper_dictionary.md")

TASKS = {
    "vqa": ("test.vqa_score", "styles.vqa_score"),
    "nlvr2": ("test-P.accuracy", "styles.accuracy"),
    "snli_ve": ("test.accuracy", "styles.accuracy"),
    "retrieval": ("test.mean_r1", "styles.mean_r1"),
}
CONDITIONS = ("none", "one level", "two levels", "four levels")
CODES, FROZEN = ("one level, from codes", "none, from codes"), ("quiet targets", "none, frozen CNN")
SEEDS = [str(seed) for seed in range(8)]


def test_the_pages_are_rendered_from_the_committed_rows():
    assert rendered(figures=False) == {page: page.read_text() for page in PAGES}, "python -m benchmarks.studies_page"


def test_what_the_dictionary_cost_is_of_the_rows_of_before():
    rows = {}
    with (RESULTS / "studies-dictionary-frozen-batch-norm.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            if row["variant"] == "10 %":
                rows[row["condition"], row["seed"], row["stage"]] = row

    def lost(condition, seeds):
        return [
            100
            * sum(float(rows["none", seed, task][name]) - float(rows[condition, seed, task][name]) for task, name in of)
            / len(of)
            for seed in seeds
        ]

    of = [(task, metric) for task, metrics in TASKS.items() for metric in metrics]
    differences = [-each for each in lost("k256", "01234")]
    mean, (low, high) = sum(differences) / 5, ttest_1samp(differences, 0.0).confidence_interval(0.95)
    seeds = ", ".join(f"{-each:.1f}" for each in differences)
    told = f"| points lost with 256 codes | {seeds} | {-mean:.1f} | {-high:.1f} to {-low:.1f} |"
    assert told in TEXT, told
    of_64, of_1024 = sum(lost("k64", "012")) / 3, sum(lost("k1024", "01234")) / 5
    told = (
        f"64 codes it was {of_64:.1f} points (three seeds), with 1,024 about as much as with 256 ({of_1024:.1f}, five"
    )
    assert told in " ".join(TEXT.split()), told


def _rows(name):
    return _lines(f"studies-{name}.jsonl")


def _lines(name):
    return [json.loads(line) for line in (RESULTS / name).read_text().splitlines()]


def test_what_is_said_of_the_cold_start_is_of_its_rows():
    def told(values):
        return f"{min(values):.0f} to {max(values):.0f}"

    rows = _rows("cold_start")
    active = {(reset, decay): [] for reset in ("on", "off") for decay in ("0.9", "0.99")}
    for row in rows:
        if row["condition"] != "fixed codes":
            *_, reset, decay = row["condition"].split(", ")
            active[reset, decay].append(row["metrics"]["heldout_active_codes"])
    text = " ".join(TEXT.split())
    assert f"| with reset, gamma 0.9 | {told(active['on', '0.9'])} |" in text
    assert f"| with reset, gamma 0.99 | {told(active['on', '0.99'])} |" in text
    assert f"random or from features | {told(active['off', '0.9'] + active['off', '0.99'])} |" in text
    assert f"none learns to match ({told([100 * row['metrics']['itm'] for row in rows])} %" in text
    better = max(100 * (row["metrics"]["codes.purity"] - row["metrics"]["codes.shuffled_purity"]) for row in rows)
    assert f"at most {better:.0f} points better than shuffled codes" in text


def test_what_is_said_of_a_step_is_of_its_rows():
    speeds = {}
    for row in _rows("scaling") + _rows("scaling_processes"):
        speeds.setdefault(row["condition"], []).append(row["images_per_second"])
    speed = {condition: sum(each) / len(each) for condition, each in speeds.items()}
    slower = []
    for codes in ("256 codes", "2048 codes", "8192 codes"):
        sizes = [name.removesuffix(codes) for name in speed if name.endswith(f", {codes}")]
        assert len(sizes) == 6
        slower.append(100 * (1 - sum(speed[size + codes] / speed[size + "none"] for size in sizes) / 6))
    text = " ".join(TEXT.split())
    one, two, three = (f"{each:.0f}" for each in slower)
    assert f"| 256 | {one} % in the mean" in text
    assert f"| 2,048 | {two} % | | 8,192 | {three} % |" in text
    assert f"| one process, 8 images | {speed['one process']:.1f} |" in text
    assert f"| 2 x 1, 4 images each | {speed['two processes']:.1f} |" in text
    assert f"| 2 x 1, 8 images each | {speed['two processes, 16 images']:.1f} |" in text


def test_what_is_said_of_a_frozen_batch_norm_is_of_its_rows():
    with (RESULTS / "thaw-metrics.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["step"] == "2150"]
    runs, lost = Counter(), Counter()
    for row in rows:
        runs[row["batch_norm"]] += 1
        lost[row["batch_norm"]] += float(row["itm"]) < 0.56 and float(row["image_to_text_r1"]) <= 0.02
    assert runs == {"frozen": 12, "live": 12} and lost["live"] == 0
    text = TEXT
    assert f"rule: {lost['frozen']} of 12, where none of 12 with a trained BatchNorm was lost" in " ".join(text.split())
    names = {"none": "no dictionary", "k256": "256 codes", "sgd": "SGD", "adamw": "AdamW", "live": "trained"}
    for kinds in {(row["dictionary"], row["rule"], row["batch_norm"]) for row in rows}:
        of = {row["seed"]: row for row in rows if (row["dictionary"], row["rule"], row["batch_norm"]) == kinds}
        assert sorted(of) == ["0", "1", "2"]
        figures = (
            ", ".join(f"{100 * float(of[seed][name]):.1f}" for seed in "012")
            for name in ("mlm_content", "itm", "image_to_text_r1")
        )
        told = f"| {' | '.join((*(names.get(kind, kind) for kind in kinds), *figures))} |"
        assert told in text, told


def test_what_is_said_of_longer_runs_with_a_frozen_batch_norm_is_of_their_rows():
    text, before, cells = TEXT, {}, {}
    with (RESULTS / "studies-conditions-frozen-batch-norm.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            shares = (100 * float(row[name] or 0) for name in ("image_to_text_r1", "text_to_image_r1"))
            before[row["condition"]] = " / ".join(f"{share:.1f}" for share in shares)
    told = f"ended at R@1 {before['k256, 4x steps']} %, and at {before['none, 4x steps']} % without a dictionary"
    assert told in " ".join(text.split())
    with (RESULTS / "thaw-four-times.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            steps = f"{int(row['first_step']):,} to {int(row['last_step']):,}"
            cells.setdefault(steps, {})[row["dictionary"], row["batch_norm"]] = row
    for steps, runs in cells.items():
        columns = [
            f"{float(runs[name, norm][figure]):{form}}" if (name, norm) in runs else ""
            for name, figure, form in (
                ("k256", "itm_loss", ".2f"),
                ("k256", "step_perplexity", ".0f"),
                ("none", "itm_loss", ".2f"),
            )
            for norm in ("live", "frozen")
        ]
        assert f"| {steps} | {' | '.join(columns)} |" in text, steps


METRICS = ("mlm_content", "mlm_all", "itm", "image_to_text_r1", "text_to_image_r1", "mvm", "heldout_perplexity")


def _lower_after_more_steps(by_steps: dict[int, list[dict]]) -> list[tuple[int, str]]:
    """(steps, metric) where the mean of the seeds is lower than after fewer steps, by more than the seeds differ."""
    lower = []
    for shorter, longer in pairwise(sorted(by_steps)):
        for name in METRICS:
            before, after = ([float(metrics[name]) for metrics in by_steps[steps]] for steps in (shorter, longer))
            spread = max(max(each) - min(each) for each in (before, after))
            if fmean(after) < fmean(before) - spread:
                lower.append((longer, name))
    return lower


def test_what_is_said_of_study_longer_is_of_its_rows():
    rows, text = _lines("longer-rows.jsonl"), " ".join(TEXT.split())
    assert f"{len(rows)} of its 36 runs are there, all with one level" in text
    for rule in ("AdamW", "SGD"):
        by_steps = {}
        for length, steps in (("once", 3000), ("twice", 6000), ("four times", 12000)):
            runs = sorted(
                (row for row in rows if row["condition"] == f"one level, {rule}, {length}"), key=lambda row: row["seed"]
            )
            by_steps[steps] = [row["metrics"] for row in runs]
            assert {row["steps"] for row in runs} == {steps}
            seeds = ", ".join(str(row["seed"]) for row in runs)
            shares = (
                ", ".join(f"{100 * metrics[name]:.1f}" for metrics in by_steps[steps])
                for name in ("mlm_content", "itm", "image_to_text_r1", "text_to_image_r1", "mvm")
            )
            codes = ", ".join(f"{metrics['heldout_perplexity']:.0f}" for metrics in by_steps[steps])
            told = f"| {rule} | {steps:,} | {seeds} | {' | '.join(shares)} | {codes} |"
            assert told in text, told
        assert _lower_after_more_steps(by_steps) == []


def test_what_is_said_of_longer_runs_of_other_recipes_is_of_their_rows():
    with (RESULTS / "longer-small-metrics.csv").open(newline="") as file:
        everything = list(csv.DictReader(file))
    rows = [row for row in everything if row["rule"] != "start"]
    own, paper = (f"{100 * float(row['itm']):.1f} %" for row in everything if row["rule"] == "start")
    assert f"(matching {own} and {paper})" in " ".join(TEXT.split())
    cells, lower = {}, []
    for row in rows:
        cells.setdefault((row["recipe"], row["rule"]), {}).setdefault(int(row["step"]), []).append(row)
    for (recipe, rule), by_steps in cells.items():
        assert sorted(by_steps) == [40, 80, 160]
        for steps, runs in by_steps.items():
            assert [row["seed"] for row in runs] == ["0", "1", "2"]
            shares = (
                ", ".join(f"{100 * float(row[name]):.1f}" for row in runs)
                for name in ("mlm_content", "itm", "image_to_text_r1", "mvm")
            )
            codes = ", ".join(f"{float(row['heldout_perplexity']):.0f}" for row in runs)
            rule_named = {"adamw": "AdamW", "sgd": "SGD"}[rule]
            told = f"| `{recipe}`, {rule_named} | {steps} | {' | '.join(shares)} | {codes} |"
            assert told in TEXT, told
        lower += [(recipe, rule, *found) for found in _lower_after_more_steps(by_steps)]
    assert lower == [("paper_r18", "adamw", 80, "heldout_perplexity")]
    means = [sum(float(row["heldout_perplexity"]) for row in runs) / 3 for runs in cells["paper_r18", "adamw"].values()]
    once, twice, four = (f"{mean:.1f}" for mean in means)
    text = " ".join(TEXT.split())
    assert f"it falls from {once} to {twice} and then stays ({four})" in text
    ended = [(row["recipe"], row["rule"], row["ended_by_guard_at"]) for row in rows if row["ended_by_guard_at"]]
    assert set(ended) == {("own", "sgd", "50")}
    assert f"The guard ended {len(ended)} of these {len(rows)} runs: two of `own` by SGD at step 50" in text


def test_what_the_dictionary_costs_by_metric_is_of_its_rows():
    cells = {(row["condition"], row["seed"], row["stage"]): row["metrics"] for row in _rows("dictionary")}
    for label, stage, metric in (
        ("matching", "pretraining", "itm"),
        ("masked words", "pretraining", "mlm_all"),
        ("image to text R@1", "pretraining", "image_to_text_r1"),
        ("VQA score", "vqa", "test.vqa_score"),
        ("NLVR2 accuracy", "nlvr2", "test-P.accuracy"),
        ("SNLI-VE accuracy", "snli_ve", "test.accuracy"),
        ("matching, new style", "pretraining", "styles.itm"),
        ("masked words, new style", "pretraining", "styles.mlm_all"),
        ("VQA score, new style", "vqa", "styles.vqa_score"),
        ("NLVR2 accuracy, new style", "nlvr2", "styles.accuracy"),
        ("SNLI-VE accuracy, new style", "snli_ve", "styles.accuracy"),
    ):
        share = {condition: [cells[condition, seed, stage][metric] for seed in range(8)] for condition in CONDITIONS}
        told = f"| {label} | {100 * sum(share['none']) / 8:.1f} |"
        for condition in CONDITIONS[1:]:
            each = [100 * (own - none) for own, none in zip(share[condition], share["none"], strict=True)]
            told += f" {sum(each) / 8:+.1f} ({sum(one < 0 for one in each)} of 8) |"
        assert told in TEXT, told


def test_what_other_pages_say_of_the_dictionary_is_of_its_rows():
    page, shares = TEXT, []
    for condition in CONDITIONS[1:]:
        start, end = re.search(
            rf"\*\*{condition}\*\* against \*\*none\*\* hurts: .*, as from (\S+) % to (\S+) %", page
        ).groups()
        shares.append(end)
    one, two, four = shares
    readme, index, paper = (" ".join((ROOT / name).read_text().split()) for name in OTHERS)
    assert f"lowers the mean of ten metrics [from {start} to {one} %](docs/study_dictionary.md)" in readme
    assert f"fell from {start} % to {one} % (one level of codes) and {four} % (four)" in index
    assert (
        f"as a fall from {start} to {one} % with 256 codes, to {two} % with two levels of them and to {four} % with"
        in paper
    )


def _line_of(label, *differences):
    """A metric's line in a table: what the others are compared with, and their differences with intervals."""
    unit, places = (1, 2) if "nats" in label else (100, 1)
    told = f"| {label} | {unit * differences[0].base:.{places}f} |"
    for each in differences:
        mean, low, high = (f"{unit * value:.{places}f}" for value in (each.mean, each.low, each.high))
        told += f" {'' if each.mean < 0 else '+'}{mean} ({low} to {high}) |"
    return told


def test_what_is_said_of_the_demos_run_is_of_its_rows():
    study, rows = read_study(find_study("demo")), _rows("demo")
    cells, _ = rows_by_cell("demo", runs_of(study), rows)
    explored = [each for each in compare(study, cells) if not each.declared]
    of = {(each.condition, each.metric): each for each in explored}
    surely = {name for name, each in of.items() if each.verdict in ("helps", "hurts")}
    alone = "one level"
    assert surely == {("targets alone", "mlm_loss"), (alone, "mlm_loss"), (alone, "styles.mlm_loss")}
    for name, label in study.stages["pretraining"].metrics.items():
        if ("gate", name) not in of:  # `none` has no codes to predict
            continue
        told = _line_of(label, of["gate", name], of[alone, name], of["targets alone", name])
        assert told in TEXT, told
    assert all(min(of[name, "mlm_loss"].differences.values()) > 0 for name in ("gate", "targets alone"))
    none, gate, targets = (
        f"{fmean(row['metrics']['mlm_loss'] for row in rows if row['condition'] == condition):.2f}"
        for condition in ("none", "gate", "targets alone")
    )
    told = f"with the gate {gate}, with targets alone {targets}, for {none} nats"
    assert told in " ".join(TEXT.split())
    assert f"{gate} for {none} nats" in " ".join((ROOT / "docs/paper_dictionary.md").read_text().split())
    spans = {}
    for condition in ("gate", "targets alone"):
        of_it = [row["metrics"] for row in rows if row["condition"] == condition]
        for name in ("mvm", "mvm_shuffled"):
            shares = [100 * metrics[name] for metrics in of_it]
            spans[condition, name] = f"{min(shares):.0f} to {max(shares):.0f}"
    page = " ".join(TEXT.split())
    assert f"with the gate {spans['gate', 'mvm']} % of the masked visual tokens" in page
    assert f"{spans['gate', 'mvm_shuffled']} % with a shuffled caption" in page
    assert f"alone {spans['targets alone', 'mvm']} and {spans['targets alone', 'mvm_shuffled']} %" in page
    assert of["gate", "mlm_loss"].low < 0 < of["gate", "mlm_loss"].high
    words, nats = (of[alone, name].differences.values() for name in ("mlm_content", "mlm_loss"))
    declared = {each.condition: each for each in compare(study, cells) if each.declared}
    composite = declared[alone].differences.values()
    ahead = [one - other for one, other in zip(declared["gate"].differences.values(), composite, strict=True)]
    assert max(*words, *composite) < 0 < min(*nats, *ahead)
    assert f"six seeds: {-max(composite):.2f} to {-min(composite):.2f} logits of the composite and" in page
    assert f"and {-100 * max(words):.0f} to {-100 * min(words):.0f} points of masked content words" in page
    assert f"(p = {declared[alone].p:.3f}), among three comparisons it is not ({declared[alone].adjusted:.3f})" in page
    assert f"by {min(nats):.2f} to {max(nats):.2f} nats, in the new style too" in page
    for name in OTHERS:
        told = f"alone lose {-100 * max(words):.0f} to {-100 * min(words):.0f} points of masked words"
        assert told in " ".join((ROOT / name).read_text().split()), name
    assert f"in each seed, by {min(ahead):.2f} to {max(ahead):.2f} logits" in page


def test_what_is_said_of_scenes_unlike_those_of_training_is_of_its_rows():
    with (RESULTS / "demo-unseen.csv").open(newline="") as file:
        rows = {(row["scenes"], row["condition"], int(row["seed"])): row for row in csv.DictReader(file)}
    shares = [name.partition("/")[2] for name in read_study(find_study("demo")).composite]
    composite, chance, loss = [], [], []
    for scenes in ("styles", "rough"):
        pairs = [(rows[scenes, "gate", seed], rows[scenes, "none", seed]) for seed in range(6)]
        found = [
            fmean(float(logit(float(one[name])) - logit(float(two[name]))) for name in shares) for one, two in pairs
        ]
        composite.append(f"{-fmean(found):.2f}")
        chance.append(f"{turn_signs([found], [SEEDS[:6]])[0][2]:.2f}")
        larger = [float(one["mlm_loss"]) - float(two["mlm_loss"]) for one, two in pairs]
        assert min(larger) > 0
        loss.append(f"{fmean(larger):.2f}")
    text = " ".join(TEXT.split())
    assert f"lower by {' and '.join(composite)} logits, by chance (p = {' and '.join(chance)})" in text
    assert f"in each of the six seeds, by {' and '.join(loss)} nats" in text


def test_what_is_said_of_garments_is_of_its_rows():
    rows = sorted(_rows("garments"), key=lambda row: row["seed"])
    none, gate = ([row["metrics"] for row in rows if row["condition"] == condition] for condition in ("none", "gate"))
    for label, name, unit, places in (
        ("masked content words", "mlm_content", 100, 1),
        ("matching, AUC", "itm_auc", 100, 1),
        ("image to text, mean reciprocal rank", "image_to_text_mrr", 100, 1),
        ("text to image, mean reciprocal rank", "text_to_image_mrr", 100, 1),
        ("loss of masked words (nats)", "mlm_loss", 1, 2),
    ):
        cells = (
            " / ".join(f"{unit * fmean(one[scenes + name] for one in of):.{places}f}" for of in (none, gate))
            for scenes in ("", "inverted.", "noisy.", "edges.")
        )
        told = f"| {label} | {' | '.join(cells)} |"
        assert told in TEXT, told
    text = " ".join(TEXT.split())
    predicted, shuffled = (
        f"{100 * min(one[name] for one in gate):.0f} to {100 * max(one[name] for one in gate):.0f} %"
        for name in ("mvm", "mvm_shuffled")
    )
    assert f"{predicted} of the masked visual tokens are predicted, {shuffled} with a shuffled caption" in text
    noisy = [100 * (one["noisy.itm_auc"] - other["noisy.itm_auc"]) for one, other in zip(gate, none, strict=True)]
    assert f"the AUC is {-min(noisy):.1f} points lower to {max(noisy):.1f} higher" in text
    study = read_study(find_study("garments"))
    cells, _ = rows_by_cell("garments", runs_of(study), rows)
    found = {each.metric: each for each in compare(study, cells) if not each.declared}
    assert not [name for name, each in found.items() if each.verdict in ("helps", "hurts")]
    low, high = (100 * -end(found["itm_auc"].differences.values()) for end in (max, min))
    told = f"AUC is lower in each seed, by {low:.1f} to {high:.1f} points; among so many metrics that can be chance"
    assert low > 0 and f"{told} (p = {found['itm_auc'].adjusted:.3f})" in text
    name = "text_to_image_mrr"
    behind = [100 * (other[name] - one[name]) for one, other in zip(gate, none, strict=True)]
    p = turn_signs([behind], [SEEDS[:6]])[0][2]
    told = f"in each seed too, by {min(behind):.1f} to {max(behind):.1f} points (p = {p:.3f} by itself)"
    assert min(behind) > 0 and told in text, told


def test_what_is_said_of_both_studies_with_the_gate_is_of_their_rows():
    studies = {name: (read_study(find_study(name)), _rows(name)) for name in ("demo", "garments")}
    shares = [name.partition("/")[2] for name in studies["demo"][0].composite]

    def differences(study, figure):
        found = {(row["condition"], row["seed"]): figure(row["metrics"]) for row in studies[study][1]}
        return [found["gate", seed] - found["none", seed] for seed in range(6)]

    def tested(values):
        return turn_signs([values], [[str(number) for number in range(len(values))]])[0][2]

    figures = {
        "loss of masked words": lambda metrics: metrics["mlm_loss"],
        "loss of matching": lambda metrics: metrics["itm_loss"],
        "all masked words": lambda metrics: log_odds(metrics["mlm_all"]),
        "masked content words": lambda metrics: log_odds(metrics["mlm_content"]),
        "matching": lambda metrics: log_odds(metrics["itm"]),
        "matching, AUC": lambda metrics: log_odds(metrics["itm_auc"]),
        "image to text, mean reciprocal rank": lambda metrics: log_odds(metrics["image_to_text_mrr"]),
        "text to image, mean reciprocal rank": lambda metrics: log_odds(metrics["text_to_image_mrr"]),
        "study demo's composite": lambda metrics: fmean(log_odds(metrics[name]) for name in shares),
    }
    text = " ".join(TEXT.split())
    for label, figure in figures.items():
        is_loss = label.startswith("loss")
        pairs = differences("demo", figure) + differences("garments", figure)
        behind, equal = sum(each > 0 if is_loss else each < 0 for each in pairs), sum(each == 0 for each in pairs)
        unit, equally = "nats" if is_loss else "logits", f", {equal} equal" * (equal > 0)
        told = f"| {label} | {fmean(pairs):+.3f} {unit} | {tested(pairs):.3f} | {behind} of {len(pairs)}{equally} |"
        assert told in TEXT, told
    of_garments = differences("garments", figures["study demo's composite"])
    assert max(of_garments) < 0 and f"behind in 6 of 6 (p = {tested(of_garments):.3f})" in text
    # Their intervals hold what the study of the levels calls a loss.
    cost = re.search(r"\| composite \(logits\) \| one level \| none \| -(\S+) logits .* \| hurts \|", TEXT)[1]
    assert f"a loss as large as the {cost} logits that one level costs" in text
    for study_name, (study, rows) in studies.items():
        cells, _ = rows_by_cell(study_name, runs_of(study), rows)
        (found,) = (each for each in compare(study, cells) if each.declared and each.condition == "gate")
        assert found.verdict == "none" and found.low < -float(cost) < found.high
    for page in OTHERS:
        told = " ".join((ROOT / page).read_text().split())
        assert "a small loss" in told and "no gain" in told and "no loss" not in told, page


def test_what_is_said_of_the_papers_losses_is_of_its_rows():
    study, rows = read_study(find_study("paper_losses")), _rows("paper_losses")
    cells, _ = rows_by_cell("paper_losses", runs_of(study), rows)
    (composite,), explored = (
        [each for each in compare(study, cells) if each.declared is kind] for kind in (True, False)
    )
    of = {each.metric: each for each in explored}
    for name, label in study.stages["pretraining"].metrics.items():
        if name in of:  # `none` has no codes to predict
            assert (told := _line_of(label, of[name])) in TEXT, told
    text = " ".join(TEXT.split())
    shares = {
        (condition, name): [100 * row["metrics"][name] for row in rows if row["condition"] == condition]
        for condition, name in (
            ("none", "mlm_content"),
            ("gate", "mlm_content"),
            ("gate", "mvm"),
            ("gate", "mvm_shuffled"),
        )
    }
    assert all(len(each) == 6 for each in shares.values())
    none, gate, predicted, shuffled = (f"{min(each):.0f} to {max(each):.0f} %" for each in shares.values())
    assert f"without a dictionary {none} of the masked content words are found, with it {gate}" in text
    assert f"{predicted} of the masked visual tokens are predicted, {shuffled} with a shuffled caption" in text
    behind = [-each for each in composite.differences.values() if each < 0]
    assert len(behind) == 5 and composite.verdict == "unclear"
    told = f"behind in five of six seeds, by {min(behind):.2f} to {max(behind):.2f} logits (p = {composite.p:.3f})"
    assert told in text, told
    for name in OTHERS:
        assert "without our bag-of-words loss five of six" in " ".join((ROOT / name).read_text().split()), name


def test_what_was_seen_afterwards_of_the_dictionary_is_of_its_rows():
    study = read_study(find_study("dictionary"))
    cells, _ = rows_by_cell("dictionary", runs_of(study), _rows("dictionary"))
    page = " ".join(TEXT.split())
    found = {(each.condition, each.against, each.metric): each for each in compare(study, cells)}

    names = [(*pair, "styles.itm") for pair in (("two levels", "none"), ("four levels", "none"), CODES, FROZEN)]
    two, four, codes, frozen = (f"{100 * found[name].low:.1f} to {100 * found[name].high:.1f}" for name in names)
    assert [found[name].verdict for name in names] == ["none", "none", "none", "helps"]
    assert f"by more than chance ({frozen} points)" in page
    assert f"(two levels {two}, four {four}), and from codes it is not ({codes})" in page
    # Without the metric that a threshold moves the cost is larger.
    without = replace(study, composite=[name for name in study.composite if name != "pretraining/styles.itm"])
    pairs = [(level, "none") for level in ("one level", "two levels", "four levels")] + [FROZEN]
    costs = [
        [composite_of(without, cells, one, seed) - composite_of(without, cells, other, seed) for seed in range(8)]
        for one, other in pairs
    ]
    one, two, four, frozen = (f"{-sum(cost) / 8:.3f}" for cost in costs)
    assert f"lower by {one} logits with one level, {two} with two and {four} with four" in page
    assert f"with a frozen CNN by {frozen}, lower in six of eight seeds" in page
    assert sum(each < 0 for each in costs[-1]) == 6
    names = [(*pair, "mlm_loss") for pair in (*((each, "none") for each in CONDITIONS[1:]), CODES, FROZEN)]
    assert all(found[name].verdict == "helps" for name in names)  # A loss that is larger.
    one, two, four, codes, _ = (f"{found[name].low:.2f} to {found[name].high:.2f}" for name in names)
    assert f"four levels by {one}, {two} and {four} nats, from codes by {codes}." in page

    trained = ("itm", "mlm_all", "image_to_text_r1", "test.vqa_score", "test-P.accuracy", "test.accuracy")
    of_table = [found[condition, "none", metric] for condition in CONDITIONS[1:] for metric in trained]
    assert all(each.mean < 0 and each.verdict == "none" for each in of_table)
    assert "is lower with any number of levels, but none by itself by more than chance" in page

    def against(*pairs):
        """Of comparisons that were not declared and belong together: differences, and low, high, p of each."""
        value = {name: [composite_of(study, cells, name, seed) for seed in range(8)] for pair in pairs for name in pair}
        gains = [[one - other for one, other in zip(value[a], value[b], strict=True)] for a, b in pairs]
        return gains, [(low, high, p) for low, high, _, p in turn_signs(gains, [SEEDS] * len(gains))]

    gains, ((*_, p_of_two), (low, high, p_of_four)) = against(("two levels", "one level"), ("four levels", "one level"))
    assert [sum(each > 0 for each in gain) for gain in gains] == [7, 7]
    assert f"than one ({low:.3f} to {high:.3f} logits, p = {p_of_four:.3f})" in page
    assert f"Two levels cost less in seven of eight seeds, which can be chance (p = {p_of_two:.3f})" in page

    _, ((low, high, p), (low_of_codes, high_of_codes, _)) = against(
        ("none", "none, frozen CNN"), ("one level", "quiet targets")
    )
    assert f"is better than a frozen one ({low:.3f} to {high:.3f} logits, p = {p:.3f})" in page
    assert low_of_codes < 0 < high_of_codes
    assert f"not more than by chance ({low_of_codes:.3f} to {high_of_codes:.3f})" in page
    declared = found[*FROZEN, "composite"]
    assert declared.verdict == "none" and "With a frozen CNN, no cost of a level was found by this composite." in page

    from_codes = found[*CODES, "composite"]
    assert from_codes.verdict == "hurts"
    assert f"costs about as much ({-from_codes.high:.3f} to {-from_codes.low:.3f} logits)" in page
    (none, one), (none_from_codes, one_from_codes) = (
        re.search(rf"\*\*{ours}\*\* against \*\*{other}\*\* hurts: .* from (\S+) % to (\S+) %", TEXT).groups()
        for ours, other in (("one level", "none"), CODES)
    )
    assert f"behind in all, with {one_from_codes} % against {one} % by the composite with one level" in page
    assert f"with {none_from_codes} % against {none} % without one." in page


def test_what_is_said_of_the_guard_is_of_its_rows():
    text = TEXT
    with (RESULTS / "guard.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) >= 6
    for row in rows:
        rule = {"adamw": "AdamW", "sgd": "SGD"}[row["rule"]]
        matching, one, other = (
            f"{100 * float(row[name]):.1f}" for name in ("itm", "image_to_text_r1", "text_to_image_r1")
        )
        said = "silent"
        if row["alarm"]:
            by = "features" if row["alarm_by_features"] else "matching"
            said = f"{int(row['alarm']) - int(row['unfrozen_at'])} steps, {by}"
        norm = {"live": "trained", "frozen": "frozen"}[row["batch_norm"]]
        told = f"{rule}, {float(row['backbone_lr']):g} | {norm} | {matching} % | {one} / {other} % | {said} |"
        assert told in text, told
