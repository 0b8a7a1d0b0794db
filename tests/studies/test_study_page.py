"""The page of studies shows what the committed rows say."""

from statistics import fmean

from benchmarks.studies_page import PAGE, RESULTS, rendered
from soho_fast.studies.results import read_rows


def test_the_page_is_rendered_from_the_committed_rows():
    text = PAGE.read_text()
    assert rendered(text, figures=False) == text, "python -m benchmarks.studies_page renders it"


def test_the_table_in_its_text_is_of_the_rows():
    rows = read_rows([RESULTS / "studies-dictionary.jsonl"])
    arms = ("none", "k1024", "k256", "k64", "input alone", "targets alone")
    measures = {
        "VQA score": ("vqa", "test.vqa_score"),
        "NLVR2 accuracy": ("nlvr2", "test-P.accuracy"),
        "SNLI-VE accuracy": ("snli_ve", "test.accuracy"),
        "mean R@1": ("retrieval", "test.mean_r1"),
    }
    _, _, table = PAGE.read_text().partition("| seeds 0 to 2, % |")
    for line, (name, (stage, measure)) in zip(table.splitlines()[2:], measures.items(), strict=False):
        means = []
        for arm in arms:
            of_arm = [row for row in rows if (row["arm"], row["stage"], row["variant"]) == (arm, stage, "10 %")]
            values = [row["measures"][measure] for row in of_arm if row["seed"] in (0, 1, 2)]
            assert len(values) == 3
            means.append(f"{100 * fmean(values):.1f}")
        assert line == f"| {name} | {' | '.join(means)} |"


def test_the_table_of_conditions_in_its_text_is_of_the_rows():
    rows = read_rows([RESULTS / "studies-conditions.jsonl"])
    _, _, table = PAGE.read_text().partition("| image to text R@1, %, seeds 0 and 1 |")
    lines = table.partition("\n\n")[0].splitlines()[2:]
    assert len(lines) == 10
    for line in lines:
        condition = line.split("|")[1].strip()
        cells = []
        for arm in ("none", "k256"):
            name = arm if condition == "nothing else changed" else f"{arm}, {condition}"
            values = {row["seed"]: row["measures"]["image_to_text_r1"] for row in rows if row["arm"] == name}
            assert set(values) >= ({0} if condition.startswith("4x steps") else {0, 1})
            cells.append(", ".join(f"{100 * values[seed]:.1f}" for seed in (0, 1) if seed in values))
        assert line == f"| {condition} | {' | '.join(cells)} |"
