"""The door of `soho app`: who gets in, how much each session may take, and what is said of a call that fails."""

from __future__ import annotations

import secrets
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from soho_fast.common.errors import UserError, print_line
from soho_fast.common.extras import from_extra

with from_extra("app"):
    import gradio as gr
    from fastapi import FastAPI
    from gradio.http_server import start_server
    from starlette.exceptions import HTTPException
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware
    from starlette.responses import JSONResponse
    from starlette.staticfiles import StaticFiles

    from soho_fast.common.images import one_line

HOST = "127.0.0.1"
MAX_FILE_MB, MAX_UPLOADS_MB, MAX_CALL_MB = 20, 500, 4
"""The most of an upload, of all uploads of an hour, and of another request."""
MAX_TEXTS, MAX_SECONDS, MAX_CALLS = 50_000, 600.0, 4
"""What a session may take: texts and seconds of an hour, calls at a time."""
_HOUR = 3600.0  # seconds, after which uploads are deleted
_AT_A_TIME, _WAITING = 16, 64  # calls of a tab that take turns, and those that wait


@dataclass
class Session:
    """What a session has taken since the hour began."""

    began: float = field(default_factory=time.monotonic)
    texts: int = 0
    seconds: float = 0.0
    calls: int = 0


class Turns:
    """The calls of an app, which compute by turns, one step each, within what their sessions may take."""

    def __init__(self) -> None:
        self._sessions: dict[str, Session] = {}
        self._step, self._table = threading.Lock(), threading.Lock()

    def take(self, name: str, steps: Callable[[], Iterator[Any]], texts: int) -> Iterator[Any]:
        """What `steps()` gives, for a session. Raises ValueError: the session takes too much."""
        with self._call_of(name, texts) as session:
            answers = steps()
            while True:
                if session.seconds > MAX_SECONDS:
                    raise ValueError(f"time: this session has had its {MAX_SECONDS:g} seconds of this hour")
                with self._step:
                    began = time.monotonic()
                    try:
                        answer = next(answers)
                    except StopIteration:
                        return
                    finally:
                        session.seconds += time.monotonic() - began
                yield answer

    @contextmanager
    def _call_of(self, name: str, texts: int) -> Iterator[Session]:
        with self._table:
            now = time.monotonic()
            for old in [key for key, one in self._sessions.items() if not one.calls and now - one.began > _HOUR]:
                del self._sessions[old]
            session = self._sessions.setdefault(name, Session())
            if session.texts + texts > MAX_TEXTS:
                had = f"after {session.texts:,}" if session.texts else "at once"
                raise ValueError(f"texts: expected at most {MAX_TEXTS:,} of a session an hour, got {texts:,} {had}")
            if session.calls >= MAX_CALLS:
                raise ValueError(f"calls: expected at most {MAX_CALLS} at a time; stop one, or wait for its end")
            session.texts += texts
            session.calls += 1
        try:
            yield session
        finally:
            with self._table:
                session.calls -= 1


class App(gr.Blocks):
    """Blocks whose calls answer any error by one line, and leave one: Gradio would print a stack trace."""

    async def process_api(self, *args: Any, **options: Any) -> Any:
        """As of gr.Blocks. Raises gr.Error: the call failed."""
        try:
            return await super().process_api(*args, **options)
        except Exception as error:
            if isinstance(error, gr.Error) and not error.print_exception:
                raise
            raise gr.Error(_told(error), print_exception=False) from None


class Door:
    """ASGI middleware: requests that change something come from the app's own page or from a program, and are small;
    what fails in an unforeseen way leaves one line."""

    def __init__(self, app: Any) -> None:
        self.app = app
        self._uploads: list[tuple[float, int]] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Raises nothing."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        has_begun = has_ended = False

        async def sent(message: Any) -> None:
            nonlocal has_begun, has_ended
            has_begun, has_ended = True, message["type"] == "http.response.body" and not message.get("more_body")
            await send(message)

        refused = _foreign(scope)
        if refused:
            await JSONResponse({"error": refused}, 403)(scope, receive, send)
            return
        try:
            await self.app(scope, self._counted(scope, receive), sent)
        except Exception as error:
            line = _told(error)
            if has_begun and not has_ended:
                await send({"type": "http.response.body"})  # Its end.
            elif not has_begun:
                await JSONResponse({"error": line}, 500)(scope, receive, send)

    def _counted(self, scope: Any, receive: Any) -> Callable[[], Any]:
        """`receive`, which raises HTTPException where a request has too many bytes."""
        is_upload = scope["path"].rstrip("/").endswith("/upload")
        most = 2**20 * ((MAX_FILE_MB + 1) if is_upload else MAX_CALL_MB)
        num_bytes = 0

        async def counted() -> Any:
            nonlocal num_bytes
            message = await receive()
            came = len(message.get("body", b""))
            num_bytes += came
            if num_bytes > most:
                raise HTTPException(413, f"expected at most {most >> 20} MB of a request")
            if is_upload and came:
                since = time.monotonic() - _HOUR
                self._uploads = [each for each in self._uploads if each[0] > since] + [(time.monotonic(), came)]
                if sum(size for _, size in self._uploads) > MAX_UPLOADS_MB * 2**20:
                    raise HTTPException(413, f"expected at most {MAX_UPLOADS_MB} MB of uploads an hour")
            return message

        return counted


def _foreign(scope: Any) -> str:
    """Why a request is not taken: a page of another origin sends it; empty where it is."""
    headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
    origin, host = headers.get("origin"), headers.get("host", "")
    if scope["method"] in ("GET", "HEAD") or (origin in (None, f"http://{host}") and _site(headers) != "cross-site"):
        return ""
    return f"origin: expected http://{host[:80]}, got {(origin or _site(headers))[:80]!r}"


def _site(headers: dict[str, str]) -> str:
    return headers.get("sec-fetch-site", "")


def _failed(_: Any, error: Exception) -> JSONResponse:
    return JSONResponse({"error": _told(error)}, 500)


def _told(error: Exception) -> str:
    line = one_line(error)
    if line not in getattr(error, "__notes__", ()):  # It comes once more, on its way out.
        error.add_note(line)
        print_line(f"a call failed: {line}", file=sys.stderr)
    return line


def serve(app: gr.Blocks, port: int | None = None, explorer: Path | None = None) -> str:
    """Serve an app to this machine alone, under an address that nobody can guess, and below it, at `explorer/`, the
    folder of an explorer; `app.close()` ends it.

    Returns:
        The address. Whoever does not have it gets "Not Found" for whatever is asked.

    Raises:
        UserError: the port can't be used.
    """
    if port is not None and port not in range(1, 65536):
        raise UserError(f"port: expected 1 to 65535, got {port!r}")
    path = f"/{secrets.token_urlsafe(24)}"
    # A page of the net whose name its owner has pointed here (DNS rebinding) is known by the name.
    guard = [Middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"]), Middleware(Door)]
    outside = FastAPI(openapi_url=None, docs_url=None, redoc_url=None, middleware=guard)
    if explorer is not None:
        outside.mount(f"{path}/explorer", StaticFiles(directory=explorer, html=True))
    app.queue(max_size=_WAITING, api_open=False, default_concurrency_limit=_AT_A_TIME)
    shown: dict[str, Any] = {"footer_links": [], "run_history": False, "ssr_mode": False, "root_path": path}
    shown["app_kwargs"] = {"exception_handlers": {Exception: _failed}}
    served = gr.mount_gradio_app(outside, app, path, server_name=HOST, max_file_size=f"{MAX_FILE_MB}mb", **shown)
    try:
        *_, address, app.server = start_server(served, HOST, port)
    except OSError as error:
        raise UserError(f"port: {port or 'from 7860 on'} can't be used ({one_line(error)}); choose another") from error
    app.has_launched = True  # Without which Gradio takes any file for an uploaded one.
    # `close` ends the streams of this one.
    app.app = next(route.app for route in served.routes if getattr(route, "path", None) == path)
    return f"{address.rstrip('/')}{path}/"
