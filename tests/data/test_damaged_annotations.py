"""Every reader, of files in which each field in turn holds every wrong value, or which are damaged as a whole."""

import copy
import gzip
import json
from pathlib import Path

import pytest
from tiny_corpus import draw

from soho_fast.data.readers.captions import held_out_ids, read_coco_captions, read_karpathy, read_visual_genome
from soho_fast.data.readers.json_lines import read_json_lines, read_json_lines_questions
from soho_fast.data.readers.questions import read_easy_vqa, read_vqa
from soho_fast.data.readers.statements import read_nlvr2, read_snli_ve

QUESTION = {"image_id": 7, "question": "What is it?", "question_id": 70}
ANSWERED = {
    "image_id": 7,
    "question_id": 70,
    "question_type": "what",
    "answer_type": "other",
    "multiple_choice_answer": "red",
    "answers": [{"answer": "red", "answer_id": number} for number in range(1, 11)],
}
KARPATHY = {
    "dataset": "coco",
    "images": [
        {
            "filepath": "val2014",
            "filename": "a.jpg",
            "imgid": number,
            "cocoid": number,
            "split": split,
            "sentences": [{"raw": "a red"}],
        }
        for number, split in ((1, "train"), (2, "val"))
    ],
}
COCO = {"images": [{"id": 7, "file_name": "a.jpg"}], "annotations": [{"image_id": 7, "caption": "a red"}]}
REGIONS = [{"id": 7, "regions": [{"phrase": "a red"}]}]
IMAGE_DATA = [{"image_id": 7, "url": "https://host/VG_100K/a.jpg", "coco_id": 9}]
OWN = {"file": "a.jpg", "captions": ["a red"], "questions": [{"question": "What?", "answer": "red"}], "split": "train"}
NLVR2 = {"identifier": "dev-1-0-0", "sentence": "Both are red.", "label": "True", "directory": 3}
SNLI_VE = {"Flickr30K_ID": "a", "pairID": "a#1", "gold_label": "neutral", "sentence2": "It is red."}

# The files of a set (the first is damaged), and what reads them below a folder; a .jsonl file has a record a line.
READERS = {
    "karpathy": ({"dataset.json": KARPATHY}, lambda f: read_karpathy(f / "dataset.json", f, ["train"])),
    "held_out_ids": ({"dataset.json": KARPATHY}, lambda f: held_out_ids(f / "dataset.json")[1]),
    "coco_captions": ({"captions_val2014.json": COCO}, lambda f: read_coco_captions(f / "captions_val2014.json", f)),
    "regions": (
        {"regions.json": REGIONS, "image_data.json": IMAGE_DATA},
        lambda f: read_visual_genome(f / "regions.json", f / "image_data.json", f),
    ),
    "image_data": (
        {"image_data.json": IMAGE_DATA, "regions.json": REGIONS},
        lambda f: read_visual_genome(f / "regions.json", f / "image_data.json", f),
    ),
    "questions": (
        {
            "questions.json": {"data_subtype": "val2014", "questions": [QUESTION]},
            "answers.json": {"data_subtype": "val2014", "annotations": [ANSWERED]},
        },
        lambda f: read_vqa(f / "questions.json", f, f / "answers.json"),
    ),
    "answers": (
        {
            "answers.json": {"data_subtype": "val2014", "annotations": [ANSWERED]},
            "questions.json": {"data_subtype": "val2014", "questions": [QUESTION]},
        },
        lambda f: read_vqa(f / "questions.json", f, f / "answers.json"),
    ),
    "nlvr2": ({"dev.jsonl": [NLVR2]}, lambda f: read_nlvr2(f / "dev.jsonl", f)),
    "snli_ve": ({"dev.jsonl": [SNLI_VE]}, lambda f: read_snli_ve(f / "dev.jsonl", f)),
    "easy_vqa": ({"questions.json": [["What is it?", "red", 7]]}, lambda f: read_easy_vqa(f / "questions.json", f)),
    "json_lines": ({"own.jsonl": [OWN]}, lambda f: read_json_lines(f / "own.jsonl")),
    "json_lines_questions": ({"own.jsonl": [OWN]}, lambda f: read_json_lines_questions(f / "own.jsonl")),
}

NEST = "\0nest"  # becomes more brackets than a parser follows
WRONG = [
    None, True, 0, -1, 10**30, 1.5, float("nan"), float("inf"), "", " \u200b\u0301\x07", "a\0b", "\ud800",
    "../../etc/hostname", "/etc/hostname", "x" * 5000, "http://[", [], ["red"], {}, {"a": 1}, NEST,
]  # fmt: skip


def dump(value):
    return json.dumps(value).replace(json.dumps(NEST), "[" * 20_000 + "]" * 20_000).encode()


def serialise(name, content):
    return b"\n".join(map(dump, content)) if name.endswith(".jsonl") else dump(content)


def places(value, path=()):
    """The path of every value within a value, itself first."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in items:
        yield from places(child, (*path, key))


def changed(content, path, change):
    content = copy.deepcopy(content)
    if not path:
        return change({0: content}, 0)
    parent = content
    for key in path[:-1]:
        parent = parent[key]
    change(parent, path[-1])
    return content


def damaged(name, content):
    """(what was done, bytes of the file)."""
    lines = name.endswith(".jsonl")
    for path in places(content):
        if path or not lines:
            for wrong in WRONG:
                holder = {}
                if path:
                    yield (
                        f"{path} is {wrong!r:.30}",
                        serialise(
                            name,
                            changed(content, path, lambda parent, key, wrong=wrong: parent.__setitem__(key, wrong)),
                        ),
                    )
                else:
                    holder[0] = wrong
                    yield f"all is {wrong!r:.30}", dump(wrong)
        if path and isinstance(path[-1], str):
            yield f"{path} is not there", serialise(name, changed(content, path, lambda parent, key: parent.pop(key)))
        if path and isinstance(path[-1], int):
            twice = changed(content, path, lambda parent, key: parent.append(copy.deepcopy(parent[key])))
            yield f"{path} comes twice", serialise(name, twice)
    intact = serialise(name, content)
    for cut in range(0, len(intact), 23):
        yield f"cut at {cut}", intact[:cut]
    for place in range(0, len(intact), 17):
        for byte in (0x00, 0xFF, 0x22, 0x5B):
            yield f"byte {place} is {byte}", intact[:place] + bytes([byte]) + intact[place + 1 :]
    yield "gzip", gzip.compress(intact)
    yield "with a BOM", b"\xef\xbb\xbf" + intact
    yield "UTF-16", intact.decode().encode("utf-16")
    yield "zeros", bytes(200)
    yield "a number of 5000 digits", b"[" + b"9" * 5000 + b"]"
    yield "an image", b"\x89PNG\r\n\x1a\n" + bytes(range(256))
    yield "nothing", b""


def prepare(folder, files):
    for image in ("a.jpg", "COCO_val2014_000000000007.jpg", "7.png", "dev-1-0-img0.png", "dev-1-0-img1.png"):
        draw(folder / image)
    for name, content in files.items():
        (folder / name).write_bytes(serialise(name, content))
    return folder / next(iter(files))


def readable(text):
    text.encode()
    return text


def check_records(records):
    """What was read can be tokenized, written, and found below the folder."""
    for record in records:
        if isinstance(record, int):
            continue
        for name in record.__slots__:
            value = getattr(record, name)
            texts = value if isinstance(value, tuple) else (value,)
            assert all(readable(text) == text for text in texts if isinstance(text, str))
            if hasattr(value, "read"):
                assert value.read().startswith((b"\xff\xd8", b"\x89PNG"))


@pytest.mark.parametrize("reader", READERS)
def test_a_damaged_file_is_read_or_refused_by_name(tmp_path, reader):
    files, read = READERS[reader]
    path = prepare(tmp_path, files)
    assert read(tmp_path), "intact files are read"
    name, content = next(iter(files.items()))
    outcomes = {"read": 0, "refused": 0}
    for what, data in damaged(name, content):
        path.write_bytes(data)
        try:
            records = read(tmp_path)
        except (ValueError, OSError) as error:
            outcomes["refused"] += 1
            message = str(error)
            others = [str(tmp_path / other) for other in files]
            assert any(other in message for other in others), f"{what}: names no file: {message[:300]}"
            assert "\n" not in message and len(message) < 1000, f"{what}: {message[:300]}"
        except Exception as error:
            raise AssertionError(f"{what}: {type(error).__name__}: {error}") from error
        else:
            outcomes["read"] += 1
            check_records(records)
    assert min(outcomes.values()) > 3 and sum(outcomes.values()) > 100, outcomes


GONE, TWICE = object(), object()
# A reader, the place that is changed in its first file, its new value, and what is said of it.
REFUSED = [
    ("karpathy", (), [1, 2], "expected a JSON object with a field 'images', got list"),
    ("karpathy", ("images", 0, "filename"), GONE, r"images\[0\]: no field 'filename' \(the record has: "),
    ("karpathy", ("images", 0, "sentences", 0, "raw"), 7, r"\.sentences\[0\]: field 'raw' is 7, expected str"),
    ("coco_captions", ("annotations",), GONE, r"captions_val2014\.json: no field 'annotations'"),
    ("coco_captions", ("annotations", 0, "image_id"), 77, "caption of image_id 77, but 'images' holds no image"),
    ("coco_captions", ("images", 0), TWICE, r"images\[1\]: id 7 comes twice"),
    ("regions", (), {"a": 1}, r"expected Visual Genome's region_descriptions\.json.*, got a JSON dict"),
    ("regions", (0, "regions", 0, "phrase"), GONE, r"\[0\]\.regions\[0\]: no field 'phrase'"),
    ("image_data", (0, "url"), GONE, r"image_data\.json: \[0\]: no field 'url'"),
    ("image_data", (0, "image_id"), 8, r"regions\.json: \[0\]: image 7 is not in .*image_data\.json"),
    ("questions", ("questions",), [], r"questions\.json: holds no question"),
    ("questions", ("questions", 0, "question_id"), GONE, r"questions\[0\]: no field 'question_id'"),
    ("questions", ("questions", 0, "question_id"), "7", r"field 'question_id' is '7', expected int"),
    ("questions", ("questions", 0, "question_id"), 8, r"annotations\[0\]: question_id 70 is not in .*questions\.json"),
    ("questions", ("questions", 0, "question"), " ", r"questions\[0\]: field 'question' is empty"),
    ("questions", ("questions", 0), TWICE, r"questions\[1\]: question_id 70 comes twice"),
    ("answers", ("annotations",), [], r"answers\.json: 1 questions of .* have no annotation; first: question_id 70"),
    ("answers", ("annotations", 0), TWICE, r"annotations\[1\]: question_id 70 comes twice"),
    ("answers", ("annotations", 0, "image_id"), 42, r"annotations\[0\]: image_id 42, but .* about image 7"),
    ("answers", ("annotations", 0, "answers", 3), GONE, r"annotations\[0\]: 9 answers; expected 10"),
    ("answers", ("annotations", 0, "answers", 3, "answer"), GONE, r"\.answers\[3\]: no field 'answer'"),
    ("answers", ("annotations", 0, "answer_type"), "colour", "field 'answer_type' is 'colour', expected one of"),
    ("nlvr2", (0, "label"), True, "line 1: field 'label' is True, expected str"),
    ("nlvr2", (0, "label"), "true", "field 'label' is 'true', expected one of 'True', 'False'"),
    ("nlvr2", (0, "identifier"), "dev-850-0", "identifier 'dev-850-0'; expected split-set"),
    ("nlvr2", (0, "sentence"), "", "line 1: field 'sentence' is empty"),
    ("nlvr2", (0,), TWICE, "line 2: identifier dev-1-0-0 comes twice"),
    ("nlvr2", (0,), GONE, r"dev\.jsonl: holds no record; expected NLVR2 JSON lines"),
    ("snli_ve", (0, "gold_label"), "yes", "field 'gold_label' is 'yes', expected one of 'contradiction', 'neutral', "),
    ("snli_ve", (0, "sentence2"), "", "line 1: field 'sentence2' is empty; expected the hypothesis"),
    ("snli_ve", (0, "Flickr30K_ID"), GONE, "line 1: no field 'Flickr30K_ID' or 'Flikr30kID'"),
    ("snli_ve", (0, "pairID"), GONE, "line 1: no field 'pairID'"),
]


@pytest.mark.parametrize(("reader", "place", "value", "words"), REFUSED)
def test_what_is_malformed_is_refused_by_its_place(tmp_path, reader, place, value, words):
    files, read = READERS[reader]
    path = prepare(tmp_path, files)

    def change(parent, key):
        if value is GONE:
            parent.pop(key)
        elif value is TWICE:
            parent.append(copy.deepcopy(parent[key]))
        else:
            parent[key] = value

    content = changed(next(iter(files.values())), place, change) if place else value
    path.write_bytes(serialise(path.name, content))
    with pytest.raises(ValueError, match=words):
        read(tmp_path)


@pytest.mark.parametrize("reader", READERS)
def test_a_folder_or_nothing_in_the_place_of_a_file(tmp_path, reader):
    files, read = READERS[reader]
    path = prepare(tmp_path, files)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=path.name):
        read(tmp_path)
    path.mkdir()
    with pytest.raises(FileNotFoundError, match=f"{path.name} is a folder"):
        read(tmp_path)


@pytest.mark.parametrize("start", [b"\x1f\x8b\x08", b"PK\x03\x04", b"BZh9", b"\xfd7zXZ\x00"])
def test_a_packed_file_is_called_so(tmp_path, start):
    path = tmp_path / "dataset.json"
    path.write_bytes(start + b"rest")
    with pytest.raises(ValueError, match=r"dataset\.json: a (gzip|zip|bzip2|xz) file; unpack it first"):
        read_karpathy(path, tmp_path, ["train"])


@pytest.mark.parametrize(
    "name", ["../secret.jpg", "a/../../secret.jpg", "/etc/hostname", "a\0.jpg", "\ud800.jpg", "./."]
)
def test_a_name_that_leads_out_of_the_images_is_refused(tmp_path, name):
    folder = tmp_path / "images"
    draw(tmp_path / "secret.jpg")
    draw(folder / "a/b.jpg")
    path = tmp_path / "captions_val2014.json"
    path.write_text(json.dumps({**COCO, "images": [{"id": 7, "file_name": name}]}))
    with pytest.raises(ValueError, match=r"captions_val2014\.json: .*(leads out|no file|surrogate|character)"):
        read_coco_captions(path, folder)


def test_a_path_from_the_root_is_read_where_its_folder_was_named(tmp_path):
    draw(tmp_path / "there/a.jpg")
    path = tmp_path / "lists" / "own.jsonl"
    path.parent.mkdir()
    path.write_text(json.dumps({**OWN, "file": str(tmp_path / "there/a.jpg")}))
    with pytest.raises(ValueError, match=r"leads out of .*lists; expected a path below"):
        read_json_lines(path)
    (record,) = read_json_lines(path, Path(tmp_path / "there"))
    assert record.image.read().startswith(b"\xff\xd8")


@pytest.mark.parametrize("blank", ["", " \t", "\u200b\ufeff", "\u0301", "\x07\x1b", "\u2060\u00ad"])
def test_a_caption_of_which_nothing_shows_counts_as_empty(tmp_path, blank):
    from soho_fast.data.readers.records import ReadReport

    draw(tmp_path / "a.jpg")
    path = tmp_path / "own.jsonl"
    path.write_text(json.dumps({"file": "a.jpg", "captions": [blank, "a red", "🐕", "?"]}))
    report = ReadReport()
    (record,) = read_json_lines(path, report=report)
    assert record.captions == ("a red", "🐕", "?") and report.num_empty_captions == 1
