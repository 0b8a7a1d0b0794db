"""An image that is trained on and held out is found by what its file holds, under whatever name it comes."""

import os
import shutil
import zipfile

import pytest

from soho_fast.data.overlap import content_of, in_words, shared_images
from soho_fast.data.readers.records import ImageRef
from soho_fast.data.stores import FolderStore, ZipStore

CONTENTS = {f"{number}.jpg": bytes([number]) * (5000 + number // 2) for number in range(8)}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "train").mkdir()
    for name, content in CONTENTS.items():
        (tmp_path / "train" / name).write_bytes(content)
    return tmp_path / "train"


def images(folder, *names):
    store = FolderStore(str(folder))
    return [ImageRef(store, name) for name in names]


def test_copies_links_and_hard_links_are_the_same_image(folder, tmp_path):
    held = tmp_path / "val"
    held.mkdir()
    shutil.copy(folder / "1.jpg", held / "copy.jpg")
    os.link(folder / "2.jpg", held / "hard.jpg")
    os.symlink(folder / "3.jpg", held / "link.jpg")
    (held / "own.jpg").write_bytes(b"x" * 5000)  # as long as 0.jpg and 1.jpg
    # As long as 4.jpg and with its beginning, but of another content.
    (held / "like.jpg").write_bytes(CONTENTS["4.jpg"][:-1] + b"x")
    names = ("copy.jpg", "hard.jpg", "link.jpg", "own.jpg", "like.jpg")
    found = shared_images(images(folder, *CONTENTS), images(held, *names))
    assert {(one.name, two.name) for one, two in found} == {
        ("1.jpg", "copy.jpg"), ("2.jpg", "hard.jpg"), ("3.jpg", "link.jpg"),
    }  # fmt: skip
    told = in_words(found)
    assert f"{folder}/1.jpg (held out as {held}/copy.jpg)" in told
    assert in_words(shared_images(images(folder, "1.jpg"), images(folder, "1.jpg"))) == [f"{folder}/1.jpg"]


def test_images_are_known_by_what_their_files_hold(folder, tmp_path):
    """Wherever they lie; of a sample it is said that it is one, and sizes tell of the others."""
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        for name, content in CONTENTS.items():
            archive.writestr(name, content)
    store = ZipStore(str(tmp_path / "all.zip"))
    whole = content_of(images(folder, *CONTENTS))
    assert whole.startswith("8 images, ") and whole == content_of(ImageRef(store, name) for name in CONTENTS)
    assert whole != content_of(images(folder, *list(CONTENTS)[1:]))
    sampled = content_of(images(folder, *CONTENTS), every=4)
    read = int(sampled.removeprefix("8 images, of which ").partition(" were read, ")[0])
    assert 0 < read < 8
    seen = []
    for name, content in CONTENTS.items():
        (folder / name).write_bytes(content[:-1] + b"x")
        assert content_of(images(folder, *CONTENTS)) != whole, name
        seen.append(content_of(images(folder, *CONTENTS), every=4) != sampled)
        (folder / name).write_bytes(content + b"x")
        assert content_of(images(folder, *CONTENTS), every=4) != sampled, name
        (folder / name).unlink()
        assert content_of(images(folder, *CONTENTS), every=4) != sampled, name
        (folder / name).write_bytes(content)
    assert sum(seen) == read


def test_archives_are_compared_with_folders(folder, tmp_path):
    with zipfile.ZipFile(tmp_path / "held.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/5.jpg", CONTENTS["5.jpg"])
        archive.writestr("a/new.jpg", b"y" * len(CONTENTS["5.jpg"]))
    zipped = ZipStore(str(tmp_path / "held.zip"))
    held = [ImageRef(zipped, "a/5.jpg"), ImageRef(zipped, "a/new.jpg")]
    assert [two.name for _, two in shared_images(images(folder, *CONTENTS), held)] == ["a/5.jpg"]
    assert [one.name for one, _ in shared_images(held, images(folder, *CONTENTS))] == ["a/5.jpg"]


def test_an_image_counts_once_however_often_it_comes_and_a_broken_one_not(folder):
    training = images(folder, "1.jpg", "1.jpg", "missing.jpg", "2.jpg")
    held = images(folder, "1.jpg", "1.jpg", "missing.jpg")
    assert len(shared_images(training, held)) == 1
    assert shared_images([], held) == shared_images(training, []) == []


def test_files_of_other_sizes_are_not_read(folder, tmp_path, monkeypatch):
    """Of 120,000 images few have a held-out one's size: asking for sizes is what it costs."""
    read = []
    opened = FolderStore.open
    monkeypatch.setattr(FolderStore, "open", lambda store, name: read.append(name) or opened(store, name))
    (tmp_path / "val").mkdir()
    (tmp_path / "val/held.jpg").write_bytes(CONTENTS["7.jpg"])
    assert len(shared_images(images(folder, *CONTENTS), images(tmp_path / "val", "held.jpg"))) == 1
    assert set(read) == {"6.jpg", "7.jpg", "held.jpg"}
    monkeypatch.setattr(FolderStore, "size", lambda *_: pytest.fail("nothing is held out"))
    assert shared_images(images(folder, *CONTENTS), []) == []


def test_a_file_that_is_held_out_often_is_told_once_with_how_often(folder):
    for name in ("1 again.jpg", "1 more.jpg"):
        shutil.copy(folder / "1.jpg", folder / name)
    held = images(folder, "2.jpg", "1.jpg", "1 again.jpg", "1 more.jpg")
    told = in_words(shared_images(images(folder, *CONTENTS), held))
    assert told == [f"{folder}/1.jpg (held out as {folder}/1.jpg and 2 more)", f"{folder}/2.jpg"]
