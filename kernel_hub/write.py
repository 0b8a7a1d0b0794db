"""Writes the ops as a source repository of Hugging Face's kernel hub: python kernel_hub/write.py --out FOLDER

The layout is what `kernel-builder` takes (https://huggingface.co/docs/kernels, "Write kernels"): build.toml, the C++ of
csrc, and soho_fast/ops as torch-ext/soho_fast_ops, whose imports are relative. The extension and the namespace of its
ops have the name that the build gives, so that several versions can be loaded into one process, beside soho_fast too.
CMakeLists.txt stays the only list of sources and flags: build.toml is made of the compile commands that CMake says.

--build also compiles it here as build.toml says, into FOLDER/build as `kernels.get_local_kernel` loads it, and looks
codes up with it beside the installed soho_fast. It takes the compiler in CXX, and is no substitute for kernel-builder,
whose compiler and C library are old enough for other machines. x86-64 alone: build.toml has no flags by architecture.
"""

import argparse
import hashlib
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import tomllib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NAME = "soho-fast-ops"
PACKAGE = NAME.replace("-", "_")
STABLE_ABI = "2.10"
OWN = {"csrc/torch/module.cpp": "kernel_hub/module.cpp"}  # in whose place stands what; kernel-builder has no pybind11
# Written in the place of soho_fast/ops/names.py; kernel-builder makes _ops.
NAMES = '''"""The names of the compiled extension and of the ops' namespace in `torch.ops`, as the build gave them."""

from ._ops import add_op_namespace_prefix

NAMESPACE = add_op_namespace_prefix("").removesuffix("::")
EXTENSION = f"{__package__}.{NAMESPACE}"
'''
OPS = '''import torch
from . import {name}
ops = torch.ops.{name}

def add_op_namespace_prefix(op_name: str):
    """
    Prefix op by namespace.
    """
    return f"{name}::{{op_name}}"
'''
CHECK = """
import importlib.util, sys
import torch

path, own = sys.argv[1:]
spec = importlib.util.spec_from_file_location("loaded_from_a_folder", path)
hub = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = hub
spec.loader.exec_module(hub)
assert hub.build_info()["extension"], hub.build_info()["reason"]
assert not any(name.split(".")[0] == "soho_fast" for name in sys.modules), "soho_fast was imported"
names = sys.modules["loaded_from_a_folder.names"]
assert names.NAMESPACE == own and "codebook_lookup_cpu" in dir(getattr(torch.ops, own)), names.NAMESPACE
features, codebook = torch.randn(3000, 40), torch.randn(70, 40)
found = hub.codebook_lookup(features, codebook, backend="cpu")
assert torch.equal(found, torch.cdist(features.double(), codebook.double()).argmin(1))
assert torch.equal(hub.codebook_lookup(features, hub.prepare_codebook(codebook)), found)
compiled = torch.compile(lambda x: hub.codebook_lookup(x, codebook), fullgraph=True, backend="aot_eager")
assert torch.equal(compiled(features), found)
try:
    from soho_fast import ops
except ImportError:
    ops = None
if ops is not None:
    assert torch.equal(ops.codebook_lookup(features, codebook), found)
    counts, sums = ops.codebook_stats(features, found, 70)
    assert all(map(torch.equal, hub.codebook_stats(features, found, 70), (counts, sums)))
print(f"{own}: {hub.build_info()['cpu_level']}" + ("" if ops is None else ", beside soho_fast"))
"""


def relative_imports(text: str, depth: int) -> str:
    """Python of soho_fast/ops with `from soho_fast.ops` made relative; `depth`: folders between it and the package."""
    dots = "." * (depth + 1)
    text = re.sub(r"^(\s*)from soho_fast\.ops import ", rf"\1from {dots} import ", text, flags=re.MULTILINE)
    text = re.sub(r"^(\s*)from soho_fast\.ops\.", rf"\1from {dots}", text, flags=re.MULTILINE)
    left = re.findall(r"^\s*(?:from|import) soho_fast.*$", text, flags=re.MULTILINE)
    if left:
        raise ValueError(f"expected imports of soho_fast.ops alone, got {left[0].strip()!r}")
    return text


def compile_commands(build_dir: Path) -> Iterator[tuple[str, list[str]]]:
    """Every source of the extension as CMake compiles it, relative to the root, with its own flags."""
    configure = ["cmake", "-S", str(ROOT), "-B", str(build_dir), "-DCMAKE_EXPORT_COMPILE_COMMANDS=ON"]
    configure += [f"-DPython_EXECUTABLE={sys.executable}", "-DSOHO_FAST_CUDA=OFF"]
    subprocess.run(configure, check=True, stdout=subprocess.DEVNULL)
    for command in json.loads((build_dir / "compile_commands.json").read_text()):
        words = shlex.split(command["command"])
        # The rest is kernel-builder's: the standard, optimisation, warnings, paths, names of targets and of the ABI.
        flags = [word for word in words if re.match(r"-m|-DSOHO_|-ffp-|-fno-(?!extended)", word)]
        yield str(Path(command["file"]).relative_to(ROOT)), flags


def build_toml(commands: list[tuple[str, list[str]]], headers: list[str]) -> str:
    """One [kernel] for the sources that share their flags; the bindings and all headers belong to [torch]."""
    bindings = [file for file, _ in commands if file.startswith("csrc/torch/")]
    groups: dict[tuple[str, ...], list[str]] = {}
    for file, flags in commands:
        if file not in bindings:
            groups.setdefault(tuple(flags), []).append(file)
    lines = [
        "[general]",
        f'name = "{NAME}"',
        "version = 1",
        "edition = 5",
        'license = "Apache-2.0"',
        'backends = ["cpu"]',
        "",
        "[torch]",
        'include = ["csrc"]',
        *_list("src", bindings + headers),
        "",
        "[torch.stable-abi]",
        f'cpu = "{STABLE_ABI}"',
    ]
    for number, (flags, files) in enumerate(sorted(groups.items(), key=lambda item: len(item[0]))):
        lines += ["", f"[kernel.level_{number}]", 'backend = "cpu"', 'depends = ["torch"]', 'include = ["csrc"]']
        lines += _list("cxx-flags", ["-O3", *flags])
        lines += _list("src", files)
    return "\n".join(lines) + "\n"


def _list(name: str, values: list[str]) -> list[str]:
    return [f"{name} = [", *(f"    {json.dumps(value)}," for value in values), "]"]


def write(out: Path) -> None:
    """Writes the repository; a folder that is there has to be one of these, and is written anew."""
    if out.exists() and any(out.iterdir()) and not (out / "build.toml").is_file():
        raise SystemExit(f"--out: {out} is not empty and holds no build.toml; give a folder of its own")
    with tempfile.TemporaryDirectory() as build_dir:
        commands = list(compile_commands(Path(build_dir)))
    for part in ("csrc", "torch-ext", "build"):
        shutil.rmtree(out / part, ignore_errors=True)
    headers = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "csrc").rglob("*.h") if "cuda" not in path.name)
    for file in [*(file for file, _ in commands), *headers]:
        (out / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / OWN.get(file, file), out / file)
    source, package = ROOT / "soho_fast/ops", out / "torch-ext" / PACKAGE
    for path in sorted(source.rglob("*.py")):
        target = package / path.relative_to(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(relative_imports(path.read_text(), len(path.relative_to(source).parts) - 1))
    (package / "names.py").write_text(NAMES)
    (out / "build.toml").write_text(build_toml(commands, headers))
    for name in ("LICENSE", "README.md"):
        shutil.copy2(ROOT / name, out / name)


def build(out: Path) -> Path:
    """Compiles what build.toml lists; returns the variant's folder."""
    import torch

    settings = tomllib.loads((out / "build.toml").read_text())
    files = sorted(path for path in out.rglob("*") if path.is_file() and "build" not in path.relative_to(out).parts)
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:7]
    name = f"_{PACKAGE}_{digest}"
    major, minor = map(int, STABLE_ABI.split("."))
    torch_dir = Path(torch.__file__).parent
    common = ["-std=c++20", "-fPIC", "-fvisibility=hidden", "-DNDEBUG", f"-DTORCH_EXTENSION_NAME={name}"]
    common += [f"-DTORCH_TARGET_VERSION={major << 56 | minor << 48}ULL", "-DPy_LIMITED_API=0x03090000"]
    common += [f"-I{out / 'csrc'}", f"-isystem{torch_dir / 'include'}", f"-isystem{sysconfig.get_path('include')}"]
    jobs = [(file, ["-O3"]) for file in settings["torch"]["src"] if file.endswith(".cpp")]
    for kernel in settings["kernel"].values():
        jobs += [(file, kernel["cxx-flags"]) for file in kernel["src"] if file.endswith(".cpp")]
    compiler = os.environ.get("CXX", "").split() or ["c++"]
    variant = out / "build" / f"torch-stable-abi{major}{minor}-cpu-{platform.machine()}-linux"
    shutil.copytree(out / "torch-ext" / PACKAGE, variant, dirs_exist_ok=True)
    with tempfile.TemporaryDirectory() as objects, ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        targets = [str(Path(objects) / f"{number}.o") for number in range(len(jobs))]
        commands = [
            [*compiler, *common, *flags, "-c", str(out / file), "-o", target]
            for (file, flags), target in zip(jobs, targets, strict=True)
        ]
        list(pool.map(lambda command: subprocess.run(command, check=True), commands))
        library = [f"-L{torch_dir / 'lib'}", "-ltorch_cpu"]
        subprocess.run([*compiler, "-shared", "-o", str(variant / f"{name}.abi3.so"), *targets, *library], check=True)
    (variant / "_ops.py").write_text(OPS.format(name=name))
    metadata = {"id": name, "name": NAME, "version": 1, "license": "Apache-2.0", "python-depends": []}
    (variant / "metadata.json").write_text(json.dumps({**metadata, "backend": {"type": "cpu"}}, indent=2))
    return variant


def check(variant: Path) -> None:
    """Imports what was built from its folder, in a process of its own, and looks codes up."""
    (library,) = variant.glob("*.abi3.so")
    own = library.name.removesuffix(".abi3.so")
    subprocess.run([sys.executable, "-c", CHECK, str(variant / "__init__.py"), own], check=True)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the repository")
    parser.add_argument("--build", action="store_true", help="compile it here, and look codes up with it")
    arguments = parser.parse_args(argv)
    out = arguments.out.resolve()
    write(out)
    if arguments.build:
        check(build(out))


if __name__ == "__main__":
    main()
