"""Two commands at once on one folder: one does the work, the other refuses; nothing of either is lost."""

import random
import time
from pathlib import Path

from kills import same_folders
from tiny_runs import Bench, LostError, run, start


def attempt(bench: Bench, seed: int, folder: Path) -> int:
    """The second starts so much later."""
    draw = random.Random(seed)
    what = ("vqa", "pretraining", "evaluate")[seed % 3]
    output = folder / "run"
    arguments = bench.evaluate(bench.folder / "vqa", output) if what == "evaluate" else bench.train(what, output)
    first = start(arguments)
    time.sleep(draw.choice((0, 1)) * draw.uniform(0, 1.2) * bench.seconds[what])
    second = start(arguments)
    codes = [command.wait().expect(0, 2, where=name).code for command, name in ((first, "first"), (second, "second"))]
    if codes == [2, 2]:
        raise LostError("both refused")
    if what == "evaluate":
        run(arguments).expect(0, where="evaluated again")
        same_folders(bench.folder / "evaluated", output)
    else:
        bench.compare(what, output)
    return 1
