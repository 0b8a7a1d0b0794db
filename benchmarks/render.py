"""Renders results of benchmarks into docs/: the tables of a page between its markers, and a figure beside it.

    python -m benchmarks.render result.json

No figure there is typed by hand. The last run of each kind of processor is kept in benchmarks/results/; docs/results.md
has them all, the newest first. A file is what `pytest benchmarks/ --benchmark-only --full --benchmark-json result.json`
or `python -m benchmarks.inference result.json` wrote. Where the suite ran in parts, each with a file of its own, all of
them belong in one call.
"""

import argparse
import json
import re
import sys
from collections import Counter
from pathlib import Path

from benchmarks.data import report as decoding
from benchmarks.inference import report as inference
from benchmarks.ops import report as ops
from benchmarks.ops.targets import Verdict, verdict_table, verdicts
from benchmarks.tables import as_markdown

ROOT = Path(__file__).resolve().parents[1]


def read(paths: list[Path]) -> dict[str, dict]:
    """What the files hold, by kind: "ops", "inference", "decoding".

    Raises:
        ValueError: a file is missing, is no JSON or holds none of these, or files do not fit together.
    """
    found: dict[str, list[dict]] = {}
    for path in paths:
        try:
            content = json.loads(path.read_text())
        except (OSError, json.JSONDecodeError) as error:
            raise ValueError(f"result: cannot read {path}: {error}") from error
        here = {kind: content[kind] for kind in ("ops", "inference", "decoding") if kind in content}
        if not here:
            raise ValueError(
                f"result: expected the JSON of `pytest benchmarks/ --benchmark-only --full --benchmark-json {path}` or "
                f"`python -m benchmarks.inference {path}`; this one has no results of them"
            )
        if "ops" in here:
            here["ops"] = {"training_steps": content.get("training_steps", []), **here["ops"]}
        for kind, result in here.items():
            found.setdefault(kind, []).append(result)
    return {kind: joined(kind, results) for kind, results in found.items()}


def joined(kind: str, results: list[dict]) -> dict:
    """Runs of parts of the op benchmarks on one machine as one result.

    Raises:
        ValueError: they differ in processor, threads, CPU level or versions, or a case is in several; or these are no
            op benchmarks.
    """
    first, *others = results
    if not others:
        return first
    if kind != "ops":
        raise ValueError(f"result: expected one file with {kind} results, got {len(results)}")
    for other in others:
        if _setup(other) != _setup(first):
            raise ValueError(f"result: expected runs of one setup, got {_setup(first)} and {_setup(other)}")
    rows = [row for result in results for row in result["rows"]]
    names = Counter((row["op"], row["case"], row["method"]) for row in rows)
    twice = [name for name, count in names.items() if count > 1 and name[0] != ops.LIMITS]
    if twice:
        raise ValueError(f"result: {' '.join(twice[0])} is in several files")
    return {
        **first,
        "rows": rows,
        "targets": [vars(verdict) for verdict in verdicts([ops.Row(**row) for row in rows])],
        "training_steps": [step for result in results for step in result["training_steps"]],
        "datetime": max(result["datetime"] for result in results),
    }


def _setup(result: dict) -> str:
    level = result["build"].get("cpu_level", "reference only")
    versions = ", ".join(f"{name} {number}" for name, number in result["versions"].items() if number != "absent")
    return f"{result['machine']}, {result['threads']} threads, level {level}; {versions}"


def ops_text(result: dict) -> str:
    """The training steps, of each competition our fastest row against every baseline, then the targets."""
    steps = [ops.training_steps(result["training_steps"])] if result["training_steps"] else []
    ratios = ops.ratios([ops.Row(**row) for row in result["rows"]])
    targets = verdict_table([Verdict(**verdict) for verdict in result["targets"]])
    lines = [f"{_setup(result)}; {result['datetime'][:10]}.", *map(as_markdown, (*steps, ratios, targets))]
    return "\n\n".join(lines)


def inference_text(result: dict) -> str:
    """Stages at batch 1, larger batches, what the NMS had to do, and the targets."""
    targets = verdict_table([Verdict(**verdict) for verdict in result["targets"]])
    parts = [inference.setup(result), *map(as_markdown, inference.tables(result)), inference.boxes(result)]
    return "\n\n".join([*filter(None, parts), as_markdown(targets)])


TEXTS = {"ops": ops_text, "inference": inference_text}


def stored_text(kind: str, store: Path) -> str:
    """What every stored result of a kind renders, the newest first."""
    results = [read([path])[kind] for path in store.glob(f"{kind}-*.json")]
    return "\n\n".join(map(TEXTS[kind], sorted(results, key=lambda result: result["datetime"], reverse=True)))


def with_block(page: str, name: str, text: str) -> str:
    """The page with `text` between the markers of this name.

    Raises:
        ValueError: markers that are missing or in the wrong order.
    """
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    if not 0 <= page.find(begin) < page.find(end):
        raise ValueError(f"page: expected the markers {begin} and {end}, in this order")
    return f"{page[: page.index(begin)]}{begin}\n{text}\n{page[page.index(end) :]}"


def store_name(machine: str, kind: str) -> str:
    """The file for runs on this kind of processor or card."""
    words = re.sub(r"\((r|tm)\)|\b(cpu|processor)\b|@ *[0-9.]+ *ghz", " ", machine.lower())
    return f"{kind}-{'-'.join(re.findall('[a-z0-9]+', words)) or 'unnamed'}.json"


def render(results: dict[str, dict], docs: Path, store: Path) -> list[Path]:
    """Writes figures, the copies to keep and pages; gives their paths.

    Raises:
        ValueError: a page has no markers, or there is nothing to draw; no page is changed then.
    """
    pages = {kind: docs / ("training.md" if kind == "decoding" else "results.md") for kind in results}
    for kind, page in pages.items():
        with_block(page.read_text(), kind, "")
    written = []
    if "ops" in results:
        result, figure = results["ops"], docs / "benchmarks.png"
        machine = f"{result['machine']}, {result['threads']} threads, {result['datetime'][:10]}"
        ops.draw([ops.Row(**row) for row in result["rows"]], machine, figure)
        written.append(figure)
    if "inference" in results:
        inference.draw(results["inference"], docs / "inference.png")
        written.append(docs / "inference.png")
    for kind, result in results.items():
        if kind in TEXTS:
            store.mkdir(parents=True, exist_ok=True)
            copy = store / store_name(result["machine"], kind)
            copy.write_text(json.dumps({kind: result}) + "\n")
            text = stored_text(kind, store)
            written.append(copy)
        else:
            text = f"{decoding.setup(result)}\n\n{as_markdown(decoding.table(result['rows']))}"
        pages[kind].write_text(with_block(pages[kind].read_text(), kind, text))
    return [*written, *dict.fromkeys(pages.values())]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument(
        "results", metavar="result", type=Path, nargs="+", help="what --benchmark-json or the study wrote"
    )
    parser.add_argument("--docs", type=Path, default=ROOT / "docs", help="folder of the pages and figures")
    parser.add_argument("--store", type=Path, default=ROOT / "benchmarks/results", help="folder of the copies to keep")
    options = parser.parse_args(arguments)
    try:
        written = render(read(options.results), options.docs, options.store)
    except ValueError as error:
        sys.exit(f"error: {error}")
    print(f"wrote {', '.join(map(str, written))}")


if __name__ == "__main__":
    main()
