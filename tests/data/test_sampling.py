from itertools import chain

import pytest

from soho_fast.data.sampling import GlobalBatchSampler


def steps(sampler):
    """Per optimiser step the list of its micro-batches, as indices."""
    batches = [[key.index for key in batch] for batch in sampler]
    per_step = sampler.micro_steps_per_step
    return [batches[begin : begin + per_step] for begin in range(0, len(batches), per_step)]


def test_every_micro_step_has_the_same_samples_for_any_number_of_ranks():
    alone = steps(GlobalBatchSampler(103, global_batch_size=16, micro_batch_size=8, seed=3))
    for world_size, micro in ((2, 4), (4, 2), (8, 1)):
        ranks = [
            steps(
                GlobalBatchSampler(
                    103, global_batch_size=16, micro_batch_size=micro, rank=r, world_size=world_size, seed=3
                )
            )
            for r in range(world_size)
        ]
        joined = [[[*chain(*parts)] for parts in zip(*of_ranks, strict=True)] for of_ranks in zip(*ranks, strict=True)]
        assert joined == alone
    assert len(alone) == 6, "the last 7 samples make no global batch"


def test_an_epoch_uses_a_sample_once_and_the_next_epoch_has_another_order():
    sampler = GlobalBatchSampler(64, global_batch_size=8, seed=1)
    first = [key for batch in sampler for key in batch]
    sampler.set_epoch(1)
    second = [key for batch in sampler for key in batch]
    assert {key.epoch for key in first} == {0} and {key.epoch for key in second} == {1}
    assert sorted(key.index for key in first) == sorted(key.index for key in second) == list(range(64))
    assert [key.index for key in first] != [key.index for key in second]
    other = GlobalBatchSampler(64, global_batch_size=8, seed=2)
    assert [key.index for batch in other for key in batch] != [key.index for key in first]


def test_resuming_gives_the_rest_of_the_same_stream():
    options = {"global_batch_size": 8, "micro_batch_size": 2, "rank": 1, "world_size": 2, "seed": 1}
    sampler = GlobalBatchSampler(64, **options)
    sampler.set_epoch(2)
    whole = list(sampler)
    resumed = GlobalBatchSampler(64, **options)
    resumed.set_position(2, 3)
    assert list(resumed) == whole[3 * 2 :]
    assert len(resumed) == len(whole) - 6
    resumed.set_position(2, 8)
    assert list(resumed) == []
    resumed.set_epoch(2)
    assert list(resumed) == whole


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"global_batch_size": 6, "world_size": 4},
            "global_batch_size 6 is not a multiple of micro_batch_size 1 x world_size 4",
        ),
        ({"global_batch_size": 128}, "64 samples, fewer than one global batch of 128"),
        ({"global_batch_size": 8, "rank": 2, "world_size": 2}, "rank 2 of 2"),
    ],
)
def test_sizes_that_do_not_fit(options, words):
    with pytest.raises(ValueError, match=words):
        GlobalBatchSampler(64, **options)
    with pytest.raises(ValueError, match="epoch 0, step 9"):
        GlobalBatchSampler(64, global_batch_size=8).set_position(0, 9)
