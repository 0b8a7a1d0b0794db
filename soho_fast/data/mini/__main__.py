"""``python -m soho_fast.data.mini --out data/soho-mini``: build the demo corpus."""

from __future__ import annotations

import argparse
import dataclasses
import sys

from soho_fast.common.command_line import Parser, exit_code

from .builder import build_corpus
from .options import SceneOptions


def _add_options(parser: Parser) -> None:
    """A flag for each field of `SceneOptions`."""
    group = parser.add_argument_group("harder than the demo")
    words = {
        "styles": "drawing styles, twemoji or folders (python -m soho_fast.data.mini.styles makes some)",
        "heldout_styles": "styles of the additional held-out split `styles`",
        "max_objects": "maximum number of objects in a scene, 1 to 6",
        "texts": "factor on the number of questions, statements and hypotheses",
        "photo_share": "share of scenes with a photograph as background",
        "monuments": "49 photographs of Debian's gcompris-qt-data as backgrounds too",
        "object_scale": "factor on the objects' sizes",
        "max_rotation": "maximum rotation of an object, in degrees",
        "overlap": "maximum overlap of objects, as a share",
        "noise": "maximum standard deviation of the noise, as a share of white",
        "blur": "maximum radius of the blur, as a share of the side",
        "jitter": "maximum change of brightness, contrast and saturation, as a share",
    }
    for field in dataclasses.fields(SceneOptions):
        flag, kind = f"--{field.name.replace('_', '-')}", type(field.default)
        if kind is bool:
            group.add_argument(flag, action="store_true", help=words[field.name])
        elif isinstance(field.default, tuple):
            group.add_argument(flag, nargs="+", default=list(field.default), help=words[field.name])
        else:
            group.add_argument(flag, type=kind, default=field.default, help=words[field.name])


def main(arguments: list[str] | None = None) -> int:
    """Run a command line; returns the exit code: 0 done, 2 a mistake of the user, 130 when stopped."""
    return exit_code(_run, arguments)


def _run(arguments: list[str]) -> int:
    parser = Parser(
        prog="soho corpus",
        epilog="example: soho corpus --out data/small --num-train 400 --num-heldout 100",
        description="Build the demo corpus from images in installed packages, unless it is there already.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--out", default="data/soho-mini", help="folder of the corpus")
    parser.add_argument("--num-train", type=int, default=4000, help="number of training scenes")
    parser.add_argument(
        "--num-heldout", type=int, default=500, help="number of held-out scenes, half val and half test"
    )
    parser.add_argument("--image-size", type=int, default=128, help="side of the square images, in pixels")
    parser.add_argument("--seed", type=int, default=0, help="seed of the whole corpus")
    _add_options(parser)
    parser.add_argument("--quiet", action="store_true", help="print nothing but errors")
    options = vars(parser.parse_args(arguments))
    build_corpus(options.pop("out"), progress=not options.pop("quiet"), **options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
