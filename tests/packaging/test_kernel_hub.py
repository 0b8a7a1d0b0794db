"""The repository for a kernel hub: its build.toml lists what CMake builds, its Python stands under any namespace."""

import importlib.util
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

TWICE = """
import importlib.util, sys
import torch

def load(path):
    spec = importlib.util.spec_from_file_location(path.split("/")[-2], path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module

first, second = map(load, sys.argv[1:])
assert not any(name.split(".")[0] == "soho_fast" for name in sys.modules)
features, codebook = torch.randn(300, 8), torch.randn(9, 8)
expected = torch.cdist(features.double(), codebook.double()).argmin(1)
for module in (first, second):
    assert torch.equal(module.codebook_lookup(features, codebook), expected)
    assert torch.equal(module.codebook_lookup(features, module.prepare_codebook(codebook)), expected)
    assert not module.build_info()["extension"] and "_ops_one" in first.build_info()["reason"]
assert "codebook_lookup_reference" in dir(torch.ops._ops_one) and "codebook_lookup_reference" in dir(torch.ops._ops_two)
"""


@pytest.fixture(scope="module")
def write():
    spec = importlib.util.spec_from_file_location("kernel_hub_write", ROOT / "kernel_hub/write.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def repository(write, tmp_path_factory) -> Path:
    if shutil.which("cmake", path=f"{Path(sys.executable).parent}:/usr/bin:/usr/local/bin") is None:
        pytest.skip("needs cmake")
    folder = tmp_path_factory.mktemp("hub") / "repository"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{Path(sys.executable).parent}", prepend=":")
        write.main(["--out", str(folder)])
    return folder


def test_build_toml_lists_what_cmake_builds_with_its_flags(repository):
    settings = tomllib.loads((repository / "build.toml").read_text())
    flags_of = {}
    for kernel in settings["kernel"].values():
        assert kernel["backend"] == "cpu" and kernel["include"] == ["csrc"]
        for file in kernel["src"]:
            assert file not in flags_of, file
            flags_of[file] = kernel["cxx-flags"]
    listed = [*flags_of, *settings["torch"]["src"]]
    assert len(listed) == len(set(listed))
    assert {str(path.relative_to(repository)) for path in (repository / "csrc").rglob("*.*")} == set(listed)
    wanted = re.findall(r"csrc/[\w/]+\.cpp", (ROOT / "CMakeLists.txt").read_text())
    assert {file for file in listed if file.endswith(".cpp")} == {file for file in wanted if "_cuda" not in file}
    assert all("-ffp-contract=off" in flags for flags in flags_of.values())
    folder = "csrc/kernels/codebook_lookup"
    assert not any(flag.startswith("-m") for flag in flags_of[f"{folder}/cpu_dispatch.cpp"])
    assert "-mavx512vnni" in flags_of[f"{folder}/cpu_avx512_vnni.cpp"]
    assert "-mavx512f" not in flags_of[f"{folder}/cpu_avx2.cpp"] and "-mavx2" in flags_of[f"{folder}/cpu_avx2.cpp"]
    assert "-DSOHO_X86_LEVELS" in flags_of[f"{folder}/cpu_dispatch.cpp"]


def test_its_module_uses_pythons_limited_interface_alone(repository, tmp_path):
    """One binary serves every Python: names with an underscore in front belong to one."""
    compiler = shutil.which("g++") or shutil.which("c++")
    if compiler is None or shutil.which("nm") is None:
        pytest.skip("needs a compiler and nm")
    module, compiled = repository / "csrc/torch/module.cpp", tmp_path / "module.o"
    options = ["-std=c++20", "-DTORCH_EXTENSION_NAME=small", f"-I{repository / 'csrc'}"]
    options += [f"-isystem{sysconfig.get_path('include')}", "-c", str(module), "-o", str(compiled)]
    subprocess.run([compiler, *options], check=True)
    done = subprocess.run(["nm", str(compiled)], capture_output=True, text=True, check=True)
    defined, names = ({line.split()[-1] for line in done.stdout.splitlines() if f" {kind} " in line} for kind in "TU")
    assert "PyInit_small" in defined
    used = {name for name in names if name.startswith(("Py", "_Py"))}
    assert used and not {name for name in used if name.startswith("_Py")} - {"_Py_Dealloc", "_Py_NoneStruct"}


def test_no_binding_names_the_namespace_itself():
    named = {
        f"{path.name}: {namespace}"
        for path in (ROOT / "csrc/torch").glob("*.cpp")
        for namespace in re.findall(r"STABLE_TORCH_LIBRARY\w*\((\w+)", path.read_text())
    }
    assert len(named) >= 6 and {name.partition(": ")[2] for name in named} == {"SOHO_NAMESPACE"}, named


def test_the_hubs_own_reader_takes_it(repository):
    pytest.importorskip("kernels")
    from kernels._rust import Build

    assert "Cpu" in repr(Build.open(str(repository)).general)


def test_its_python_stands_under_any_name_twice_in_one_process(repository, tmp_path):
    paths = []
    for name in ("one", "two"):
        package = tmp_path / name
        shutil.copytree(repository / "torch-ext/soho_fast_ops", package)
        # What the hub's builder makes, here without an extension to load.
        (package / "_ops.py").write_text(f'def add_op_namespace_prefix(name):\n    return f"_ops_{name}::{{name}}"\n')
        paths.append(str(package / "__init__.py"))
    done = subprocess.run(
        [sys.executable, "-c", TWICE, *paths], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr


def test_imports_become_relative_or_are_refused(write):
    text = "from soho_fast.ops import a\nfrom soho_fast.ops.b import c\n    from soho_fast.ops.d.e import f\n"
    assert write.relative_imports(text, 0) == "from . import a\nfrom .b import c\n    from .d.e import f\n"
    assert write.relative_imports(text, 1) == "from .. import a\nfrom ..b import c\n    from ..d.e import f\n"
    with pytest.raises(ValueError, match=r"imports of soho_fast\.ops alone, got 'from soho_fast\.model import x'"):
        write.relative_imports("from soho_fast.model import x\n", 0)


def test_another_folder_is_not_written_over(write, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(SystemExit, match=r"is not empty and holds no build\.toml"):
        write.main(["--out", str(tmp_path)])
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
