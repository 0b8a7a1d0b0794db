"""Renders the table of docs/training.md: python -m benchmarks.data.page result.json

The file is what `pytest benchmarks/data --benchmark-only --benchmark-json result.json` wrote.
"""

import argparse
import json
import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PAGE = Path(__file__).resolve().parents[2] / "docs/training.md"
_TABLE = re.compile(r"(<!-- decoding -->\n)(.*?)(<!-- end -->)", flags=re.DOTALL)
OURS = ("soho_fast", "bytes")


def as_markdown(result: Mapping[str, Any]) -> str:
    """The table: images a second by medians, a line for each contender, ours first in each group."""
    groups: dict[str, list[tuple[str, float, int]]] = defaultdict(list)
    for record in result["benchmarks"]:
        info = record["extra_info"]
        rate = info["images"] / record["stats"]["median"]
        groups[record["group"]].append((info["contender"], rate, info.get("bytes_an_image", 0)))
    lines = ["| | images a second | soho_fast | bytes an image |", "|---|---|---|---|"]
    for group, rows in groups.items():
        (ours,) = (rate for name, rate, _ in rows if name in OURS)
        for name, rate, size in sorted(rows, key=lambda row: row[0] not in OURS):
            times = "" if name in OURS else f"{ours / rate:.2f}x"
            lines.append(f"| {group}: {name} | {rate:,.0f} | {times} | {f'{size:,}' if size else ''} |")
    cpu = result["machine_info"]["cpu"]["brand_raw"]
    return "\n".join([f"One core of an {cpu}, {result['datetime'][:10]}:", "", *lines])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.data.page", description=__doc__.partition("\n")[0])
    parser.add_argument("result", type=Path, help="the JSON of the benchmark")
    table = as_markdown(json.loads(parser.parse_args().result.read_text()))
    PAGE.write_text(_TABLE.sub(lambda found: f"{found[1]}\n{table}\n\n{found[3]}", PAGE.read_text()))


if __name__ == "__main__":
    main()
