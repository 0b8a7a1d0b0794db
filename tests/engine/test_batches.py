"""The order of samples: the same for any number of processes, and from any step on."""

from dataclasses import replace
from itertools import chain
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from soho_fast.common.errors import UserError
from soho_fast.common.processes import Processes
from soho_fast.engine.batches import _STAND_IN_NOTE, Batches, grouped_plan, plan_batches
from soho_fast.engine.checkpoint import Progress
from soho_fast.engine.settings import BatchSettings
from soho_fast.engine.trainer import Run


def _plan(num_samples: int = 50, world: int = 1, gradient_accumulation_steps: int = 1, images: int = 12, seed: int = 3):
    return plan_batches(
        BatchSettings(global_batch_size=images, gradient_accumulation_steps=gradient_accumulation_steps),
        num_samples,
        world,
        seed,
    )


def _steps(world: int, gradient_accumulation_steps: int, first: int, total: int) -> list[list[tuple[int, int]]]:
    """Samples of each step in the order of one process's batch: micro-batch by micro-batch, rank by rank."""
    plan = _plan(world=world, gradient_accumulation_steps=gradient_accumulation_steps)
    ranks = [list(plan.micro_batches(rank, first, total)) for rank in range(world)]
    steps = []
    for step in range(total - first):
        parts = range(step * gradient_accumulation_steps, (step + 1) * gradient_accumulation_steps)
        steps.append([sample for part in parts for rank in ranks for sample in rank[part]])
    return steps


@pytest.mark.parametrize(("world", "gradient_accumulation_steps"), [(2, 1), (1, 3), (3, 2), (4, 3)])
def test_order_depends_on_nothing_but_seed_and_epoch(world, gradient_accumulation_steps):
    assert _steps(world, gradient_accumulation_steps, 0, 9) == _steps(1, 1, 0, 9)


def test_an_epoch_shows_each_sample_at_most_once_and_epochs_differ():
    steps = _steps(1, 1, 0, 8)
    first, second = [[s for step in part for s in step] for part in (steps[:4], steps[4:])]
    assert {epoch for epoch, _ in first} == {0} and {epoch for epoch, _ in second} == {1}
    assert len(set(first)) == len(first) == 48
    assert [index for _, index in first] != [index for _, index in second]
    assert list(_plan(seed=4).micro_batches(0, 0, 1)) != steps[0]


@pytest.mark.parametrize(("world", "gradient_accumulation_steps"), [(2, 1), (1, 3), (3, 2)])
def test_like_samples_share_micro_batches_and_a_step_sees_what_it_would_see(world, gradient_accumulation_steps):
    plan = _plan(world=world, gradient_accumulation_steps=gradient_accumulation_steps)
    # As shapes of pictures: many are alike.
    keys = np.random.default_rng(0).integers(0, 9, 50) / 8
    grouped = replace(plan, group_keys=keys)
    size, firsts = plan.micro_batch_size, set()
    before, after = ([list(each.micro_batches(rank, 0, 20)) for rank in range(world)] for each in (plan, grouped))
    for step in range(20):
        parts = range(step * gradient_accumulation_steps, (step + 1) * gradient_accumulation_steps)
        was, now = ([rank[part] for part in parts for rank in ranks] for ranks in (before, after))
        assert sorted(chain(*was)) == sorted(chain(*now))
        runs = sorted(sorted(keys[index] for _, index in batch) for batch in now)
        expected = sorted(keys[index] for batch in was for _, index in batch)
        assert list(chain(*runs)) == expected, "micro-batches are runs of the sorted samples"
        assert all(len(batch) == size for batch in now)
        firsts.add(runs.index(sorted(keys[index] for _, index in now[0])) // world)
    assert firsts == set(range(gradient_accumulation_steps)), "any part may be the first"
    resumed = list(grouped.micro_batches(0, 7, 20))
    assert resumed == after[0][7 * gradient_accumulation_steps :]


class _Shaped:
    def __init__(self, keys) -> None:
        self.keys = np.array(keys)

    def group_keys(self, progress) -> np.ndarray:
        progress(len(self.keys), len(self.keys))
        return self.keys


@pytest.mark.parametrize(
    ("keys", "wanted", "parts", "grouped"),
    [([0.0, 1] * 25, True, 2, True), ([0.0, 1] * 25, False, 2, False), ([0.0, 1] * 25, True, 1, False),
     ([1.0] * 50, True, 2, False), ([0.0, 1] * 25, "orientation", 1, False)],
)  # fmt: skip
def test_only_a_batch_of_several_parts_and_shapes_is_grouped(keys, wanted, parts, grouped):
    given = _plan(gradient_accumulation_steps=parts)
    settings = BatchSettings(group_by_aspect_ratio=wanted)
    plan = grouped_plan(given, settings, _Shaped(keys), Processes(), print)
    assert (plan.group_keys is not None) == grouped
    if wanted == "orientation":
        assert plan.kinds.tolist() == [key > 0 for key in keys], "wider than high, or not"
    elif not grouped:
        assert plan is given
    assert grouped_plan(given, settings, object(), Processes(), print) is given


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"images": 13, "world": 2}, "13 does not divide by gradient_accumulation_steps 1 x processes 2"),
        ({"images": 60}, "60 is more than the 50 training samples"),
    ],
)
def test_sizes_that_do_not_fit(changes, words):
    with pytest.raises(UserError, match=words):
        _plan(**changes)


class _Numbers:
    """Sample i of epoch e is 100 e + i."""

    def __init__(self) -> None:
        self.epoch = -1

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __getitem__(self, index: int) -> int:
        return 100 * self.epoch + index


@pytest.mark.parametrize("workers", [0, 2])
def test_loader_processes_hear_of_epochs_and_spare_the_global_generator(workers):
    plan = _plan()
    settings = BatchSettings(global_batch_size=12, workers=workers)
    torch.manual_seed(0)
    expected_next = torch.rand(())
    torch.manual_seed(0)
    batches = Batches(
        _Numbers(), lambda samples: {"numbers": torch.tensor(samples)}, plan.micro_batches(0, 2, 9), settings
    )
    loaded = [batch["numbers"].tolist() for batch in batches]
    batches.close()
    assert loaded == [[100 * e + i for e, i in samples] for samples in plan.micro_batches(0, 2, 9)]
    assert torch.equal(torch.rand(()), expected_next)


def _of_all_kinds(numbers: list[int]) -> dict:
    types = (torch.int64, torch.uint8, torch.bool, torch.float64, torch.float16, torch.bfloat16)
    kinds = {str(dtype): torch.arange(12).to(dtype).view(3, 4).T for dtype in types}
    # So large that its memory goes back to the system as soon as it moves.
    large = torch.zeros(1 << 26, dtype=torch.uint8)
    large[:4096] = torch.arange(4096)
    number = torch.tensor(numbers)
    return kinds | {
        "number": number, "one": number[0], "none": number[:0], "absent": None, "large": large, "part": large[:4096],
        "row": np.arange(3),
    }  # fmt: skip


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_arrive_as_they_were_collated(workers):
    plan = _plan()
    batches = Batches(_Numbers(), _of_all_kinds, plan.micro_batches(0, 0, 3), BatchSettings(workers=workers))
    loaded = list(batches)
    batches.close()
    for batch, samples in zip(loaded, plan.micro_batches(0, 0, 3), strict=True):
        expected = _of_all_kinds([100 * e + i for e, i in samples])
        assert {key: type(value) for key, value in batch.items()} == {k: type(v) for k, v in expected.items()}
        torch.testing.assert_close(batch, expected, rtol=0, atol=0)
        batch["number"] += 1  # its own memory, to write into
        assert torch.equal(batch["number"], expected["number"] + 1)


@pytest.mark.parametrize(("world", "parts", "images"), [(1, 1, 24), (8, 1, 192), (2, 3, 144)])
def test_samples_that_belong_together_are_in_one_forward_or_refused(world, parts, images):
    settings = BatchSettings(global_batch_size=images, gradient_accumulation_steps=parts)
    assert plan_batches(settings, 1000, world, 0, ("data.pairs", 24)).micro_batch_size == 24
    for other in (24 * world * parts - parts * world, 24 if world * parts > 1 else 48):
        settings = BatchSettings(global_batch_size=other, gradient_accumulation_steps=parts)
        said = rf"data\.pairs: 24 in one forward.* of {images}, got {other}; give --batch.global_batch_size {images}"
        with pytest.raises(UserError, match=said):
            plan_batches(settings, 1000, world, 0, ("data.pairs", 24))


def _counting(data, step):
    """A run in so far as it counts unreadable images: of batches of 100 samples, a hundredth may be."""
    settings, plan = SimpleNamespace(batch=BatchSettings()), SimpleNamespace(global_batch_size=100)
    counting = {"progress": Progress(step=step), "settings": settings, "plan": plan, "data": data}
    return SimpleNamespace(**counting, processes=Processes(), _skipped=[], _say=[].append)


@pytest.mark.parametrize(("step", "seen", "allowed"), [(10, 1000, 10), (15, 1500, 15), (100, 2000, 20)])
def test_the_share_of_unreadable_images_is_of_images_and_not_of_their_captions(step, seen, allowed):
    """Five captions an image: 10,000 samples an epoch of 2,000 images."""

    class Data(list):
        images = range(2000)

    run = _counting(Data(range(10_000)), step)
    lines = [f"coco/{number}: {number}.jpg: truncated" for number in range(allowed + 1)]
    Run._count_skipped(run, lines[:-1])
    with pytest.raises(UserError, match=rf"corrupt_images: {allowed + 1} of {seen} images are unreadable"):
        Run._count_skipped(run, lines[-1:])


def test_an_unreadable_image_is_one_whether_its_batch_held_others_or_not():
    run = _counting(range(5000), 20)
    for line in ("0.jpg: truncated", f"0.jpg: truncated{_STAND_IN_NOTE}"):
        Run._count_skipped(run, [line])
    assert run.progress.corrupt_images == 1


class _Broken(_Numbers):
    """500 samples, of which the first 12 are corrupt."""

    def __len__(self) -> int:
        return 500

    def __getitem__(self, index: int) -> SimpleNamespace:
        return SimpleNamespace(index=index, corrupt="torn" if index < 12 else None)


def _indices_of_usable(samples: list[SimpleNamespace]) -> dict[str, list[int]]:
    return {"indices": [sample.index for sample in samples if sample.corrupt is None]}


def test_each_batch_of_broken_images_has_a_stand_in_of_its_own_that_any_process_draws():
    lone = [[(epoch, index)] for epoch in range(2) for index in range(12)]

    def stand_ins(micro_batches):
        batches = Batches(_Broken(), _indices_of_usable, micro_batches, BatchSettings(workers=0))
        return [index for batch in batches for index in batch["indices"]]

    drawn = stand_ins(lone)
    assert len(set(drawn)) > 20, "by epoch and sample"
    assert stand_ins(lone[::-1]) == drawn[::-1]
