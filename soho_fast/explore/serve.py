"""The explorer as a web server, with the questions that need a model.

python -m soho_fast.explore serve runs/mini
python -m soho_fast.explore serve runs/mini runs/mini_vqa
"""

from __future__ import annotations

import argparse
import asyncio
import errno
import ipaddress
import json
import os
import signal
import socket
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from stat import S_ISREG
from typing import Any

from soho_fast.common.checksums import SUMS
from soho_fast.common.errors import UserError, print_line
from soho_fast.common.extras import from_extra
from soho_fast.common.versions import gone_on
from soho_fast.explore.build import default_folder
from soho_fast.explore.bundle import PAGES, Bundle, value_in

with from_extra("explore"):
    import uvicorn
    from starlette.applications import Starlette
    from starlette.datastructures import Headers, MutableHeaders
    from starlette.requests import Request
    from starlette.responses import JSONResponse, Response
    from starlette.routing import Mount, Route
    from starlette.staticfiles import StaticFiles
    from starlette.types import ASGIApp, Message, Receive, Scope, Send
    from uvicorn.protocols.http.h11_impl import H11Protocol

    from soho_fast.explore.asking import AskedModel, Asking, kind_of, load_model, model_folder
    from soho_fast.explore.shown import ShownImages

_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
}

# A machine's own table may call scripts plain text, which "nosniff" then forbids to run.
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".jpg": "image/jpeg",
    ".png": "image/png",
}

PAGE_FILES, FOLDERS = ("index.html", "app"), {"data": ".js", "images": ".jpg", "decoded": ".png"}
"""What is served of the installed pages, and of an explorer's folder, which may be another's."""

_ANY = ("", "0.0.0.0", "::")  # All addresses of the machine.
_REQUEST_SECONDS = 20  # Within which a request's headers must have come.
_CONNECTIONS = 100
_LARGEST_HEADERS = 32 * 1024


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command line of `serve`."""
    parser.add_argument("run", help="Folder of a run or of a model whose explorer was built, or of an explorer alone.")
    parser.add_argument("models", nargs="*", help="Further runs or models to ask.")
    parser.add_argument("--explorer", help="The explorer's folder (RUN/explorer).")
    parser.add_argument("--host", default="127.0.0.1", help="Address to listen on (127.0.0.1, this machine alone).")
    parser.add_argument("--port", type=int, default=8000, help="Port to listen on (8000); 0 takes any free one.")
    parser.add_argument("--seconds", type=float, default=60.0, help="Time limit of an answer, in seconds (60).")
    parser.add_argument("--upload_mb", type=float, default=20.0, help="Largest upload, in MB (20).")


def run(options: argparse.Namespace) -> int:
    """Serve until Ctrl-C; returns the exit code. Raises UserError: something given can't be used."""
    for name, least, most in (("port", 0, 65535), ("seconds", 0.001, 86_400), ("upload_mb", 0.001, 1024)):
        if not least <= getattr(options, name) <= most:
            raise UserError(f"{name}: expected {least:g} to {most:g}, got {getattr(options, name):g}")
    limits = {"upload_bytes": int(options.upload_mb * 2**20), "seconds": options.seconds}
    asking = at_hand(options.run, options.models, options.explorer, **limits)
    code = 0
    try:
        serve(asking, options.host, options.port)
    except KeyboardInterrupt:
        print_line("\nstopped", file=sys.stderr)
        code = 128 + signal.SIGINT
    if any([model.close() for model in asking.models.values()]):
        # A model in the middle of a computation can't be stopped, and nobody waits for it any more.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def serve(asking: Asking, host: str, port: int) -> None:
    """Serve, and say where, until Ctrl-C, which raises KeyboardInterrupt. Raises UserError: it can't listen there."""
    listening = listen(host, port)
    address, port = listening.getsockname()[:2]
    _say_where(host, address, port, asking)
    running = server(asking, host)
    loop = None
    with suppress(RuntimeError):
        loop = asyncio.get_running_loop()
    if loop is None:  # In a notebook, beside whose loop another one runs only in a thread of its own, there is one.
        running.run(sockets=[listening])
        return
    with ThreadPoolExecutor(1, thread_name_prefix="server") as thread:
        try:
            thread.submit(running.run, [listening]).result()
        finally:
            running.should_exit = True


def server(asking: Asking, host: str = "127.0.0.1") -> uvicorn.Server:
    """What serves `application`, with limits to what a connection may cost."""
    config = uvicorn.Config(
        application(asking, host),
        http=_Protocol,
        ws="none",
        lifespan="off",
        log_level="error",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=_CONNECTIONS,
        h11_max_incomplete_event_size=_LARGEST_HEADERS,
        timeout_graceful_shutdown=1,
    )
    return _Server(config, asking)


def at_hand(given: str, more: Sequence[str] = (), explorer: str | None = None, **limits: Any) -> Asking:
    """What there is to show and to ask.

    Args:
        given: Folder of a run, of a model, or of an explorer alone, which brings no model.
        more: Folders of further models.
        explorer: Folder of the explorer, where it does not lie in that of the run.
        limits: `upload_bytes` and `seconds` of `Asking`.

    Raises:
        UserError, ValueError, OSError: one of them can't be used.
    """
    alone = (Path(given) / "data" / "meta.js").is_file()
    if explorer is None:
        explorer = given if alone else str(default_folder(given))
    if not Path(given).is_dir():
        raise UserError(f"{given}: there is no such folder; expected that of a run, of a model or of an explorer")
    folders = [*([] if alone else [given]), *more]
    names = [Path(os.path.abspath(folder)).name for folder in folders]
    models: dict[str, AskedModel] = {}
    newer: list[str] = []
    for folder, name in zip(folders, names, strict=True):
        name, model = name if names.count(name) == 1 else folder, model_folder(folder)
        models[name] = AskedModel(name, *kind_of(model), partial(load_model, name, model))
        newer += gone_on(model)
    bundle = Bundle(explorer)
    if bundle.sums:
        bundle.check()
    else:
        print_line(f"{explorer} has no {SUMS}: whether it is as it was built is not known")
    for line in (*bundle.of_another_model(), *newer):
        print_line(line)
    for _ in bundle.images():
        pass  # Each is looked at.
    is_run = not alone and (Path(given) / "recipe.yaml").is_file()
    shown = ShownImages(bundle, given if is_run else None)
    return Asking(models, shown, **limits)


def application(asking: Asking, host: str = "127.0.0.1") -> ASGIApp:
    """The server's pages and its one question, for requests that are meant for `host`."""

    async def server_js(_: Request) -> Response:
        text = f'explorer.receive("server", {json.dumps(asking.described())});\n'
        return Response(text, media_type=_TYPES[".js"], headers={"cache-control": "no-store"})

    async def failed(_: Request, __: Exception) -> Response:
        return JSONResponse({"error": "the server failed at this; its terminal says at what"}, 500)

    routes = [
        Route("/ask", asking.reply, methods=["POST"]),
        Route("/data/server.js", server_js),
        Mount("/", _Files(asking.shown.bundle.folder)),
    ]
    return _Guard(Starlette(routes=routes, exception_handlers={Exception: failed}), host)


class _Files(StaticFiles):
    """The installed pages, index.html and app/, and a bundle's data, each one value, and its images; no link leads
    out."""

    def __init__(self, folder: Path) -> None:
        super().__init__(directory=folder)
        self._root, self._pages = os.path.realpath(folder), StaticFiles(directory=PAGES)

    def lookup_path(self, path: str) -> tuple[str, os.stat_result | None]:
        path = "index.html" if path == "." else path
        asked = Path(path).parts
        if asked[0] in PAGE_FILES:
            return self._pages.lookup_path(path)
        found, stat = super().lookup_path(path)
        if not found or Path(found).suffix != FOLDERS.get(asked[0]):
            return "", None
        if asked[0] == "data":
            try:
                if not S_ISREG(os.stat(found).st_mode):  # a pipe would be waited for
                    return "", None
                value_in(Path(found).read_bytes(), Path(path).stem)
            except (OSError, ValueError, RecursionError):  # What does more would run as this server's own script.
                return "", None
        return (found, stat) if Path(found).relative_to(self._root).parts[:1] == asked[:1] else ("", None)

    def file_response(
        self, full_path: Any, stat_result: os.stat_result, scope: Scope, status_code: int = 200
    ) -> Response:
        response = super().file_response(full_path, stat_result, scope, status_code)
        response.headers["content-type"] = _TYPES.get(Path(full_path).suffix.lower(), "application/octet-stream")
        response.headers["cache-control"] = "no-cache"  # An explorer that is built anew is shown.
        return response


class _Guard:
    """Lets requests through that are meant for this server, and says on every reply how browsers treat it.

    A page of the net whose name its owner has pointed here (DNS rebinding) is known by the name; one that sends a form
    here by its origin.
    """

    def __init__(self, app: ASGIApp, host: str) -> None:
        self.app, self.host = app, host

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(_HEADERS)
            await send(message)

        why = self._refusal(scope["method"], Headers(scope=scope))
        app = self.app if why is None else JSONResponse({"error": why}, 403)
        await app(scope, receive, send_guarded)

    def _refusal(self, method: str, headers: Headers) -> str | None:
        hosts = headers.getlist("host")
        if len(hosts) != 1 or not is_meant_for(hosts[0], self.host):
            return "this server answers to its own address alone; open the one that it printed"
        origin = headers.get("origin")
        if method not in ("GET", "HEAD") and origin is not None and origin != f"http://{hosts[0]}":
            return "questions are taken from this server's own page alone"
        return None


def is_meant_for(header: str, listening: str) -> bool:
    """Whether a request's Host header names this server.

    Args:
        header: "name", "name:port" or "[address]:port".
        listening: the address that the server listens at, which may stand for all of the machine's.
    """
    name = header.rpartition(":")[0] if header.rpartition(":")[2].isdecimal() else header
    name = name.lower()
    if name in ("localhost", "127.0.0.1", "[::1]", listening.lower(), f"[{listening.lower()}]"):
        return True
    if listening not in _ANY:
        return False
    try:
        # No name that somebody else could point here; the address itself is the machine's, or nothing would have come.
        return bool(ipaddress.ip_address(name.strip("[]")))
    except ValueError:
        return name == socket.gethostname().lower()


class _Server(uvicorn.Server):
    """uvicorn's server, which tells those who wait for an answer when it ends."""

    def __init__(self, config: uvicorn.Config, asking: Asking) -> None:
        super().__init__(config)
        self._asking = asking

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for model in self._asking.models.values():
            model.give_up()
        await super().shutdown(sockets)


class _Protocol(H11Protocol):
    """uvicorn's HTTP, which ends a connection whose next request does not come."""

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._end_unless_asked()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._end_unless_asked()

    def _end_unless_asked(self) -> None:
        last = self.cycle

        def end() -> None:
            if self.cycle is last and not self.transport.is_closing():
                self.transport.close()

        self.loop.call_later(_REQUEST_SECONDS, end)


def listen(host: str, port: int) -> socket.socket:
    try:
        (family, _, _, _, address), *_ = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        return socket.create_server(address[:2], family=family)
    except (OSError, UnicodeError) as error:
        told = {
            errno.EADDRINUSE: f"port: {port} is taken; choose another one, as --port {port + 1}, or 0 for any",
            errno.EACCES: f"port: {port} is not allowed here; choose one from 1024 on",
        }
        reason = f"host: can't listen at {host} ({getattr(error, 'strerror', None) or error})"
        raise UserError(told.get(getattr(error, "errno", None) or 0, reason)) from error


def _say_where(host: str, address: str, port: int, asking: Asking) -> None:
    shown = "localhost" if host in _ANY else f"[{host}]" if ":" in host else host
    if not ipaddress.ip_address(address).is_loopback:
        print_line(
            f"warning: --host {host}: everyone who reaches this machine at port {port} can see these images and use "
            "the models; nothing is encrypted and no password is asked for",
            file=sys.stderr,
        )
    for model in asking.models.values():
        loaded = "" if model.question == "codes" else ", loaded when it is first asked"
        print_line(f"{model.name}: {model.question} ({model.kind}){loaded}")
    if not asking.models:
        print_line("no model: the explorer alone")
    title = " ".join(asking.shown.bundle.meta["title"].split())
    print_line(f"{title}: http://{shown}:{port}/   (Ctrl-C ends)")
