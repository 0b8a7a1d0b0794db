"""``python -m soho_fast.data.mini --out data/soho-mini``: build the demo corpus."""

from __future__ import annotations

import argparse
import sys

from .builder import build_corpus


def main(arguments: list[str] | None = None) -> int:
    """Build the corpus the command line asks for; return the exit status."""
    parser = argparse.ArgumentParser(
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
    options = parser.parse_args(arguments)
    try:
        build_corpus(
            options.out,
            num_train=options.num_train,
            num_heldout=options.num_heldout,
            image_size=options.image_size,
            seed=options.seed,
            progress=not options.quiet,
        )
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
