"""Ten times faster? Bottom-up attention against SOHO (paper section 4.5): python -m benchmarks.inference RESULT

Stage times of both pipelines from random weights, with the checks of their results, their memory, and the targets. The
result is JSON, which `python -m benchmarks.render RESULT` puts into pages.
"""

import argparse
import json
import sys
from pathlib import Path

import torch

from benchmarks.inference.baselines import NAMES, SMALL, Sizes, names_here
from benchmarks.inference.measure import measure
from benchmarks.ops.targets import Verdict, verdict_table
from benchmarks.tables import as_text


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0], allow_abbrev=False)
    parser.add_argument("result", type=Path, help="JSON file to write")
    parser.add_argument("--rounds", type=int, default=6, help="passes of each method at batch 1")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32], help="images a pass takes")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--only", nargs="+", metavar="TEXT", help="methods whose name holds one of these")
    parser.add_argument("--small", action="store_true", help="small networks and images: to see that all runs")
    options = parser.parse_args(arguments)
    names = names_here(options.device)
    if options.only:
        names = [name for name in names if any(text in name for text in options.only)]
    if not names or options.rounds < 1 or min(options.batches) < 1:
        parser.error(f"expected positive numbers, and methods among {', '.join(map(repr, NAMES))}")
    sizes = SMALL if options.small else Sizes()

    def say(text: str) -> None:
        print(text, flush=True)

    result = measure(names, sizes, options.batches, options.rounds, options.device, say)
    for name, seen in result["boxes"].items():
        print(f"{name}: " + ", ".join(f"{nms} {first} -> {left} boxes" for nms, (first, left) in seen.items()))
    print(as_text(verdict_table([Verdict(**verdict) for verdict in result["targets"]])))
    options.result.parent.mkdir(parents=True, exist_ok=True)
    options.result.write_text(json.dumps({"inference": result}) + "\n")
    print(f"wrote {options.result}, with {torch.get_num_threads()} threads")
    return 0


if __name__ == "__main__":
    sys.exit(main())
