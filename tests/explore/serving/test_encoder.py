"""Which codes an image has by the user's own function, of an explorer of arrays."""

import io
import json
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
from loopback import Served
from PIL import Image

from soho_fast.explore import Clip, build_from_arrays, encoder, serve_explorer
from soho_fast.explore import serve as serving

CODEBOOK = np.array([[0, 0, 0], [255, 0, 0], [0, 255, 0], [0, 0, 255]], np.float32)


def quiet(line):
    pass


@pytest.fixture
def given():
    """Squares of 8 x 8 pixels, black, red, green and blue."""
    index = np.random.default_rng(0).integers(4, size=(3, 2, 5))
    return index, CODEBOOK.astype(np.uint8)[index].repeat(8, 1).repeat(8, 2)


def means(image):
    """(rows, columns, 3), the mean colour of each square."""
    assert isinstance(image, Image.Image) and image.mode == "RGB"
    return np.asarray(image, np.float32).reshape(image.height // 8, 8, image.width // 8, 8, 3).mean((1, 3))


def file_of(image) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


def asked(monkeypatch, folder, encode, images, **options):
    """The replies to "codes" of what is served; an image is a file, or a number of the explorer's."""
    replies = []

    def serve(asking, host, port):
        assert (host, port) == ("127.0.0.1", 0)
        serving = Served(asking)
        try:
            form = [("model", "encode"), ("question", "codes")]
            values = [str(image) if isinstance(image, int) else ("photo.png", image) for image in images]
            server = json.loads(serving.get("/data/server.js").body.partition(b", ")[2].rpartition(b")")[0])
            assert server["models"] == [{"name": "encode", "kind": "your function", "question": "codes"}]
            replies.extend(serving.ask(*form, ("image", value)) for value in values)
        finally:
            serving.close()

    monkeypatch.setattr(encoder, "serve", serve)
    serve_explorer(folder, encode, port=0, **options)
    return replies


@pytest.mark.parametrize("kind", ["features", "codes", "levels"])
def test_codes_are_those_of_the_function(given, tmp_path, monkeypatch, kind):
    index, images = given
    codebook = np.stack([CODEBOOK, CODEBOOK / 2]) if kind == "levels" else CODEBOOK
    folder = build_from_arrays(means_of(images), codebook, images, tmp_path / "explorer", say=quiet)

    def encode(image):
        nearest = np.square(means(image)[..., None, :] - CODEBOOK).sum(-1).argmin(-1)
        if kind == "levels":
            return np.stack([nearest, 0 * nearest], -1)
        return means(image) if kind == "features" else np.where(nearest == 3, -1, nearest)

    options = {"codebook": codebook} if kind == "features" else {}
    larger = np.concatenate([index[0], index[1], index[2][:, ::-1]])  # of no image of the explorer's size
    pixels = CODEBOOK.astype(np.uint8)[larger].repeat(8, 0).repeat(8, 1)
    upload, shown = asked(monkeypatch, folder, encode, [file_of(pixels), 1], **options)
    for reply, expected, seen in ((upload, larger, "upload"), (shown, index[1], "small copy")):
        assert reply.status == 200, reply.body
        (image,) = reply.json["images"]
        codes = [None if code == 3 and kind == "codes" else code for code in expected.ravel().tolist()]
        assert (image["codes"], image["seen"]) == (codes, seen)
        assert (image["rows"], image["columns"]) == expected.shape == (image["patches_high"], image["patches_wide"])
    assert reply.json["no_codes"] is None and reply.json["agreement"] is None


def means_of(images):
    return np.stack([means(Image.fromarray(image)) for image in images])


def test_a_function_that_fails_or_gives_something_else_says_so(given, tmp_path, monkeypatch):
    _, images = given
    folder = build_from_arrays(means_of(images), CODEBOOK, images, tmp_path / "explorer", say=quiet)
    for encode, told in (
        (lambda image: 1 / 0, "encode: ZeroDivisionError: division by zero"),
        (means, "encode: expected codes, integers (rows, columns); features need codebook="),
        (lambda image: np.full((2, 2), 4), "encode: index[0]: expected codes of -1 to 3, got 4 to 4"),
        (lambda image: np.zeros((2, 2, 2), int), "encode: index[0]: expected 1 levels, as the codebook has, got 2"),
        (lambda image: None, "encode: TypeError: index[0]: expected integers, got object"),
    ):
        reply, broken = asked(monkeypatch, folder, encode, [file_of(images[0]), b"no image"])
        assert (reply.status, reply.error) == (500, told)
        assert broken.status == 400 and broken.error.startswith("image: can't be read as an image (")


def test_what_cannot_be_served_is_refused_by_name(given, tmp_path):
    index, images = given
    folder = build_from_arrays(means_of(images), CODEBOOK, images, tmp_path / "explorer", say=quiet)
    with pytest.raises(ValueError, match="codebook: not that of the explorer, which has 4 codes in all"):
        serve_explorer(folder, means, codebook=CODEBOOK + 1)
    with pytest.raises(ValueError, match=r"codebook: not that of the explorer, .* by metric 'cosine'"):
        serve_explorer(folder, means, codebook=CODEBOOK, metric="cosine")
    without = build_from_arrays(index=index, images=images, folder=tmp_path / "without", say=quiet)
    with pytest.raises(ValueError, match="codebook: expected none, as the explorer was built without one"):
        serve_explorer(without, means, codebook=CODEBOOK)
    with pytest.raises(ValueError, match="metric: expected euclidean or cosine, got 'dot'"):
        serve_explorer(folder, means, codebook=CODEBOOK, metric="dot")
    for port in (-1, 65536, "8000"):
        with pytest.raises(ValueError, match=f"port: expected 0 to 65535, got {port!r}"):
            serve_explorer(folder, means, port=port)
    with pytest.raises(FileNotFoundError, match="is no explorer"):
        serve_explorer(tmp_path / "nowhere", means)
    with pytest.raises(TypeError, match="encode: expected a function of an image, got ndarray"):
        serve_explorer(folder, CODEBOOK)
    clips = build_from_arrays(
        index=index[:, :1], images=[Clip(np.zeros(8000), 8000)] * 3, folder=tmp_path / "clips", say=quiet
    )
    with pytest.raises(ValueError, match="explorer: expected one of images, whose codes `encode` finds, got one of"):
        serve_explorer(clips, means)


SERVED = """
import asyncio, signal, sys, threading, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # Jobs in a shell's background are started without.
from soho_fast.explore import serve_explorer

async def cell():  # of a notebook, which runs within a loop, in which another one can't run
    serve_explorer(sys.argv[1], lambda image: image, port=0)
    await asyncio.sleep(0)

if sys.argv[2] == "script":
    serve_explorer(sys.argv[1], lambda image: image, port=0)
else:
    asyncio.new_event_loop().run_until_complete(cell())
until = time.monotonic() + 10
while threading.active_count() > 1 and time.monotonic() < until:
    time.sleep(0.05)
print("goes on with threads:", threading.active_count())
"""


def test_errors_of_the_server_have_no_other_before_them(monkeypatch):
    """It looks for a notebook's loop, whose absence is an error that would be told with each of its own."""
    handled = []
    server = SimpleNamespace(run=lambda sockets: handled.append(sys.exception()))
    monkeypatch.setattr(serving, "server", lambda asking, host: server)
    monkeypatch.setattr(serving, "_say_where", lambda *where: None)
    serving.serve(None, "127.0.0.1", 0)
    assert handled == [None]


@pytest.mark.parametrize("where", ["script", "notebook"])
def test_ctrl_c_ends_it_and_what_a_notebook_runs_goes_on(given, tmp_path, where):
    index, images = given
    folder = build_from_arrays(index=index, images=images, folder=tmp_path / "explorer", say=quiet)
    command = [sys.executable, "-u", "-c", SERVED, str(folder), where]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as serving:
        said = ""
        while "http://127.0.0.1:" not in said and (line := serving.stdout.readline()):
            said += line
        time.sleep(0.5)  # It says where before it listens to signals of its own.
        serving.send_signal(signal.SIGINT)
        try:
            rest, errors = serving.communicate(timeout=60)
        finally:
            serving.kill()
    assert "encode: codes (your function)\n" in said, said + errors
    assert (serving.returncode, rest.splitlines()[-1:]) == (0, ["goes on with threads: 1"]), rest + errors


def test_nothing_is_answered_of_an_explorer_that_was_built_again(given, tmp_path, monkeypatch):
    """The page shows the new one's codes, which are others."""
    index, images = given
    folder = build_from_arrays(means_of(images), CODEBOOK, images, tmp_path / "explorer", say=quiet)
    first = file_of(images[0])

    def encode(image):
        build_from_arrays(means_of(images), CODEBOOK[::-1], images, folder, say=quiet)
        return index[0]

    before, after = asked(monkeypatch, folder, encode, [first, first])
    assert before.status == 200
    assert (after.status, after.error) == (409, "the explorer was built again: start this server again, too")
