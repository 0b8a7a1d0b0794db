"""The page of studies shows what the committed rows say."""

from benchmarks.studies_page import PAGE, rendered


def test_the_page_is_rendered_from_the_committed_rows():
    text = PAGE.read_text()
    assert rendered(text, figures=False) == text, "python -m benchmarks.studies_page renders it"
