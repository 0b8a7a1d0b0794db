"""The page of studies shows what the committed rows say."""

from statistics import fmean

from benchmarks.studies_page import PAGE, RESULTS, rendered
from soho_fast.studies.results import read_rows


def lines_below(head: str) -> list[str]:
    """The rows of the table in the page's text whose head begins so."""
    _, _, table = PAGE.read_text().partition(head)
    return table.partition("\n\n")[0].splitlines()[2:]


def test_the_page_is_rendered_from_the_committed_rows():
    text = PAGE.read_text()
    assert rendered(text, figures=False) == text, "python -m benchmarks.studies_page renders it"


def test_the_table_in_its_text_is_of_the_rows():
    rows = read_rows([RESULTS / "studies-dictionary.jsonl"])
    conditions = ("none", "k1024", "k256", "k64", "input alone", "targets alone")
    metrics = {
        "VQA score": ("vqa", "test.vqa_score"),
        "NLVR2 accuracy": ("nlvr2", "test-P.accuracy"),
        "SNLI-VE accuracy": ("snli_ve", "test.accuracy"),
        "mean R@1": ("retrieval", "test.mean_r1"),
    }
    lines = lines_below("| seeds 0 to 2, % |")
    assert len(lines) == len(metrics)
    for line, (name, (stage, metric)) in zip(lines, metrics.items(), strict=True):
        means = []
        for condition in conditions:
            of_condition = [
                row for row in rows if (row["condition"], row["stage"], row["variant"]) == (condition, stage, "10 %")
            ]
            values = [row["metrics"][metric] for row in of_condition if row["seed"] in (0, 1, 2)]
            assert len(values) == 3
            means.append(f"{100 * fmean(values):.1f}")
        assert line == f"| {name} | {' | '.join(means)} |"


def test_the_table_of_conditions_in_its_text_is_of_the_rows():
    rows = read_rows([RESULTS / "studies-conditions.jsonl"])
    lines = lines_below("| image to text R@1, %, seeds 0 and 1 |")
    assert len(lines) == 10
    for line in lines:
        change = line.split("|")[1].strip()
        cells = []
        for condition in ("none", "k256"):
            name = condition if change == "nothing else changed" else f"{condition}, {change}"
            values = {row["seed"]: row["metrics"]["image_to_text_r1"] for row in rows if row["condition"] == name}
            assert set(values) >= ({0} if change.startswith("4x steps") else {0, 1})
            cells.append(", ".join(f"{100 * values[seed]:.1f}" for seed in (0, 1) if seed in values))
        assert line == f"| {change} | {' | '.join(cells)} |"
