"""A whole explorer against the obvious program, and what may happen to its folder."""

import dataclasses
import errno
import os
import shutil

import numpy as np
import pytest
from explore_made import WORDS, MadeSource, beside, codebook, described, patches_of, seen_images

from soho_fast.common.errors import UserError
from soho_fast.explore import bundle as layout
from soho_fast.explore.assemble import assemble
from soho_fast.explore.bundle import Bundle, BundleError

NUM_CODES = 70  # two files of codes


def build(folder, images=None, num_codes=NUM_CODES, **options):
    images = seen_images(60, num_codes) if images is None else images
    return Bundle(assemble(MadeSource(images, codebook(num_codes)), folder, say=lambda line: None, **options))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(images, the explorer of 25 of them)."""
    images = seen_images(60, NUM_CODES)
    return images, build(tmp_path_factory.mktemp("made") / "explorer", images, most_shown=25)


def test_every_field_of_the_layout_is_there(made):
    _, bundle = made
    assert set(bundle.meta) == described("meta.js")
    assert set(bundle.read("wall")) == described("wall.js")
    for code in range(NUM_CODES):
        assert set(bundle.code(code)) == described("codes-0000.js")
    for picture in range(25):
        assert set(bundle.image(picture)) == described("images-0000.js")
    assert all(set(entry) == described("words.js") for entry in bundle.read("words"))
    assert (bundle.folder / "index.html").is_file()


def test_statistics_are_of_all_images_and_occurrences_of_the_gallery(made):
    images, bundle = made
    patches, counts = patches_of(images), beside(images)
    assert bundle.meta["num_images"] == 60 and bundle.meta["num_shown"] == 25
    assert bundle.meta["num_tokens"] == sum(map(len, patches.values()))
    assert bundle.meta["num_active"] == sum(map(bool, patches.values()))
    shown = [int(bundle.image(picture)["name"].split()[1]) for picture in range(25)]
    assert shown == sorted(shown)
    wall, total = bundle.read("wall"), bundle.meta["num_tokens"]
    every = [patch[3] for each in patches.values() for patch in each]
    edges = np.linspace(min(every), max(every), 33)
    for code in range(NUM_CODES):
        entry = bundle.code(code)
        assert entry["code"] == code
        assert entry["tokens"] == wall["tokens"][code] == len(patches[code]) == sum(entry["histogram"])
        assert entry["images"] == wall["images"][code] == len({patch[0] for patch in patches[code]})
        assert entry["rank"] == 1 + sum(
            (-n, other) < (-entry["tokens"], code) for other, n in enumerate(wall["tokens"])
        )
        positions = sum(positions_of(images[patch[0]], *patch[1:3]) for patch in patches[code]) + np.zeros(25)
        np.testing.assert_allclose(entry["positions"], positions, rtol=0.01, atol=0.01)
        distances = [patch[3] for patch in patches[code]]
        assert entry["histogram"] == np.histogram(distances, edges)[0].tolist()
        own = {other: counts[code, other] for other in range(NUM_CODES) if counts[code, other]}
        beyond = {other: n - sum(own.values()) * wall["tokens"][other] / total for other, n in own.items()}
        listed = [neighbour["code"] for neighbour in entry["neighbours"]]
        assert [beyond[other] for other in listed] == pytest.approx(sorted(beyond.values(), reverse=True)[:8])
        for other, neighbour in zip(listed, entry["neighbours"], strict=True):
            assert neighbour["count"] == own[other]
            expected = own[other] / sum(own.values()) / wall["tokens"][other] * total
            assert neighbour["lift"] == pytest.approx(expected, rel=1e-5)
        here = [patch for patch in patches[code] if patch[0] in shown]
        for kind in ("nearest", "quantiles", "random"):  # Which of them: test_gallery.py.
            for picture, *patch, rows, columns in entry[kind]:
                assert (shown[picture], *patch) in here and (rows, columns) == images[shown[picture]].index.shape
        if here:
            assert wall["medoid"][code] == entry["nearest"][0] and wall["medoid"][code][3] == min(c[3] for c in here)
            assert wall["mean_distance"][code] == pytest.approx(np.mean(distances), rel=1e-5)
            assert wall["spread"][code] == pytest.approx(np.std(distances), rel=1e-5, abs=1e-6)
        else:
            assert wall["medoid"][code] is None
    assert wall["mean_distance"][NUM_CODES - 1] is None and wall["spread"][NUM_CODES - 1] is None


def positions_of(image, row, column):
    """How much of a patch lies in each of 5 x 5 positions, by points that lie close."""
    points = (np.arange(3600) + 0.5) / 3600
    down, right = (
        np.bincount((5 * (patch + points) / size).astype(int), minlength=5) / 3600
        for patch, size in zip((row, column), image.index.shape, strict=True)
    )
    return np.outer(down, right).ravel()


def test_images_are_the_images(made):
    images, bundle = made
    for picture in range(25):
        entry = bundle.image(picture)
        image = images[int(entry["name"].split()[1])]
        codes = [None if code < 0 else int(code) for code in image.index.ravel()]
        assert entry["index"] == codes and (entry["rows"], entry["columns"]) == image.index.shape
        assert entry["captions"] == image.captions
        assert (entry["width"], entry["height"]) == (10, 8)
        assert (bundle.folder / layout.image_path(picture)).read_bytes()[:2] == b"\xff\xd8"


def test_words_on_both_sides(made):
    images, bundle = made
    patches = patches_of(images)
    has = {word: {n for n, image in enumerate(images) if word in " ".join(image.captions).split()} for word in WORDS}
    by_word = {entry["word"]: entry for entry in bundle.read("words")}
    assert list(by_word) == sorted(WORDS)
    claimed = set()
    for code in range(NUM_CODES):
        of_code = {patch[0] for patch in patches[code]}
        for word in bundle.code(code)["words"]:
            assert word["both"] == len(of_code & has[word["word"]])
            assert word["images"] == len(has[word["word"]]) == by_word[word["word"]]["images"]
            assert word["lift"] == pytest.approx(word["both"] / len(of_code) / (word["images"] / 60), rel=1e-5)
            assert word["low"] <= word["lift"] <= word["high"] * (1 + 1e-5)
            if word["low"] > 1:
                claimed.add((word["word"], code))
    assert claimed == {(word, entry["code"]) for word in WORDS for entry in bundle.word(word)["codes"]}


def test_a_word_that_a_code_means_is_claimed(tmp_path):
    images = seen_images(60, 8)
    for number, image in enumerate(images):
        image.index[0, 0] = 4 if number % 3 == 0 else 5
        image.index[image.index == 4] = 4 if number % 3 == 0 else 5
        image.captions = ["a zebra" if number % 3 == 0 else "a pond"]
    bundle = build(tmp_path / "explorer", images, 8)
    (zebra,) = bundle.word("zebra")["codes"]
    assert (zebra["code"], zebra["both"], zebra["images"], zebra["lift"]) == (4, 20, 20, 3.0) and zebra["low"] > 1
    wall = bundle.read("wall")
    assert wall["word"][4] == "zebra" and wall["precision"][4] == 1.0 and wall["lift"][4] == 3.0
    with pytest.raises(KeyError, match="'zebr' is not among the 2 words counted; did you mean zebra"):
        bundle.word("zebr")


def test_the_order_of_chunks_and_blocks_changes_nothing(tmp_path, monkeypatch, made):
    images, bundle = made
    monkeypatch.setattr("soho_fast.explore.spool._TOKENS_AT_A_TIME", 11)
    monkeypatch.setattr("soho_fast.explore.statistics._TABLE_ENTRIES", 1)
    other = build(tmp_path / "explorer", images, most_shown=25)
    for path in sorted((bundle.folder / "data").iterdir()):
        assert (other.folder / "data" / path.name).read_text() == path.read_text(), path.name


HOSTILE = [
    "</script><img src=x onerror=alert(1)>",
    "\u202ertl \u05e9\u05dc\u05d5\u05dd",
    "x" * 10_000,
    "\ud800\0\u2028",
]


def test_hostile_captions_pass_through_unharmed(tmp_path):
    images = seen_images(5, 6)
    images[0].captions, images[0].name = HOSTILE, HOSTILE[0]
    bundle = build(tmp_path / "explorer", images, 6)
    assert bundle.image(0)["captions"] == HOSTILE and bundle.image(0)["name"] == HOSTILE[0]
    text = (bundle.folder / "data" / "images-0000.js").read_bytes()
    assert text.isascii() and b"\\u2028" in text and text.count(b"\n") == 1


def test_features_that_are_not_finite_are_refused(tmp_path):
    images = seen_images(5, 6)
    images[3].index[0, 0], images[3].distance[0, 0] = 1, np.nan
    with pytest.raises(ValueError, match="image 3: its features are not all finite numbers"):
        build(tmp_path / "explorer", images, 6)
    assert list(tmp_path.iterdir()) == [], "nothing is left"


def test_what_came_into_the_folder_while_it_was_built_is_not_lost(tmp_path):
    folder = tmp_path / "explorer"
    build(folder, seen_images(4, 6), 6)

    class Slow(MadeSource):
        def masked(self, places, captions):
            shutil.rmtree(folder)
            folder.mkdir()
            (folder / "thesis.tex").write_text("years of work")
            return iter(())

    with pytest.raises(UserError, match="holds no explorer, so it is not overwritten"):
        assemble(Slow(seen_images(5, 6), codebook(6)), folder)
    assert (folder / "thesis.tex").read_text() == "years of work"
    assert [path.name for path in tmp_path.iterdir()] == ["explorer"]


def test_what_a_link_leads_to_is_replaced_and_not_the_link(tmp_path):
    """A run's explorer may lie on another disk."""
    link = tmp_path / "explorer"
    link.symlink_to(tmp_path / "elsewhere")
    for num_images in (4, 5):
        build(link, seen_images(num_images, 6), 6)
        assert link.is_symlink() and Bundle(tmp_path / "elsewhere").meta["num_images"] == num_images
    assert {path.name for path in tmp_path.iterdir()} == {"explorer", "elsewhere"}


def test_a_disk_of_its_own_is_refused_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr("os.path.ismount", lambda path: path == tmp_path / "disk")
    (tmp_path / "disk").mkdir()
    with pytest.raises(UserError, match=r"into: .*disk is a disk of its own"):
        build(tmp_path / "disk", seen_images(4, 6), 6)


@pytest.mark.parametrize("module", ["shutil.copyfile", "soho_fast.explore.bundle.write_value"])
def test_a_full_disk_is_told_in_one_line(tmp_path, monkeypatch, module):
    build(tmp_path / "explorer", seen_images(4, 6), 6)

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(module, full)
    with pytest.raises(OSError, match=r"No space left on device: '.*/explorer'"):
        build(tmp_path / "explorer", seen_images(5, 6), 6)
    assert Bundle(tmp_path / "explorer").meta["num_images"] == 4
    assert [path.name for path in tmp_path.iterdir()] == ["explorer"]


def test_what_is_no_explorer_is_not_overwritten(tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("all I have")
    with pytest.raises(UserError, match="thesis is not empty and holds no explorer, so it is not overwritten"):
        build(tmp_path / "thesis")
    with pytest.raises(UserError, match=r"chapter\.txt is a file; expected a folder"):
        build(tmp_path / "thesis" / "chapter.txt")
    assert (tmp_path / "thesis" / "chapter.txt").read_text() == "all I have"


def test_damage_is_told_with_the_file(made, tmp_path):
    folder = shutil.copytree(made[1].folder, tmp_path / "explorer")
    (folder / "SHA256SUMS").unlink()  # as of an explorer that says nothing of its files
    path = folder / "data" / "codes-0001.js"
    path.write_text(path.read_text()[:-200])
    with pytest.raises(BundleError, match=r"codes-0001\.js can't be read .*; build the explorer again"):
        Bundle(folder).code(65)
    assert Bundle(folder).code(3)["code"] == 3, "other files are not concerned"
    layout.write_value(folder, "codes-0001", [])
    with pytest.raises(BundleError, match=r"codes-0001\.js ends too early"):
        Bundle(folder).code(64)
    layout.write_value(folder, "meta", {**made[1].meta, "schema": 99})
    with pytest.raises(BundleError, match=r"meta\.js: expected schema 4, got 99"):
        Bundle(folder)
    with pytest.raises(FileNotFoundError, match="is no explorer"):
        Bundle(tmp_path / "nowhere")


def test_a_code_that_is_not_there(made):
    with pytest.raises(IndexError, match="code: expected 0 to 69, got 70"):
        made[1].code(70)


def test_a_image_that_is_lost_meanwhile_is_left_out(tmp_path):
    from soho_fast.explore.sources import ImageError

    images = seen_images(6, 6)
    source, said = MadeSource(images, codebook(6)), []
    whole = source.small_copy

    def small_copy(place):
        if place == 2:
            raise ImageError("image 2: gone")
        return whole(place)

    source.small_copy = small_copy
    bundle = Bundle(assemble(source, tmp_path / "explorer", say=said.append))
    assert said == ["left out: image 2: gone"]
    assert bundle.meta["num_images"] == 6 and bundle.meta["num_shown"] == 5
    assert [bundle.image(n)["name"] for n in range(5)] == [f"image {n}" for n in (0, 1, 3, 4, 5)]
    for code in range(6):
        for picture, row, column, distance, *_ in bundle.code(code)["nearest"]:
            image = images[(0, 1, 3, 4, 5)[picture]]
            assert image.index[row, column] == code and image.distance[row, column] == distance


def test_lifts_are_counted_among_images_with_captions(tmp_path):
    """Other images of the same code change nothing, but for how often it is used."""
    images = seen_images(60, NUM_CODES)
    bare = [dataclasses.replace(each, captions=[" "] * (number % 2)) for number, each in enumerate(images)]
    alone, more = build(tmp_path / "alone", images), build(tmp_path / "more", [*images, *bare])
    for code in range(NUM_CODES):
        assert more.code(code)["words"] == alone.code(code)["words"]
        assert more.code(code)["images"] == 2 * alone.code(code)["images"]
    assert more.read("words") == alone.read("words")
    assert more.read("wall")["precision"] == alone.read("wall")["precision"]
