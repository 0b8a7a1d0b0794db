"""`soho env`: what a report of a bug needs; how an extra is installed."""

import json
import os
import platform

import pytest
import torch

import soho_fast
from soho_fast import ops
from soho_fast.common import extras
from soho_fast.common.console import main


def test_versions_processor_and_backends_are_printed(capsys, monkeypatch):
    monkeypatch.setitem(os.environ, "SOHO_FAST_TRACEBACK", "1")
    assert main(["env"]) == 0
    said = dict(line.split(": ", 1) for line in capsys.readouterr().out.splitlines())
    assert said["soho_fast"].split()[0] == soho_fast.__version__ and said["torch"] == torch.__version__
    assert said["python"] == platform.python_version() and said["processor"]
    assert said["backends"] == ", ".join(ops.available_backends()) and said["SOHO_FAST_TRACEBACK"] == "1"
    assert said.get("cpu_level") == ops.build_info().get("cpu_level")


def test_as_json(capsys):
    assert main(["env", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["backends"] == ops.available_backends() and found["extension"] == ops.build_info()["extension"]


@pytest.mark.parametrize("flag", ["-V", "--version"])
def test_the_version_is_printed(flag, capsys):
    assert main([flag]) == 0 and capsys.readouterr().out == f"soho_fast {soho_fast.__version__}\n"


def test_an_extra_is_installed_of_a_clone_or_of_what_is_installed(tmp_path, monkeypatch):
    monkeypatch.setattr(extras, "_PACKAGE", tmp_path / "a clone" / "soho_fast")
    assert extras.install_command("train") == 'pip install "soho_fast[train]"'
    (tmp_path / "a clone").mkdir()
    (tmp_path / "a clone" / "pyproject.toml").touch()
    assert extras.install_command("train") == f"pip install -e '{tmp_path}/a clone[train]'"
