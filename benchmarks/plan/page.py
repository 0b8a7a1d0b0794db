"""Renders docs/plan.md: python -m benchmarks.plan.page

Behind each command of the page stands what it prints; the tables between the marks are counted and measured here.
"""

import re
import shlex
from pathlib import Path

from benchmarks.plan import published
from benchmarks.plan.measured import as_markdown, of_a_step, of_two_ranks
from soho_fast.plan.__main__ import planned
from soho_fast.plan.fake import StepCost

PAGE = Path(__file__).resolve().parents[2] / "docs/plan.md"
_COMMAND = re.compile(r"(```bash\npython -m soho_fast\.plan ([^\n]*)\n```\n\n```text\n)(.*?)(```\n)", flags=re.DOTALL)
_CARD = re.compile(r"^\| `(--gpus \d+ --card \w+)` \|.*$", flags=re.MULTILINE)
_PUBLISHED = re.compile(r"(<!-- published -->\n)(.*?)(<!-- end -->)", flags=re.DOTALL)
_MEASURED = re.compile(r"(<!-- measured -->\n)(.*?)(<!-- end -->)", flags=re.DOTALL)


def with_plans(page: str) -> str:
    """The page with what its commands print, and the memory and hours of each row of its table of cards."""
    known: dict = {}  # Cards of one precision compute the same.

    def printed(arguments: str) -> str:
        return planned(shlex.split(arguments), known)

    def rendered(found: re.Match) -> str:
        return f"{found[1]}{printed(found[2])}\n{found[4]}"

    def row(found: re.Match) -> str:
        memory, hours = re.findall(
            r"^memory of a GPU: (.*?), .*hours in all: ([\d.]+)", printed(found[1]), re.MULTILINE
        )[0]
        return f"| `{found[1]}` | {memory} | {hours} |"

    return _CARD.sub(row, _COMMAND.sub(rendered, page))


def with_published(page: str, costs: dict[str, StepCost]) -> str:
    """The page with the table of published runs."""
    table = published.as_markdown(costs)
    return _PUBLISHED.sub(lambda found: f"{found[1]}\n{table}\n\n{found[3]}", page)


def with_measured(page: str) -> str:
    """The page with a table of figures measured now."""
    table = as_markdown([*of_a_step(False), *of_a_step(True), *of_two_ranks()])
    return _MEASURED.sub(lambda found: f"{found[1]}\n{table}\n\n{found[3]}", page)


if __name__ == "__main__":
    PAGE.write_text(with_measured(with_published(with_plans(PAGE.read_text()), published.costs())))
