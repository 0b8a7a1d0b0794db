"""The site: every page in its navigation, every public name with its docstring, no broken link or anchor."""

import tomllib

import pytest
from site_of_docs import API, LISTED, ROOT, build, documented, found_at, home, problems, zensical


@pytest.mark.parametrize("package", LISTED)
def test_the_reference_has_what_a_package_promises(package):
    names = __import__(f"soho_fast.{package}", fromlist=["__all__"]).__all__
    if package == "ops":  # a module of it is public too
        names = [*(name for name in names if name != "nn"), "nn.VectorQuantizer"]
    shown = [name for name in documented(package) if name.startswith(f"soho_fast.{package}.")]
    assert sorted(shown) == sorted(home(package, name) for name in names)


@pytest.mark.parametrize("page", sorted(path.stem for path in API.glob("*.md")))
def test_what_the_reference_names_has_a_docstring(page):
    assert documented(page)
    assert not [name for name in documented(page) if not (found_at(name).__doc__ or "").strip()]


def test_every_page_is_in_the_navigation_once():
    def paths(entry) -> list[str]:
        if isinstance(entry, str):
            return [entry]
        return [path for each in entry for value in each.values() for path in paths(value)]

    nav = tomllib.loads((ROOT / "zensical.toml").read_text())["project"]["nav"]
    assert sorted(paths(nav)) == sorted(str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md"))


@pytest.fixture
def needs_zensical():
    if zensical() is None:
        pytest.skip('no zensical here: the site was not built (pip install ".[docs]")')


def test_the_site_is_whole(needs_zensical):
    assert not build(ROOT)
    assert not problems(ROOT)
