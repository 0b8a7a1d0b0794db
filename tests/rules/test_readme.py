"""Every command and every snippet of the README runs."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)


COMMANDS = [line for block in blocks("bash") for line in block.splitlines() if line.strip()]
SNIPPETS = blocks("python")

# What is put behind a command so that it ends within seconds: the same programs and paths, less work.
TINY_RUN = (
    "--corpus.num_train 40 --corpus.num_heldout 12 --corpus.image_size 64 --data.shorter_edge 64 --data.longer_edge 64 "
    "--data.heldout_images 12 --data.heldout_candidates 6 --places.corpus {folder}/corpus --output {folder}/run "
    "--max_steps 2"
)


def run(command: str, folder: Path, timeout: float = 300) -> subprocess.CompletedProcess:
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
    }
    return subprocess.run(
        command, shell=True, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=timeout, check=False
    )


def test_the_readme_has_commands_and_snippets():
    assert len(COMMANDS) >= 7 and len(SNIPPETS) >= 2
    assert COMMANDS[:2] == ["make demo", "make test"]


@pytest.mark.parametrize("number", range(len(SNIPPETS)))
def test_snippet(number, tmp_path):
    script = tmp_path / "snippet.py"
    script.write_text(SNIPPETS[number])
    done = run(f"{sys.executable} {script}", tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_command(command, tmp_path):
    if command.startswith("make "):
        # Running make inside make's own test would never end; what it would run is the other commands here.
        done = run(f"{command} --dry-run", tmp_path)
        assert done.returncode == 0, done.stderr
        assert {"make demo": "deepspeed soho_fast/train.py", "make test": "pytest tests"}[command] in done.stdout
    elif "--recipe paper" in command:
        done = run(command, tmp_path)
        assert done.returncode != 0
        assert "error: " in done.stderr and "/data/coco/dataset_coco.json" in done.stderr, done.stderr
    elif command.endswith("--help"):
        done = run(command, tmp_path)
        assert done.returncode == 0, done.stderr
        assert "--optim.lr" in done.stdout
    elif command.startswith("deepspeed"):
        done = run(f"{command} {TINY_RUN.format(folder=tmp_path)}", tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "ITM, balanced pairs" in done.stdout
        for name in ("curves.png", "metrics.json", "log.jsonl", "model/model.safetensors"):
            assert (tmp_path / "run" / name).stat().st_size > 0
    elif command.startswith("pytest benchmarks/"):
        done = run(f"{command} -k group_mask --benchmark-max-time 0.01 --benchmark-min-rounds 1", tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
        assert " passed" in done.stdout
    elif "benchmarks.render" in command:
        done = run(command, tmp_path)
        assert done.returncode != 0 and "error: result: cannot read result.json" in done.stderr, done.stderr
    elif "profile_step" in command:
        done = run(f"{command} --help", tmp_path)
        assert done.returncode == 0 and "--recipe" in done.stdout, done.stderr
    else:
        pytest.fail(f"the README has a command that no test runs: {command}")
