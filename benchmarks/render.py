"""Renders the JSON of the op benchmarks: the README's table between its markers, and the figure of time against N, K
and C. So no figure in the README is typed by hand. What it rendered is kept in benchmarks/results/ops.json.

    python -m benchmarks.render result.json
"""

import argparse
import json
import sys
from pathlib import Path

from benchmarks.ops.report import GROWTH, Row, best_lines, cases_of, limit_text, limits_of, rows_of, time_text

ROOT = Path(__file__).resolve().parents[1]
BEGIN, END = "<!-- benchmarks: begin -->", "<!-- benchmarks: end -->"
STATS = ("min", "median", "rounds")
SERIES = {"N": "features N", "K": "codes K", "C": "channels C"}


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


def stored(result: dict) -> dict:
    """The part of a result that rendering needs: without the rounds and what else the machine says of itself."""
    kept = [
        {"extra_info": record["extra_info"], "stats": {name: record["stats"].get(name) for name in STATS}}
        for record in result["benchmarks"]
        if "op" in record["extra_info"]
    ]
    cpu = {"brand_raw": result.get("machine_info", {}).get("cpu", {}).get("brand_raw", "unnamed CPU")}
    return {
        "benchmarks": kept,
        "soho_fast": result["soho_fast"],
        "training_steps": result.get("training_steps", []),
        "machine_info": {"cpu": cpu},
        "datetime": result["datetime"],
    }


def _setup_line(result: dict) -> str:
    setup, machine = result["soho_fast"], result.get("machine_info", {})
    cpu = machine.get("cpu", {}).get("brand_raw", "unnamed CPU")
    level = setup["build"].get("cpu_level", "reference only")
    versions = ", ".join(f"{name} {number}" for name, number in setup["versions"].items() if number != "absent")
    return f"{cpu}, {setup['threads']} threads, level {level}; {versions}; {result['datetime'][:10]}."


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


def with_table(readme: str, text: str) -> str:
    """The README with `text` between its markers.

    Raises:
        ValueError: markers that are missing or in the wrong order.
    """
    begin, end = readme.find(BEGIN), readme.find(END)
    if not 0 <= begin < end:
        raise ValueError(f"readme: expected the markers {BEGIN} and {END}, in this order")
    return f"{readme[: begin + len(BEGIN)]}\n{text}\n{readme[end:]}"


def draw(rows: list[Row], path: Path) -> None:
    """Time against N, K and C on logarithmic axes, one line per contender."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    points: dict[str, dict[str, list[tuple[int, float]]]] = {series: {} for series in SERIES}
    for row in rows:
        if row.op == GROWTH:
            points[row.info["series"]].setdefault(row.contender, []).append((row.info["size"], row.seconds))
    if not any(points.values()):
        raise ValueError("result: it holds no growth curves (test_lookup_growth.py did not run): no figure")
    figure = Figure(figsize=(11, 4), layout="constrained")
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
                label=name,
            )
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xlabel(SERIES[series])
        axes.grid(alpha=0.3, which="both")
    figure.axes[0].set_ylabel("codebook lookup, ms")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, metadata={"Software": None})


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("result", type=Path, help="what --benchmark-json wrote")
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md", help="file whose marked block is replaced")
    parser.add_argument("--figure", type=Path, default=ROOT / "docs/benchmarks.png", help="PNG to write")
    parser.add_argument("--store", type=Path, default=ROOT / "benchmarks/results/ops.json", help="copy to keep")
    options = parser.parse_args(arguments)
    try:
        result = read_result(options.result)
        readme = with_table(options.readme.read_text(), table(result))
        draw(rows_of(result["benchmarks"]), options.figure)
    except ValueError as error:
        sys.exit(f"error: {error}")
    options.readme.write_text(readme)
    options.store.parent.mkdir(parents=True, exist_ok=True)
    options.store.write_text(json.dumps(stored(result)) + "\n")
    print(f"wrote {options.readme}, {options.figure} and {options.store}")


if __name__ == "__main__":
    main()
