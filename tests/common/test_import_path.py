"""Objects by import path: what is found where, and one line for each mistake."""

import subprocess
import sys

import pytest

from soho_fast.common.command_line import Parser
from soho_fast.common.errors import UserError
from soho_fast.common.import_path import is_import_path, load, load_imported


@pytest.fixture
def own_module(tmp_path, monkeypatch):
    """A folder outside the repository with a module of a user; it is the current one."""
    (tmp_path / "own_parts.py").write_text(
        "import collections\nclass Mine(dict):\n    pass\ndef make():\n    return 1\nNUMBER = 3\n"
    )
    (tmp_path / "own_broken.py").write_text("import no_such_library\n")
    (tmp_path / "own_raising.py").write_text("raise RuntimeError('out of\\n luck')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry not in ("", str(tmp_path))])
    yield tmp_path
    for name in ("own_parts", "own_broken", "own_raising"):
        sys.modules.pop(name, None)


def test_the_current_folder_is_searched(own_module):
    assert load("own_parts:Mine", "task", dict).__name__ == "Mine"
    assert load("own_parts:make", "task")() == 1
    assert sys.path[0] == str(own_module)


def test_it_comes_first_as_by_python_m(own_module):
    (own_module / "statistics.py").write_text("class Mine:\n    pass\n")
    program = "import sys; sys.path[:] = sys.path[1:]; from soho_fast.common.import_path import load; "
    program += "print(load('statistics:Mine', 'task').__module__)"
    run = subprocess.run([sys.executable, "-c", program], cwd=own_module, capture_output=True, text=True)
    assert run.stdout.strip() == "statistics", run.stderr


@pytest.mark.parametrize(
    ("path", "base", "message"),
    [
        ("own_parts.Mine", None, "task: expected an import path as my.module:Name, got 'own_parts.Mine'"),
        ("own_parts:", None, "task: expected an import path as my.module:Name, got 'own_parts:'"),
        ("no_parts:Mine", None, "task: there is no module no_parts, neither in the current folder"),
        ("own_parts.inner:Mine", None, "task: there is no module own_parts.inner, neither in"),
        ("own_broken:Mine", None, "task: own_broken cannot be imported (ModuleNotFoundError: No module named"),
        ("own_raising:Mine", None, "task: own_raising cannot be imported (RuntimeError: out of luck)"),
        ("own_parts:Mihne", None, "task: own_parts has no Mihne; did you mean Mine?"),
        ("own_parts:Mine", list, "task: expected a subclass of list, own_parts:Mine is a class of dict"),
        ("own_parts:make", dict, "task: expected a subclass of dict, own_parts:make is a function"),
        ("own_parts:NUMBER", None, "task: expected a class or function, own_parts:NUMBER is a int"),
    ],
)
def test_a_mistake_is_one_line(own_module, path, base, message):
    with pytest.raises(UserError) as error:
        load(path, "task", base)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_what_a_file_names_is_not_imported(own_module):
    with pytest.raises(UserError, match=r"import own_parts before, as by --import \(.*\), give --trust-file"):
        load_imported("own_parts:Mine", "backbone", dict)
    assert "own_parts" not in sys.modules
    load("own_parts:make", "task")
    assert load_imported("own_parts:Mine", "backbone", dict).__name__ == "Mine"


@pytest.mark.parametrize("path", ["torch.nn:Linear", "subprocess:Popen", "soho_fast.common.lock:only_user"])
def test_nor_taken_of_a_library_that_is_loaded(path):
    __import__(path.partition(":")[0])
    with pytest.raises(UserError, match=f"{path} is code that a file names"):
        load_imported(path, "backbone")
    assert load_imported("torch.optim:SGD", "optim.rule").__name__ == "SGD"
    assert load_imported(f"{__name__}:own_module", "backbone"), "Python code has imported it"


def test_which_values_are_import_paths():
    assert all(map(is_import_path, ("module:Name", "a.b_c:D1")))
    assert not any(map(is_import_path, ("resnet18", "timm/resnet18", "a:b:c", "a..b:C", "1a:B", "C:\\folder", None, 3)))


def test_commands_that_load_a_model_import_what_a_user_names(own_module):
    parser = Parser(prog="soho ask")
    parser.take_modules()
    assert (
        vars(parser.parse_args(["--import", "own_parts"])) == {"accept_changes": False} and "own_parts" in sys.modules
    )
    with pytest.raises(UserError, match=r"^--import: there is no module no_parts, neither in the current folder"):
        parser.parse_args(["--import", "no_parts"])
