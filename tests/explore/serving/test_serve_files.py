"""What of a disk the server hands out, and to whom."""

import os
import re
import shutil
import socket
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from loopback import serve
from starlette.routing import Route

from soho_fast.explore.asking import Asking
from soho_fast.explore.serve import FOLDERS, PAGE_FILES, application


@pytest.fixture(scope="module")
def site(bundle_folder, tmp_path_factory):
    """A copy of the bundle with traps in it and a secret beside it, served without a model."""
    home = tmp_path_factory.mktemp("home")
    folder = home / "explorer"
    shutil.copytree(bundle_folder, folder)
    (home / "secret.txt").write_text("SECRET")
    (home / "explorer-of-another").mkdir()
    (home / "explorer-of-another" / "secret.js").write_text("SECRET")
    (folder / "notes.txt").write_text("SECRET")
    (folder / "private").mkdir()
    (folder / "private" / "secret.js").write_text("SECRET")
    (folder / "data" / "out.js").symlink_to(home / "secret.txt")
    (folder / "data" / "up.js").symlink_to("../notes.txt")
    (folder / "images" / "away").symlink_to(home)
    (folder / "images" / "moved").symlink_to("0000")
    (folder / "data" / "pipe.js").unlink(missing_ok=True)
    os.mkfifo(folder / "data" / "pipe.js")
    serving = serve(folder, folder)
    serving.folder = folder
    yield serving
    serving.close()


def test_the_files_of_the_bundle_come_as_they_lie(site):
    types = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".jpg": "image/jpeg"}
    names = [
        path.relative_to(site.folder).as_posix()
        for path in site.folder.rglob("*")
        if path.is_file() and path.suffix in types and not path.is_symlink() and "private" not in path.parts
    ]
    assert len(names) > 10
    for name in names:
        if name == "data/server.js":
            continue
        reply = site.get(f"/{name}")
        assert reply.status == 200 and reply.body == (site.folder / name).read_bytes(), name
        assert reply.headers["content-type"].startswith(types[os.path.splitext(name)[1]]), name
    assert site.get("/").body == (site.folder / "index.html").read_bytes()
    assert site.get("/images/moved/000000.jpg").status == 200


def test_only_data_that_hand_over_a_value_are_served(site):
    """Of an explorer that somebody else made: whatever else lies in it would be a page or a script of this server's."""
    value = (site.folder / "data/wall.js").read_text()
    others = {
        "data/wall.js": f"{value}steal();\n",
        "data/page.html": "<script src=/images/steal.js></script>",
        "data/page.svg": "<svg/>",
        "images/steal.js": value,
        "data/other.js": value,
        "decoded/page.html": "",
    }
    for name, text in others.items():
        path = site.folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        assert site.get(f"/{name}").status == 404, name
        path.unlink()
    (site.folder / "data/wall.js").write_text(value)
    assert site.get("/data/wall.js").status == 200


def test_a_bundle_that_is_built_anew_is_shown(site):
    there = site.get("/data/meta.js")
    assert there.headers["cache-control"] == "no-cache"
    assert site.get("/data/meta.js", **{"If-None-Match": there.headers["etag"]}).status == 304


def test_every_route_is_documented(tmp_path):
    """A request a row of the table of docs/explorer.md, and nothing else is served."""
    page = (Path(__file__).resolve().parents[3] / "docs/explorer.md").read_text()
    told = set(re.findall(r"^\| `((?:GET|POST) /\S*)` \|", page, flags=re.MULTILINE))
    shown = SimpleNamespace(bundle=SimpleNamespace(folder=tmp_path))
    routes = application(Asking({}, shown, upload_bytes=1, seconds=1.0)).app.routes
    served = {f"{next(iter(route.methods - {'HEAD'}))} {route.path}" for route in routes if isinstance(route, Route)}
    assert served == {"POST /ask", "GET /data/server.js"} <= told
    assert {request.split("/")[1] for request in told - served} == {"", *PAGE_FILES, *FOLDERS}


OUTSIDE = [
    "/../secret.txt",
    "/data/../../secret.txt",
    "/data/%2e%2e/%2e%2e/secret.txt",
    "/data/..%2f..%2fsecret.txt",
    "/%2e%2e%2fsecret.txt",
    "/data/..%5c..%5csecret.txt",
    "/data/%252e%252e/secret.txt",
    "/../explorer-of-another/secret.js",
    "/..%2fexplorer-of-another/secret.js",
    "//etc/passwd",
    "/%2fetc/passwd",
    "/data//etc/passwd",
    "/data/%2fetc/passwd",
    "/etc/passwd",
    "/notes.txt",
    "/app/../notes.txt",
    "/data/%2e%2e/notes.txt",
    "/private/secret.js",
    "/data/../private/secret.js",
    "/data/out.js",
    "/data/up.js",
    "/images/away/secret.txt",
    "/images/away/explorer/notes.txt",
    "/data/pipe.js",
    "/data/meta.js%00.txt",
    "/data/%00",
    "/data/",
    "/data",
    "/app",
    "/images/0000/",
    "/.",
    "/..",
    "/%2e",
    "/index.html/",
    "/index.html/../notes.txt",
    "/data/" + "a" * 5000,
    "/data/" + "a/" * 3000,
    "/data/%ff%fe",
    "/%c0%ae%c0%ae/secret.txt",
    "/C:/secret.txt",
    "/data/meta.js/x",
    "http://127.0.0.1/../secret.txt",
]


@pytest.mark.parametrize("path", OUTSIDE)
def test_no_other_file_is_read_by_its_name(site, path):
    # Sent as written: clients put paths in order before they send them.
    with socket.create_connection(("127.0.0.1", site.port), timeout=5) as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        reply = b""
        while part := connection.recv(65536):
            reply += part
    status = int(reply.split()[1])
    page = (site.folder / "index.html").read_bytes()
    assert b"SECRET" not in reply and b"root:" not in reply
    assert status == 404 or (status == 200 and reply.endswith(page) and path in ("/.", "/..", "/%2e", "/index.html/"))


def test_only_reading_is_allowed_and_only_questions_are_posted(site):
    assert site.send("POST", "/data/meta.js", b"x").status == 405
    assert site.send("PUT", "/data/new.js", b"x").status == 405
    assert site.send("DELETE", "/index.html").status == 405
    assert not (site.folder / "data" / "new.js").exists() and (site.folder / "index.html").exists()
    assert site.get("/ask").status == 404
    assert site.send("HEAD", "/data/meta.js").body == b""


def test_the_page_is_told_what_can_be_asked(site, served):
    reply = site.get("/data/server.js")
    assert reply.headers["cache-control"] == "no-store" and reply.headers["content-type"].startswith("text/javascript")
    assert reply.body == b'explorer.receive("server", {"models": [], "upload_bytes": 1048576, "seconds": 60.0});\n'
    models = served.get("/data/server.js").body.decode()
    assert '{"name": "compare", "kind": "visual reasoning about two images", "question": "compare"}' in models
    assert models.count('"question"') == 5


def test_every_reply_tells_browsers_to_be_strict(site):
    for reply in (
        site.get("/"),
        site.get("/nothing"),
        site.get("/data/server.js"),
        site.send("POST", "/ask", b""),
        site.get("/", Host="evil.example"),
    ):
        assert reply.headers["x-content-type-options"] == "nosniff"
        assert reply.headers["referrer-policy"] == "no-referrer"
        policy = reply.headers["content-security-policy"]
        assert "frame-ancestors 'none'" in policy and "script-src 'self';" in policy and "http" not in policy
        assert "access-control-allow-origin" not in reply.headers and "server" not in reply.headers


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("LOCALHOST:8000", 200),
        ("127.0.0.1:8000", 200),
        ("[::1]:8000", 200),
        ("evil.example", 403),
        ("evil.example:8000", 403),
        ("127.0.0.1.evil.example", 403),
        ("localhost.evil.example", 403),
        ("evil.example:127.0.0.1", 403),
        ("192.168.1.7", 403),
        ("", 403),
    ],
)
def test_a_name_that_others_pointed_here_is_not_served(site, host, status):
    assert site.get("/data/meta.js", Host=host).status == status


def test_hosts_when_the_server_leaves_the_loopback():
    from soho_fast.explore.serve import is_meant_for

    assert is_meant_for("192.168.1.7:8000", "192.168.1.7") and not is_meant_for("192.168.1.8:8000", "192.168.1.7")
    assert is_meant_for("[fe80::1]:80", "fe80::1") and is_meant_for("box.lan:1", "Box.lan")
    for everywhere in ("0.0.0.0", "::"):
        assert is_meant_for("10.0.0.3:8000", everywhere) and is_meant_for("[fe80::1]", everywhere)
        assert is_meant_for(f"{socket.gethostname()}:8000", everywhere)
        assert not is_meant_for("evil.example:8000", everywhere)


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "null", "https://127.0.0.1:{port}", "http://127.0.0.1:1", ""]
)
def test_questions_of_other_pages_are_not_taken(site, origin):
    reply = site.send("POST", "/ask", b"", {"Origin": origin.format(port=site.port)})
    assert reply.status == 403 and "this server's own page" in reply.error


def test_large_and_slow_headers_end(site, monkeypatch):
    with socket.create_connection(("127.0.0.1", site.port), timeout=5) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n")
        sent = 0
        with pytest.raises(OSError):
            while sent < 2**26:  # It does not go on reading for ever.
                connection.sendall(b"X-Large: " + b"a" * 2**16)
                sent += 2**16
        assert sent < 2**24
    monkeypatch.setattr("soho_fast.explore.serve._REQUEST_SECONDS", 0.3)
    for beginning in (b"", b"GET / HTTP/1.1\r\nHost: loc", b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"):
        with socket.create_connection(("127.0.0.1", site.port), timeout=5) as connection:
            started = time.monotonic()
            connection.sendall(beginning)
            while connection.recv(65536):
                pass
            assert 0.2 < time.monotonic() - started < 3


def test_a_link_of_the_bundle_itself_does_not_lead_out(bundle_folder, tmp_path):
    folder = tmp_path / "explorer"
    shutil.copytree(bundle_folder, folder)
    (folder / "index.html").unlink()
    (folder / "index.html").symlink_to("/etc/passwd")
    (folder / "images").rename(tmp_path / "images")
    (folder / "images").symlink_to(tmp_path / "images")
    serving = serve(folder, folder)
    try:
        assert b"root:" not in serving.get("/").body and serving.get("/images/0000/000000.jpg").status == 404
        assert serving.get("/data/meta.js").status == 200
    finally:
        serving.close()
