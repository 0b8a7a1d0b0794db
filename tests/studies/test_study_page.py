"""The page of studies shows what the committed rows say."""

import csv

from benchmarks.studies_page import PAGE, RESULTS, rendered
from soho_fast.studies.comparing import paired

TASKS = {
    "vqa": ("test.vqa_score", "styles.vqa_score"),
    "nlvr2": ("test-P.accuracy", "styles.accuracy"),
    "snli_ve": ("test.accuracy", "styles.accuracy"),
    "retrieval": ("test.mean_r1", "styles.mean_r1"),
}


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
    mean, low, high, _ = paired(differences)
    *first, last = (f"{-each:.1f}" for each in differences)
    text = " ".join(PAGE.read_text().split())
    assert f"by {', '.join(first)} and {last} points, {-mean:.1f} in the mean" in text
    assert f"interval from {-high:.1f} to {-low:.1f}" in text
