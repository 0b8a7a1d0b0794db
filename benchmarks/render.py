"""Renders results of benchmarks into pages: tables between a page's markers, and figures.

    python -m benchmarks.render result.json

No figure there is typed by hand. The last run of each kind of processor is kept in benchmarks/results/.
docs/results.md has the newest, for users; benchmarks/README.md has all with their targets. A file is what `pytest
benchmarks/ --benchmark-only --full --benchmark-json result.json` or `python -m benchmarks.inference result.json` wrote.
Where the suite ran in parts, each with a file of its own, all of them belong in one call.
"""

import argparse
import json
import re
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

from benchmarks.data import report as decoding
from benchmarks.inference import report as inference
from benchmarks.ops import report as ops
from benchmarks.ops.targets import FASTEST, Verdict, verdict_table, verdicts
from benchmarks.tables import Table, as_markdown

ROOT = Path(__file__).resolve().parents[1]
STORE = "benchmarks/results"


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
        here = {kind: content[kind] for kind in KINDS if kind in content}
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
    kernels = dict(first.get("blas", {}))
    if kind != "ops":
        raise ValueError(f"result: expected one file with {kind} results, got {len(results)}")
    for other in others:
        if _setup(other) != _setup(first):
            raise ValueError(f"result: expected runs of one setup, got {_setup(first)} and {_setup(other)}")
        if ("blas" in other) != ("blas" in first):
            raise ValueError("result: expected runs of one setup, got parts with and without BLAS kernels")
        for package, found in other.get("blas", {}).items():  # a part loads the libraries that it needs
            if kernels.setdefault(package, found) != found:
                raise ValueError(f"result: expected runs of one setup, got several BLAS kernels of {package}")
    rows = [row for result in results for row in result["rows"]]
    names = Counter((row["op"], row["case"], row["method"]) for row in rows)
    twice = [name for name, count in names.items() if count > 1 and name[0] != ops.LIMITS]
    if twice:
        raise ValueError(f"result: {' '.join(twice[0])} is in several files")
    return {
        **first,
        **({"blas": kernels} if "blas" in first else {}),
        "rows": rows,
        "targets": [vars(verdict) for verdict in verdicts([ops.Row(**row) for row in rows])],
        "training_steps": [step for result in results for step in result["training_steps"]],
        "datetime": max(result["datetime"] for result in results),
    }


def _setup(result: dict) -> str:
    level = result["build"].get("cpu_level", "reference only")
    versions = ", ".join(f"{name} {number}" for name, number in result["versions"].items() if number != "absent")
    return f"{result['machine']}, {result['threads']} threads, level {level}; {versions}"


def _head(result: dict) -> str:
    """What ran and when."""
    kernels = ops.blas_text(result["blas"]) if "blas" in result else "not recorded"
    return f"{_setup(result)}; {result['datetime'][:10]}. BLAS kernels: {kernels}."


# Baselines with an OpenBLAS of their own. Results from before 2026-12-02 do not say which kernels it took.
OPENBLAS = ("faiss-cpu", "scikit-learn", "superkmeans")
UNRECORDED = "kernel not recorded"


def _op_tables(result: dict, *, limits: bool) -> dict[str, Table]:
    """By op its table, the baselines marked whose kernels are not recorded."""
    tables = ops.tables([ops.Row(**row) for row in result["rows"]], limits=limits)
    marked = () if "blas" in result else OPENBLAS
    return {
        op: replace(table, columns=[f"{name} ({UNRECORDED})" if name in marked else name for name in table.columns])
        for op, table in tables.items()
    }


def _verdicts(result: dict) -> Table:
    """The targets; what was measured against a baseline whose kernels are not recorded says so."""
    found = [Verdict(**verdict) for verdict in result["targets"]]
    if "blas" not in result:
        for number, each in enumerate(found):
            if each.claim.endswith((*OPENBLAS, FASTEST)):
                found[number] = replace(each, measured=f"{each.measured}; {UNRECORDED}")
    return verdict_table(found)


def ops_texts(results: list[dict]) -> list[str]:
    """For users a table of each op from the newest run; then of every run training steps, targets and ops."""
    newest, texts = results[0], []
    tables = _op_tables(newest, limits=False)
    shown = "\n\n".join(f"### {op}\n\n{as_markdown(table)}" for op, table in tables.items())
    for result in results:
        steps = [ops.training_steps(result["training_steps"])] if result["training_steps"] else []
        tables = _op_tables(result, limits=True).items()
        ours = "\n\n".join(f"{op}:\n\n{as_markdown(table)}" for op, table in tables)
        head = f"### {result['machine']}\n\n{_head(result)}"
        texts.append("\n\n".join([head, *map(as_markdown, (*steps, _verdicts(result))), ours]))
    return [f"{_head(newest)}\n\n{shown}", "\n\n".join(texts)]


def inference_texts(results: list[dict]) -> list[str]:
    """For users images a second; then the stages at batch 1, what the NMS had to do, and the targets."""
    texts = []
    for result in results:
        targets = verdict_table([Verdict(**verdict) for verdict in result["targets"]])
        tables = [inference.stages(result), inference.boxes(result), targets]
        texts.append("\n\n".join([inference.setup(result), *(as_markdown(table) for table in tables if table.rows)]))
    return [f"{inference.setup(results[0])}\n\n{as_markdown(inference.speeds(results[0]))}", "\n\n".join(texts)]


def decoding_texts(results: list[dict]) -> list[str]:
    """Of the only run."""
    return [f"{decoding.setup(results[0])}\n\n{as_markdown(decoding.table(results[0]['rows']))}"]


USERS, TARGETS = "docs/results.md", "benchmarks/README.md"
# Of each kind what makes the texts from its runs, the newest first, and the page of each text.
KINDS = {
    "ops": (ops_texts, (USERS, TARGETS)),
    "inference": (inference_texts, (USERS, TARGETS)),
    "decoding": (decoding_texts, ("docs/training.md",)),
}


def stored(kind: str, root: Path) -> list[dict]:
    """The kept results of a kind, the newest first."""
    results = [read([path])[kind] for path in (root / STORE).glob(f"{kind}-*.json")]
    return sorted(results, key=lambda result: result["datetime"], reverse=True)


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


def render(results: dict[str, dict], root: Path) -> list[Path]:
    """Writes figures, the copies to keep and pages below `root`; gives their paths.

    Raises:
        ValueError: a page has no markers, or there is nothing to draw; no page is changed then.
    """
    for kind in results:
        for page in KINDS[kind][1]:
            with_block((root / page).read_text(), kind, "")
    written = []
    if "ops" in results:
        result = results["ops"]
        written.append(root / "docs/benchmarks.png")
        machine = f"{result['machine']}, {result['threads']} threads, {result['datetime'][:10]}"
        ops.draw([ops.Row(**row) for row in result["rows"]], machine, written[-1])
    if "inference" in results:
        written.append(root / "docs/inference.png")
        inference.draw(results["inference"], written[-1])
    for kind, result in results.items():
        kept = [result]
        if kind != "decoding":
            copy = root / STORE / store_name(result["machine"], kind)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_text(json.dumps({kind: result}) + "\n")
            written.append(copy)
            kept = stored(kind, root)
        texts_of, pages = KINDS[kind]
        for page, text in zip(pages, texts_of(kept), strict=True):
            (root / page).write_text(with_block((root / page).read_text(), kind, text))
            written.append(root / page)
    return list(dict.fromkeys(written))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument(
        "results", metavar="result", type=Path, nargs="+", help="what --benchmark-json or the study wrote"
    )
    parser.add_argument("--root", type=Path, default=ROOT, help="folder of the pages, figures and copies to keep")
    options = parser.parse_args(arguments)
    try:
        written = render(read(options.results), options.root)
    except ValueError as error:
        sys.exit(f"error: {error}")
    print(f"wrote {', '.join(map(str, written))}")


if __name__ == "__main__":
    main()
