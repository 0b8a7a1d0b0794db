"""Scoring pairs, against a loop over them; shared by processes, and taken up after a kill."""

import errno
from pathlib import Path

import numpy as np
import pytest
import scoring_run
import torch
from tiny_tasks import Threads

from soho_fast.common.processes import Processes
from soho_fast.data.text import EncodedText
from soho_fast.tasks.evaluation.pair_scoring import ImageBlocks, PairScorer, score_pairs
from soho_fast.tasks.evaluation.sharing import PartialResults, Sharing
from soho_fast.tasks.evaluation.two_stage import contrastive_scores


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


def test_one_process_several_and_a_killed_one_give_the_same_bits(tmp_path):
    scorers = [scoring_run.scorer() for _ in range(3)]

    def scored(processes, keep_in=None, progress=None):
        scorer, done = scorers[processes.rank], []
        blocks = scoring_run.blocks(scorer, scoring_run.images(11))
        sharing = Sharing(processes, progress or (lambda *step: done.append(step)), keep_in=keep_in)
        logits = score_pairs(scorer, blocks, sharing=sharing.keeping({}, [], "partial"))
        return torch.stack(logits), contrastive_scores(scorer, blocks, processes), len(done)

    def killed(done, total):
        if done == 2:
            raise KeyboardInterrupt

    *alone, num_blocks = scored(Processes())
    assert num_blocks == 6
    for world in (2, 3):
        for *found, num in Threads(world).run(scored):
            assert all(map(torch.equal, found, alone)) and num == 6 // world, "each process scores its own blocks"
    with pytest.raises(KeyboardInterrupt):
        scored(Processes(), tmp_path, killed)
    for *found, num in Threads(2).run(lambda processes: scored(processes, tmp_path)):
        assert all(map(torch.equal, found, alone)) and num <= 2, "finished blocks are not scored again"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_says_so(tmp_path, monkeypatch):
    kept = PartialResults(tmp_path / "kept", {}, Processes())
    monkeypatch.setattr(PartialResults, "_path", lambda self, number: Path("/dev/full"))
    monkeypatch.setattr(Path, "with_name", lambda self, name: self)
    with pytest.raises(OSError) as failed:
        kept.save(0, {"label": torch.zeros(1000)})
    assert failed.value.errno == errno.ENOSPC
