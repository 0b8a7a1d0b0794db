"""The explorer's pages: JavaScript that parses, makes no markup of texts, and asks for nothing beyond this machine."""

import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

PAGES = Path(__file__).resolve().parents[2] / "soho_fast" / "explore" / "pages"
SCRIPTS = sorted(PAGES.rglob("*.js"))

# What would read a text as markup or as a program, and addresses on the web. The name of SVG's elements is no address.
FORBIDDEN = re.compile(
    r"\b(?:innerHTML|outerHTML|insertAdjacentHTML|setHTMLUnsafe|createContextualFragment|srcdoc|eval|importScripts)\b"
    r"|document\.write|new Function|\bimport\s*[({\"']|(?:https?|wss?|ftp)://(?!www\.w3\.org/2000/svg\")"
)


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_make_no_markup_and_stay_here(path):
    text = path.read_text(encoding="utf-8")
    found = FORBIDDEN.search(text)
    assert not found, f"{path.name}: {found and found[0]}"
    assert text.startswith('"use strict";\n')
    lines = text.splitlines()
    assert len(lines) <= 600
    assert not [number for number, line in enumerate(lines, 1) if len(line) > 120], "lines of more than 120 characters"


def test_style_sheets_stay_here():
    for path in PAGES.rglob("*.css"):
        assert not re.search(r"url\(|@import|https?:", path.read_text(encoding="utf-8")), path.name


def test_scripts_parse():
    node = shutil.which("node")
    if node is None:
        pytest.skip("no node here: the scripts were not checked for syntax")
    for path in SCRIPTS:
        done = subprocess.run([node, "--check", path], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr


def test_the_page_names_every_script_and_style_once():
    names = []

    class Parser(HTMLParser):
        def handle_starttag(self, tag, attributes):
            names.extend(value for name, value in attributes if (tag, name) in {("script", "src"), ("link", "href")})

    Parser().feed((PAGES / "index.html").read_text(encoding="utf-8"))
    names.remove("data:,")
    files = [path.relative_to(PAGES).as_posix() for path in PAGES.rglob("*") if path.suffix in (".js", ".css")]
    assert sorted(names) == sorted(files)
