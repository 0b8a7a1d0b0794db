"""The documentation as a site, built strictly and looked through: python tests/rules/site_of_docs.py"""

import html
import os
import re
import shutil
import subprocess
import sys
from importlib import import_module
from operator import attrgetter
from pathlib import Path
from urllib.parse import unquote

ROOT = Path(__file__).resolve().parents[2]
API = ROOT / "docs/api"
LISTED = ("ops", "cluster", "explore", "model")  # packages whose __all__ is what they promise


def documented(page: str) -> list[str]:
    """The dotted names that a page of the reference asks for."""
    return re.findall(r"^::: (\S+)$", (API / f"{page}.md").read_text(), flags=re.MULTILINE)


def home(package: str, name: str) -> str:
    """Where a public name is defined, as the reference has it."""
    found = attrgetter(name)(import_module(f"soho_fast.{package}"))
    return f"{found.__module__}.{found.__qualname__}"


def found_at(name: str) -> object:
    """What a dotted name of the reference stands for."""
    module, _, attribute = name.rpartition(".")
    return getattr(import_module(module), attribute)


def zensical() -> str | None:
    """The site's builder, beside this Python or on the path."""
    return shutil.which("zensical", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")


def build(root: Path) -> str:
    """Build a tree's site into its build/site, where a broken link or anchor is an error.

    Returns:
        What is wrong, or "".
    """
    program = zensical()
    if program is None:
        return 'there is no zensical: pip install ".[docs]"'
    done = subprocess.run(
        [program, "build", "--strict", "--clean"], cwd=root, capture_output=True, text=True, timeout=300, check=False
    )
    said = re.sub(r"\x1b\[[\d;]*m", "", done.stdout + done.stderr).partition("Traceback")[0]
    return said if done.returncode else ""


def problems(root: Path) -> list[str]:
    """What a built site lacks: links to its own files, and names of the reference with their docstrings."""
    site, found = root / "build/site", []
    for page in sorted(site.rglob("index.html")):
        for link in re.findall(r'<(?:a|img|script|link)\b[^>]*?\b(?:href|src)="([^"#?]+)', page.read_text()):
            target = unquote(html.unescape(link))
            if not re.match(r"[a-z]+:|//|/", target) and not (page.parent / target).exists():
                found.append(f"{page.parent.relative_to(site)}: {target} is not on the site")
    for page in sorted((root / "docs/api").glob("*.md")):
        text = (site / "api" / page.stem / "index.html").read_text() if page.stem != "index" else ""
        for title in re.findall(r'<details class="([\w-]+)"', text):
            found.append(f"docs/api/{page.name}: {title}: a section of a docstring that mkdocstrings does not know")
        if "<code>`" in text:
            found.append(f"docs/api/{page.name}: a type between backticks, which the site shows as they are")
        for name in re.findall(r"^::: (\S+)$", page.read_text(), flags=re.MULTILINE):
            after = text.partition(f'id="{name}"')[2].partition("doc-contents")[2].partition("doc-heading")[0]
            if not re.search(r"<p>\s*[\w<`]", after):
                found.append(f"docs/api/{page.name}: {name} has no docstring on the site")
    return found


def main() -> int:
    """Build and look through; print where the site is, or what is wrong."""
    wrong = build(ROOT) or "\n".join(problems(ROOT))
    print(wrong or f"the site: {ROOT / 'build/site/index.html'}")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
