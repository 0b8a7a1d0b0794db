"""A small demo corpus that several tests read (and none changes)."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from soho_fast.data.mini import build_corpus
from soho_fast.data.mini.scenes import describe_scenes

sys.path.insert(0, str(Path(__file__).parent))

NUM_TRAIN, NUM_HELDOUT, IMAGE_SIZE, SEED = 60, 20, 64, 3


@pytest.fixture(scope="session")
def settings():
    return {"num_train": NUM_TRAIN, "num_heldout": NUM_HELDOUT, "image_size": IMAGE_SIZE, "seed": SEED}


@pytest.fixture(scope="session")
def corpus(tmp_path_factory, settings):
    return build_corpus(tmp_path_factory.mktemp("mini") / "corpus", **settings, progress=False)


@pytest.fixture(scope="session")
def scenes_by_id():
    """COCO id -> scene of the small corpus; ids count from 1 through the training, then the held-out scenes."""
    train, held_out = describe_scenes(NUM_TRAIN, NUM_HELDOUT, SEED)
    return {number: scene for number, scene in enumerate([*train, *held_out], start=1)}


@pytest.fixture(scope="session")
def full_scenes():
    """The scene descriptions of the corpus at its default size."""
    return describe_scenes(4000, 500, 0)
