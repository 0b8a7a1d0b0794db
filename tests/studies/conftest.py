import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml

sys.path.insert(0, str(Path(__file__).parent))

from tiny_study import TINY, command, environment


@pytest.fixture(scope="session")
def tiny_study(tmp_path_factory):
    """The file of `TINY`, with a corpus of its own."""
    folder = tmp_path_factory.mktemp("study")
    content = {**TINY, "overrides": {"data_roots.corpus": str(folder / "corpus"), **TINY["overrides"]}}
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


@pytest.fixture(scope="session")
def make():
    """Runs the command to its end."""

    def run(*arguments):
        return subprocess.run(command(*arguments), capture_output=True, text=True, env=environment())

    return run


@pytest.fixture(scope="session")
def made(tiny_study, make, tmp_path_factory):
    """(Folder of the tiny study after all of its runs, what each of two commands said that made them at the same time.)

    As on two machines that share the folder.
    """
    folder = tmp_path_factory.mktemp("made")
    with ThreadPoolExecutor(2) as pool:
        both = [pool.submit(make, tiny_study, "--into", folder, "--threads", 1) for _ in range(2)]
    done = [each.result() for each in both]
    assert all(each.returncode == 0 for each in done), "".join(each.stdout + each.stderr for each in done)
    return folder, [each.stdout for each in done]
