"""A campaign of faults against training, evaluating and reading, on tiny runs of the real commands.

python tests/faults --minutes 60
python tests/faults --only kills,disk --seed 17 --count 1     one fault again

Exit code 1 when anything was lost. Faults are given by their class and seed alone.
"""

import argparse
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))


def main() -> int:
    from classes import CLASSES

    parser = argparse.ArgumentParser(prog="tests/faults", description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0, help="Seed of each class's first fault; the others follow.")
    parser.add_argument("--only", default="", help=f"Classes, with commas: {', '.join(CLASSES)}.")
    parser.add_argument("--count", type=int, help="At most so many faults of each class.")
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)), help="Faults at a time.")
    parser.add_argument("--folder", help="Where the runs go; a temporary folder, deleted afterwards, by default.")
    parser.add_argument("--markdown", type=Path, help="Write the table to this file.")
    parser.add_argument("--keep", action="store_true", help="Keep the folders of what was lost.")
    options = parser.parse_args()
    names = [name for name in options.only.split(",") if name] or list(CLASSES)
    unknown = sorted({*names} - {*CLASSES})
    if unknown:
        parser.error(f"--only: expected some of {', '.join(CLASSES)}, got {', '.join(unknown)}")

    from campaign import Campaign, table
    from tiny_runs import Bench, import_everything

    folder = Path(tempfile.mkdtemp(prefix="faults-", dir=options.folder))
    os.environ["FAULTS_FOLDER"] = str(folder)
    os.chdir(folder)
    try:
        began = time.monotonic()
        import_everything()
        bench = Bench(folder)
        bench.prepare()
        print(
            f"the undisturbed runs are made ({time.monotonic() - began:.0f} s); {options.minutes:g} minutes", flush=True
        )
        classes = [CLASSES[name] for name in names]
        campaign = Campaign(classes, bench, seed=options.seed, processes=options.processes, keep=options.keep)
        campaign.run(options.minutes, options.count)
    finally:
        if not options.keep:
            shutil.rmtree(folder, ignore_errors=True)
    text = table(classes)
    print(text)
    if options.markdown is not None:
        options.markdown.write_text(text + "\n")
    return int(any(kind.losses for kind in classes))


if __name__ == "__main__":
    sys.exit(main())
