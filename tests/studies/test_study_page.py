"""The page of studies shows what the committed rows say."""

import csv
import json
import re

from scipy.stats import ttest_1samp

from benchmarks.studies_page import PAGE, RESULTS, ROOT, rendered
from soho_fast.studies.comparing import composite_of
from soho_fast.studies.matrix import runs_of
from soho_fast.studies.report import rows_by_cell
from soho_fast.studies.study import find_study, read_study

OTHERS = ("README.md", "docs/index.md", "docs/paper.md")

TASKS = {
    "vqa": ("test.vqa_score", "styles.vqa_score"),
    "nlvr2": ("test-P.accuracy", "styles.accuracy"),
    "snli_ve": ("test.accuracy", "styles.accuracy"),
    "retrieval": ("test.mean_r1", "styles.mean_r1"),
}
CONDITIONS = ("none", "one level", "two levels", "four levels")


def test_the_page_is_rendered_from_the_committed_rows():
    text = PAGE.read_text()
    assert rendered(text, figures=False) == text, "python -m benchmarks.studies_page renders it"


def test_what_the_dictionary_cost_is_of_the_rows_of_before():
    rows = {}
    with (RESULTS / "studies-dictionary-frozen-batch-norm.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            if row["variant"] == "10 %":
                rows[row["condition"], row["seed"], row["stage"]] = row
    differences = []
    for seed in "01234":
        each = [
            float(rows["k256", seed, task][metric]) - float(rows["none", seed, task][metric])
            for task, metrics in TASKS.items()
            for metric in metrics
        ]
        differences.append(100 * sum(each) / len(each))
    mean, (low, high) = sum(differences) / 5, ttest_1samp(differences, 0.0).confidence_interval(0.95)
    seeds = ", ".join(f"{-each:.1f}" for each in differences)
    told = f"| points lost with 256 codes | {seeds} | {-mean:.1f} | {-high:.1f} to {-low:.1f} |"
    assert told in PAGE.read_text(), told


def _rows(name):
    return [json.loads(line) for line in (RESULTS / f"studies-{name}.jsonl").read_text().splitlines()]


def test_what_is_said_of_the_cold_start_is_of_its_rows():
    def told(values):
        return f"{min(values):.0f} to {max(values):.0f}"

    rows = _rows("cold_start")
    active = {(reset, decay): [] for reset in ("on", "off") for decay in ("0.9", "0.99")}
    for row in rows:
        if row["condition"] != "fixed codes":
            *_, reset, decay = row["condition"].split(", ")
            active[reset, decay].append(row["metrics"]["heldout_active_codes"])
    text = " ".join(PAGE.read_text().split())
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
    text = " ".join(PAGE.read_text().split())
    one, two, three = (f"{each:.0f}" for each in slower)
    assert f"| 256 | {one} % in the mean" in text
    assert f"| 2,048 | {two} % | | 8,192 | {three} % |" in text
    assert f"| one process, 8 images | {speed['one process']:.1f} |" in text
    assert f"| 2 x 1, 4 images each | {speed['two processes']:.1f} |" in text
    assert f"| 2 x 1, 8 images each | {speed['two processes, 16 images']:.1f} |" in text


def test_what_is_said_of_longer_runs_is_of_their_rows():
    text = PAGE.read_text()
    with (RESULTS / "longer-metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) >= 4
    for row in rows:
        words, matching, one, other, visual = (
            f"{100 * float(row[name]):.1f}"
            for name in ("mlm_content", "itm", "image_to_text_r1", "text_to_image_r1", "mvm")
        )
        told = f"| {int(row['step']):,} | {words} % | {matching} % | {one} / {other} % | {visual} % |"
        assert f"{told} {float(row['largest_code_error']):.2f} |" in text
    before = {}
    with (RESULTS / "studies-conditions-frozen-batch-norm.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            shares = (100 * float(row[name] or 0) for name in ("image_to_text_r1", "text_to_image_r1"))
            before[row["condition"]] = " / ".join(f"{share:.1f}" for share in shares)
    told = f"ended at R@1 {before['k256, 4x steps']} %, and at {before['none, 4x steps']} % without a dictionary"
    assert told in " ".join(text.split())


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
        assert told in PAGE.read_text(), told


def test_what_other_pages_say_of_the_dictionary_is_of_its_rows():
    page, shares = PAGE.read_text(), []
    for condition in CONDITIONS[1:]:
        start, end = re.search(
            rf"\*\*{condition}\*\* against \*\*none\*\* hurts by .*, as from (\S+) % to (\S+) %", page
        ).groups()
        shares.append(end)
    one, two, four = shares
    row = re.search(r"one level \| none \| (\S+) logits \| (\S+) logits to (\S+) logits", page)
    readme, index, paper = (" ".join((ROOT / name).read_text().split()) for name in OTHERS)
    assert f"{row[1]} logits (95 % interval {row[2]} to {row[3]}), as from {start} to {one} %." in readme
    assert f"as from {start} to {one} %, four levels to {four} %" in index
    assert (
        f"as from {start} to {one} % with 256 codes, to {two} % with two levels of them and to {four} % with" in paper
    )


def test_more_levels_cost_less_in_as_many_seeds_as_said():
    study = read_study(find_study("dictionary"))
    cells, _ = rows_by_cell("dictionary", runs_of(study), _rows("dictionary"))
    value = {
        (condition, seed): composite_of(study, cells, condition, seed) for condition in CONDITIONS for seed in range(8)
    }
    for condition in ("two levels", "four levels"):
        assert sum(value[condition, seed] > value["one level", seed] for seed in range(8)) == 7
    assert "with two and with four the composite is above that of one level in seven of eight seeds" in " ".join(
        PAGE.read_text().split()
    )


def test_what_is_said_of_the_guard_is_of_its_rows():
    text = PAGE.read_text()
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
