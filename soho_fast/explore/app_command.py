"""`soho app RUN`: a model in the browser; `app.py` is the app."""

from __future__ import annotations

import sys

from soho_fast.common.extras import from_extra

with from_extra("train"):
    from soho_fast.common.command_line import Parser, exit_code
    from soho_fast.common.hub import check_name


def main(arguments: list[str] | None = None) -> int:
    """Run a command line; returns the exit code: 0 done, 2 a mistake of the user, 130 when stopped."""
    return exit_code(_run, arguments)


def _run(arguments: list[str]) -> int:
    about = "Ask a model in the browser, and see the codes and the attention of an image."
    parser = Parser(prog="soho app", description=about, epilog="example: soho app runs/mini")
    parser.add_argument("run", help="Folder of a run or of a model, or a name on the hub.")
    parser.add_argument("--port", type=int, help="Port of this machine (default: the first free one from 7860 on).")
    parser.take_modules()
    options = parser.parse_args(arguments)
    check_name(options.run, needs_owner=True)
    with from_extra("app"):
        from soho_fast.explore.app import serve_model

    serve_model(options.run, options.port, options.accept_changes)
    return 0


if __name__ == "__main__":
    sys.exit(main())
