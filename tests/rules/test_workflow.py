"""What CI and pre-commit run is what CONTRIBUTING.md names: targets of the Makefile, and .ci/run."""

import os
import re
import subprocess

import pytest
import yaml
from house import ROOT

from soho_fast import __version__

TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
CI_RUN = (ROOT / ".ci/run").read_text()
JOBS = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())["jobs"]


def made(lines: str) -> list[str]:
    """The targets of the lines that call make."""
    return re.findall(r"\bmake ([a-z-]+)", re.sub(r"^#.*", "", lines, flags=re.MULTILINE))


def test_the_workflow_runs_what_people_run():
    lines = {name: [step["run"] for step in job["steps"] if "run" in step] for name, job in JOBS.items()}
    assert lines["test"][-1] == 'sudo -E env "PATH=$PATH" CI=true bash .ci/run'
    assert [made(line) for line in lines["wheels"]] == [["wheels"]]
    assert set(made(CI_RUN)) == {"check", "docs", "test", "test-rest"} <= TARGETS
    assert subprocess.run(["bash", "-n", ROOT / ".ci/run"], check=False).returncode == 0


@pytest.mark.parametrize(
    ("tag", "passes"), [(f"v{__version__}", True), (f"v{__version__}0", False), ("v0.0.1", False), (__version__, False)]
)
def test_the_workflow_refuses_a_tag_that_is_not_the_version(tag, passes):
    (step,) = (step for step in JOBS["test"]["steps"] if "tag" in step.get("name", ""))
    assert step["if"] == "startsWith(github.ref, 'refs/tags/')" and step != JOBS["test"]["steps"][-1]
    done = subprocess.run(
        ["bash", "-e", "-c", step["run"]],
        cwd=ROOT, env={**os.environ, "GITHUB_REF_NAME": tag}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode == 0) == passes
    assert passes or (tag in done.stdout and __version__ in done.stdout)


def test_the_workflow_builds_wheels_of_every_python_that_is_promised():
    classifiers = re.findall(r"Python :: (3\.\d+)", (ROOT / "pyproject.toml").read_text())
    workflow = (ROOT / ".github/workflows/ci.yml").read_text()
    assert classifiers and re.findall(r"python(3\.\d+)", workflow) == classifiers


def test_pre_commit_runs_make_check_alone():
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    (hook,) = repository["hooks"]
    assert repository["repo"] == "local" and hook["language"] == "system"  # nothing is fetched
    assert made(hook["entry"]) == ["check"] and hook["pass_filenames"] is False
