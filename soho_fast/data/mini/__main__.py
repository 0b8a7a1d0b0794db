"""``python -m soho_fast.data.mini --out data/soho-mini``: build the demo corpus."""

from __future__ import annotations

import argparse
import sys

from soho_fast.command_line import Parser, as_text
from soho_fast.engine.errors import fail

from .builder import build_corpus


def main(arguments: list[str] | None = None) -> int:
    """Build the corpus the command line asks for; return the exit status."""
    parser = Parser(
        prog="python -m soho_fast.data.mini",
        description="Build the demo corpus from pictures in installed packages; keep one of the same settings.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--out", default="data/soho-mini", help="folder of the corpus")
    parser.add_argument("--num-train", type=int, default=4000, help="number of training scenes")
    parser.add_argument(
        "--num-heldout", type=int, default=500, help="number of held-out scenes, half val and half test"
    )
    parser.add_argument("--image-size", type=int, default=128, help="side of the pictures in pixels")
    parser.add_argument("--seed", type=int, default=0, help="fixes the whole corpus")
    parser.add_argument("--quiet", action="store_true", help="print nothing but errors")
    try:
        options = parser.parse_args(as_text(sys.argv[1:] if arguments is None else arguments))
        build_corpus(
            options.out,
            num_train=options.num_train,
            num_heldout=options.num_heldout,
            image_size=options.image_size,
            seed=options.seed,
            progress=not options.quiet,
        )
    except (ValueError, OSError) as error:
        return fail(str(error))
    return 0


if __name__ == "__main__":
    sys.exit(main())
