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
