"""The rooms of the tree, the arrows between them and their sizes, as the imports say: python tests/rules/house.py"""

import ast
import io
import subprocess
import tokenize
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

# The package's rooms, and what each may import besides itself. A permission that nothing uses fails too.
ROOMS = {
    "common": set(),
    "ops": set(),
    "cluster": {"ops"},
    "adapters": {"ops"},
    "model": {"ops", "common"},
    "data": {"common"},
    "engine": {"common"},
    "tasks": {"model", "data", "engine", "cluster", "common"},
    "ask": {"model", "data", "common"},
    "export": {"ask", "model", "data", "ops", "common"},
    "explore": {"tasks", "ask", "model", "data", "ops", "common"},
    "train": {"tasks", "engine", "common"},
    "evaluate": {"tasks", "engine", "common"},
}
# Rooms without which the rest is whole: nothing imports them.
REMOVABLE = {"explore", "adapters", "export"}


def tracked(*suffixes: str) -> list[Path]:
    """The files of the tree that end so."""
    names = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    return [ROOT / name for name in names if name.endswith(suffixes) and (ROOT / name).is_file()]


def room_of(path: Path) -> str:
    """The folder or the loose file of the package, or the folder beside it, in which a file lies."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return parts[1] if parts[0] == "soho_fast" and len(parts) > 1 else parts[0]


def package_files() -> list[Path]:
    """The package's Python files."""
    return [path for path in tracked(".py") if path.is_relative_to(ROOT / "soho_fast")]


@cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def modules_imported(path: Path) -> set[str]:
    """The modules that a file imports, wherever in it, with each name behind its module; relative ones resolved."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    found = set()
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = list(parts[: len(parts) - node.level]) if node.level else []
            module = ".".join(base + ([node.module] if node.module else []))
            found |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
    return found


def arrows(files: list[Path]) -> dict[str, dict[str, list[str]]]:
    """Room, room that it imports, the files that do."""
    found: dict[str, dict[str, list[str]]] = {}
    for path in files:
        own = room_of(path)
        rooms = {name.split(".")[1] for name in modules_imported(path) if name.startswith("soho_fast.")}
        for imported in rooms & set(ROOMS) - {own}:
            found.setdefault(own, {}).setdefault(imported, []).append(str(path.relative_to(ROOT)))
    return found


def floors(graph: dict[str, set[str]]) -> dict[str, int]:
    """The floor of each room: one above the highest of those that it imports."""
    floor: dict[str, int] = {}

    def of(room: str, above: tuple[str, ...] = ()) -> int:
        assert room not in above, f"a circle: {' -> '.join((*above, room))}"
        if room not in floor:
            floor[room] = 1 + max((of(other, (*above, room)) for other in graph.get(room, ())), default=0)
        return floor[room]

    for room in graph:
        of(room)
    return floor


def module_graph() -> dict[str, set[str]]:
    """The package's modules, and those of them that each imports."""
    files = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in package_files()}
    modules = {name.removesuffix(".__init__"): path for name, path in files.items()}
    # A package's __init__ gathers what lies in it: that is no circle.
    return {
        name: {other for other in modules_imported(path) & set(modules) if other != name and not name.startswith(other)}
        for name, path in modules.items()
        if path.name != "__init__.py"
    }


def reached(graph: dict[str, set[str]], name: str) -> set[str]:
    """The modules that one imports, and those that these import, however far."""
    seen: set[str] = set()
    left = list(graph[name])
    while left:
        other = left.pop()
        if other not in seen:
            seen.add(other)
            left += graph.get(other, ())
    return seen


def circles() -> list[set[str]]:
    """Sets of the package's modules that import each other, however far round."""
    graph = module_graph()
    reach = {name: reached(graph, name) for name in graph}
    found = {frozenset({name} | {other for other in reach[name] if name in reach.get(other, ())}) for name in graph}
    return [set(each) for each in found if len(each) > 1]


def code_lines(path: Path) -> int:
    """Lines of Python that are no blank, comment or docstring."""
    text = path.read_text()
    lines = set()
    skipped = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in skipped:
            lines |= set(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(_tree(path)):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            for each in body:
                # A docstring, or the text below a field that says what it is.
                if (
                    isinstance(each, ast.Expr)
                    and isinstance(each.value, ast.Constant)
                    and isinstance(each.value.value, str)
                ):
                    lines -= set(range(each.lineno, each.end_lineno + 1))
    return len(lines)


def main() -> None:
    """Print the figures."""
    files = package_files()
    beside = [path for path in tracked(".py") if path.is_relative_to(ROOT / "benchmarks")]
    found = arrows(files + beside)
    graph = {room: set(others) for room, others in found.items()}
    inside = {room: graph.get(room, set()) for room in ROOMS}
    total = 0
    for room, floor in sorted(floors(inside).items(), key=lambda item: (-item[1], item[0])):
        own = [path for path in files if room_of(path) == room]
        lines = sum(map(code_lines, own))
        total += lines
        print(f"{floor}  {room:<10} {len(own):4} files {lines:6,} lines  -> {', '.join(sorted(inside[room]))}")
    print(f"rooms: {len(ROOMS) + 2} (with benchmarks and csrc), floors: {max(floors(inside).values())}")
    print(f"arrows: {sum(map(len, inside.values()))}, and {len(graph.get('benchmarks', ()))} of benchmarks")
    print(f"circles of modules: {len(circles())}")
    print(f"code lines of Python in soho_fast: {total:,}; in benchmarks: {sum(map(code_lines, beside)):,}")
    kernels = tracked(".h", ".cpp", ".cu", ".cuh")
    sizes = [len(path.read_text().splitlines()) for path in kernels if path.is_relative_to(ROOT / "csrc")]
    print(f"lines of csrc: {sum(sizes):,}")


if __name__ == "__main__":
    main()
