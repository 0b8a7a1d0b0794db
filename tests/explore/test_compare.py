"""Two explorers side by side: what was stable, moved, split, merged, lost and is new."""

import numpy as np
import pytest

from soho_fast.explore import Bundle, build_from_arrays, compare_explorers
from soho_fast.explore.__main__ import main
from soho_fast.explore.bundle import write_value
from soho_fast.explore.compare import match

# A code of the first (row) and one of the second (column): patches with both.
COUNTS = np.array(
    [
        [0, 90, 0, 0, 0, 0, 0, 0],  # stable as 1
        [50, 0, 40, 0, 0, 0, 0, 0],  # split into 0 and 2
        [0, 0, 0, 30, 0, 0, 0, 0],  # merged into 3, with the next one
        [0, 0, 0, 20, 0, 0, 0, 0],
        [0, 0, 0, 0, 4, 10, 10, 10],  # split into the last three
        [0, 0, 0, 0, 20, 0, 0, 0],  # stable as 4
        [0, 5, 0, 0, 0, 0, 0, 0],  # lost: 1 stands for another
        [0, 0, 0, 0, 0, 0, 0, 0],  # unused
    ]
)


def test_what_became_of_each_code():
    rows = match(COUNTS)
    kinds = {row["first"]: row["kind"] for row in rows if row["first"] is not None}
    assert kinds == {0: "stable", 1: "split", 2: "merged", 3: "merged", 4: "split", 5: "stable", 6: "lost"}
    by_first = {row["first"]: row for row in rows}
    assert by_first[1]["to"] == [[0, 50], [2, 40]] and by_first[1]["tokens"] == 90
    assert by_first[0]["second"] == 1 and by_first[0]["overlap"] == pytest.approx(90 / 95, abs=1e-4)
    assert by_first[6]["second"] is None and by_first[6]["to"] == [[1, 5]]
    moved = match(np.array([[10, 9, 9], [0, 20, 0], [0, 0, 20]]))
    assert [row["kind"] for row in moved] == ["moved", "stable", "stable"]
    new = match(np.array([[80, 5]]))
    assert [(row["kind"], row["second"]) for row in new] == [("stable", 0), ("new", 1)]


def test_partners_are_chosen_for_all_codes_together():
    """By the largest overlap first, code 1 would be left without one."""
    rows = match(np.array([[50, 30], [20, 0]]))
    assert [row["second"] for row in rows] == [1, 0]


@pytest.fixture
def explorers(tmp_path):
    """The second shows the images in another order and one more level, and has codes 0 and 1 exchanged."""
    rng = np.random.default_rng(0)
    index, images = rng.integers(4, size=(8, 3, 3)), rng.integers(256, size=(8, 12, 12, 3), dtype=np.uint8)
    index[0, 0, 0] = -1
    names = [f"photo {n}" for n in range(8)]
    quiet = {"say": lambda line: None, "num_codes": 4}
    one = build_from_arrays(index=index, images=images, names=names, folder=tmp_path / "one", title="before", **quiet)
    swapped = np.select([index == 0, index == 1], [1, 0], index)
    two = np.stack([swapped, rng.integers(4, size=index.shape)], axis=-1)[::-1]
    more = {"names": names[::-1], "folder": tmp_path / "other", "title": "after"}
    return one, build_from_arrays(index=two, images=images[::-1], **more, **quiet), index


def test_the_command_compares_two_explorers(explorers, tmp_path, capsys):
    one, other, index = explorers
    assert main(["compare", str(one), str(other), "--into", str(tmp_path / "both")]) == 0, capsys.readouterr().err
    assert "8 images: 4 stable" in capsys.readouterr().out
    bundle = Bundle(tmp_path / "both")
    bundle.check()
    assert bundle.meta["has_compare"] and bundle.meta["title"] == "after"
    found = bundle.read("compare")
    assert found["first"] == "before" and found["num_images"] == 8
    assert [(row["first"], row["second"], row["overlap"]) for row in found["rows"]] == [
        (0, 1, 1.0), (1, 0, 1.0), (2, 2, 1.0), (3, 3, 1.0),
    ]  # fmt: skip
    for row in found["rows"]:
        image, place, column, *_ = row["tile"]
        assert bundle.image(image)["index"][3 * place + column] == row["second"], "its patch in the second's images"
        assert row["tokens"] == (index == row["first"]).sum()
    assert found["figures"][:2] == [["levels", 1, 2], ["codes in use, level 1", 4, 4]]


def test_explorers_of_other_images_are_refused(explorers, tmp_path, capsys):
    """Also of the same images, where no patch has a code of both."""
    one, _, index = explorers
    rest = {"folder": tmp_path / "third", "say": lambda line: None}
    names = ["photo 0", "other"]
    for codes in (index[:2, :2, :2], np.stack([np.where(index[0] < 0, 0, -1), index[1]])):
        third = build_from_arrays(index=codes, images=np.zeros((2, 4, 4, 3), np.uint8), names=names, **rest)
        assert main(["compare", str(one), str(third), "--into", str(tmp_path / "both")]) == 2
        assert "share no patch with a code of both, in images of the same name and grid" in capsys.readouterr().err
    assert not (tmp_path / "both").exists()


def test_neither_explorer_is_overwritten(explorers, tmp_path, capsys):
    one, other, _ = explorers
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for into in (one, other, other / "inner", tmp_path):
        assert main(["compare", str(one), str(other), "--into", str(into)]) == 2
        assert "overlap; give another folder" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_altered_files_get_no_new_checksums(explorers, tmp_path, capsys):
    one, other, _ = explorers
    (other / "images/0000/000001.jpg").write_bytes(b"other")
    assert main(["compare", str(one), str(other), "--into", str(tmp_path / "both")]) == 2
    assert "images/0000/000001.jpg has changed" in capsys.readouterr().err
    assert not (tmp_path / "both").exists()


@pytest.mark.parametrize("which", [0, 1])
def test_a_damaged_explorer_without_checksums_is_one_line(explorers, tmp_path, capsys, which):
    damaged = explorers[which]
    (damaged / "SHA256SUMS").unlink()
    meta = dict(Bundle(damaged).meta)
    write_value(damaged, "meta", {name: value for name, value in meta.items() if name != "has_sound"})
    assert Bundle(damaged).noun == "image"  # Explorers that were built before clips were shown lack it.
    for damage, told in (
        ([], "expected schema 4, got None"),
        (
            {"schema": 4},
            "expected title, model, weights, num_codes, num_levels, num_shown, num_tokens, window, sources, licences, "
            "figure, measures as they are built, got None, None,",
        ),
        (meta | {"num_codes": "many", "measures": None}, "num_codes, measures as they are built, got 'many', None"),
        (meta | {"num_levels": 0}, "expected num_levels as they are built, got 0; build"),
        (meta | {"num_codes": -4, "window": 0.0}, "num_codes, window as they are built, got -4, 0.0; build"),
        (meta | {"num_codes": -4, "window": "wide"}, "expected window as they are built, got 'wide'; build"),
        (meta | {"sources": []}, "has no data set 0, of image 0; build"),
        (meta | {"sources": [{"num_images": 8}]}, "has no data set 0, of image 0; build"),
    ):
        write_value(damaged, "meta", damage)
        assert main(["compare", str(explorers[0]), str(explorers[1]), "--into", str(tmp_path / "both")]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert f"{damaged / 'data' / 'meta.js'}" in line and told in line and "build the explorer again" in line
    assert not (tmp_path / "both").exists()


def test_images_of_one_name_are_left_out(tmp_path):
    """Which of them is which is not known."""
    index, images = np.arange(12).reshape(3, 2, 2) // 4, np.zeros((3, 8, 8, 3), np.uint8)
    quiet = {"say": lambda line: None, "num_codes": 3, "images": images}
    one = build_from_arrays(index=index, names=["a", "a", "b"], folder=tmp_path / "one", **quiet)
    other = build_from_arrays(index=index[::-1], names=["b", "a", "a"], folder=tmp_path / "other", **quiet)
    found = Bundle(compare_explorers(one, other, tmp_path / "both", say=lambda line: None)).read("compare")
    assert found["num_images"] == 1
    assert [(row["kind"], row["first"], row["second"]) for row in found["rows"]] == [("stable", 2, 2)]
