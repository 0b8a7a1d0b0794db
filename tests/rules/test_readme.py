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
TINY_CORPUS = (
    "--corpus.num_train 40 --corpus.num_heldout 12 --corpus.image_size 64 --data.shorter_edge 64 --data.longer_edge 64 "
    "--data_roots.corpus {folder}/corpus --output {folder}/run --max_steps 2"
)
TINY_RUN = f"{TINY_CORPUS} --data.heldout_images 12 --data.heldout_candidates 6"
TINY_FINE_TUNING = f"{TINY_CORPUS} --data.min_answer_count 2"


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


# The same for retrieval, from scratch.
TINY_RETRIEVAL = (
    "--corpus.num_train 40 --corpus.num_heldout 12 --corpus.image_size 64 --data.shorter_edge 64 --data.longer_edge 64 "
    "--data.max_loss 1 --data_roots.corpus {folder}/corpus --output {folder}/run --max_steps 2"
)


def with_a_model(text: str, folder: Path) -> str:
    """The text with a small model and a picture in place of those that it names."""
    from tiny_corpus import draw, write_tokenizer

    from soho_fast.data import SohoImageProcessor, SohoProcessor, load_tokenizer
    from soho_fast.model import SohoConfig, SohoForPreTraining

    processor = SohoProcessor(SohoImageProcessor(), load_tokenizer(write_tokenizer(folder / "words")))
    sizes = {"backbone": "resnet10", "hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 1}
    config = SohoConfig.from_preset(**sizes, vocab_size=len(processor.tokenizer), num_codes=8)
    SohoForPreTraining(config).save_pretrained(folder / "run/model")
    processor.save_pretrained(folder / "run/model")
    picture = draw(folder / "photo.jpg")
    return text.replace("runs/mini", str(folder / "run")).replace("photo.jpg", str(picture))


@pytest.mark.parametrize("number", range(len(SNIPPETS)))
def test_snippet(number, tmp_path):
    script = tmp_path / "snippet.py"
    snippet = SNIPPETS[number]
    script.write_text(with_a_model(snippet, tmp_path) if "runs/mini" in snippet else snippet)
    done = run(f"{sys.executable} {script}", tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_command(command, tmp_path):
    if command.startswith("make "):
        # Running make inside make's own test would never end; what it would run is the other commands here.
        done = run(f"{command} --dry-run", tmp_path)
        assert done.returncode == 0, done.stderr
        assert {"make demo": "deepspeed soho_fast/train.py", "make test": "pytest tests"}[command] in done.stdout
    elif "soho_fast.evaluate" in command:
        done = run(f"{command} --run {tmp_path}/none", tmp_path)
        assert done.returncode == 2 and "none has no recipe.yaml; expected the folder" in done.stderr, done.stderr
    elif "--recipe vqa" in command:
        done = run(command, tmp_path)
        assert done.returncode != 0
        assert "error: " in done.stderr and "/data/vqa/v2_OpenEnded_mscoco_train2014" in done.stderr, done.stderr
    elif "--recipe mini_vqa" in command:
        done = run(f"{command} --model.pretrained null {TINY_FINE_TUNING.format(folder=tmp_path)}", tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "vqa score" in done.stdout
        for name in ("metrics.json", "best/model.safetensors", "model/model.safetensors"):
            assert (tmp_path / "run" / name).stat().st_size > 0
    elif "--recipe paper" in command:
        done = run(command, tmp_path)
        assert done.returncode != 0
        assert "error: " in done.stderr and "/data/coco/dataset_coco.json" in done.stderr, done.stderr
    elif "mini_retrieval" in command:
        train = next(line for line in COMMANDS if "--recipe mini_retrieval" in line)
        train = train.replace("--model.pretrained runs/mini/model", TINY_RETRIEVAL.format(folder=tmp_path))
        done = run(train, tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
        if command.startswith("python"):
            done = run(command.replace("runs/mini_retrieval", f"{tmp_path}/run"), tmp_path)
            assert done.returncode == 0, done.stdout + done.stderr
            assert "two stages" in done.stdout and "text to image R@10" in done.stdout
    elif "soho_fast.ask" in command:
        done = run(with_a_model(command, tmp_path), tmp_path)
        assert done.returncode == 0, done.stderr
        assert len(done.stdout.splitlines()) == 2 and " %  two cats" in done.stdout
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
