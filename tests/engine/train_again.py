"""The command run again and again in one process: a JSON list of arguments a line of standard input.

Prints a JSON line with the exit code after each.
"""

import json
import sys

from soho_fast import train
from soho_fast.engine import launch


def main() -> None:
    # The next command goes on in the same process group.
    launch.leave_processes = lambda: None
    for line in sys.stdin:
        code = train.main(json.loads(line))
        sys.stderr.flush()
        print(json.dumps({"code": code}), flush=True)


if __name__ == "__main__":
    main()
