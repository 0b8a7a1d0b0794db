"""What the decoding benchmarks say: images a second, by medians."""

from collections.abc import Iterable, Mapping
from typing import Any

from benchmarks.tables import Table

OURS = ("soho_fast", "bytes")


def rows_of(records: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A row of each decoding benchmark among pytest-benchmark's records."""
    return [
        {
            "case": record["group"],
            "method": record["extra_info"]["method"],
            "images_per_second": record["extra_info"]["images"] / record["stats"]["median"],
            "bytes_per_image": record["extra_info"].get("bytes_per_image"),
        }
        for record in records
        if (record["group"] or "").startswith("decode")
    ]


def setup(result: Mapping[str, Any]) -> str:
    return f"One core of an {result['machine']}, {result['datetime'][:10]}:"


def table(rows: list[dict[str, Any]]) -> Table:
    """A line for each method, ours first in each case."""
    ours = {row["case"]: row["images_per_second"] for row in rows if row["method"] in OURS}
    lines = []
    for case in ours:
        of_case = [row for row in rows if row["case"] == case]
        for row in sorted(of_case, key=lambda row: row["method"] not in OURS):
            name, rate, size = row["method"], row["images_per_second"], row["bytes_per_image"]
            times = "" if name in OURS else f"{ours[case] / rate:.2f}x"
            lines.append((f"{case}: {name}", f"{rate:,.0f}", times, f"{size:,}" if size else ""))
    return Table(("", "images a second", "soho_fast", "bytes an image"), lines)
