"""Renders the committed rows of studies that declare a composite (benchmarks/results/studies-NAME.jsonl) into
docs/studies.md, between markers of their names, and their figures beside it, so that no figure there is typed by hand.

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
PAGE = ROOT / "docs/studies.md"
RESULTS = ROOT / "benchmarks/results"


def rendered(text: str, *, figures: bool) -> str:
    """The page with every study's section as its rows say; figures are drawn beside the page where asked for.

    Raises:
        ValueError: rows are there of a study that has no markers.
    """
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
            draw(differences, PAGE.parent / picture)
        shown = picture if (PAGE.parent / picture).exists() else ""
        section = page(name, study, runs, cells, old, differences, shown, f"benchmarks/results/{path.name}")
        # Below the page's own headings.
        section = re.sub(r"^#", "###", section, flags=re.MULTILINE).rstrip()
        begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
        if begin not in text or end not in text:
            raise ValueError(f"{PAGE}: expected {begin} and {end}, between which the rows of {path.name} stand")
        text = f"{text.partition(begin)[0]}{begin}\n{section}\n{end}{text.partition(end)[2]}"
    return text


def main() -> int:
    """Render, and write the page."""
    PAGE.write_text(rendered(PAGE.read_text(), figures=True))
    return 0


if __name__ == "__main__":
    sys.exit(main())
