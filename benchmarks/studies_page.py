"""Renders the committed rows of studies that declare a composite (benchmarks/results/studies-NAME.jsonl) into
pages of docs/, between markers of their names, and their figures beside them, so that no figure there is typed by hand.

    python -m benchmarks.studies_page
"""

import re
import sys
from pathlib import Path

from soho_fast.studies.comparing import compare
from soho_fast.studies.matrix import runs_of
from soho_fast.studies.report import draw, page, rows_by_cell
from soho_fast.studies.results import read_rows
from soho_fast.studies.study import find_study, read_study

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "docs" / name for name in ("studies.md", "study_dictionary.md", "study_collapse.md")]
RESULTS = ROOT / "benchmarks/results"


def rendered(*, figures: bool) -> dict[Path, str]:
    """The pages with every study's section as its rows say; figures are drawn beside them where asked for.

    Raises:
        ValueError: rows are there of a study that has no markers.
    """
    texts = {page: page.read_text() for page in PAGES}
    paths = sorted(RESULTS.glob("studies-*.jsonl"))
    rows = read_rows(paths)  # A run that two studies have in common stands in one of the files.
    for path in paths:
        name = path.stem.removeprefix("studies-")
        study = read_study(find_study(name))
        if not study.composite:
            continue  # Nothing was declared: the text above says what they give, and a test compares it with the rows.
        runs, picture = runs_of(study), f"studies-{name}.png"
        cells, old = rows_by_cell(name, runs, rows)
        differences = compare(study, cells)
        if figures:
            draw(differences, PAGES[0].parent / picture)
        shown = picture if (PAGES[0].parent / picture).exists() else ""
        section = page(name, study, runs, cells, old, differences, shown, f"benchmarks/results/{path.name}")
        # Below the page's own headings.
        section = re.sub(r"^#", "##", section, flags=re.MULTILINE).rstrip()
        begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
        found = [place for place, text in texts.items() if begin in text and end in text]
        if len(found) != 1:
            raise ValueError(f"docs/: expected {begin} and {end} on one page, for the rows of {path.name}")
        text = texts[found[0]]
        texts[found[0]] = f"{text.partition(begin)[0]}{begin}\n{section}\n{end}{text.partition(end)[2]}"
    return texts


def main() -> int:
    """Render, and write the pages."""
    for page_path, text in rendered(figures=True).items():
        page_path.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
