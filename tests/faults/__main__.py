"""A campaign of faults against training, evaluating, asking and reading, on tiny runs of the real commands.

python tests/faults --minutes 60
python tests/faults --only kills,disk --seed 17 --count 1     one fault again

Exit code 1 when anything was lost. Faults are given by their class and seed alone.
"""

import argparse
import os
import sys

from campaign import CLASSES, campaign, prepared

parser = argparse.ArgumentParser(prog="tests/faults", description=__doc__.splitlines()[0])
parser.add_argument("--minutes", type=float, default=60)
parser.add_argument("--seed", type=int, default=0, help="Seed of each class's first fault; the others follow.")
parser.add_argument("--only", default="", help=f"Classes, with commas: {', '.join(kind.name for kind in CLASSES)}.")
parser.add_argument("--count", type=int, help="At most so many faults of each class.")
parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)), help="Faults at a time.")
parser.add_argument("--keep", action="store_true", help="Keep the folders of what was lost.")
options = vars(parser.parse_args())
only = set(filter(None, options.pop("only").split(",")))
if unknown := only - {kind.name for kind in CLASSES}:
    parser.error(f"--only: there is no class {', '.join(sorted(unknown))}")
classes = [kind for kind in CLASSES if not only or kind.name in only]
with prepared(keep=options["keep"]) as bench:
    print("the undisturbed runs are made", flush=True)
    campaign(classes, bench, **options)
print("| class | what is tried | tried | held | lost |\n|---|---|---:|---:|---:|")
for kind in classes:
    print(f"| `{kind.name}` | {kind.about} | {kind.tried:,} | {kind.tried - kind.lost:,} | {kind.lost:,} |")
sys.exit(any(kind.lost for kind in classes))
