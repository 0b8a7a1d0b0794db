"""The two parts of the tests, what may be skipped, and the draws: tests/conftest.py, over a small folder of tests."""

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable

import pytest
from house import ROOT

TESTS = {
    "conftest.py": None,
    "rest.txt": "# What is left out.\nslow\nroom/test_mixed.py::test_slow\nroom/test_mixed.py::test_case[b]\n",
    "slow/test_slow.py": "def test_alone(): pass\n",
    "room/test_mixed.py": """
        import random
        import pytest

        @pytest.fixture(scope="module", params=[0, 1])
        def shared(request):
            return random.random()

        @pytest.mark.parametrize("case", ["a", "b"])
        def test_case(case): pass
        def test_slow(): pass
        def test_slow_no_more(): pass
        def test_draws(shared):
            print("drew", shared, random.random())
        def test_needs():
            pytest.skip("needs a compiler")
        def test_lacks():
            pytest.skip("this user cannot mount a tmpfs")
        @pytest.mark.xfail
        def test_known():
            raise AssertionError
    """,
    "room/test_module.py": "import pytest\npytest.importorskip('no_such_package')\n",
}


@pytest.fixture
def run(tmp_path):
    for name, text in TESTS.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        if text is None:
            shutil.copy(ROOT / "tests" / name, tmp_path)
        else:
            (tmp_path / name).write_text(re.sub("^ {8}", "", text, flags=re.MULTILINE))

    def run(*options: str, before: Callable[[], None] | None = None) -> str:
        command = [sys.executable, "-m", "pytest", "-rA", "--rootdir", str(tmp_path), *options]
        alone = os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
        piped = {"capture_output": True, "text": True}
        return subprocess.run(command, cwd=tmp_path, env=alone, check=False, preexec_fn=before, **piped).stdout

    return run


def outcomes(text: str, outcome: str) -> set[str]:
    return set(re.findall(rf"^{outcome} \S*?(?:::)?(\w+\.py|test_\w+(?:\[\w+\])?)(?: |$)", text, flags=re.MULTILINE))


def test_a_test_is_in_one_part(run):
    first, rest = outcomes(run("--part", "first"), "PASSED"), outcomes(run("--part", "rest"), "PASSED")
    assert first == {"test_case[a]", "test_slow_no_more", "test_draws[0]", "test_draws[1]"}
    assert rest == {"test_alone", "test_case[b]", "test_slow"}
    assert outcomes(run(), "PASSED") == first | rest


@pytest.mark.parametrize("name", ["gone", "room/test_mixed.py::test_fast"])
def test_a_name_without_its_test_is_refused(name, run, tmp_path):
    (tmp_path / "rest.txt").write_text(f"{name}\n")
    assert "passed" not in run()


def test_a_skip_fails_unless_the_machine_lacks_something(run):
    text = run("--strict-skips", "--continue-on-collection-errors")
    assert "2 failed" not in text and outcomes(text, "FAILED") == {"test_needs"} and "needs a compiler" in text
    assert "ERROR room/test_module.py" in text and "no_such_package" in text
    assert "this user cannot mount a tmpfs" in text and "1 skipped" in text and "1 xfailed" in text
    assert "3 skipped" in run()


def test_draws_follow_from_the_name_alone(run):
    def drawn(*options: str) -> list[str]:
        return re.findall("^drew .*", run("-k", "test_draws", *options), flags=re.MULTILINE)

    both = drawn()
    assert len({number for line in both for number in line.split()[1:]}) == 4
    assert drawn("room/test_mixed.py::test_draws[1]") == both[1:]
    assert not set(drawn("--draws", "1")) & set(both)


def test_what_begins_too_late_is_named(run):
    text = run("--minutes", "0", "--strict-skips", "room/test_mixed.py")
    assert "no time was left (--minutes) for 9 of room/test_mixed.py" in text and " passed" not in text


def ignore_signals() -> None:
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


@pytest.mark.parametrize("workers", [(), ("-p", "xdist.plugin", "-n", "1")], ids=["alone", "worker"])
def test_in_the_background_tests_are_deaf_and_what_they_start_is_not(workers, run, tmp_path):
    (tmp_path / "room/test_signals.py").write_text("""
import os, signal, subprocess, sys

ASK = "import signal; print(*(signal.getsignal(n) == signal.SIG_IGN for n in (signal.SIGINT, signal.SIGHUP)))"

def test_signals():
    for number in (signal.SIGINT, signal.SIGHUP):
        os.kill(os.getpid(), number)
    assert subprocess.check_output([sys.executable, "-c", ASK], text=True).split() == ["False", "False"]
""")
    text = run("room/test_signals.py", *workers, before=ignore_signals)
    assert "1 passed" in text, text
