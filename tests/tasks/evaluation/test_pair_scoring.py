"""Scoring pairs, against a loop over them; shared by processes, and taken up after a kill."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import scoring_run
import torch

from soho_fast.common.processes import Processes
from soho_fast.data.text import EncodedText
from soho_fast.tasks.evaluation.pair_scoring import ImageBlocks, PairScorer, score_pairs
from soho_fast.tasks.evaluation.sharing import PartialResults, Sharing

PROGRAM = Path(scoring_run.__file__)


@torch.no_grad()
def by_a_loop(scorer, images):
    """Every pair by itself, from pixels, by the model's own forward."""
    differences = torch.empty(len(images), len(scorer.length_T))
    for i, image in enumerate(images):
        for t in range(len(scorer.length_T)):
            logits = scorer.model(**scoring_run.pixels([image]), input_ids=scorer.ids(np.array([t]))).itm_logits
            differences[i, t] = logits[0, 1] - logits[0, 0]
    return differences


@pytest.mark.parametrize("pair_batch", [1, 7, 500])
def test_all_pairs_against_a_loop(pair_batch):
    """Images of two sizes in one block, texts of three lengths: no call holds padding."""
    scorer, images = scoring_run.scorer(pair_batch=pair_batch), scoring_run.images(6)
    calls, matching_logits = [], scorer.model.matching_logits

    def counted(visual, ids, text_index, image_index):
        calls.append(len(text_index))
        assert len(visual) <= len(image_index) and len(ids) <= len(text_index)
        return matching_logits(visual, ids, text_index, image_index)

    scorer.model.matching_logits = counted
    blocks = scoring_run.blocks(scorer, images)
    found = torch.stack(score_pairs(scorer, blocks))
    assert max(calls) <= pair_batch and sum(calls) == 6 * 9
    expected = by_a_loop(scorer, images)
    # A token in float16 has 11 bits, and these weights multiply its error; a wrong pair is off by about 1.
    assert float((found - expected).abs().max()) < 0.005 and expected.std() > 0.5


class Counting(torch.nn.Module):
    """Odds are image + 100 text; counts the images and texts of each call."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def matching_logits(self, visual_ILD, ids_TS, text_index, image_index):
        self.calls.append((len(visual_ILD), len(ids_TS), len(text_index)))
        return visual_ILD[image_index, 0, 0] + 100 * ids_TS[text_index, 0]


def test_a_call_prepares_few_texts_and_images_for_many_pairs():
    texts = [EncodedText(np.full(3 + n % 4, n), np.zeros(0)) for n in range(128)]
    model = Counting()
    scorer = PairScorer(model, texts, pair_batch=256)
    tokens = [torch.full((2, 1), float(n)) for n in range(32)]
    logits = torch.stack(score_pairs(scorer, ImageBlocks(32, lambda block: [tokens[n] for n in block])))
    assert torch.equal(logits, torch.arange(32.0)[:, None] + 100 * torch.arange(128))
    assert set(model.calls) == {(16, 16, 256)} and len(model.calls) == 16


def test_some_pairs_are_those_of_all():
    scorer, images = scoring_run.scorer(), scoring_run.images(5)
    every = score_pairs(scorer, scoring_run.blocks(scorer, images))
    wanted = [np.array([3, 0]), np.array([], dtype=np.int64), np.array([8]), np.arange(9), np.array([5, 6, 7])]
    some = score_pairs(scorer, scoring_run.blocks(scorer, images), wanted)
    for full, part, texts in zip(every, some, wanted, strict=True):
        torch.testing.assert_close(part, full[torch.from_numpy(texts)], rtol=1e-5, atol=1e-5)


def test_an_image_is_encoded_once():
    scorer, images, seen = scoring_run.scorer(), scoring_run.images(5), []

    def encode(block):
        seen.append(block)
        return scorer.encode(scoring_run.pixels([images[n] for n in block]))

    blocks = ImageBlocks(5, encode, block_images=2)
    first = score_pairs(scorer, blocks)
    assert seen == [range(0, 2), range(2, 4), range(4, 5)]
    again = score_pairs(scorer, blocks, [np.arange(9)] * 5)
    assert len(seen) == 3 and all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert {tokens.dtype for tokens in blocks.tokens(0)} == {torch.float16}


def run(folder, processes=1, slow=0.0):
    """Starts `scoring_run.py`; returns the processes."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "WORLD_SIZE": str(processes)}
    return [
        subprocess.Popen(
            [sys.executable, str(PROGRAM), str(folder), str(slow)],
            env={**environment, "RANK": str(rank)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(processes)
    ]


def finish(started):
    for process in started:
        output, _ = process.communicate(timeout=120)
        assert process.returncode == 0, output
    return json.loads(output.splitlines()[-1])


def test_one_process_two_and_a_killed_one_give_the_same_bits(tmp_path):
    alone = finish(run(tmp_path / "one"))
    two = finish(run(tmp_path / "two", processes=2))
    assert two["scores"] == alone["scores"] and two["first"] == alone["first"]
    assert alone["scored"] == 6 and two["scored"] == 3, "each process scores its own blocks"

    (killed,) = run(tmp_path / "killed", slow=0.5)
    kept = tmp_path / "killed" / "partial"
    while len(list(kept.glob("part-*.pt"))) < 2 and killed.poll() is None:
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL
    done = len(list(kept.glob("part-*.pt")))
    assert 2 <= done < 6
    again = finish(run(tmp_path / "killed", processes=2))
    assert again["scores"] == alone["scores"]
    assert again["scored"] <= 6 - done, "finished blocks are not scored again"


def test_what_another_model_kept_is_not_taken(tmp_path):
    scorer, images = scoring_run.scorer(), scoring_run.images(3)
    blocks = scoring_run.blocks(scorer, images)
    score_pairs(scorer, blocks, sharing=Sharing(keep_in=tmp_path).keeping({"weights": "a"}, [], "kept"))
    kept = Sharing(keep_in=tmp_path).keeping({"weights": "a"}, [], "kept").kept
    assert kept.read().keys() == {0, 1}
    kept = Sharing(keep_in=tmp_path).keeping({"weights": "b"}, [], "kept").kept
    assert kept.read() == {}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_says_so(tmp_path, monkeypatch):
    kept = PartialResults(tmp_path / "kept", {}, Processes())
    monkeypatch.setattr(PartialResults, "_path", lambda self, number: Path("/dev/full"))
    monkeypatch.setattr(Path, "with_name", lambda self, name: self)
    with pytest.raises(OSError) as failed:
        kept.save(0, {"label": torch.zeros(1000)})
    assert failed.value.errno == errno.ENOSPC
