"""Hostile uploads and forms: a clear line each, nothing executed, nothing written, nothing kept."""

import io
import random
import socket
import struct
import tempfile
import time
import zlib

import pytest
from loopback import form_of
from PIL import Image

MODEL, TEXT = ("model", "rank"), ("text", "a red man")


def encoded(form, size=(64, 64), colour=(200, 30, 30)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, form)
    return file.getvalue()


def png_bomb(width=60_000, height=60_000) -> bytes:
    """A small file that says that it is an image of 3.6 billion pixels."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 100_000))


def until_closed(connection) -> bytes:
    came = b""
    while part := connection.recv(65536):
        came += part
    return came


SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script><image href="file:///etc/passwd"/></svg>'
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/etc/passwd) (r) file\n%%EOF\n"
NO_IMAGES = {
    "photo.jpg": b"this is a text\n" * 50,
    "picture.svg": SVG,
    "picture.png": SVG,
    "figure.eps": EPS,
    "page.html": b"<html><script>alert(1)</script></html>",
    "paper.pdf": b"%PDF-1.4\n1 0 obj<<>>endobj\ntrailer<<>>\n%%EOF",
    "archive.zip": b"PK\x03\x04" + b"\0" * 100,
    "short.jpg": encoded("JPEG")[:200],
    "short.png": encoded("PNG", (300, 300))[:80],
    "magic.gif": b"GIF89a",
    "bomb.png": png_bomb(),
    "bomb-of-text.png": b"\x89PNG\r\n\x1a\n" + b"\0" * 100,
    "zero.bmp": b"BM" + b"\0" * 60,
    "noise.tif": random.Random(0).randbytes(3000),
}


@pytest.fixture
def no_files(tmp_path, monkeypatch):
    """An empty folder where temporary files would lie."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    yield tmp_path
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", NO_IMAGES)
def test_what_is_no_image_is_told_whatever_it_is_called(served, no_files, name):
    reply = served.ask(MODEL, TEXT, ("image", (name, NO_IMAGES[name])))
    assert reply.status == 400 and reply.error.startswith("image: can't be decoded as an image"), reply.body
    assert "alert" not in reply.error and "passwd" not in reply.error


def test_an_empty_file(served):
    assert served.ask(MODEL, TEXT, ("image", ("a.png", b""))).error == "image: the file is empty"


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM"])
def test_an_image_is_read_by_its_content_and_its_name_is_no_path(served, no_files, form):
    names = ["../../../etc/passwd", "/tmp/x.jpg", "a\\..\\b.svg", "x" * 3000, "a.html", "\u202egnp.jpg", ""]
    replies = [served.ask(MODEL, TEXT, ("image", (name, encoded(form)))) for name in names[: 7 if form == "PNG" else 1]]
    assert {reply.status for reply in replies} == {200}
    assert len({str(reply.json["answers"]) for reply in replies}) == 1


def test_a_polyglot_counts_as_the_image_that_it_begins_with(served):
    plain = served.ask(MODEL, TEXT, ("image", ("a.png", encoded("PNG")))).json
    polyglot = served.ask(MODEL, TEXT, ("image", ("a.html", encoded("PNG") + b"<script>alert(1)</script>"))).json
    assert polyglot["answers"] == plain["answers"] and "alert" not in str(polyglot)


def test_an_upload_is_cut_off_while_it_comes(served, no_files):
    body, content_type = form_of([MODEL, TEXT, ("image", ("a.png", b"x" * (2**20 + 2**18)))])
    head = f"POST /ask HTTP/1.1\r\nHost: localhost\r\nContent-Type: {content_type}\r\n"
    # Announced: nothing of it is read.
    with socket.create_connection(("127.0.0.1", served.port), timeout=5) as connection:
        connection.sendall(f"{head}Content-Length: {10**12}\r\n\r\n".encode())
        reply = until_closed(connection)
    assert b" 413 " in reply and b"the upload is larger than 1 MB (--upload_mb sets it)" in reply
    # Not announced: read up to the limit, and then no more.
    with socket.create_connection(("127.0.0.1", served.port), timeout=5) as connection:
        connection.sendall(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode())
        part, sent = body[: 2**16], 0
        try:
            while sent < 2**26:
                connection.sendall(f"{len(part):x}\r\n".encode() + part + b"\r\n")
                part, sent = b"x" * 2**16, sent + len(part)
        except OSError:
            pass
    assert 2**20 < sent < 2**23
    assert served.ask(MODEL, TEXT, ("image", ("a.png", b"x" * (2**20 - 1)))).status == 400  # No image, but it fits.


def test_slow_senders_and_those_that_leave(served, monkeypatch, no_files):
    monkeypatch.setattr("soho_fast.explore.asking._UPLOAD_SECONDS", 0.3)
    body, content_type = form_of([MODEL, TEXT, ("image", ("a.png", encoded("PNG")))])
    head = (
        f"POST /ask HTTP/1.1\r\nHost: localhost\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", served.port), timeout=5) as connection:
        started = time.monotonic()
        connection.sendall(head.encode() + body[:200])
        reply = until_closed(connection)
        assert b" 408 " in reply and b"did not come within 0.3 s" in reply and time.monotonic() - started < 3
    for _ in range(20):
        with socket.create_connection(("127.0.0.1", served.port), timeout=5) as connection:
            connection.sendall(head.encode() + body[:300])
    assert served.ask(MODEL, TEXT, ("image", ("a.png", encoded("PNG")))).status == 200


WRONG_TYPES = [
    (None, 415, "no content type"),
    ("application/json", 415, "got application/json"),
    ("application/x-www-form-urlencoded", 415, "got application/x-www-form-urlencoded"),
    ("multipart/mixed; boundary=x", 415, "got multipart/mixed"),
    ("x" * 3000, 415, "got xxx"),
    ("multipart/form-data", 400, "Missing boundary"),
    ("multipart/form-data; boundary=", 400, "form can't be read"),
    ("multipart/form-data; boundary=" + "x" * 2000, 400, "form can't be read"),
    ("multipart/form-data; boundary=other", 400, "form can't be read"),
]


@pytest.mark.parametrize(("content_type", "status", "words"), WRONG_TYPES)
def test_wrong_content_types(served, content_type, status, words):
    body, _ = form_of([MODEL, TEXT])
    reply = served.send("POST", "/ask", body, {} if content_type is None else {"Content-Type": content_type})
    assert reply.status == status and words in reply.error


def test_a_form_in_an_encoding_that_reads_nothing(served):
    body, content_type = form_of([MODEL, TEXT])
    reply = served.send("POST", "/ask", body, {"Content-Type": f"{content_type}; charset=undefined"})
    assert reply.status == 400 and "form can't be read" in reply.error


def test_hundreds_of_malformed_forms(served, no_files):
    """Each gets one line that says what is wrong, and the server goes on."""
    draw = random.Random(15)
    whole, content_type = form_of([MODEL, TEXT, ("image", ("a.png", encoded("PNG"))), ("attend", "0")])
    pieces = [
        b"\r\n",
        b"--",
        b"\0",
        b'"',
        b";",
        b"name=",
        b"filename=",
        b"Content-Disposition: form-data",
        b"\xff\xfe",
        b":",
    ]
    statuses: dict[int, int] = {}
    for _ in range(400):
        body = bytearray(whole)
        for _ in range(draw.randint(1, 8)):
            place = draw.randrange(len(body) + 1)
            match draw.randrange(5):
                case 0:
                    del body[place : place + draw.randint(1, 200)]
                case 1:
                    body[place:place] = draw.choice(pieces) * draw.randint(1, 50)
                case 2:
                    body[place : place + 4] = draw.randbytes(4)
                case 3:
                    body[place:place] = body[: draw.randint(0, len(body))]
                case 4:
                    del body[place:]
        kind = content_type if draw.random() < 0.9 else content_type[: draw.randrange(len(content_type))] + "\x7f\u00e9"
        reply = served.send("POST", "/ask", bytes(body), {"Content-Type": kind.encode("latin-1")})
        statuses[reply.status] = statuses.get(reply.status, 0) + 1
        assert reply.status in (200, 400, 404, 413, 415), (reply, bytes(body))
        assert reply.status == 200 or reply.error
    assert statuses[400] > 100 and len(statuses) > 2, statuses
    assert served.ask(MODEL, TEXT, ("image", ("a.png", encoded("PNG")))).status == 200
