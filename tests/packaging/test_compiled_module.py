"""What `soho_fast/_C.pyi` says of the compiled module is so, and a type checker reads it."""

import ast
from pathlib import Path

import pytest

from soho_fast import ops  # which imports torch, whose libraries the module needs

if not ops.build_info()["extension"]:
    pytest.skip("needs the compiled extension", allow_module_level=True)

from soho_fast import _C

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def stub() -> dict[str, ast.AST]:
    """Its classes and functions, by name."""
    tree = ast.parse((ROOT / "soho_fast/_C.pyi").read_text())
    return {node.name: node for node in tree.body if isinstance(node, (ast.ClassDef, ast.FunctionDef))}


def test_both_have_the_same_functions(stub):
    functions = {name for name in vars(_C) if not name.startswith("_")}
    assert functions == {name for name, node in stub.items() if isinstance(node, ast.FunctionDef)}
    for name in functions:
        arguments = ", ".join(ast.unparse(argument) for argument in stub[name].args.args)
        # So pybind11 calls what it takes for an int.
        said = getattr(_C, name).__doc__.replace("typing.SupportsInt | typing.SupportsIndex", "int")
        assert said.startswith(f"{name}({arguments}) -> "), said


@pytest.mark.parametrize(("function", "name"), [("build_info", "BuildInfo"), ("lookup_totals", "LookupTotals")])
def test_a_result_has_the_keys_and_types_that_are_said(stub, function, name):
    said = {field.target.id: ast.unparse(field.annotation) for field in stub[name].body}
    result = getattr(_C, function)()
    for key, value in result.items():
        kind = f"list[{type(value[0]).__name__}]" if isinstance(value, list) else type(value).__name__
        assert said[key] in (kind, f"NotRequired[{kind}]"), key
    assert {key for key, kind in said.items() if not kind.startswith("NotRequired")} <= set(result)
