"""``python -m soho_fast.data.mini --out data/soho-mini``: build the demo corpus."""

from __future__ import annotations

import argparse
import dataclasses
import sys

from soho_fast.common.command_line import Parser, as_text
from soho_fast.common.errors import fail

from .builder import build_corpus
from .options import SceneOptions


def _add_options(parser: Parser) -> None:
    """A flag for each field of `SceneOptions`."""
    group = parser.add_argument_group("harder than the demo")
    words = {
        "styles": "drawing styles, twemoji or folders (python -m soho_fast.data.mini.styles makes some)",
        "heldout_styles": "styles of as many further held-out scenes, split styles",
        "max_objects": "most objects a scene, 1 to 6",
        "texts": "so many times as many questions, statements and hypotheses",
        "photo_share": "share of the scenes on a photograph",
        "monuments": "49 photographs of Debian's gcompris-qt-data as backgrounds too",
        "object_scale": "factor on the objects' sizes",
        "max_rotation": "degrees by which an object is turned at most",
        "overlap": "how much nearer than touching objects may be, as a share",
        "noise": "highest standard deviation of noise, as a share of white",
        "blur": "highest radius of blur, as a share of the side",
        "jitter": "most by which brightness, contrast and saturation change, as a share",
    }
    for field in dataclasses.fields(SceneOptions):
        flag, kind = f"--{field.name.replace('_', '-')}", type(field.default)
        if kind is bool:
            group.add_argument(flag, action="store_true", help=words[field.name])
        elif kind is tuple:
            group.add_argument(flag, nargs="+", default=list(field.default), help=words[field.name])
        else:
            group.add_argument(flag, type=kind, default=field.default, help=words[field.name])


def main(arguments: list[str] | None = None) -> int:
    """Build the corpus the command line asks for; return the exit status."""
    parser = Parser(
        prog="python -m soho_fast.data.mini",
        description="Build the demo corpus from images in installed packages; keep one of the same settings.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--out", default="data/soho-mini", help="folder of the corpus")
    parser.add_argument("--num-train", type=int, default=4000, help="number of training scenes")
    parser.add_argument(
        "--num-heldout", type=int, default=500, help="number of held-out scenes, half val and half test"
    )
    parser.add_argument("--image-size", type=int, default=128, help="side of the images in pixels")
    parser.add_argument("--seed", type=int, default=0, help="fixes the whole corpus")
    _add_options(parser)
    parser.add_argument("--quiet", action="store_true", help="print nothing but errors")
    try:
        options = parser.parse_args(as_text(sys.argv[1:] if arguments is None else arguments))
        scenes = {field.name: getattr(options, field.name) for field in dataclasses.fields(SceneOptions)}
        build_corpus(
            options.out,
            num_train=options.num_train,
            num_heldout=options.num_heldout,
            image_size=options.image_size,
            seed=options.seed,
            progress=not options.quiet,
            **scenes,
        )
    except (ValueError, TypeError, OSError) as error:
        return fail(str(error))
    return 0


if __name__ == "__main__":
    sys.exit(main())
