"""The training command, noting the samples of each micro-batch; SIGKILL before the step that is asked for.

python tests/engine/train_noting.py FOLDER KILL_AT --recipe ...
"""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from soho_fast import train


def main() -> int:
    from soho_fast.engine import step

    # DeepSpeed's launcher puts its own option first.
    arguments = [argument for argument in sys.argv[1:] if not argument.startswith("--local_rank")]
    folder, kill_at = Path(arguments[0]), int(arguments[1])
    split, count = step.split_batch, 0

    def noting(batch: Any, device: Any) -> Any:
        nonlocal count
        count += 1
        if count == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        with (folder / f"rank-{os.environ.get('RANK', 0)}.jsonl").open("a") as file:
            file.write(json.dumps(batch["sample_ids"]) + "\n")
        return split(batch, device)

    step.split_batch = noting
    return train.main(arguments[2:])


if __name__ == "__main__":
    sys.exit(main())
