"""`soho import csv | text | coco | datasets`, in this process."""

import json
import os

import pytest
from PIL import Image
from tiny_corpus import draw

from soho_fast.data.importing import images_below, main
from soho_fast.data.readers.json_lines import read_json_lines


@pytest.fixture
def folder(tmp_path):
    for name in ("a.jpg", "deep/b.png"):
        draw(tmp_path / "images" / name)
    return tmp_path / "images"


def run(capsys, *arguments, code=0):
    assert main([str(argument) for argument in arguments]) == code
    said = capsys.readouterr()
    assert not code or (said.err.count("\n") == 1 and said.err.startswith("error: ")), said.err
    return said.err if code else said.out


def lines(folder):
    return [json.loads(line) for line in (folder / "images.jsonl").read_text().splitlines()]


def captions(folder):
    return {record.image.name: record.captions for record in read_json_lines(folder / "images.jsonl")}


CSV = 'image,caption,split\na.jpg,"a dog, brown",train\ndeep/b.png,two cats,validation\na.jpg, a beach ,train\n'


def test_a_text_of_megabytes_is_refused_by_its_file_and_line(folder, capsys):
    (folder / "a.txt").write_text("a dog\n" + "a" * 1_000_000)
    assert "a.txt: line 2 has 1,000,000 characters; expected at most" in run(capsys, "text", folder, code=2)


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_rows_of_a_csv_are_captions(folder, capsys, delimiter):
    text = CSV.replace("a dog, brown", "a dog; brown" if delimiter == "," else "a dog, brown")
    (folder / "captions.csv").write_text(
        "\ufeff" + text if delimiter == "," else text.replace(",", delimiter).replace(f"dog{delimiter} b", "dog, b")
    )
    said = run(capsys, "csv", folder / "captions.csv", folder)
    assert "2 images, 3 captions (train 1, val 1)" in said and f"next: soho check {folder}" in said
    dog = "a dog; brown" if delimiter == "," else "a dog, brown"
    assert lines(folder) == [
        {"file": "a.jpg", "captions": [dog, "a beach"], "split": "train"},
        {"file": "deep/b.png", "captions": ["two cats"], "split": "val"},
    ]


def test_what_a_csv_lacks_is_named(folder, capsys):
    file = folder / "captions.csv"
    file.write_text("image,words\na.jpg,a dog\ngone.jpg,a cat\n")
    assert "no column is called caption, captions, " in run(capsys, "csv", file, folder, code=2)
    assert "did you mean words?" in run(capsys, "csv", file, folder, "--caption-column", "word", code=2)
    said = run(capsys, "csv", file, folder, "--caption-column", "words")
    assert "1 images left out: no file, as gone.jpg\n" in said
    assert captions(folder) == {"a.jpg": ("a dog",)}
    assert "give --overwrite to replace it" in run(capsys, "csv", file, folder, "--caption-column", "words", code=2)
    file.write_text("image,text\n,a dog\n")
    assert "line 2: column 'image' is empty" in run(capsys, "csv", file, folder, "--overwrite", code=2)
    file.write_text("image,text,split\na.jpg,a dog,train\na.jpg,a dog,test\n")
    assert "line 3: image a.jpg is of split 'test'" in run(capsys, "csv", file, folder, "--overwrite", code=2)
    file.write_text("image,text,split\na.jpg,a dog,train\ndeep/b.png,a dog,\n")
    said = run(capsys, "csv", file, folder, "--overwrite", code=2)
    assert "split: image deep/b.png has no split, a.jpg has one; give all a split, or no image" in said
    file.write_bytes(b"image,text\na.jpg,caf\xe9\n")
    assert "captions.csv: not UTF-8" in run(capsys, "csv", file, folder, "--overwrite", code=2)
    assert captions(folder) == {"a.jpg": ("a dog",)}, "what was there stays"


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ("a.jpg,a dog, that sleeps", "line 2: 3 values; expected 2, as in the first line: a text that holds ','"),
        ("a.jpg", "line 2: 1 values; expected 2"),
        ('a.jpg,a dog\n\na.jpg,"a cat\ndeep/b.png,two cats\n', "line 4: unexpected end of data"),
        ('a.jpg,"a cat\ndeep/b.png,"two cats"\n', "line 2: ',' expected after"),
        ('a.jpg,"a cat\ndeep/b.png,two cats"\n', "line 2: a text of several lines holds other rows"),
        (f"a.jpg,{'a' * 200_000}", "line 2: field larger than field limit"),
        ("headless", "captions.csv: no column is called file, file_name, filename, image, image_name, path, filepath"),
        (None, "captions.csv: empty; expected a first line that names the columns"),
    ],
)
def test_captions_that_would_be_cut_or_merged_are_refused(folder, capsys, rows, words):
    (folder / "captions.csv").write_text(
        "" if rows is None else "a.jpg,a dog\n" if rows == "headless" else f"image,caption\n{rows}\n"
    )
    assert words in run(capsys, "csv", folder / "captions.csv", folder, code=2)
    assert not (folder / "images.jsonl").exists()


@pytest.mark.parametrize("columns", ["image,caption,caption", "image,Caption,caption", "image,Image,caption"])
def test_columns_of_one_name_are_refused(folder, capsys, columns):
    (folder / "captions.csv").write_text(f"{columns}\na.jpg,a dog,a beach\n")
    twice = columns.split(",")[2 if columns.endswith("caption,caption") or "Caption" in columns else 1]
    words = f"captions.csv: two columns are called {twice.lower()!r} (case does not count); rename one"
    assert words in run(capsys, "csv", folder / "captions.csv", folder, code=2)


@pytest.mark.parametrize("name", ["{}/other/c.jpg", "../other/c.jpg"])
def test_an_image_that_lies_elsewhere_is_refused_without_an_option_of_recipes(folder, capsys, name):
    draw(folder.parent / "other" / "c.jpg")
    (folder / "captions.csv").write_text(f"image,caption\na.jpg,a dog\n{name.format(folder.parent)},a cat\n")
    said = run(capsys, "csv", folder / "captions.csv", folder, code=2)
    assert f"c.jpg' leads out of {folder}; expected a path below; else give a folder that holds all images" in said
    assert "`images`" not in said and not (folder / "images.jsonl").exists()


def test_an_image_has_one_line_however_its_path_is_written(folder, capsys, monkeypatch):
    monkeypatch.chdir(folder.parent)
    rows = "a.jpg,a dog\n./a.jpg,a beach\ndeep//b.png,two cats\n" + f"{folder}/a.jpg,sand\n"
    (folder / "captions.csv").write_text(f"image,caption\n{rows}")
    run(capsys, "csv", "images/captions.csv", "images")
    assert captions(folder) == {"a.jpg": ("a dog", "a beach", "sand"), "deep/b.png": ("two cats",)}


def test_case_does_not_count_in_splits(folder, capsys):
    text = 'Image,Caption,Split\na.jpg,"a dog\nthat sleeps",Train\na.jpg,a cat,train\ndeep/b.png,two,VAL\n'
    (folder / "captions.csv").write_text(text)
    run(capsys, "csv", folder / "captions.csv", folder)
    assert [line["split"] for line in lines(folder)] == ["train", "val"]
    assert lines(folder)[0]["captions"] == ["a dog\nthat sleeps", "a cat"]


def test_text_files_lie_beside_their_images(folder, capsys):
    (folder / "a.txt").write_text("a dog\n\n a beach\n")
    said = run(capsys, "text", folder)
    assert captions(folder) == {"a.jpg": ("a dog", "a beach")} and "1 images left out: no caption" in said


def test_folders_that_links_lead_to_are_read_each_once(folder, tmp_path, capsys):
    draw(tmp_path / "elsewhere" / "c.jpg")
    (tmp_path / "elsewhere" / "c.txt").write_text("a cat\n")
    (folder / "link").symlink_to(tmp_path / "elsewhere")
    (folder / "deep" / "up").symlink_to(folder)
    (folder / "deep" / "again").symlink_to(folder / "deep")
    (folder / "before").symlink_to(folder / "deep")
    (folder / "folder.jpg").mkdir()
    (folder / "a.txt").write_text("a dog\n")
    assert images_below(folder) == ["a.jpg", "deep/b.png", "link/c.jpg"]
    run(capsys, "text", folder)
    assert captions(folder) == {"a.jpg": ("a dog",), "link/c.jpg": ("a cat",)}


def test_a_folder_that_cannot_be_listed_is_named(folder, capsys, monkeypatch):
    def scandir(path, scan=os.scandir):
        if str(path).endswith("deep"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    (folder / "a.txt").write_text("a dog\n")
    monkeypatch.setattr("os.scandir", scandir)
    assert f"Permission denied: '{folder}/deep'" in run(capsys, "text", folder, code=2)


def test_coco_captions(folder, capsys):
    draw(folder / "train2014" / "COCO_train2014_000000000009.jpg")
    file = folder / "captions_train2014.json"
    file.write_text(json.dumps({
        "images": [{"id": 9, "file_name": "COCO_train2014_000000000009.jpg"}, {"id": 8, "file_name": "gone.jpg"}],
        "annotations": [{"image_id": 9, "caption": "a dog"}, {"image_id": 8, "caption": "a cat"}],
    }))  # fmt: skip
    assert "1 images left out: no file" in run(capsys, "coco", file, folder)
    assert captions(folder) == {"train2014/COCO_train2014_000000000009.jpg": ("a dog",)}


@pytest.mark.parametrize("form", ["disk", "splits", "parquet", "parquets"])
def test_hugging_face_datasets(folder, tmp_path, capsys, form):
    datasets = pytest.importorskip("datasets")
    rows = {"image": [str(folder / "a.jpg"), str(folder / "deep/b.png")], "caption": [["a dog", "a beach"], ["a cat"]]}
    made = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())
    source, output = tmp_path / "set" if form in ("disk", "splits") else folder, tmp_path / "my_images"
    if form == "disk":
        made.save_to_disk(source)
    elif form == "splits":
        datasets.DatasetDict(train=made, validation=made.select([1])).save_to_disk(source)
    else:
        made.to_parquet(source / "train-00000-of-00001.parquet")
        made.select([1]).to_parquet(source / "validation-00000-of-00001.parquet")
        source = source / "train-00000-of-00001.parquet" if form == "parquet" else source
    run(capsys, "datasets", source, output)
    found = lines(output)
    splits = {"disk": [None, None], "parquet": ["train", "train"]}.get(form, ["train", "train", "val"])
    assert [line.get("split") for line in found] == splits
    assert [line["captions"] for line in found[:2]] == [["a dog", "a beach"], ["a cat"]]
    assert [line["file"].rpartition(".")[2] for line in found[:2]] == ["jpg", "png"]
    assert (output / found[0]["file"]).read_bytes() == (folder / "a.jpg").read_bytes()
    with Image.open(output / found[1]["file"]) as image:
        assert image.size == (48, 40)


@pytest.fixture
def parquet(folder, tmp_path):
    """Writes rows of image and caption, the images as they are given, into a .parquet file."""
    arrow = pytest.importorskip("pyarrow")
    pytest.importorskip("datasets").disable_progress_bars()
    from pyarrow.parquet import write_table

    hugging_face = {
        "info": {"features": {"image": {"_type": "Image"}, "caption": {"dtype": "string", "_type": "Value"}}}
    }
    kind = arrow.struct([("bytes", arrow.binary()), ("path", arrow.string())])

    def write(name, images, captions):
        (tmp_path / "set").mkdir(exist_ok=True)
        table = arrow.table({"image": arrow.array(images, kind), "caption": captions})
        write_table(table.replace_schema_metadata({"huggingface": json.dumps(hugging_face)}), tmp_path / "set" / name)
        return tmp_path / "set"

    return write


def test_images_of_datasets_that_are_none_are_counted(folder, tmp_path, parquet, capsys):
    good = {"bytes": (folder / "a.jpg").read_bytes()}
    broken, gone, empty = {"bytes": b"no image"}, {"path": "gone.jpg"}, {"bytes": None}
    beside = {"path": "beside.jpg"}
    source = parquet("all.parquet", [None, gone, empty, broken, good, beside, good], [*"abcdef", None])
    (source / "beside.jpg").write_bytes((folder / "a.jpg").read_bytes())
    said = run(capsys, "datasets", source, tmp_path / "mine")
    assert "3 images left out: no file" in said and "1 images left out: no caption" in said
    assert "1 samples left out: broken, as " in said and "row 3: " in said
    assert captions(tmp_path / "mine") == {"images/image-0000004.jpg": ("e",), "images/image-0000005.jpg": ("f",)}


def test_a_dataset_takes_no_file_from_elsewhere(folder, tmp_path, parquet, capsys):
    good = {"bytes": (folder / "a.jpg").read_bytes()}
    source = parquet("all.parquet", [good, {"path": str(folder / "a.jpg")}], ["a dog", "a secret"])
    said = run(capsys, "datasets", source, tmp_path / "mine", code=2)
    assert f"row 1: its image {folder / 'a.jpg'} leads out of {source}" in said
    assert not [each for each in (tmp_path / "mine").rglob("*") if each.is_file()], "nothing is written by halves"


def test_images_that_are_there_stay(folder, tmp_path, parquet, capsys):
    source = parquet("all.parquet", [{"bytes": (folder / "a.jpg").read_bytes()}], ["a dog"])
    mine = tmp_path / "mine" / "images" / "image-0000000.jpg"
    mine.parent.mkdir(parents=True)
    mine.write_bytes(b"mine")
    said = run(capsys, "datasets", source, tmp_path / "mine", code=2)
    assert f"{mine} is there; give --overwrite to replace it" in said and mine.read_bytes() == b"mine"
    run(capsys, "datasets", source, tmp_path / "mine", "--overwrite")
    assert mine.read_bytes() == (folder / "a.jpg").read_bytes()


def test_parquet_files_of_which_some_have_a_split_are_refused(folder, tmp_path, parquet, capsys):
    for name in ("train-0.parquet", "more.parquet"):
        source = parquet(name, [{"bytes": (folder / "a.jpg").read_bytes()}], ["a dog"])
    said = run(capsys, "datasets", source, tmp_path / "mine", code=2)
    assert f"{source / 'more.parquet'}: of no split, unlike others beside it" in said


def test_datasets_that_is_not_installed_is_named(folder, capsys, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    said = run(capsys, "datasets", folder, folder, code=2)
    assert "needs datasets; install it with: pip install" in said and "[datasets]" in said
