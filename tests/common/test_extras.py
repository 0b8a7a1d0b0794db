"""What a message for a missing extra tells to install, by where the package came from."""

import importlib.metadata
import json

import pytest

from soho_fast.common import extras

URL = "file:///tmp/soho_fast-0.1.0-py3-none-any.whl"
COMMANDS = [
    (None, 'pip install "soho_fast[train]"'),
    ({"url": URL, "archive_info": {}}, f'pip install "soho_fast[train] @ {URL}"'),
    ({"url": "file:///home/me/soho", "dir_info": {}}, 'pip install "soho_fast[train] @ file:///home/me/soho"'),
    (
        {"url": "https://host/soho", "vcs_info": {"vcs": "git", "commit_id": "1f0"}},
        'pip install "soho_fast[train] @ git+https://host/soho@1f0"',
    ),
]


@pytest.mark.parametrize(("origin", "command"), COMMANDS, ids=["index", "wheel", "folder", "repository"])
def test_an_extra_is_installed_from_where_the_package_came(tmp_path, monkeypatch, origin, command):
    about = tmp_path / "soho_fast-0.1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Name: soho_fast\nVersion: 0.1.0\n")
    if origin:
        (about / "direct_url.json").write_text(json.dumps(origin))
    found = importlib.metadata.Distribution.at(about)
    monkeypatch.setattr(importlib.metadata, "distribution", lambda name: found)
    monkeypatch.setattr(extras, "_PACKAGE", tmp_path / "site-packages" / "soho_fast")
    assert extras.install_command("train") == command


def test_in_a_clone_it_is_the_clone(tmp_path, monkeypatch):
    (tmp_path / "a clone").mkdir()
    (tmp_path / "a clone" / "pyproject.toml").touch()
    monkeypatch.setattr(extras, "_PACKAGE", tmp_path / "a clone" / "soho_fast")
    assert extras.install_command("train") == f"pip install -e '{tmp_path}/a clone[train]'"


def test_a_copy_that_was_not_installed_comes_from_an_index(tmp_path, monkeypatch):
    def not_there(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", not_there)
    monkeypatch.setattr(extras, "_PACKAGE", tmp_path / "soho_fast")
    assert extras.install_command("heic") == 'pip install "soho_fast[heic]"'
