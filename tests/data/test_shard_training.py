"""What is trained on from shards is what is trained on from a folder, in an order that goes forward on the disk."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from tiny_corpus import COLOURS, write_karpathy, write_tokenizer, write_zip
from tiny_shards import jpeg, sample, write_karpathy_set, write_set, write_tar

from soho_fast.data.batches.pretraining import PretrainingDataset
from soho_fast.data.batches.record_table import RecordTable
from soho_fast.data.batches.sample import Collator
from soho_fast.data.images import SohoImageProcessor
from soho_fast.data.processor import SohoProcessor
from soho_fast.data.readers.captions import read_karpathy
from soho_fast.data.shards.indexing import build_index
from soho_fast.data.shards.records import epoch_order, read_shards
from soho_fast.data.text import load_tokenizer
from soho_fast.engine.batches import Batches, plan_batches
from soho_fast.engine.settings import BatchSettings
from soho_fast.tasks.contents import records_identity, sets_identity
from soho_fast.tasks.pretraining import PretrainingTask, read_sources
from soho_fast.tasks.settings import CaptionSource, PretrainingData


@pytest.fixture(scope="module")
def processor(tmp_path_factory):
    folder = write_tokenizer(tmp_path_factory.mktemp("words"))
    image_processor = SohoImageProcessor(size={"shortest_edge": 32, "longest_edge": 64})
    return SohoProcessor(image_processor, load_tokenizer(folder))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """A Karpathy set of twelve images in a folder, a zip file and three shards with its captions."""
    folder = tmp_path_factory.mktemp("coco")
    write_karpathy(folder, {"train": list(COLOURS)}, sentences=lambda c: [f"a {c}", f"There is a {c}.", f"the {c} man"])
    write_zip(folder / "images.zip", folder)
    write_karpathy_set(folder / "shards", folder, ["train"], per_shard=5)
    return folder


def equal(first, second):
    assert (first.image_keys, first.corrupt, first.image_fields) == (
        second.image_keys,
        second.corrupt,
        second.image_fields,
    )
    for ours, theirs in (
        (first.pixels, second.pixels),
        (first.texts_ids, second.texts_ids),
        (first.token_labels["mlm_labels"], second.token_labels["mlm_labels"]),
        (first.text_fields.values(), second.text_fields.values()),
    ):
        assert all(torch.equal(torch.as_tensor(a), torch.as_tensor(b)) for a, b in zip(ours, theirs, strict=True))
    return True


def test_a_folder_a_zip_and_shards_give_the_same_samples(corpus, processor):
    path = str(corpus / "shards/{00000..00002}.tar")

    def read(images):
        return read_karpathy(corpus / "dataset_coco.json", images, ["train"])

    stores = [read(str(corpus)), read(str(corpus / "images.zip")), read(path), read_shards(path, source="coco")]
    datasets = [PretrainingDataset(records, processor, seed=3, epoch="captions") for records in stores]
    assert len(datasets[0]) == 24
    for dataset in datasets:
        for epoch in (0, 1):
            for each in (dataset, datasets[0]):
                each.set_epoch(epoch)
            assert all(equal(dataset[index], datasets[0][index]) for index in range(24))
        keys = [each.group_keys(lambda *_: None) for each in (dataset, datasets[0])]
        assert np.array_equal(*keys)
    assert len({records_identity(records) for records in stores[:3]}) == 1
    assert [record.captions for record in stores[0]] == [record.captions for record in stores[3]]
    assert [record.image_id for record in stores[0]] == [record.image_id for record in stores[3]]


def test_all_of_a_shard_come_near_each_other_and_all_come_once():
    bounds = np.array([0, 100, 250, 400, 500, 700, 1000])
    order = epoch_order([bounds], np.random.default_rng(0), window=50)
    assert sorted(order) == list(range(1000))
    place = np.argsort(order)
    for first, last in pairwise(bounds):
        assert np.ptp(place[first:last]) < last - first + 2 * 50
        assert np.abs(np.diff(place[first:last])).mean() > 10, "shuffled within the window"
    assert not np.array_equal(order, epoch_order([bounds], np.random.default_rng(1), window=50))
    firsts = [epoch_order([bounds], np.random.default_rng(seed), window=1)[0] for seed in range(60)]
    assert set(firsts) == set(bounds[:-1].tolist()), "each shard comes first at times"


def test_sets_are_mixed_evenly_and_one_that_is_no_shards_is_shuffled_whole():
    listed, sharded = np.array([0, 3000]), np.array([3000, 3500, 4000])
    order = epoch_order([listed, sharded], np.random.default_rng(0), window=10)
    assert sorted(order) == list(range(4000))
    for part in np.split(order, 8):
        assert 330 < (part < 3000).sum() < 420
    own = order[order < 3000]
    assert np.corrcoef(own, np.arange(3000))[0, 1] < 0.1
    inside = order[order >= 3000] - 3000
    assert np.ptp(np.argsort(inside)[:500]) < 500 + 2 * 10


def test_a_list_of_records_is_shuffled_as_ever(corpus, processor):
    dataset = PretrainingDataset(read_karpathy(corpus / "dataset_coco.json", corpus, ["train"]), processor)
    assert np.array_equal(dataset.epoch_order(np.random.default_rng(7)), np.random.default_rng(7).permutation(12))


def batches(dataset, collate, *, world=1, workers=0, first=0, total=6):
    settings = BatchSettings(global_batch_size=4, gradient_accumulation_steps=1, workers=workers)
    plan = replace(plan_batches(settings, len(dataset), world, seed=1), epoch_order=dataset.epoch_order)
    ranks = [Batches(dataset, collate, plan.micro_batches(rank, first, total), settings) for rank in range(world)]
    steps = [[next(rank) for rank in ranks] for _ in range(total - first)]
    for rank in ranks:
        rank.close()
    return steps


@pytest.mark.parametrize(("world", "workers"), [(1, 0), (2, 0), (1, 2)])
def test_resuming_within_a_shard_is_exact_for_any_ranks_and_workers(tmp_path, processor, world, workers):
    """Shards of six, batches of four: step 1 begins in the middle of one."""
    records = read_shards(write_set(tmp_path, num_shards=3, per_shard=6))
    dataset, collate = PretrainingDataset(records, processor, seed=2), Collator(processor)
    whole = batches(dataset, collate)
    ids = [sample_id for step in whole for part in step for sample_id in part["sample_ids"]]
    for epoch, seen in enumerate((ids[:16], ids[16:])):  # stream 1 of the run's seed, 1, is that of the order
        order = dataset.epoch_order(np.random.default_rng([1, 1, epoch]))
        assert seen == [dataset[int(index)].sample_ids[0] for index in order[: len(seen)]]
    assert len(set(ids[:16])) == len(set(ids[16:])) + 8 == 16, "four steps an epoch"
    for first in (1, 5):
        resumed = batches(dataset, collate, world=world, workers=workers, first=first)
        for expected, parts in zip(whole[first:], resumed, strict=True):
            assert [i for part in parts for i in part["sample_ids"]] == expected[0]["sample_ids"]
            if world == 1:
                assert all(
                    torch.equal(value, parts[0][name])
                    for name, value in expected[0].items()
                    if isinstance(value, torch.Tensor)
                )


def test_shards_beside_a_folder(corpus, tmp_path, processor):
    listed = read_karpathy(corpus / "dataset_coco.json", corpus, ["train"])
    sharded = read_shards(write_set(tmp_path / "cc"))
    both = RecordTable([listed, sharded])
    assert (len(both), both[11], both[12], both[23]) == (24, listed[11].image, sharded[0].image, sharded[11].image)
    assert (both.texts.all(11), both.texts.all(12)) == (list(listed[11].captions), ["image0 of shard0"])
    assert list(both.locations()) == [str(image) for image in both]
    dataset = PretrainingDataset(both, processor, epoch="images", num_negative=1)
    assert dataset[3].sample_ids == ["coco/3"] and dataset[13].sample_ids == ["cc/000000001"]
    for index in range(24):
        words = processor.tokenizer.decode(dataset[index].texts_ids[-1]).split()
        if "[MASK]" not in words:
            assert bool(set(words) & {"a", "the"}) == (index < 12), "a negative is of the image's own set"
    order = dataset.epoch_order(np.random.default_rng(0))
    assert sorted(order) == list(range(24))
    assert sets_identity([listed, listed]) == records_identity(listed * 2)
    assert len({sets_identity([listed, sharded]), sets_identity([sharded, listed])}) == 2
    assert sets_identity([sharded]) == records_identity(sharded)


def test_another_caption_is_another_set(tmp_path):
    path = write_set(tmp_path)
    before = records_identity(read_shards(path))
    assert records_identity(read_shards(path)) == before != records_identity(read_shards(path, max_captions=1))
    build_index(str(write_tar(tmp_path / "00002.tar", sample("000020000", "another"))))
    assert records_identity(read_shards(path)) != before


def task_of(corpus, **source):
    shards_of = {"annotations": str(corpus / "shards/{00000..00002}.tar"), "format": "webdataset", **source}
    tokenizer = write_tokenizer(corpus / "words")
    return PretrainingTask(
        PretrainingData(sources=[CaptionSource(**shards_of)], tokenizer=str(tokenizer)), say=[].append
    )


def test_a_recipe_reads_them(corpus):
    task = task_of(corpus, name="coco", max_captions=2)
    assert len(task.training_data()) == 12 and task._records.training.texts.counts().sum() == 24
    assert task.contents()["training data"].startswith("12 records, ")
    path = str(corpus / "shards/{00000..00002}.tar")
    task = task_of(corpus, name="coco", max_captions=2)
    task.data.heldout = [CaptionSource(annotations=str(corpus / "dataset_coco.json"), images=[path], splits=["train"])]
    with pytest.raises(
        ValueError, match=r"12 images are both in sources and in heldout, as .*00000\.tar!train2014/0000"
    ):
        task.training_data()


def test_a_recipe_says_how_many_samples_may_be_broken(tmp_path):
    members = [part for number in range(20) for part in sample(str(number), f"a {number}")]
    for number in range(20, 32):
        members += [(f"{number}.jpg", jpeg()), (f"{number}.json", b"{")]
    build_index(str(write_tar(tmp_path / "shards/00000.tar", members)))
    build_index(str(write_tar(tmp_path / "shards/00001.tar", sample("last"))))
    build_index(str(write_tar(tmp_path / "shards/00002.tar", sample("other"))))
    with pytest.raises(
        ValueError, match=r"batch\.corrupt_images: 12 of 34 samples .* 0\.01 .* as .*00000\.tar!20\.json"
    ):
        task_of(tmp_path).training_data()
    task = task_of(tmp_path)
    task.corrupt_images = 0.012
    assert len(task.training_data()) == 22


@pytest.mark.parametrize(
    ("field", "value"), [("images", ["x"]), ("splits", ["train"]), ("image_data", "x"), ("exclude_coco_ids_from", "x")]
)
def test_what_shards_do_not_have_is_refused(corpus, field, value):
    with pytest.raises(ValueError, match=rf"data\.sources\[0\]\.{field}: only for format .*, this is webdataset"):
        task_of(corpus, **{field: value}).training_data()


def test_shards_without_a_caption_are_refused(tmp_path):
    path = write_tar(tmp_path / "a.tar", sample("0", None))
    build_index(str(path))
    with pytest.raises(ValueError, match=r"a\.tar: no image with a caption was found \(1 images, 0 captions; 1 images"):
        data = PretrainingData(sources=[CaptionSource(annotations=str(path), format="webdataset")])
        read_sources(data, "sources", say=[].append, max_broken=0.01)
