"""install.py, by which make sets up: where packages come from, and what is done beside each other."""

import http.server
import importlib.util
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
UV = """#!/bin/sh
echo "$SOHO_FAST_BUILD_EXTENSION $@" >> uv.log
case "$*" in *-e*) touch downloading; for i in $(seq 200); do [ -e building ] && exit 0; sleep 0.1; done; exit 9;; esac
"""
SETUP = """
import pathlib, sys, time
pathlib.Path("building").touch()
print("output of the compiler", *sys.argv[1:])
for _ in range(200):
    if pathlib.Path("downloading").exists():
        sys.exit(CODE)
    time.sleep(0.1)
sys.exit("the packages were not downloaded meanwhile")
"""


@pytest.fixture
def install(monkeypatch, tmp_path):
    """install.py, where only Python and `uv` are on PATH, and no index was chosen."""
    spec = importlib.util.spec_from_file_location("install_of_soho_fast", ROOT / "install.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    (tmp_path / "bin").mkdir()
    program(tmp_path / "bin/uv", UV)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    for name in list(os.environ):
        if name.startswith(("PIP_", "UV_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    return module


@pytest.fixture
def index(install, monkeypatch):
    """An index of CPU builds that answers."""

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200 if self.path == "/cpu/torch/" else 404)
            self.end_headers()

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_address[1]}/cpu"
        monkeypatch.setattr(install, "CPU_BUILDS", address)
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        yield address
        server.shutdown()


def program(path: Path, text: str = "#!/bin/sh\n") -> None:
    path.write_text(text)
    path.chmod(0o755)


def test_uv_installs_where_it_is_unless_pip_was_told_what_it_does_not_read(install, monkeypatch, tmp_path):
    assert install.installer(install.pip_settings())[:2] == [str(tmp_path / "bin/uv"), "pip"]
    for name, value in (("PIP_INDEX_URL", "https://pypi.example.org/simple"), ("PIP_CONSTRAINT", "versions.txt")):
        with monkeypatch.context() as context:
            context.setenv(name, value)
            assert install.installer(install.pip_settings())[:3] == [sys.executable, "-m", "pip"]
    (tmp_path / "bin/uv").unlink()
    assert install.installer(install.pip_settings())[:3] == [sys.executable, "-m", "pip"]


def test_bytecode_is_written_once_by_imports_or_where_these_may_not_by_the_installation(install, monkeypatch):
    for settings, imports, installation in ((set(), "", "--compile-bytecode"), ({"index-url"}, "--no-compile", "")):
        for told, expected in ((False, imports), (True, installation)):
            monkeypatch.setattr(sys, "dont_write_bytecode", told)
            assert [word for word in install.installer(settings) if "compile" in word] == [expected] * bool(expected)


def test_pips_files_are_read(install, monkeypatch, tmp_path):
    (tmp_path / "pip.conf").write_text(
        "[global]\nindex-url = https://pypi.example.org/simple\n[install]\nfind-links = /w\n"
    )
    monkeypatch.setenv("PIP_CONFIG_FILE", str(tmp_path / "pip.conf"))
    assert install.pip_settings() >= {"index-url", "find-links"}


def test_torch_without_a_gpu_is_the_cpu_build(install, index):
    assert install.torch_index(set()) == ["--index-url", index]


@pytest.mark.parametrize("name", ["nvidia-smi", "nvcc"])
def test_torch_for_a_gpu_is_the_default_index_s(install, index, name, tmp_path):
    program(tmp_path / "bin" / name)
    assert install.torch_index(set()) == []


def test_an_index_of_the_user_s_is_kept(install, index, monkeypatch):
    assert install.torch_index({"index-url"}) == install.torch_index({"find-links", "cert"}) == []
    assert install.torch_index({"cert"}) == ["--index-url", index]
    monkeypatch.setenv("UV_DEFAULT_INDEX", "https://pypi.example.org/simple")
    assert install.torch_index(set()) == []


@pytest.mark.parametrize("there", ["nothing listens", "no torch", "no answer"])
def test_an_index_that_does_not_answer_is_told_and_left(install, index, there, monkeypatch, capsys):
    if there == "no answer":
        monkeypatch.setattr(subprocess, "run", lambda *_, **given: stop(given["timeout"]))
    elif there == "no torch":
        monkeypatch.setattr(install, "CPU_BUILDS", f"{index}/other")
    else:
        monkeypatch.setattr(install, "CPU_BUILDS", "http://127.0.0.1:9/cpu")
    assert install.torch_index(set()) == []
    assert "does not answer: torch comes from the default index" in capsys.readouterr().out


def stop(timeout: float) -> None:
    assert timeout <= 5
    raise subprocess.TimeoutExpired("python", timeout)


@pytest.mark.parametrize("code", [0, 3])
def test_the_extension_is_compiled_while_packages_are_downloaded(install, code, monkeypatch, tmp_path, capsys):
    (tmp_path / "setup.py").write_text(SETUP.replace("CODE", str(code)))
    monkeypatch.setattr(install, "ROOT", tmp_path)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}/usr/bin{os.pathsep}/bin")
    if code:
        with pytest.raises(SystemExit) as ended:
            install.main("demo")
        assert ended.value.code == code and "output of the compiler build_ext --inplace" in capsys.readouterr().out
    else:
        install.main("demo")
        assert capsys.readouterr().out == ""
    start = f"pip install --quiet --python {sys.executable}"
    tools, extra, weights = (tmp_path / "uv.log").read_text().splitlines()
    assert tools == f" {start} setuptools>=77 cmake>=3.24 ninja"
    assert extra == f"0 {start} --no-build-isolation -e .[demo]"
    assert weights.startswith(f" {start} --no-deps")


@pytest.mark.parametrize("chosen", [[], ["--index-url", "cpu"]])
def test_torch_alone_comes_from_the_index_of_cpu_builds(install, chosen, monkeypatch):
    commands = []
    monkeypatch.setattr(
        install, "run", lambda command, **_: commands.append(command[command.index(sys.executable) + 1 :])
    )
    monkeypatch.setattr(install, "pip_settings", set)
    monkeypatch.setattr(install, "torch_index", lambda _: chosen)
    monkeypatch.setattr(install.importlib.util, "find_spec", lambda _: None)
    monkeypatch.setattr(install.subprocess, "Popen", lambda *_, **__: sys.exit("done"))
    with pytest.raises(SystemExit, match="done"):
        install.main("demo")
    both = [[*install.TORCH, *install.TOOLS]]
    assert commands == ([[*chosen, *install.TORCH], install.TOOLS] if chosen else both)


def test_make_demo_installs_the_demo_alone_and_make_test_its_own_on_top(tmp_path):
    def makes(*arguments: str) -> list[str]:
        done = subprocess.run(["make", "-n", f"VENV={tmp_path}", *arguments], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return [line.rpartition(" ")[2] for line in done.stdout.splitlines() if "python install.py" in line]

    assert makes("demo") == ["demo"]
    assert makes("test") == makes("check") == makes("docs") == ["demo", "test"]
    (tmp_path / ".demo-installed").touch()
    (tmp_path / ".installed").touch()
    assert makes("test") == []
    assert makes("test", "-W", "csrc/torch/module.cpp") == ["demo"]
    assert makes("test", "-W", "pyproject.toml") == ["demo", "test"]
