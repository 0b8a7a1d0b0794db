"""The rules of the house that prose cannot keep: arrows, homes, file sizes, switches."""

import ast
import re
from pathlib import Path

import pytest
from house import (
    REMOVABLE,
    ROOMS,
    ROOT,
    arrows,
    circles,
    module_graph,
    package_files,
    reached,
    room_of,
    tracked,
)  # fmt: skip

OPS = ("codebook_lookup", "codebook_update", "group_mask", "residual_lookup")

# Rooms whose purpose is to put classes of theirs in the place of other libraries' in live objects.
SWAPS_CLASSES = {"adapters"}


def test_imports_are_those_that_the_table_of_rooms_permits():
    wrong = [
        f"{room} imports {imported} in {', '.join(files)}"
        for room, targets in arrows(package_files()).items()
        for imported, files in targets.items()
        if imported not in ROOMS[room]
    ]
    assert not wrong, "\n".join(wrong)


def test_every_permission_is_used():
    found = arrows(package_files())
    unused = [f"{room} -> {other}" for room in ROOMS for other in ROOMS[room] if other not in found.get(room, {})]
    assert not unused


def test_a_removable_room_is_imported_by_no_other():
    assert not [f"{room} -> {other}" for room, others in ROOMS.items() for other in others & REMOVABLE]


def swaps(path: Path) -> list[str]:
    """Where a file gives a live object another `forward` or class, as "file:line"."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        parts = [part for target in targets if target is not None for part in ast.walk(target)]
        calls = node.func if isinstance(node, ast.Call) else None
        called = getattr(calls, "attr", getattr(calls, "id", None))
        named = [each.value for each in getattr(node, "args", []) if isinstance(each, ast.Constant)] if calls else []
        if (
            any(isinstance(part, ast.Attribute) and part.attr in {"forward", "__class__"} for part in parts)
            or called == "MethodType"
            or (called in {"setattr", "__setattr__"} and {"forward", "__class__"} & set(named))
        ):
            found.append(f"{path.name}:{node.lineno}")
    return found


def test_the_code_that_is_read_is_the_code_that_runs():
    """What a class computes otherwise is chosen by an attribute of its own, not put into the object from outside."""
    files = [path for path in package_files() if room_of(path) not in SWAPS_CLASSES]
    assert not [place for path in files for place in swaps(path)]


def test_every_package_file_has_a_room():
    assert {room_of(path) for path in package_files()} - {"__init__"} == set(ROOMS)


def test_no_modules_import_each_other_in_a_circle():
    assert not circles()


# Parts of the model that know the paper's model, which does not know them; and what lies beside the paper's dictionary.
ABOVE_THE_MODEL = ("soho_fast.model.official", "soho_fast.model.fast", "soho_fast.model.downstream")
BESIDE_THE_DICTIONARY = "soho_fast.model.codebook"


def upward(graph):
    """Which of the model's modules import what is above them."""
    found = [f"soho -> {name}" for name in reached(graph, "soho_fast.model.soho") if name.startswith(ABOVE_THE_MODEL)]
    for name in graph:
        if name.startswith(BESIDE_THE_DICTIONARY) and "soho_fast.model.visual_dictionary" in reached(graph, name):
            found.append(f"{name} -> visual_dictionary")
    return found


def test_no_arrow_in_the_model_points_up():
    assert not upward(module_graph())


def test_the_models_own_file_imports_at_most_twelve_of_its_modules():
    own = [name for name in module_graph()["soho_fast.model.soho"] if name.startswith("soho_fast.model.")]
    assert 0 < len(own) <= 12, own


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
    """Every SOHO_FAST_ name that the code mentions stands in a table of docs/platforms.md, and the reverse."""
    documented = set(re.findall(r"SOHO_FAST_[A-Z_]+[A-Z]", (ROOT / "docs/platforms.md").read_text()))
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
