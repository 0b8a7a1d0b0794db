"""Data sets of Hugging Face `datasets`: what is trained on from one is what is trained on from files."""

import os
import pickle

import numpy as np
import pytest
import torch
from tiny_corpus import COLOURS, write_karpathy, write_tokenizer
from tiny_datasets import FORMS, jpeg, write_as, write_img2dataset, write_parquet, write_tar

datasets = pytest.importorskip("datasets")

from soho_fast.data.batches.pretraining import PretrainingDataset  # noqa: E402
from soho_fast.data.batches.sample import Collator  # noqa: E402
from soho_fast.data.images import SohoImageProcessor, shapes_of  # noqa: E402
from soho_fast.data.overlap import content_of, shared_images  # noqa: E402
from soho_fast.data.processor import SohoProcessor  # noqa: E402
from soho_fast.data.readers.captions import read_karpathy  # noqa: E402
from soho_fast.data.readers.dataset import read_dataset  # noqa: E402
from soho_fast.data.readers.records import MOST_CHARACTERS, ReadReport  # noqa: E402
from soho_fast.data.text import load_tokenizer  # noqa: E402
from soho_fast.engine.batches import Batches, plan_batches  # noqa: E402
from soho_fast.engine.settings import BatchSettings  # noqa: E402
from soho_fast.tasks.contents import records_identity  # noqa: E402
from soho_fast.tasks.pretraining import PretrainingTask  # noqa: E402
from soho_fast.tasks.settings import CaptionSource, PretrainingData  # noqa: E402


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    """The cache of `datasets`, which is the user's otherwise."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder)
    return folder


@pytest.fixture(scope="module")
def processor(tmp_path_factory):
    folder = write_tokenizer(tmp_path_factory.mktemp("words"))
    image_processor = SohoImageProcessor(size={"shortest_edge": 32, "longest_edge": 64})
    return SohoProcessor(image_processor, load_tokenizer(folder))


@pytest.fixture(scope="module")
def listed(tmp_path_factory):
    """Twelve images in files, of several shapes; the sixth is corrupt."""
    folder = tmp_path_factory.mktemp("coco")
    write_karpathy(folder, {"train": list(COLOURS)}, sentences=lambda c: [f"a {c}", f"There is a {c}.", f"the {c} man"])
    (folder / "train2014/0002.jpg").write_bytes(jpeg((9, 9, 9), (20, 60)))
    (folder / "train2014/0005.jpg").write_bytes(jpeg()[:300])
    return read_karpathy(folder / "dataset_coco.json", folder, ["train"])


def rows_of(records):
    return [(record.image.read(), list(record.captions)) for record in records]


def equal(first, second):
    for ours, theirs in (
        (first.pixels, second.pixels),
        (first.texts_ids, second.texts_ids),
        (first.token_labels.get("mlm_labels", ()), second.token_labels.get("mlm_labels", ())),
        (first.text_fields.values(), second.text_fields.values()),
    ):
        assert all(torch.equal(torch.as_tensor(a), torch.as_tensor(b)) for a, b in zip(ours, theirs, strict=True))
    return first.image_keys == second.image_keys and first.image_fields == second.image_fields


@pytest.mark.parametrize("form", FORMS)
def test_a_data_set_of_any_form_gives_the_samples_of_files(listed, processor, tmp_path, form):
    """The same order, draws, shapes, sizes; the corrupt image is skipped and named as one in a file."""
    report = ReadReport()
    records = read_dataset(write_as(tmp_path / "set", form, rows_of(listed)), report=report)
    assert report.lines() == [f"{records[0].source}: 12 images, 36 captions"]
    images, files = ([record.image for record in each] for each in (records, listed))
    assert [image.store.size(image.name) for image in images] == [image.store.size(image.name) for image in files]
    assert shapes_of(images).tolist() == shapes_of(files).tolist()
    held_out = [(a.name, b) for a, b in shared_images(images, files)]
    assert held_out == [(str(number), image) for number, image in enumerate(files)]
    assert pickle.loads(pickle.dumps(images[3])) == images[3] and len(pickle.dumps(images[3])) < 4000
    both = [PretrainingDataset(each, processor, seed=3, epoch="captions") for each in (records, listed)]
    assert len(both[0]) == len(both[1]) == 24
    for epoch in (0, 1):
        for each in both:
            each.set_epoch(epoch)
        assert all(equal(both[0][index], both[1][index]) for index in range(24))
    skipped = [Collator(processor)([data[10], data[11], data[0]])["skipped"] for data in both]
    reasons = [[line.partition(": ")[2].replace(str(image), "") for line in each] for each, image in
               zip(skipped, (images[5], files[5]), strict=True)]  # fmt: skip
    assert len(skipped[0]) == 2 and reasons[0] == reasons[1]
    assert skipped[0][0].startswith(f"{records[0].source}/5: {images[5]}")
    place = {"tars": "00005.tar!0005.jpg", "paths": "5.jpg"}.get(form, ": row 5")
    assert str(images[5]).endswith(place)


def batches(dataset, collate, *, world=1, workers=0, first=0, total=6):
    settings = BatchSettings(global_batch_size=4, gradient_accumulation_steps=1, workers=workers)
    plan = plan_batches(settings, len(dataset), world, seed=1)
    ranks = [Batches(dataset, collate, plan.micro_batches(rank, first, total), settings) for rank in range(world)]
    steps = [[next(rank) for rank in ranks] for _ in range(total - first)]
    for rank in ranks:
        rank.close()
    return steps


@pytest.mark.parametrize(("world", "workers"), [(1, 0), (2, 0), (1, 2)])
def test_resuming_is_exact_for_any_ranks_and_workers_and_each_image_comes_once(tmp_path, processor, world, workers):
    images = [(jpeg((place * 20 % 256, 0, 9)), f"image{place}") for place in range(12)]
    records = read_dataset(write_img2dataset(tmp_path, images, "parquet"))
    dataset, collate = PretrainingDataset(records, processor, seed=2), Collator(processor)
    whole = batches(dataset, collate)
    ids = [sample_id for step in whole for part in step for sample_id in part["sample_ids"]]
    assert sorted(ids[:12]) == sorted(ids[12:]) == sorted(f"{tmp_path.stem}/{row}" for row in range(12))
    for first in (1, 5):
        resumed = batches(dataset, collate, world=world, workers=workers, first=first)
        for expected, parts in zip(whole[first:], resumed, strict=True):
            assert [i for part in parts for i in part["sample_ids"]] == expected[0]["sample_ids"]
            if world == 1:
                tensors = {name: value for name, value in expected[0].items() if isinstance(value, torch.Tensor)}
                assert all(torch.equal(value, parts[0][name]) for name, value in tensors.items())


@pytest.mark.parametrize("form", ["webdataset", "parquet"])
def test_what_img2dataset_writes_is_read_in_both_its_formats(tmp_path, form):
    fetched = [jpeg((number, 0, 0)) for number in range(12)]
    images = [(content, f"a {number}") for number, content in enumerate(fetched)]
    images[3], images[7], images[8] = (None, "gone"), (fetched[7], ""), (fetched[8], None)
    report = ReadReport()
    records = read_dataset(write_img2dataset(tmp_path / "cc3m", images, form), report=report)
    kept = [number for number in range(12) if number not in (3, 7, 8)]
    assert [(record.image.read(), record.captions) for record in records] == [
        (fetched[number], (f"a {number}",)) for number in kept
    ]
    # What could not be fetched is not in the tars at all.
    left_out = {"parquet": ["cc3m: 1 images left out: no file, as row 3"], "webdataset": []}[form]
    assert report.lines() == ["cc3m: 9 images, 9 captions", *left_out, "cc3m: 2 images left out: no caption"]


def test_what_has_changed_is_read_again_and_what_has_not_is_not(tmp_path, cache):
    for form in ("parquet", "webdataset"):
        path = write_img2dataset(tmp_path / form, [(jpeg(), "a dog"), (jpeg(), "a cat")], form)
        first = read_dataset(path)
        files = {file: file.stat().st_mtime_ns for file in cache.rglob("*.arrow")}
        assert records_identity(read_dataset(path)) == records_identity(first)
        assert {file: file.stat().st_mtime_ns for file in cache.rglob("*.arrow")} == files
        changed = (jpeg((0, 0, 9), (50, 50)), "a bird")
        write_img2dataset(tmp_path / form, [(jpeg(), "a dog"), changed], form)
        second = read_dataset(path)
        assert second[1].captions == ("a bird",) and second[1].image.read() == changed[0]
        assert content_of(record.image for record in second) != content_of(record.image for record in first[:1])


def test_images_of_tars_are_not_copied(tmp_path, cache):
    images = [(np.random.default_rng(number).bytes(100_000), "a dog") for number in range(5)]
    records = read_dataset(write_img2dataset(tmp_path, images, "webdataset"))
    assert [record.image.read() for record in records] == [content for content, _ in images]
    assert sum(file.stat().st_size for file in cache.rglob("*") if file.is_file()) < 20_000


@pytest.mark.parametrize(
    ("row", "columns", "captions"),
    [
        ({"image": b"x", "text": "a", "label": "b"}, [], ["a"]),
        ({"image": b"x", "TEXT": "a"}, [], ["a"]),
        ({"thumb": b"y", "image": b"x", "caption_0": "a", "caption_1": "b", "caption_id": "c"}, ["image"], ["a", "b"]),
        ({"jpg": b"x", "caption": "a", "txt": "b", "url": "c"}, [], ["a"]),
        ({"image": b"x", "sentences": ["a", "b", None, " "]}, [], ["a", "b"]),
        ({"image": b"x", "caption": "a", "title": "b", "alt": ["c"]}, ["image", "title", "alt"], ["b", "c"]),
        ({"picture": {"bytes": b"x", "path": "a.jpg"}, "caption": " a "}, [], ["a"]),
    ],
)
def test_columns_are_chosen_by_their_types_and_usual_names(tmp_path, row, columns, captions):
    (record,) = read_dataset(write_parquet(tmp_path / "a.parquet", [row]), columns)
    assert (record.image.read(), list(record.captions)) == (b"x", captions)


@pytest.mark.parametrize(
    ("row", "columns", "told"),
    [
        ({"image": b"x", "label": 3}, [], "a.parquet: no column of texts; expected columns: the image's, then those"),
        ({"file": "x.jpg", "caption": "a"}, [], "no column of an image; expected"),
        ({"image": b"x", "caption": "a"}, ["imag"], "among image (binary), caption (string); did you mean image?"),
        ({"image": b"x", "caption": "a"}, ["caption"], "no column 'caption' of an image; expected"),
        ({"image": b"x", "caption": "a"}, ["image", "image"], "no column 'image' of texts; expected"),
        ({"image": b"x", "caption": ""}, [], "a.parquet: no image with a caption was found in 1 rows"),
        ({"image": None, "caption": "a", "jpg": b"x"}, ["jpg", "text"], "no column 'text' of texts; expected"),
        ({"image": b"x", "caption": "a" * (MOST_CHARACTERS + 1)}, [], "a.parquet: row 0: a caption has 100,001"),
    ],
)
def test_what_can_not_be_read_is_told(tmp_path, row, columns, told):
    path = write_parquet(tmp_path / "a.parquet", [row])
    with pytest.raises(ValueError) as error:
        read_dataset(path, columns)
    assert told in str(error.value)


def _cut(path):
    path.write_bytes(path.read_bytes()[:-11_000])


def _several_splits(folder):
    part = datasets.Dataset.from_dict({"caption": ["a"]})
    datasets.DatasetDict(train=part, val=part).save_to_disk(folder / "set")


@pytest.mark.parametrize(
    ("name", "make", "told"),
    [
        ("set", _several_splits, "set: has several splits; expected the path of one of the folders in it"),
        ("none", lambda folder: None, "none: holds no data set; expected .tar, .parquet, .arrow files of one kind"),
        ("", lambda folder: (folder / "a.csv").touch(), "holds no data set"),
        ("*", lambda folder: [(folder / name).touch() for name in ("a.tar", "b.arrow")], "*: holds no data set"),
        ("a.parquet", lambda folder: (folder / "a.parquet").write_bytes(b"x" * 99), "a.parquet: can't be read as"),
        ("a.arrow", lambda folder: (folder / "a.arrow").write_bytes(b"x" * 99), "a.arrow: can't be read as"),
        (
            "a.tar",
            lambda folder: (folder / "a.tar").write_bytes(b"x" * 999),
            "a.tar is no whole tar without compression",
        ),
        (
            "a.tar",
            lambda folder: _cut(write_tar(folder / "a.tar", [("0.jpg", b"x" * 9000), ("1.jpg", b"y" * 9000)])),
            "a.tar is no whole tar without compression (ReadError: unexpected end of data)",
        ),
    ],
)
def test_files_that_can_not_be_read_are_named(tmp_path, name, make, told):
    make(tmp_path)
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        read_dataset(os.path.join(tmp_path, name))
    assert told in str(error.value) and str(tmp_path) in str(error.value)


@pytest.mark.parametrize(
    ("members", "captions"),
    [
        ([("a.jpg", b"x"), ("a.txt", "\ufeffa caf\u00e9 ".encode())], [("a caf\u00e9",)]),
        ([("a.jpg", b"x"), ("a.txt", b"b"), ("a.json", b'{"captions": ["c", "d"], "caption": "e"}')], [("c", "d")]),
        ([("a.jpg", b"x"), ("a.txt", b"b"), ("a.json", b'{"caption": "e"}')], [("b",)]),
        ([("a.JPG", b"x"), ("a.JSON", b'\xef\xbb\xbf{"caption": "e \\ud83d"}')], [("e ?",)]),
        ([("a.jpg", b"x"), ("a.json", b"{"), ("b.jpg", b"x"), ("b.json", b"[1]"), ("c.jpg", b"x"), ("c.txt", b"c")],
         [("c",)]),
        ([("in/a.b/0.seg.png", b"x"), ("in/a.b/0.txt", b"b"), ("in/a.b/1.txt", b"c"), ("in/a.b/1.x.png", b"x")],
         [("b",), ("c",)]),
        ([("README", b"x"), (".DS_Store", b"x"), ("__info__.json", b"{}"), ("a.jpg", b"x"), ("a.txt", b"a")], [("a",)]),
    ],
)  # fmt: skip
def test_samples_of_tars(tmp_path, members, captions):
    records = read_dataset(write_tar(tmp_path / "a.tar", members))
    assert [record.captions for record in records] == captions
    assert {record.image.read() for record in records} == {b"x"}


def test_no_file_outside_of_the_folder_is_read(tmp_path):
    (tmp_path / "secret.jpg").write_bytes(b"secret")
    paths = ["../secret.jpg", str(tmp_path / "secret.jpg"), "gone.jpg"]
    rows = [{"image": {"bytes": None, "path": path}, "caption": "a"} for path in paths]
    for record in read_dataset(write_parquet(tmp_path / "set/a.parquet", rows)):
        with pytest.raises(OSError):
            record.image.read()


def test_a_share_is_held_out_and_stays_so_when_rows_are_added(tmp_path):
    def held(count):
        images = [(jpeg((number, 0, 0)), f"a {number}") for number in range(count)]
        path = write_img2dataset(tmp_path / str(count), images, "parquet", per_file=50)
        parts = [[r.image_id for r in read_dataset(path, (), [s])] for s in ("train", "val")]
        assert sorted(map(int, parts[0] + parts[1])) == list(range(count))
        return parts[1]

    few, many = held(40), held(60)
    assert 2 < len(few) < 15 and many[: len(few)] == few and len(many) > len(few)
    with pytest.raises(ValueError, match="splits test; expected some of train and val"):
        read_dataset(tmp_path / "40", (), ["test"])


def task_of(folder, listed, **fields):
    source = {"annotations": write_as(folder / "set", "saved", rows_of(listed)), "format": "dataset", **fields}
    images = str(listed[0].image.store)
    files = CaptionSource(annotations=f"{images}/dataset_coco.json", images=[images], splits=["train"])
    tokenizer = str(write_tokenizer(folder / "words"))
    return PretrainingTask(
        PretrainingData(sources=[CaptionSource(**source), files], tokenizer=tokenizer), say=[].append
    )


def test_a_recipe_reads_one_beside_files(listed, tmp_path):
    data = task_of(tmp_path, listed, max_captions=2, columns=["image", "captions"]).training_data()
    assert len(data) == 36 and data[3].sample_ids == ["saved/3"] and data[12 + 2 * 3].sample_ids == ["coco/3"]
    assert data.images._images.texts.counts().tolist() == [2] * 12 + [3] * 12


@pytest.mark.parametrize(("field", "value"), [("images", ["x"]), ("exclude_held_out_of", ["x"])])
def test_what_a_data_set_does_not_have_is_refused(listed, tmp_path, field, value):
    with pytest.raises(ValueError, match=rf"data\.sources\[0\]\.{field}: only for format .*, this is dataset"):
        task_of(tmp_path, listed, **{field: value}).training_data()
