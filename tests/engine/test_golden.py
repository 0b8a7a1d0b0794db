"""The demo's recipe still learns what it learnt: the losses of 50 steps beside those on record.

The steps are those of recipe mini on 40 scenes, five an epoch, so that they hold all three parts of the demo: the
bag-of-words loss alone, the frozen CNN, and all of it together. One record for each kind of processor, instruction set
and release of torch, since each rounds in its own way: where this machine's is on record its losses must be those; else
they must be near those of the others, and what was measured is left in build/golden_demo.json, to be added.
"""

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from soho_fast import ops
from soho_fast.common.environment import processor_name
from soho_fast.data.mini import build_corpus
from soho_fast.data.tokenizer import build_vocabulary, write_tokenizer

ROOT = Path(__file__).resolve().parents[2]
WORDS = Path(__file__).with_name("golden_words.txt")
RECORD, MEASURED = Path(__file__).with_name("golden_demo.json"), ROOT / "build" / "golden_demo.json"
OPTIONS = (
    "--max_steps", "50", "--log.every_steps", "1",
    "--evaluation.at_end", "false", "--batch.workers", "0",
    "--checkpoint.every_minutes", "1000",
)  # fmt: skip


def kind() -> str:
    """Of this machine: what decides how sums are rounded."""
    release = ".".join(torch.__version__.split(".")[:2])
    level = ops.build_info().get("cpu_level", "reference")
    return f"{platform.machine()}, {processor_name()}, {level}, torch {release}"


def test_losses_of_all_phases_are_those_on_record(tmp_path):
    run, tokenizer = tmp_path / "run", tmp_path / "tokenizer"
    # As it was when the losses were recorded: the weights at the start depend on its size.
    write_tokenizer(tokenizer, build_vocabulary([WORDS.read_text()]))
    build_corpus(tmp_path / "corpus", num_train=40, num_heldout=4, progress=False)
    command = [sys.executable, "-m", "soho_fast.train", *OPTIONS, "--output", str(run)]
    command += ["--data.tokenizer", str(tokenizer)]
    launched = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_SIZE")  # of a process group that an earlier test left
    environment = {name: value for name, value in os.environ.items() if name not in launched}
    done = subprocess.run(
        [*command, "--data_roots.corpus", str(tmp_path / "corpus")], cwd=tmp_path, capture_output=True, text=True,
        env=environment | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    losses = [float(f"{line['loss']:.7g}") for line in lines if line["kind"] == "train"]
    assert len(losses) == 50
    MEASURED.parent.mkdir(exist_ok=True)
    MEASURED.write_text(json.dumps({kind(): losses}, indent=1) + "\n")
    record = json.loads(RECORD.read_text())
    if kind() in record:
        assert losses == pytest.approx(record[kind()], rel=1e-5)
        return
    print(f"{kind()} is not on record: add what {MEASURED} holds to {RECORD}")
    for there in record.values():
        # Roundings grow: the first steps agree closely, later ones on average.
        assert losses[:3] == pytest.approx(there[:3], rel=1e-3)
        for begin in range(0, 50, 10):
            assert sum(losses[begin : begin + 10]) == pytest.approx(sum(there[begin : begin + 10]), rel=0.05)
