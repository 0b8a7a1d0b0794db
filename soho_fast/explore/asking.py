"""POST /ask: a question about images, as a form, to a model at hand; its answers and where it looked, as JSON.

The form's fields: `model`, its name; `image`, once, or twice for two images, left and right: a file, or the number of
an image of the bundle; `text`, once a text; `question`, the model's own, if that is to be checked, or "codes", which
takes no text and asks which codes the image has; `attend`, the number of the text whose attention is wanted. The reply:
see `SeeingPipeline.ask`; each image has also `seen` (upload, original or small copy) and `number`; `no_codes` says why
no codes are given, where they are not, and `agreement` how many of the patches of some of the explorer's images, of 1,
have the same code by this model.
What can't be answered is {"error": one line}.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from soho_fast.ask import MODELS
from soho_fast.common import hub
from soho_fast.common.command_line import quiet_transformers
from soho_fast.common.errors import UserError, print_line
from soho_fast.common.extras import from_extra
from soho_fast.explore.bundle import BundleError
from soho_fast.explore.shown import ShownImages

with from_extra("explore"):
    from starlette.datastructures import UploadFile
    from starlette.exceptions import HTTPException
    from starlette.requests import ClientDisconnect, Request
    from starlette.responses import JSONResponse
    from starlette.types import Message

if TYPE_CHECKING:
    from soho_fast.explore.attention import SeeingPipeline

MAX_TEXTS = 100
MAX_TEXT_BYTES = 40_000
"""How many tokens a text may have says the model."""

LEAST_AGREEMENT = 0.5
"""Of the patches of some of the explorer's images: from here on a model's codes are taken for those of the explorer."""

WAITING = 4
"""Questions that may wait for a model that answers another one; more are turned away."""

_UPLOAD_SECONDS = 30  # Within which a form must have come.
_FORM_BYTES = 256 * 1024  # Of a form beside its images.


class Refused(Exception):
    """A question that gets no answer: the status of the reply, and one line that says why."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status


class _NobodyWaits(Exception):
    """Raised where a model works for somebody who has been refused an answer."""


def model_folder(given: str) -> Path:
    """The folder of the model of a run, or the folder of a model itself. Raises UserError."""
    if not Path(given).is_dir():
        raise UserError(f"model: {given}: there is no such folder; expected that of a run or of a model")
    found = Path(hub.model_folder(given))
    if not (found / "config.json").is_file():
        raise UserError(f"model: {found} has no config.json; to see an explorer without asking, serve its folder alone")
    return found


def kind_of(folder: Path) -> tuple[str, str]:
    """What the model in a folder is for, in words, and the question that it takes, see MODELS.

    Raises:
        UserError: it holds another, or its config.json is damaged.
    """
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        architectures = config.get("architectures") or ()
        kind = next((name for name in MODELS if name in architectures), None)
    except OSError as error:
        raise UserError(f"{path} can't be read ({error.strerror})") from error
    except (ValueError, RecursionError, AttributeError, TypeError) as error:
        raise UserError(f"{path} is damaged: expected a JSON object with a list `architectures`") from error
    if kind is None:
        held = ", ".join(map(str, architectures)) or "a model of unknown kind"
        raise UserError(f"model: {folder} holds {held}; expected {', '.join(MODELS)}")
    return MODELS[kind]


def load_model(name: str, folder: Path) -> SeeingPipeline:
    """The model of a folder. Raises Refused: it can't be loaded."""
    started = time.monotonic()
    print_line(f"loading {folder} ...")
    try:
        with from_extra("train"):
            from soho_fast.explore.attention import SeeingPipeline
        quiet_transformers()
        pipeline = SeeingPipeline.from_pretrained(folder)
    except (ValueError, OSError, ImportError) as error:
        why = " ".join(f"{name} can't be loaded: {error}".split())
        print_line(why)
        raise Refused(500, why) from error
    print_line(f"loaded {folder} in {time.monotonic() - started:.1f} s")
    return pipeline


class AskedModel:
    """A model, loaded when it is first asked, that answers one question at a time in its own thread.

    Args:
        name: How it is called in the page.
        kind, question: See MODELS; a question "codes" is for a function that finds codes alone.
        load: Gives the `SeeingPipeline`, or what has its `ask`.
    """

    def __init__(self, name: str, kind: str, question: str, load: Callable[[], Any]) -> None:
        self.name, self.kind, self.question, self._load = name, kind, question, load
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"model {name}")
        self._pipeline: Any = None
        # The codes of the user's own function are taken as they are.
        self._codes: tuple[float | None, str | None] | None = (None, None) if question == "codes" else None
        self._awaited: set[asyncio.Future] = set()
        self.pending = 0

    async def ask(
        self, seconds: float, shown: ShownImages, images: Sequence[bytes | int], **question: Any
    ) -> dict[str, Any]:
        """`SeeingPipeline.ask` about images, files or numbers of those `shown`, with codes only where they are the
        explorer's, see `_comparison`.

        A question that takes longer than `seconds`, waiting included, ends at the next occasion; until then the model
        answers no other one.

        Raises:
            Refused: too many wait, it takes too long, or it can't be answered.
        """
        if self.pending > WAITING:
            raise Refused(503, f"{self.name} is answering others, and {WAITING} more wait; ask again in a moment")
        too_late = threading.Event()

        def go_on() -> None:
            if too_late.is_set():
                raise _NobodyWaits

        self.pending += 1
        work = self._thread.submit(self._answer, go_on, shown, images, **question)
        future = asyncio.wrap_future(work)
        self._awaited.add(future)
        loop = asyncio.get_running_loop()
        work.add_done_callback(lambda _: loop.is_closed() or loop.call_soon_threadsafe(self._done))
        try:
            async with asyncio.timeout(seconds):
                return await future
        except TimeoutError:
            raise Refused(504, f"{self.name} gave no answer within {seconds:g} s (seconds sets how long)") from None
        finally:
            too_late.set()
            self._awaited.discard(future)

    def give_up(self) -> None:
        """No answer is awaited any more: the pending `ask` is cancelled."""
        for future in self._awaited:
            future.cancel()

    def close(self) -> bool:
        """Takes no more questions; whether one is still being worked on."""
        self._thread.shutdown(wait=False, cancel_futures=True)
        return self.pending > 0

    def _done(self) -> None:
        self.pending -= 1

    def _answer(
        self,
        go_on: Callable[[], None],
        shown: ShownImages,
        images: Sequence[bytes | int],
        question: str,
        **about: Any,
    ) -> dict[str, Any]:
        if self._pipeline is None:
            self._pipeline = self._load()
        go_on()
        if shown.is_replaced():
            raise Refused(409, "the explorer was built again: start this server again, too")
        try:
            files = [(image, "upload") if isinstance(image, bytes) else shown.read(image) for image in images]
        except BundleError as error:
            raise Refused(500, f"image: {error}") from error
        if self._codes is None:
            self._codes = self._comparison(self._pipeline, shown)
        agreement, why = self._codes
        go_on()
        started = time.monotonic()
        try:
            reply = self._pipeline.ask(question, [data for data, _ in files], go_on=go_on, **about)
        except ValueError as error:
            raise Refused(400, str(error)) from error
        for image, asked, (_, seen) in zip(reply["images"], images, files, strict=True):
            image.update(seen=seen, number=None if isinstance(asked, bytes) else asked)
            if why is not None:
                image["codes"] = None
        seconds = round(time.monotonic() - started, 3)
        said = {"model": self.name, "question": question, "seconds": seconds, "agreement": agreement, "no_codes": why}
        return {**said, **reply}

    def _comparison(self, pipeline: SeeingPipeline, shown: ShownImages) -> tuple[float | None, str | None]:
        """How far this model's codes are those of the explorer, of 1, and why they can't be taken for these.

        Fine-tuning leaves the codebook alone and moves the features, until other codes are the nearest ones.
        """
        weights = pipeline.weights()
        if weights is None:
            return None, "this model has no dictionary"
        if weights != shown.bundle.meta["weights"]:
            return None, "the codes shown here are of another codebook than this model's"
        agreement = shown.agreement(pipeline.codes_of)
        if agreement is None:
            return None, "this model divides images into other patches than the explorer"
        if agreement < LEAST_AGREEMENT:
            share = f"{100 * agreement:.0f} % of the patches"
            return agreement, f"this model's training has moved its features away from the codes ({share} agree)"
        return agreement, None


@dataclass
class Asking:
    """The endpoint.

    Attributes:
        models: By name.
        shown: The images of the bundle that is served.
        upload_bytes: The largest upload, all images of a question together.
        seconds: After which an answer is given up.
    """

    models: dict[str, AskedModel]
    shown: ShownImages
    upload_bytes: int
    seconds: float

    def described(self) -> dict[str, Any]:
        """What the page asks for, see `bundle`, data/server.js."""
        models = [{"name": each.name, "kind": each.kind, "question": each.question} for each in self.models.values()]
        return {"models": models, "upload_bytes": self.upload_bytes, "seconds": self.seconds}

    async def reply(self, request: Request) -> JSONResponse:
        """Answer a form."""
        try:
            model, images, question = await self._read(request)
            return JSONResponse(await model.ask(self.seconds, self.shown, images, **question))
        except Refused as refused:
            headers = {"retry-after": "5"} if refused.status == 503 else {}
            # What came of a form that is too large or too slow is not read to its end.
            if refused.status in (408, 413):
                headers["connection"] = "close"
            return JSONResponse({"error": str(refused)}, refused.status, headers)
        except asyncio.CancelledError:
            return JSONResponse({"error": "the server is being stopped"}, 503, {"connection": "close"})
        except ClientDisconnect:
            return JSONResponse({"error": "the form ended early"}, 400)

    async def _read(self, request: Request) -> tuple[AskedModel, list[bytes | int], dict[str, Any]]:
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "multipart/form-data":
            raise Refused(415, f"expected a form, multipart/form-data, got {kind[:60] or 'no content type'}")
        limited = Request(request.scope, self._counting(request))
        try:
            async with asyncio.timeout(_UPLOAD_SECONDS):
                form = await limited.form(max_files=2, max_fields=MAX_TEXTS + 8, max_part_size=MAX_TEXT_BYTES)
        except TimeoutError:
            raise Refused(408, f"the form did not come within {_UPLOAD_SECONDS} s") from None
        except HTTPException as error:
            raise Refused(400, f"the form can't be read: {error.detail}") from error
        except UnicodeError as error:  # The request names an encoding of its own.
            raise Refused(400, f"the form can't be read: {error}") from error
        try:
            return await self._question(form.multi_items())
        finally:
            await form.close()

    def _counting(self, request: Request) -> Callable[[], Any]:
        """The request's own messages, until they are larger than is allowed."""
        largest = self.upload_bytes + _FORM_BYTES
        too_large = Refused(413, f"the upload is larger than {self.upload_bytes / 2**20:g} MB (--upload_mb sets it)")
        announced = request.headers.get("content-length", "")
        if announced.isascii() and announced.isdigit() and (len(announced) > 18 or int(announced) > largest):
            raise too_large
        came = 0

        async def receive() -> Message:
            nonlocal came
            message = await request.receive()
            came += len(message.get("body", b""))
            if came > largest:
                raise too_large
            return message

        return receive

    async def _question(
        self, items: Sequence[tuple[str, str | UploadFile]]
    ) -> tuple[AskedModel, list[bytes | int], dict[str, Any]]:
        fields: dict[str, list[str | UploadFile]] = {}
        for name, value in items:
            fields.setdefault(name, []).append(value)
        wrong = next((name for name in fields if name not in ("model", "question", "image", "text", "attend")), None)
        if wrong is not None:
            raise Refused(400, f"{wrong[:60]!a}: there is no such field; expected model, image, text, question, attend")
        for name, values in fields.items():
            if name != "image" and not all(isinstance(value, str) for value in values):
                raise Refused(400, f"{name}: expected a text, got a file")
            if name in ("model", "question", "attend") and len(values) > 1:
                raise Refused(400, f"{name}: expected one, got {len(values)}")
        texts_of = {name: [value for value in values if isinstance(value, str)] for name, values in fields.items()}
        model = self._model(texts_of.get("model", [""])[0])
        asked = texts_of.get("question", [model.question])[0]
        if asked not in (model.question, "codes"):
            expected = f"expected {' or '.join(dict.fromkeys((model.question, 'codes')))}, got {asked[:60]!a}"
            raise Refused(400, f"question: {model.name} is for {model.kind}: {expected}")
        texts = self._texts(texts_of.get("text", []), asked)
        count = 2 if asked == "compare" else 1
        if len(fields.get("image", [])) != count:
            raise Refused(400, f"image: {asked} takes {count}, got {len(fields.get('image', []))}")
        images = [await self._image(value) for value in fields["image"]]
        question: dict[str, Any] = {"question": asked, "texts": texts}
        if "attend" in fields:
            question["attend"] = _number("attend", texts_of["attend"][0], len(texts))
        return model, images, question

    def _model(self, name: str) -> AskedModel:
        if name not in self.models:
            at_hand = ", ".join(self.models) or "none: serve RUN, or an explorer and the folders of models"
            raise Refused(404, f"model: there is no {name[:60]!a}; at hand: {at_hand}")
        return self.models[name]

    @staticmethod
    def _texts(texts: Sequence[str], asked: str) -> list[str]:
        least, most = {"rank": (1, MAX_TEXTS), "codes": (0, 0)}.get(asked, (1, 1))
        if not least <= len(texts) <= most:
            raise Refused(400, f"text: {asked} takes {'1 to ' if most > 1 else ''}{most}, got {len(texts)}")
        for number, text in enumerate(texts):
            if not text.strip():
                raise Refused(400, f"text {number + 1} is empty")
        return list(texts)

    async def _image(self, value: str | UploadFile) -> bytes | int:
        if isinstance(value, str):
            return _number("image", value, self.shown.bundle.meta["num_shown"], "a file, or the number of an image")
        if not value.size:
            raise Refused(400, "image: the file is empty")
        return await value.read()


def _number(field: str, text: str, count: int, expected: str = "a number") -> int:
    """A number below `count`, as it stands in a form."""
    if not (text.isascii() and text.isdigit() and len(text) <= 9 and int(text) < count):
        upto = f"0 to {count - 1}" if count else "of which there are none"
        raise Refused(400, f"{field}: expected {expected}, {upto}, got {text[:60]!a}")
    return int(text)
