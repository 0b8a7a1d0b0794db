"""Styles from npm packages, without npm: what is fetched is checked, rendered whole or not at all, and kept."""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import tarfile

import numpy as np
import pytest
from PIL import Image

from soho_fast.data.mini import styles
from soho_fast.data.mini.concepts import CONCEPTS
from soho_fast.data.packages import fetching


def _package(icons: dict, chars: dict) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as tar:
        for name, value in (("icons", icons), ("chars", chars)):
            text = json.dumps(value).encode()
            member = tarfile.TarInfo(f"package/{name}.json")
            member.size = len(text)
            tar.addfile(member, io.BytesIO(text))
    return content.getvalue()


def _icons() -> tuple[dict, dict]:
    """Every concept a red square in the left half of its icon; half of them named with U+FE0F."""
    body = '<path fill="#f00" d="M0 0h16v32H0z"/>'
    icons = {"icons": {name: {"body": body} for name in CONCEPTS}, "width": 32, "height": 32}
    chars = {
        f"{concept.code}-fe0f" if number % 2 else concept.code: concept.name
        for number, concept in enumerate(CONCEPTS.values())
    }
    return icons, chars


@pytest.fixture()
def npm(monkeypatch):
    """Stands for npm: `give(bytes)` makes it fetch these, and the one package's SHA-256 theirs."""
    given = {}

    def run(command, cwd, **_):
        given["command"] = command
        if "content" in given:
            (cwd / "iconify-json-noto-1.2.9.tgz").write_bytes(given["content"])
        return subprocess.CompletedProcess(command, 0 if "content" in given else 1, "", "npm error 404\nNot found")

    def give(content):
        given["content"] = content
        line, *about = styles.PACKAGES["noto"]
        line = f"{line.rpartition('|')[0]}|{hashlib.sha256(content).hexdigest()}"
        monkeypatch.setattr(styles, "PACKAGES", {"noto": (line, *about)})
        return given

    monkeypatch.setattr(fetching.subprocess, "run", run)
    return give


def test_a_package_is_rendered_and_then_kept(npm, tmp_path, capsys):
    given = npm(_package(*_icons()))
    assert styles.main([str(tmp_path / "styles")]) == 0
    assert "124 drawings. Noto Emoji, Google Inc" in capsys.readouterr().out
    assert given["command"][-1] == "@iconify-json/noto@1.2.9"
    folder = tmp_path / "styles" / "noto"
    assert [path.name for path in folder.parent.iterdir()] == ["noto"], "nothing may be left beside it"
    assert len(list(folder.glob("*.png"))) == len(CONCEPTS)
    pixels = np.asarray(Image.open(folder / f"{CONCEPTS['dog'].code}.png"))
    assert pixels.shape == (144, 144, 4)
    assert (pixels[:, :71] == (255, 0, 0, 255)).all() and (pixels[:, 73:, 3] == 0).all()
    assert "Apache-2.0" in json.loads((folder / "licence.json").read_text())["licence"]
    del given["content"]  # a second fetch would fail
    assert styles.main([str(tmp_path / "styles")]) == 0


def test_another_package_than_the_pinned_one_is_refused(npm, tmp_path, capsys):
    given = npm(_package(*_icons()))
    given["content"] += b"\0"
    assert styles.main([str(tmp_path / "styles")]) == 2
    assert "@iconify-json/noto 1.2.9 (npm): its file has changed: SHA-256" in capsys.readouterr().err
    assert list((tmp_path / "styles").iterdir()) == []


def test_what_goes_wrong_is_told(npm, tmp_path, capsys):
    assert styles.main([str(tmp_path / "styles")]) == 2
    said = capsys.readouterr().err
    assert "expected iconify-json-noto-1.2.9.tgz of `npm pack --silent @iconify-json/noto@1.2.9`" in said
    assert "Not found" in said
    icons, chars = _icons()
    del icons["icons"]["zebra"]
    npm(_package(icons, chars))
    assert styles.main([str(tmp_path / "styles")]) == 2
    assert "expected an icon of zebra (1f993)" in capsys.readouterr().err
    assert list((tmp_path / "styles").iterdir()) == []
    (tmp_path / "styles" / "noto").mkdir()
    assert styles.main([str(tmp_path / "styles")]) == 2
    assert "is there and is not @iconify-json/noto 1.2.9 as this release draws it" in capsys.readouterr().err
