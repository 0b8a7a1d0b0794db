"""The explorer of any codebook from arrays: the same from batches, with the extra alone, and every mistake by name."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from soho_fast.common.extras import install_command
from soho_fast.explore import Bundle, build_from_arrays, build_from_batches
from soho_fast.explore.bundle import decoded_path
from soho_fast.explore.figure import draw_figure

ROOT = Path(__file__).resolve().parents[2]
N, ROWS, COLUMNS, CHANNELS, CODES = 9, 3, 4, 5, 7


def quiet(line):
    pass


@pytest.fixture
def given():
    """Arguments by name."""
    rng = np.random.default_rng(0)
    return {
        "features": rng.normal(size=(N, ROWS, COLUMNS, CHANNELS)).astype(np.float32),
        "codebook": rng.normal(size=(CODES, CHANNELS)).astype(np.float32),
        # Squares of one colour, which JPEG keeps nearly as they are.
        "images": rng.integers(256, size=(N, 3, 4, 3), dtype=np.uint8).repeat(8, axis=1).repeat(8, axis=2),
        "captions": [["a dog", "a cat"], "a dog", []] * 3,
    }


def test_codes_are_the_nearest_ones(given, tmp_path):
    bundle = Bundle(build_from_arrays(**given, folder=tmp_path / "explorer", say=quiet))
    distance = np.linalg.norm(given["features"][..., None, :].astype(float) - given["codebook"], axis=-1)
    for picture in range(N):
        entry = bundle.image(picture)
        assert entry["index"] == distance[picture].argmin(-1).ravel().tolist()
        assert (entry["rows"], entry["columns"], entry["patches_high"], entry["patches_wide"]) == (3, 4, 3.0, 4.0)
        assert (entry["width"], entry["height"]) == (32, 24) and entry["name"] == f"image {picture}"
        assert entry["captions"] == (["a dog", "a cat"], ["a dog"], [])[picture % 3]
        assert [bundle.meta["licences"][n]["licence"] for n in entry["licences"]] == ["unknown"]
        shown = np.asarray(Image.open(bundle.folder / f"images/0000/{picture:06d}.jpg").convert("RGB")).astype(int)
        assert np.abs(shown - given["images"][picture]).mean() < 12
    for code in range(CODES):
        for picture, row, column, far, *_ in bundle.code(code)["nearest"]:
            assert far == pytest.approx(distance[picture, row, column].min(), rel=1e-5)
    assert bundle.meta["num_channels"] == CHANNELS and len(bundle.meta["weights"]) == 64


@pytest.mark.parametrize("kind", ["float64", "tensors", "lists", "bfloat16", "pil"])
def test_arrays_of_all_kinds_give_the_same(given, tmp_path, kind):
    if kind == "bfloat16":
        given["features"] = torch.from_numpy(given["features"]).bfloat16().float().numpy()
    expected = Bundle(build_from_arrays(**given, folder=tmp_path / "expected", say=quiet))
    change = {
        "float64": lambda x: x.astype(np.float64) if x.dtype == np.float32 else x,
        "tensors": torch.from_numpy,
        "lists": list,
        "pil": lambda x: [Image.fromarray(image) for image in x] if x.dtype == np.uint8 else x,
        "bfloat16": lambda x: torch.from_numpy(x).bfloat16() if x.ndim == 4 and x.dtype == np.float32 else x,
    }[kind]
    changed = {name: change(given[name]) for name in ("features", "images")}
    if kind in ("float64", "tensors"):
        changed["codebook"] = change(given["codebook"])
    found = Bundle(build_from_arrays(**(given | changed), folder=tmp_path / "found", say=quiet))
    assert_same(found, expected)


def assert_same(found, expected):
    for path in sorted((expected.folder / "data").iterdir()):
        assert (found.folder / "data" / path.name).read_text() == path.read_text(), path.name
    pictures = sorted((expected.folder / "images").rglob("*.jpg"))
    assert pictures
    for path in pictures:
        assert (found.folder / path.relative_to(expected.folder)).read_bytes() == path.read_bytes(), path.name


def test_batches_give_the_same(given, tmp_path):
    expected = Bundle(build_from_arrays(**given, folder=tmp_path / "expected", say=quiet))

    def batches():
        for first, last in ((0, 1), (1, 1), (1, 6), (6, 9)):  # One is empty, as a filter may leave it.
            yield tuple(given[name][first:last] for name in ("features", "images", "captions"))

    found = build_from_batches(batches(), given["codebook"], tmp_path / "found", num_images=N, say=quiet)
    assert_same(Bundle(found), expected)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["expected", "found"]


def test_grids_and_images_of_all_sizes_and_paths(given, tmp_path):
    rng = np.random.default_rng(1)
    features = [rng.normal(size=(1 + n, 2, CHANNELS)).astype(np.float32) for n in range(3)]
    paths = []
    for number, size in enumerate(((600, 300), (20, 500), (8, 8))):
        paths.append(tmp_path / f"{number}.png")
        Image.new("RGB", size, (250, 0, 0)).save(paths[-1])
    explorer = tmp_path / "explorer"
    licences = [{"what": "reds", "credit": "me", "licence": "CC0", "images": ["*/0.png"]}]
    bundle = Bundle(build_from_arrays(features, given["codebook"], paths, explorer, licences=licences, say=quiet))
    entries = [bundle.image(n) for n in range(3)]
    assert [entry["rows"] for entry in entries] == [1, 2, 3]
    assert [(entry["width"], entry["height"]) for entry in entries] == [(256, 128), (10, 256), (8, 8)]
    assert [entry["name"] for entry in entries] == ["/".join(path.parts[-2:]) for path in paths]
    told = [[bundle.meta["licences"][n]["licence"] for n in entry["licences"]] for entry in entries]
    assert told == [["CC0"], ["unknown"], ["unknown"]]


@pytest.mark.parametrize(
    ("pixels", "mode", "grey"),
    [
        (np.full((8, 8), 257 * 100, np.uint16), "I;16", 100),
        (np.full((8, 8), 0.5, np.float32), "F", 128),
        (np.full((8, 8, 4), (200, 0, 0, 0), np.uint8), "RGBA", 255),
    ],
)
def test_image_files_of_all_kinds_of_pixels_are_shown_as_they_are_seen(given, tmp_path, pixels, mode, grey):
    path = tmp_path / "image.tif"
    image = Image.fromarray(pixels)
    assert image.mode == mode
    image.save(path)
    one = {"features": given["features"][:1], "codebook": given["codebook"], "images": [path]}
    bundle = Bundle(build_from_arrays(**one, folder=tmp_path / "explorer", say=quiet))
    shown = np.asarray(Image.open(bundle.folder / "images/0000/000000.jpg"))
    assert np.abs(shown.astype(int) - grey).max() <= 2


def test_a_file_that_is_no_image_is_left_out(given, tmp_path):
    """Also its content alone, which has no name."""
    broken, whole = tmp_path / "broken.jpg", tmp_path / "whole.png"
    broken.write_bytes(b"<svg onload='alert(1)'/>")
    Image.new("RGB", (8, 8)).save(whole)
    said = []
    images = [broken, str(whole), broken.read_bytes(), whole.read_bytes()]
    explorer = build_from_arrays(given["features"][:4], given["codebook"], images, tmp_path / "made", say=said.append)
    assert len(said) == 2 and said[0].startswith(f"left out: {broken}: can't be read as an image")
    assert said[1].startswith("left out: images[2]: can't be read as an image")
    assert "0x" not in "".join(said), "no address of memory"
    assert Bundle(explorer).meta["num_shown"] == 2
    whole.write_bytes(b"")
    with pytest.raises(ValueError, match="images: no image can be read any more"):
        build_from_arrays(given["features"][:2], given["codebook"], images[:2], tmp_path / "made", say=quiet)


def nearest_to(given):
    distance = np.linalg.norm(given["features"][..., None, :].astype(float) - given["codebook"], axis=-1)
    return distance.argmin(-1)


def codes_of(explorer, number=0):
    return Bundle(explorer).image(number)["index"]


def test_an_index_alone_is_enough(given, tmp_path):
    """No distance is made up: nothing is nearest."""
    given["captions"] = [""] * N
    index = nearest_to(given)
    index[0, 0, 0] = -1
    rest = {name: given[name] for name in ("images", "captions")}
    bundle = Bundle(build_from_arrays(index=index, **rest, folder=tmp_path / "explorer", say=quiet))
    assert bundle.image(0)["index"] == [None, *index[0].ravel().tolist()[1:]]
    assert not bundle.meta["has_captions"], "they are all empty"
    assert not bundle.meta["has_distances"] and bundle.meta["weights"] == "" and bundle.meta["num_channels"] == 0
    wall, code = bundle.read("wall"), bundle.code(int(index[0, 0, 1]))
    assert code["nearest"] == code["quantiles"] == code["near"] == [] and code["random"]
    assert wall["medoid"][code["code"]] == code["random"][0]
    assert {*wall["x"], *wall["mean_distance"], *wall["spread"], *wall["near_code"]} == {None}
    draw_figure(bundle.folder, rows=2, columns=2, into=tmp_path / "codes.png")


def test_an_index_and_features_tell_how_far(given, tmp_path):
    index = (nearest_to(given) + 1) % CODES  # No lookup would say so.
    bundle = Bundle(build_from_arrays(**given, index=index, folder=tmp_path / "explorer", say=quiet))
    assert codes_of(bundle.folder) == index[0].ravel().tolist()
    picture, row, column, far, *_ = bundle.code(int(index[0, 0, 0]))["nearest"][0]
    place = picture, row, column
    assert far == pytest.approx(np.linalg.norm(given["features"][place] - given["codebook"][index[place]]), rel=1e-5)
    del given["codebook"]
    means = np.stack([given["features"][index == code].mean(0) for code in range(CODES)])
    bundle = Bundle(build_from_arrays(**given, index=index, folder=tmp_path / "explorer", say=quiet))
    picture, row, column, far, *_ = bundle.code(int(index[0, 0, 0]))["nearest"][0]
    place = picture, row, column
    assert far == pytest.approx(np.linalg.norm(given["features"][place] - means[index[place]]), rel=1e-5)


def test_cosine_is_blind_to_length(given, tmp_path):
    given["codebook"] *= np.geomspace(1, 100, CODES, dtype=np.float32)[:, None]
    unit = given["codebook"] / np.linalg.norm(given["codebook"], axis=1, keepdims=True)
    explorer = build_from_arrays(**given, metric="cosine", folder=tmp_path / "explorer", say=quiet)
    assert codes_of(explorer) == (given["features"][0] @ unit.T).argmax(-1).ravel().tolist()
    assert codes_of(explorer) != nearest_to(given)[0].ravel().tolist()


def test_cosine_measures_from_the_means_of_directions(given, tmp_path):
    """Features along their code lie at distance 0, however long they are."""
    index = np.random.default_rng(2).integers(CODES, size=(N, ROWS, COLUMNS))
    length = np.random.default_rng(3).uniform(1, 9, size=(N, ROWS, COLUMNS, 1))
    given |= {"features": (given["codebook"][index] * length).astype(np.float32), "codebook": None}
    bundle = Bundle(build_from_arrays(**given, index=index, metric="cosine", folder=tmp_path / "explorer", say=quiet))
    assert max(bundle.read("wall")["mean_distance"]) < 1e-5


def test_cosine_of_grouped_codes_is_of_each_part(given, tmp_path):
    rng = np.random.default_rng(4)
    levels, index = rng.normal(size=(2, CODES, 3)), rng.integers(CODES, size=(N, ROWS, COLUMNS, 2))
    parts = [levels[level][index[..., level]] * (1 + 8 * level) for level in range(2)]
    given |= {"features": np.concatenate(parts, axis=-1), "codebook": levels}
    bundle = Bundle(build_from_arrays(**given, metric="cosine", folder=tmp_path / "explorer", say=quiet))
    assert bundle.image(0)["index"] == [*index[0, ..., 0].ravel(), *(CODES + index[0, ..., 1].ravel())]
    assert max(bundle.read("wall")["mean_distance"]) < 1e-3


def test_a_patch_without_a_first_code_leaves_all_of_its_feature(given, tmp_path):
    levels = np.random.default_rng(5).normal(size=(2, CODES, CHANNELS)).astype(np.float32)
    index = np.full((N, ROWS, COLUMNS, 2), -1)
    index[0, 0, 0, 1], index[1, 0, 0, 0] = 3, 0
    given |= {"codebook": levels, "index": index}
    bundle = Bundle(build_from_arrays(**given, folder=tmp_path / "explorer", say=quiet))
    expected = np.linalg.norm(given["features"][0, 0, 0] - levels[1, 3])
    assert bundle.code(CODES + 3)["nearest"][0][3] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("kind", ["residual", "grouped"])
def test_codes_of_levels(given, tmp_path, kind):
    rng = np.random.default_rng(5)
    channels = CHANNELS if kind == "residual" else 3
    levels = rng.normal(size=(2, CODES, channels)).astype(np.float32)
    features = given["features"] if kind == "residual" else rng.normal(size=(N, ROWS, COLUMNS, 6)).astype(np.float32)
    given |= {"features": features, "codebook": levels}

    def nearest(rest, codes):
        return np.linalg.norm(rest[..., None, :] - codes, axis=-1).argmin(-1)

    parts = [features, None] if kind == "residual" else [features[..., :3], features[..., 3:]]
    first = nearest(parts[0], levels[0])
    second = nearest(features - levels[0][first] if kind == "residual" else parts[1], levels[1])
    bundle = Bundle(build_from_arrays(**given, folder=tmp_path / "explorer", say=quiet))
    assert bundle.meta["num_levels"] == 2 and bundle.meta["num_codes"] == 2 * CODES
    for picture in range(N):
        expected = [*first[picture].ravel(), *(second[picture].ravel() + CODES)]
        assert bundle.image(picture)["index"] == expected
    tokens = bundle.read("wall")["tokens"]
    assert sum(tokens[:CODES]) == sum(tokens[CODES:]) == first.size
    for code in range(CODES):
        listed = {entry["code"]: entry["tokens"] for entry in bundle.code(code)["next"]}
        counts = np.bincount(second[first == code], minlength=CODES)
        assert listed == {CODES + other: count for other, count in enumerate(counts.tolist()) if count}
        assert all(
            entry["code"] >= CODES for kind in ("near", "neighbours") for entry in bundle.code(CODES + code)[kind]
        )
        assert bundle.code(CODES + code)["next"] == []
    given["index"] = np.stack([first, second], axis=-1)
    again = build_from_arrays(**given, folder=tmp_path / "again", say=quiet)
    assert [codes_of(again, n) for n in range(N)] == [bundle.image(n)["index"] for n in range(N)]


def test_decoded_images_labels_and_the_window(given, tmp_path):
    decoded = np.random.default_rng(1).integers(256, size=(CODES, 4, 6, 3), dtype=np.uint8)
    labels = ["  ", " a leaf", *[None] * (CODES - 2)]
    more = {"decoded": decoded, "labels": labels, "window": 2.5}
    bundle = Bundle(build_from_arrays(**given, **more, folder=tmp_path / "explorer", say=quiet))
    assert (np.asarray(Image.open(bundle.folder / decoded_path(5))) == decoded[5]).all()
    assert (
        bundle.meta["has_decoded"]
        and bundle.meta["window"] == 2.5
        and bundle.read("wall")["label"] == [None, "a leaf", *labels[2:]]
    )
    bundle.check()


def changed(given, name, value):
    return {**given, name: value(given[name]) if callable(value) else value}


def with_nan(x):
    x = x.copy()
    x.reshape(len(x), -1)[-1, 0] = np.nan
    return x


MISTAKES = [
    ("codebook", [[1.0]], TypeError, "codebook: expected an array or a tensor, got list"),
    ("codebook", lambda x: x[0], ValueError, r"codebook: expected \(codes, channels\) or .*, got shape \(5,\)"),
    ("codebook", lambda x: x.astype(int), TypeError, "codebook: expected floating point, got int64"),
    ("codebook", with_nan, ValueError, "codebook: code 6 holds values that are not finite"),
    ("codebook", lambda x: x[:, :4], ValueError,
     r"features\[0\]: expected \(rows, columns, 4\), .* got shape \(3, 4, 5\)"),
    ("features", lambda x: x[:, 0], ValueError, r"features\[0\]: expected \(rows, columns, 5\), .* got shape \(4, 5\)"),
    ("features", lambda x: x.astype(np.int32), TypeError, r"features\[0\]: expected floating point, got int32"),
    ("features", with_nan, ValueError, r"features\[8\]: holds values that are not finite"),
    ("features", lambda x: iter(x), TypeError, "got .*iterator; see build_from_batches"),
    ("features", lambda x: [*list(x[:-1]), "x"], TypeError, r"features\[8\]: expected an array or a tensor, got str"),
    ("features", lambda x: x[:0], ValueError, "features: expected at least one image, got none"),
    ("images", lambda x: x[1:], ValueError, "images: expected 9, one for each of features, got 8"),
    ("images", lambda x: x.astype(np.float32), TypeError, r"images\[0\]: expected uint8, got float32"),
    ("images", lambda x: x.transpose(0, 3, 1, 2), ValueError,
     r"images\[0\]: expected \(height, width, 3\), got shape \(3, 24, 32\)"),
    ("images", lambda x: ["nowhere.jpg"] * N, FileNotFoundError, r"images\[0\]: there is no file nowhere\.jpg"),
    ("images", lambda x: [None] * N, TypeError,
     r"images\[0\]: expected a uint8 array, PIL image, path or bytes, got NoneType"),
    ("metric", "manhattan", ValueError, "metric: expected euclidean or cosine, got 'manhattan'"),
    ("index", np.zeros((N, ROWS, COLUMNS)), TypeError, r"index\[0\]: expected integers, got float64"),
    ("index", np.zeros((N, 2, 2), int), ValueError, r"index\[0\]: expected the rows and columns of features, \(3, 4\)"),
    ("index", np.full((N, ROWS, COLUMNS), CODES), ValueError, r"index\[0\]: expected codes of -1 to 6, got 7 to 7"),
    ("index", np.zeros((N, ROWS, COLUMNS, 2), int), ValueError, r"index\[0\]: expected 1 levels, .* got 2"),
    ("index", [np.zeros((ROWS, COLUMNS, 1 + (n > 3)), int) for n in range(N)], ValueError,
     r"index\[4\]: expected 1 levels, .* got 2"),
    ("num_codes", CODES, ValueError, "num_codes: expected none with a codebook, got 7"),
    ("labels", ["a"], ValueError, "labels: expected 7, one for each code, got 1"),
    ("decoded", ["x.png"] * CODES, TypeError, r"decoded\[0\]: expected a uint8 array, got str"),
    ("window", 0, ValueError, "window: expected a number of patches, at least 1, got 0"),
    ("captions", "a dog", TypeError, "captions: expected an array or a list, got str"),
    ("captions", [["a dog"]] * 8, ValueError, "captions: expected 9, one for each of features, got 8"),
    ("licences", 5, ValueError, r"licences: expected a list of \{what, credit, licence\}, got int"),
    ("licences", [{"what": "x"}], ValueError, r"licences\[0\]: expected texts by the names what, credit, licence"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value", "error", "told"), MISTAKES)
def test_mistakes_are_told_before_anything_is_written(given, tmp_path, name, value, error, told):
    given.setdefault(name, None)
    with pytest.raises(error, match=told):
        build_from_arrays(**changed(given, name, value), folder=tmp_path / "a" / "explorer", say=quiet)
    assert list(tmp_path.iterdir()) == []


INDEX = np.zeros((N, ROWS, COLUMNS), int)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"index": INDEX - 1, "features": None}, "index: no patch of any image has a code; expected at least one"),
        ({"index": [*INDEX[1:], np.zeros((2, 2, 3), int)], "features": None}, r"index\[8\]: expected 1 levels, got 3"),
        ({"index": INDEX, "metric": "manhattan"}, "metric: expected euclidean or cosine"),
        ({"index": np.stack([INDEX] * 2, axis=-1)}, "codebook: expected one, with features of 2 levels"),
        (
            {"index": INDEX, "features": [*np.zeros((8, ROWS, COLUMNS, 6)), np.zeros((ROWS, COLUMNS, 7))]},
            r"features\[8\]: expected 6 channels, got 7",
        ),
    ],
)
def test_mistakes_without_a_codebook(given, tmp_path, arguments, told):
    with pytest.raises(ValueError, match=told):
        build_from_arrays(**{**given, **arguments, "codebook": None}, folder=tmp_path / "explorer", say=quiet)
    assert list(tmp_path.iterdir()) == []


def test_batches_with_features_and_without_are_refused(given, tmp_path):
    batches = [(None, given["images"], None, None, nearest_to(given)), (given["features"], given["images"])]
    with pytest.raises(ValueError, match="features: expected those of all images or of none; image 9 differs"):
        build_from_batches(batches, given["codebook"], tmp_path / "explorer", say=quiet)


@pytest.mark.parametrize("arguments", [{"num_codes": 12}, {"labels": ["a"] * 12}])
def test_codes_above_the_highest_seen_are_unused_ones(given, tmp_path, arguments):
    rest = {"index": nearest_to(given), "images": given["images"], **arguments}
    assert len(Bundle(build_from_arrays(**rest, folder=tmp_path / "explorer", say=quiet)).read("wall")["tokens"]) == 12


def test_mistakes_in_a_later_batch_leave_nothing(given, tmp_path):
    good = given["features"], given["images"]

    def batches():
        yield good
        yield with_nan(good[0]), good[1]

    with pytest.raises(ValueError, match=r"features\[17\]: holds values that are not finite"):
        build_from_batches(batches(), given["codebook"], tmp_path / "explorer", say=quiet)
    with pytest.raises(TypeError, match=r"images: expected an array or a list, got NoneType"):
        build_from_batches([(good[0],)], given["codebook"], tmp_path / "explorer", say=quiet)
    assert list(tmp_path.iterdir()) == []


ALONE = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("transformers", "deepspeed", "torchvision", "safetensors", "yaml", "jsonargparse"):
            raise ModuleNotFoundError(f"blocked: {name}", name=name)
sys.meta_path.insert(0, Blocked())
import numpy as np
from soho_fast import explore
rng = np.random.default_rng(0)
explore.build_from_arrays(
    rng.normal(size=(6, 2, 2, 3)), rng.normal(size=(4, 3)), rng.integers(256, size=(6, 8, 8, 3), dtype=np.uint8),
    sys.argv[1], captions=["a dog"] * 6,
)
bundle = explore.Bundle(sys.argv[1])
print(len(bundle.code(0)["nearest"]), bundle.word("dog")["images"])
from soho_fast.explore.__main__ import main
print(main(["figure", sys.argv[1]]), main(["build", "nowhere/at/all"]))
"""


def test_the_extra_explore_is_enough(tmp_path):
    """What the extra `train` brings is not there, and is asked for by name where a model is to be looked at."""
    done = subprocess.run(
        [sys.executable, "-c", ALONE, str(tmp_path / "explorer")], env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, cwd=tmp_path, timeout=120, check=False,
    )  # fmt: skip
    assert "Traceback" not in done.stderr or "MissingExtraError" in done.stderr, done.stderr
    assert f"install it with: {install_command('train')}" in done.stderr
    assert done.stdout.split()[0] != "0" and (tmp_path / "explorer" / "index.html").is_file()
