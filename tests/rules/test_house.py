"""The rules of the house that prose cannot keep: arrows, homes, file sizes, switches."""

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
OPS = ("codebook_lookup", "codebook_update", "group_mask", "residual_lookup")

# What each room of the package may import from the package, besides itself and `extras`: a room, or one file of it.
ARROWS = {
    "extras": set(),
    "spelling": set(),
    "rgb": set(),
    "path_ranges": set(),
    "stop_words": set(),
    "checksums": set(),
    "hub": {"spelling"},
    "command_line": {"spelling", "engine.errors"},
    "recipe_file": {"hub", "spelling", "engine.errors"},
    "ops": {"_C"},
    "adapters": {"ops"},
    "cluster": {"ops"},
    "model": {"ops", "checksums", "hub", "spelling"},
    "model.official.__main__": {"data", "checksums", "hub", "command_line", "engine.errors"},
    "data": {
        *("ops", "checksums", "hub", "command_line", "engine.errors", "engine.workers"),
        *("path_ranges", "rgb", "stop_words"),
    },
    "evaluation": {"model", "data", "engine.processes", "engine.workers", "stop_words"},
    "tasks": {
        *("evaluation", "model", "data", "engine.processes", "engine.sharing", "engine.task"),
        *("checksums", "hub", "spelling"),
    },
    "engine": set(),
    "recipe": {"tasks", "data", "engine", "command_line", "recipe_file", "hub", "path_ranges", "spelling"},
    "train": {"recipe", "engine", "data"},
    "evaluate": {"recipe", "engine", "command_line", "hub", "spelling"},
    "pipeline": {"model", "data", "hub"},
    "explore": {
        *("recipe", "tasks", "pipeline", "evaluation", "model", "data", "ops"),
        *("engine", "command_line", "hub", "spelling", "rgb", "stop_words"),
    },
    "plan": {"recipe", "model", "data", "engine", "ops", "command_line"},
    "studies": {
        *("train", "evaluate", "recipe", "recipe_file", "explore", "pipeline", "data", "tasks", "engine"),
        *("command_line", "hub", "spelling"),
    },
    "ask_many": {"pipeline", "data", "engine.errors", "engine.progress", "engine.workers", "checksums", "hub"},
    "export": {"pipeline", "model", "data", "ops", "engine.errors", "command_line", "hub"},
    "ask": {"ask_many", "pipeline", "engine.errors", "command_line", "hub", "spelling"},
}


def tracked(*suffixes: str) -> list[Path]:
    names = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    return [ROOT / name for name in names if name.endswith(suffixes) and (ROOT / name).is_file()]


def package_imports(path: Path) -> set[str]:
    """Everything the file imports of `soho_fast`, as "room" or "room.file", relative imports resolved."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = list(parts[: len(parts) - node.level]) if node.level else []
            module = ".".join(base + ([node.module] if node.module else []))
            names = [module] if module.count(".") >= 1 else [f"{module}.{alias.name}" for alias in node.names]
        else:
            continue
        found |= {".".join(name.split(".")[1:3]) for name in names if name.startswith("soho_fast.")}
    return found


def test_imports_follow_the_arrows():
    wrong = []
    for path in tracked(".py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        if parts[0] != "soho_fast" or len(parts) < 2 or parts[1] not in ARROWS:
            continue
        allowed = ARROWS.get(".".join(parts[1:]), ARROWS[parts[1]]) | {parts[1], "extras", "__version__"}
        forbidden = {name for name in package_imports(path) if not {name, name.split(".")[0]} & allowed}
        if forbidden:
            wrong.append(f"{path.relative_to(ROOT)} imports {sorted(forbidden)}")
    assert not wrong, "\n".join(wrong)


def test_every_package_file_has_a_room():
    rooms = {
        p.relative_to(ROOT).with_suffix("").parts[1] for p in tracked(".py") if p.is_relative_to(ROOT / "soho_fast")
    }
    assert rooms <= set(ARROWS) | {"__init__", "_C"}


def test_kernels_do_not_know_torch():
    files = [
        p
        for p in tracked(".h", ".cpp", ".cu", ".cuh")
        if p.relative_to(ROOT).parts[:2] in {("csrc", "kernels"), ("csrc", "common")}
    ]
    assert files, "no kernel sources found"
    pattern = re.compile(r"#\s*include\s*[<\"](torch|ATen|c10|pybind11|Python\.h)")
    wrong = [str(p.relative_to(ROOT)) for p in files if pattern.search(p.read_text())]
    assert not wrong, f"torch or Python headers in {wrong}"


@pytest.mark.parametrize("op", OPS)
def test_an_op_has_one_name_in_every_room(op):
    homes = [ROOT / "csrc/kernels" / op, ROOT / "soho_fast/ops" / op]
    missing = [str(h.relative_to(ROOT)) for h in homes if not h.is_dir()]
    for folder in ("csrc/torch", "tests/ops", "benchmarks/ops"):
        if not list((ROOT / folder).glob(f"*{op}*")):
            missing.append(f"{folder}/*{op}*")
    assert not missing, f"{op} has no home at {missing}"


def test_no_file_grows_past_600_lines():
    sizes = {p: len(p.read_text().splitlines()) for p in tracked(".py", ".cpp", ".cu", ".h", ".cuh")}
    too_long = {str(p.relative_to(ROOT)): n for p, n in sizes.items() if n > 600}
    assert not too_long


def test_every_switch_is_documented():
    """Every SOHO_FAST_ name that the code mentions stands in the table of docs/switches.md, and the other way round."""
    documented = set(re.findall(r"SOHO_FAST_[A-Z_]+[A-Z]", (ROOT / "docs/switches.md").read_text()))
    used = set()
    for path in tracked(".py", ".cpp", ".h", ".cu", "CMakeLists.txt", "Makefile"):
        if path.is_relative_to(ROOT / "tests"):
            continue
        text = path.read_text()
        if path.suffix == ".py":
            used |= set(re.findall(r"[\"'](SOHO_FAST_[A-Z_]+[A-Z])[\"']", text))
        elif path.name == "CMakeLists.txt":
            used |= set(re.findall(r"(?:option|set)\((SOHO_FAST_[A-Z_]+[A-Z])", text))
        else:
            used |= set(re.findall(r"getenv\(\"(SOHO_FAST_[A-Z_]+[A-Z])\"", text))
    assert used == documented, f"undocumented: {used - documented}, documented but unused: {documented - used}"


def test_nothing_calls_itself_utils_or_misc():
    wrong = [str(p.relative_to(ROOT)) for p in tracked(".py", ".cpp", ".h", ".cu") if re.search(r"(util|misc)", p.stem)]
    assert not wrong
