"""Renders the JSON of the op benchmarks: the tables of docs/results.md between its markers, and the figure of time
against N, K and C. So no figure there is typed by hand. The last run of each kind of processor is kept in
benchmarks/results/; the page has them all, the newest first.

    python -m benchmarks.render result.json

Where the suite ran in parts, each with a file of its own, all of them belong in one call. What `python -m
benchmarks.inference result.json` wrote has a block and a figure of its own, and is given alone.
"""

import argparse
import json
import re
import sys
from collections import Counter
from pathlib import Path

from benchmarks.inference import page as inference
from benchmarks.ops.bars import verdicts
from benchmarks.ops.report import GROWTH, Row, best_lines, cases_of, limit_text, limits_of, rows_of, time_text

ROOT = Path(__file__).resolve().parents[1]
BEGIN, END = "<!-- benchmarks: begin -->", "<!-- benchmarks: end -->"
INFERENCE = "<!-- inference: begin -->", "<!-- inference: end -->"
STATS = ("min", "median", "rounds")
SERIES = {"N": "features N", "K": "codes K", "C": "channels C"}
UNITS = {"N": "features", "K": "codes", "C": "channels"}


def read_result(path: Path) -> dict:
    """The JSON of a run of the op benchmarks.

    Raises:
        ValueError: a file that is missing, is no JSON or holds no op benchmark.
    """
    try:
        result = json.loads(path.read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise ValueError(f"result: cannot read {path}: {error}") from error
    if not isinstance(result, dict) or "soho_fast" not in result or not rows_of(result.get("benchmarks", [])):
        raise ValueError(
            f"result: expected the JSON of `pytest benchmarks/ops --benchmark-only --benchmark-json {path}`, "
            "which holds op benchmarks; this one has none"
        )
    return result


def joined(results: list[dict]) -> dict:
    """Runs of parts of the suite on one machine as one result.

    Raises:
        ValueError: they differ in processor, threads, CPU level or versions, or a case is in several.
    """
    first, *others = results
    if not others:
        return first
    for other in others:
        if _setup_line(other).rpartition("; ")[0] != _setup_line(first).rpartition("; ")[0]:
            raise ValueError(f"result: expected runs of one setup, got {_setup_line(first)} and {_setup_line(other)}")
    rows = rows_of([record for result in results for record in result["benchmarks"]])
    names = Counter((row.op, row.case, row.contender) for row in rows)
    twice = [name for name, count in names.items() if count > 1 and name[0] != "machine limit"]
    if twice:
        raise ValueError(f"result: {' '.join(twice[0])} is in several files")
    return {
        **first,
        "benchmarks": [record for result in results for record in result["benchmarks"]],
        "soho_fast": {**first["soho_fast"], "bars": [vars(verdict) for verdict in verdicts(rows)]},
        "training_steps": [step for result in results for step in result.get("training_steps", [])],
        "datetime": max(result["datetime"] for result in results),
    }


def stored(result: dict) -> dict:
    """The part of a result that rendering needs: without the rounds and what else the machine says of itself."""
    kept = [
        {"extra_info": record["extra_info"], "stats": {name: record["stats"].get(name) for name in STATS}}
        for record in result["benchmarks"]
        if "op" in record["extra_info"]
    ]
    cpu = result.get("machine_info", {}).get("cpu", {})
    return {
        "benchmarks": kept,
        "soho_fast": result["soho_fast"],
        "training_steps": result.get("training_steps", []),
        "machine_info": {"cpu": {name: cpu[name] for name in ("brand_raw", "family", "model") if name in cpu}},
        "datetime": result["datetime"],
    }


def _cpu(result: dict) -> str:
    """Its name, and the numbers that tell apart generations of one name, where they are known."""
    cpu = result.get("machine_info", {}).get("cpu", {})
    numbers = f", family {cpu['family']} model {cpu['model']}" if "family" in cpu and "model" in cpu else ""
    return cpu.get("brand_raw", "unnamed CPU") + numbers


def _setup_line(result: dict) -> str:
    setup = result["soho_fast"]
    level = setup["build"].get("cpu_level", "reference only")
    versions = ", ".join(f"{name} {number}" for name, number in setup["versions"].items() if number != "absent")
    return f"{_cpu(result)}, {setup['threads']} threads, level {level}; {versions}; {result['datetime'][:10]}."


def _competition(row: Row, contenders: list[Row]) -> str:
    peers = sorted((peer for peer in contenders if not peer.ours), key=lambda peer: peer.seconds)
    wrong = {peer.contender: f" ({peer.wrong:.2%} wrong)" if peer.wrong else "" for peer in peers}
    return "<br>".join(f"{peer.contender} {peer.seconds / row.seconds:.1f}x{wrong[peer.contender]}" for peer in peers)


def _training_steps(steps: list[dict]) -> list[str]:
    if not steps:
        return []
    lines = [
        "| training step | ours | eager float32 | ratio | by CPU time | asked | |",
        "|---|---|---|---|---|---|---|",
    ]
    for step in steps:
        precision = step["contender"].removeprefix("soho_fast").strip() or "float32"
        ours, eager = (f"{step[key]:.1f} images/s" for key in ("images_per_second", "eager_images_per_second"))
        word = "held" if step["ratio"] >= step["bar"] else "**missed**"
        ratios = f"{step['ratio']:.2f}x | {step['cpu_ratio']:.2f}x | >= {step['bar']:g}x"
        lines.append(f"| {step['shape']}, {precision} | {ours} | {eager} | {ratios} | {word} |")
    return [*lines, ""]


def store_name(machine: str, what: str) -> str:
    """The file for runs of `what` on this kind of processor or card."""
    words = re.sub(r"\((r|tm)\)|\b(cpu|processor)\b|@ *[0-9.]+ *ghz", " ", machine.lower())
    return f"{what}-{'-'.join(re.findall('[a-z0-9]+', words)) or 'unnamed'}.json"


def read_inference(path: Path) -> dict | None:
    """What `python -m benchmarks.inference` wrote, or None: another file, or none."""
    try:
        result = json.loads(path.read_text())
    except (OSError, json.JSONDecodeError):
        return None
    return result.get("inference") if isinstance(result, dict) else None


def inference_tables(folder: Path) -> str:
    """Markdown: what every stored result of the inference study renders, the newest first."""
    results = [read_inference(path) for path in folder.glob("inference-*.json")]
    return "\n\n".join(map(inference.table, sorted(results, key=lambda it: it["datetime"], reverse=True)))


def tables(folder: Path) -> str:
    """Markdown: what every stored result renders, the newest first."""
    results = [read_result(path) for path in folder.glob("ops-*.json")]
    return "\n\n".join(table(result) for result in sorted(results, key=lambda it: it["datetime"], reverse=True))


def table(result: dict) -> str:
    """Markdown: the training steps, of each competition our fastest row against every peer, then the bars."""
    rows = rows_of(result["benchmarks"])
    limits, cases = limits_of(rows), cases_of(rows)
    lines = [
        _setup_line(result),
        "",
        *_training_steps(result.get("training_steps", [])),
        "| op | ours | of the machine's limit | a peer takes |",
        "|---|---|---|---|",
    ]
    for row in best_lines(rows):
        name = f"{row.op} {row.case}"
        contenders = cases[row.op, row.case]
        if any(not peer.ours for peer in contenders):
            ours = f"{time_text(row.seconds)} ({row.contender.removeprefix('soho_fast').strip() or 'soho_fast'})"
            lines.append(f"| {name} | {ours} | {limit_text(row, limits)} | {_competition(row, contenders)} |")
    lines += ["", "| bar | asked | measured | |", "|---|---|---|---|"]
    bars = result["soho_fast"]["bars"]
    for bar in bars:
        if bar["held"] is not None:
            word = "held" if bar["held"] else "**missed**"
            lines.append(f"| {bar['claim']} | {bar['bar']} | {bar['measured']} | {word} |")
    for bar in bars:
        if bar["held"] is None:
            lines.append(f"| {bar['claim']} | {bar['bar']} | | not measured here |")
    return "\n".join(lines)


def with_table(page: str, text: str, markers: tuple[str, str] = (BEGIN, END)) -> str:
    """The page with `text` between its markers.

    Raises:
        ValueError: markers that are missing or in the wrong order.
    """
    begin, end = map(page.find, markers)
    if not 0 <= begin < end:
        raise ValueError(f"page: expected the markers {markers[0]} and {markers[1]}, in this order")
    return f"{page[: begin + len(markers[0])]}\n{text}\n{page[end:]}"


def _fixed(shapes: list[tuple[int, ...]], series: str) -> str:
    """What stays the same in a series of lookups, such as "K = 1,024 codes, C = 128 channels"."""
    parts = []
    for name, sizes in zip(SERIES, zip(*shapes, strict=True), strict=True):
        if name != series:
            sizes = sorted(set(sizes))
            parts.append(f"{name} = {' and '.join(f'{size:,}' for size in sizes)} {UNITS[name]}")
    return ", ".join(parts)


def draw(result: dict, path: Path) -> None:
    """Time against N, K and C on logarithmic axes, one line per contender, with what is fixed and what ran it."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = [row for row in rows_of(result["benchmarks"]) if row.op == GROWTH]
    if not rows:
        raise ValueError("result: it holds no growth curves (test_lookup_growth.py did not run): no figure")
    points: dict[str, dict[str, list[tuple[int, float]]]] = {series: {} for series in SERIES}
    shapes: dict[str, list[tuple[int, ...]]] = {series: [] for series in SERIES}
    for row in rows:
        points[row.info["series"]].setdefault(row.contender, []).append((row.info["size"], row.seconds))
        shapes[row.info["series"]].append(row.shape)
    levels = {row.contender: row.level for row in rows if row.level}
    figure = Figure(figsize=(12, 4.8), layout="constrained")
    FigureCanvasAgg(figure)
    contenders = list(dict.fromkeys(name for lines in points.values() for name in lines))
    for axes, (series, lines) in zip(figure.subplots(1, 3, sharey=True), points.items(), strict=True):
        for name, values in lines.items():
            sizes, seconds = zip(*sorted(values), strict=True)
            axes.plot(
                sizes,
                [1e3 * value for value in seconds],
                marker="o",
                linewidth=2.5 if name == "soho_fast" else 1.2,
                color=f"C{contenders.index(name)}",
                label=f"{name} ({levels[name]})" if name in levels else name,
            )
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xlabel(SERIES[series])
        axes.set_title(_fixed(shapes[series], series), fontsize=10)
        axes.grid(alpha=0.3, which="both")
    figure.axes[0].set_ylabel("ms, float32")
    setup = result["soho_fast"]
    machine = f"{_cpu(result)}, {setup['threads']} threads, {result['datetime'][:10]}"
    figure.suptitle(f"Codebook lookup: nearest of K codes for N features of C channels. {machine}", fontsize=11)
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, metadata={"Software": None})


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument(
        "results", metavar="result", type=Path, nargs="+", help="what --benchmark-json or the study wrote"
    )
    parser.add_argument(
        "--page", type=Path, default=ROOT / "docs/results.md", help="file whose marked block is replaced"
    )
    parser.add_argument("--figure", type=Path, help="PNG to write; docs/benchmarks.png, or docs/inference.png")
    parser.add_argument("--store", type=Path, default=ROOT / "benchmarks/results", help="folder of the copies to keep")
    options = parser.parse_args(arguments)
    try:
        if len(options.results) == 1 and (study := read_inference(options.results[0])):
            markers, what, machine = INFERENCE, "inference", study["machine"]
            figure = options.figure or ROOT / "docs/inference.png"
            with_table(options.page.read_text(), "", markers)
            inference.draw(study, figure)
            kept, all_tables = {"inference": study}, inference_tables
        else:
            result = joined([read_result(path) for path in options.results])
            markers, what, machine = (BEGIN, END), "ops", _cpu(result)
            figure = options.figure or ROOT / "docs/benchmarks.png"
            with_table(options.page.read_text(), "", markers)
            draw(result, figure)
            kept, all_tables = stored(result), tables
        options.store.mkdir(parents=True, exist_ok=True)
        copy = options.store / store_name(machine, what)
        copy.write_text(json.dumps(kept) + "\n")
        options.page.write_text(with_table(options.page.read_text(), all_tables(options.store), markers))
    except ValueError as error:
        sys.exit(f"error: {error}")
    print(f"wrote {options.page}, {figure} and {copy}")


if __name__ == "__main__":
    main()
