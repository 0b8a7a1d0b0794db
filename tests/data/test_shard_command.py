"""`python -m soho_fast.data.shards write | index | check`, in this process."""

import json
import os
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from tiny_corpus import COLOURS, draw, write_images, write_karpathy
from tiny_shards import sample, write_set, write_tar

from soho_fast.data.readers.captions import read_visual_genome
from soho_fast.data.readers.questions import read_vqa
from soho_fast.data.readers.statements import read_nlvr2
from soho_fast.data.shards.__main__ import main
from soho_fast.data.shards.index import read_index
from soho_fast.data.shards.records import read_shards
from soho_fast.data.shards.store import TarStore
from soho_fast.data.stores import FolderStore

ROOT = Path(__file__).resolve().parents[2]
CHECKING = """
import os, sys, time
from soho_fast.data.shards import __main__ as command


def slow(*_, **__):
    os.write(1, b"begun\\n")  # In one piece: two processes write to one pipe.
    time.sleep(1000)


command.check_shard = slow
command.main(["check", sys.argv[1], "--workers", "2"])
"""


def _written(path):
    """Which file lies there and when it was written (not when it was read: reading changes that)."""
    stat = path.stat()
    return stat.st_ino, stat.st_size, stat.st_mtime_ns


def run(capsys, *arguments, code=0):
    """The lines of both outputs; an error is one line."""
    assert main([str(argument) for argument in arguments]) == code
    said = capsys.readouterr()
    assert code != 2 or (said.err.splitlines()[-1].startswith("error: ") and "Traceback" not in said.err)
    return said.out + said.err


def write_coco(folder):
    write_karpathy(folder, {"train": list(COLOURS)[:10], "val": list(COLOURS)[10:]})
    return ["--format", "karpathy", "--annotations", folder / "dataset_coco.json", "--images", folder]


def test_written_shards_are_webdatasets(tmp_path, capsys):
    coco = write_coco(tmp_path / "coco")
    said = run(capsys, "write", tmp_path / "out", *coco, "--splits", "train", "--per-shard", 4)
    path = f"{tmp_path}/out/{{00000..00002}}.tar"
    assert "coco: 10 images, 20 captions (train 10)" in said
    assert f"wrote 3 shards, kept the others; as one path: {path}" in said
    assert f"{path}: 10 images, 20 captions" in said
    with tarfile.open(tmp_path / "out/00001.tar") as archive:
        assert archive.getnames()[:2] == ["train2014/0004.jpg", "train2014/0004.json"]
        about = json.load(archive.extractfile("train2014/0004.json"))
        assert about == {"captions": ["There is a cyan.", "a cyan"], "image_id": "4"}
        original = (tmp_path / "coco/train2014/0004.jpg").read_bytes()
        assert archive.extractfile("train2014/0004.jpg").read() == original
    assert "all images decode" in run(capsys, "check", path, "--workers", 2)


def test_a_rerun_goes_on_where_it_was_stopped(tmp_path, capsys, monkeypatch):
    write = ["write", tmp_path / "out", *write_coco(tmp_path / "coco"), "--splits", "train", "--per-shard", 4]
    reads, read = [], FolderStore.read

    def stopped_at_the_seventh(store, name):
        reads.append(name)
        if len(reads) == 7:
            raise KeyboardInterrupt
        return read(store, name)

    monkeypatch.setattr(FolderStore, "read", stopped_at_the_seventh)
    said = run(capsys, *write, code=130)
    assert "stopped: 4 of 10 images are in whole shards" in said and "the same command goes on from here" in said
    assert sorted(os.listdir(tmp_path / "out")) == ["00000.tar", "00000.tar.index"]
    before = _written(tmp_path / "out/00000.tar")
    reads[:] = range(100)
    assert "wrote 2 shards, kept the others" in run(capsys, *write)
    assert len(reads) == 100 + 4 + 6 and _written(tmp_path / "out/00000.tar") == before
    whole = [(tmp_path / f"out/0000{number}.tar").read_bytes() for number in range(3)]
    assert "wrote 3 shards" in run(
        capsys, *[tmp_path / "again" if each == tmp_path / "out" else each for each in write]
    )
    assert whole == [(tmp_path / f"again/0000{number}.tar").read_bytes() for number in range(3)]


def test_a_full_disk_leaves_whole_shards(tmp_path, capsys, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    said = run(capsys, "write", tmp_path / "out", *write_coco(tmp_path / "coco"), "--splits", "train", code=2)
    assert "No space left on device" in said and os.listdir(tmp_path / "out") == []


def test_shards_of_others_are_not_written_over(tmp_path, capsys):
    write = ["write", tmp_path / "out", *write_coco(tmp_path / "coco"), "--per-shard", 4]
    run(capsys, *write, "--splits", "val")
    said = run(capsys, *write, "--splits", "train", code=2)
    assert "00000.tar: was written from other images or captions; give another folder" in said
    write_tar(tmp_path / "out/00000.tar", sample("0"))
    before = (tmp_path / "out/00000.tar").read_bytes()
    assert "00000.tar is in the way: " in run(capsys, *write, "--splits", "val", code=2)
    assert (tmp_path / "out/00000.tar").read_bytes() == before
    (tmp_path / "out/00000.tar").rename(tmp_path / "out/cc.tar")
    assert "cc.tar: a shard that is none of these 1" in run(capsys, *write, "--splits", "val", code=2)


def test_shards_of_images_that_were_corrected_since_are_not_kept(tmp_path, capsys):
    """At the same size, too: what is there would be published as the corrected ones."""
    write = ["write", tmp_path / "out", *write_coco(tmp_path / "coco"), "--splits", "train", "--per-shard", 4]
    run(capsys, *write)
    image = tmp_path / "coco/train2014/0005.jpg"
    content = image.read_bytes()
    for corrected in (content[:-3] + b"x" + content[-2:], content + b"x"):
        image.write_bytes(corrected)
        said = run(capsys, *write, code=2)
        assert "00001.tar: was written from other images or captions; give another folder" in said
    image.write_bytes(content)
    assert "wrote 0 shards, kept the others" in run(capsys, *write)


def test_a_random_order_is_the_seeds(tmp_path, capsys):
    coco = [*write_coco(tmp_path / "coco"), "--splits", "train"]
    orders = []
    for number, seed in enumerate((1, 1, 2)):
        run(capsys, "write", tmp_path / f"out{number}", *coco, "--shuffle", seed)
        orders.append([record.image_id for record in read_shards(tmp_path / f"out{number}/00000.tar")])
    assert orders[0] == orders[1] != orders[2] and sorted(orders[0]) == sorted(map(str, range(10)))


def test_every_readers_set(tmp_path, capsys):
    def written(name, *arguments):
        run(capsys, "write", tmp_path / name, "--images", tmp_path, *arguments)
        return f"{tmp_path}/{name}/00000.tar"

    (tmp_path / "captions_val2014.json").write_text(json.dumps({
        "images": [{"id": 7, "file_name": "COCO_val2014_000000000007.jpg", "height": 40, "width": 48}],
        "annotations": [{"id": 1, "image_id": 7, "caption": "a red"}],
    }))  # fmt: skip
    draw(tmp_path / "val2014/COCO_val2014_000000000007.jpg")
    annotations = ["--annotations", tmp_path / "captions_val2014.json"]
    (record,) = read_shards(written("captions", "--format", "coco_captions", *annotations))
    assert (record.captions, record.image_id) == (("a red",), "7")

    questions = tmp_path / "v2_OpenEnded_mscoco_val2014_questions.json"
    question = {"image_id": 7, "question": "What is it?", "question_id": 70}
    questions.write_text(
        json.dumps({"questions": [question, question | {"question_id": 71}], "data_subtype": "val2014"})
    )
    path = written("vqa", "--format", "vqa", "--annotations", questions)
    assert [record.question_id for record in read_vqa(questions, path)] == [70, 71]
    assert len(TarStore(path)) == 1

    pairs = tmp_path / "dev.json"
    pairs.write_text(json.dumps({"identifier": "dev-8-0-0", "sentence": "One is red.", "label": "True"}) + "\n")
    for side in (0, 1):
        draw(tmp_path / f"dev-8-0-img{side}.png")
    path = written("nlvr2", "--format", "nlvr2", "--annotations", pairs)
    assert read_nlvr2(pairs, path)[0].right.read() == (tmp_path / "dev-8-0-img1.png").read_bytes()

    write_images(tmp_path)
    images = ["--annotations", tmp_path / "images.jsonl"]
    assert len(read_shards(written("own", "--format", "json_lines", *images))) == len(COLOURS)
    assert len(TarStore(written("asked", "--format", "json_lines_questions", *images))) == len(COLOURS)

    draw(tmp_path / "VG_100K/1.jpg"), draw(tmp_path / "VG_100K/2.jpg")
    image_data, regions = tmp_path / "image_data.json", tmp_path / "region_descriptions.json"
    about = {"coco_id": None, "flickr_id": None}
    rows = [{"image_id": number, "url": f"https://host/VG_100K/{number}.jpg", **about} for number in (1, 2)]
    image_data.write_text(json.dumps(rows))
    phrases = [{"phrase": f"a part {size}", "width": size, "height": 9} for size in (5, 9)]
    regions.write_text(json.dumps([{"id": number, "regions": phrases} for number in (1, 2)]))
    genome = ["--format", "visual_genome", "--annotations", regions, "--image-data", image_data, "--max-captions", 1]
    records = read_shards(written("genome", *genome), source="visual_genome")
    expected = read_visual_genome(regions, image_data, tmp_path, max_captions=1)
    assert [record.captions for record in records] == [record.captions for record in expected] == [("a part 9",)] * 2
    assert "--splits: format visual_genome has none" in run(
        capsys, "write", tmp_path / "x", *genome, "--splits", "train", "--images", tmp_path, code=2
    )


@pytest.mark.parametrize(("flag", "number"), [("max-captions", 0), ("max-captions", -1), ("per-shard", 0)])
def test_numbers_that_would_leave_nothing_are_refused(tmp_path, capsys, flag, number):
    write = ["write", tmp_path / "out", *write_coco(tmp_path / "coco")]
    assert f"error: --{flag}: expected at least 1, got {number}\n" in run(capsys, *write, f"--{flag}", number, code=2)
    assert not (tmp_path / "out").exists()


def test_names_that_a_shard_cannot_tell_apart(tmp_path, capsys):
    draw(tmp_path / "a.b.jpg"), draw(tmp_path / "a.c.jpg")
    (tmp_path / "p.jsonl").write_text("".join(f'{{"file": "a.{c}.jpg", "captions": ["a"]}}\n' for c in "bc"))
    command = ["write", tmp_path / "out", "--format", "json_lines", "--annotations", tmp_path / "p.jsonl"]
    assert "a.c.jpg: in a shard it would be one sample with a.b.jpg" in run(capsys, *command, code=2)


def test_indexing_goes_on_and_says_what_it_found(tmp_path, capsys):
    path = write_set(tmp_path)
    (tmp_path / "00001.tar.index").unlink()
    os.utime(tmp_path / "00002.tar")
    kept = _written(tmp_path / "00000.tar.index")
    said = run(capsys, "index", path, "--workers", 2)
    assert "indexed 2 of 3 shards" in said and f"{path}: 12 images, 12 captions" in said
    assert _written(tmp_path / "00000.tar.index") == kept
    assert "indexed 3 of 3 shards" in run(capsys, "index", path, "--again")


@pytest.mark.parametrize("damage", ["cut", "twice", "missing"])
def test_damage_is_reported_with_shard_and_member(tmp_path, capsys, damage):
    path = write_set(tmp_path)
    shard = tmp_path / "00001.tar"
    if damage == "cut":
        shard.write_bytes(shard.read_bytes()[:5000])
    elif damage == "twice":
        write_tar(shard, sample("000000001"))
    else:
        shard.unlink()
    said = run(capsys, "index", path, code=2)
    words = {
        "cut": "cut off",
        "twice": "!000000001.jpg: also in",
        "missing": "no such",
    }
    assert "00001.tar" in said.splitlines()[-1] and words[damage] in said.splitlines()[-1]


def test_indexing_lists_what_is_left_out_broken_samples_first(tmp_path, capsys):
    for number in (0, 1):
        bad = [(f"b{number}.jpg", b""), (f"b{number}.json", b"{"), (f"n{number}.txt", b"no image")]
        write_tar(tmp_path / f"{number}.tar", [*sample(f"a{number}"), *bad[::-1], *sample(f"c{number}", None)])
    path = tmp_path / "{0..1}.tar"
    said = run(capsys, "index", path)
    assert f"{path}: 6 images, 2 captions; 2 broken samples; 2 samples without an image; 2 images without" in said
    listed = [line for line in said.splitlines() if line.startswith("left out: ")]
    assert [line.partition("!")[2].partition(" (")[0] for line in listed] == [
        "b0.json: not valid JSON", "b1.json: not valid JSON", "n0: no image", "c0: no caption", "n1: no image",
        "c1: no caption",
    ]  # fmt: skip
    assert "match their indexes" in run(capsys, "check", path, "--quick")
    # Of shards that hold images alone nothing is left out.
    assert "left out: " not in run(capsys, "index", write_tar(tmp_path / "images.tar", sample("0", None)))


def test_checking_finds_what_is_no_image_and_an_index_that_lies(tmp_path, capsys):
    path = write_tar(tmp_path / "a.tar", [*sample("0"), ("1.jpg", b"no image at all"), *sample("2")])
    run(capsys, "index", path)
    said = run(capsys, "check", path, code=2)
    assert said.splitlines()[-1].startswith("error: 1 images can't be decoded; first: ") and "a.tar!1.jpg" in said
    assert "match their indexes" in run(capsys, "check", path, "--quick")
    stamp = path.stat().st_mtime_ns
    content = path.read_bytes()
    path.write_bytes(content.replace(b'"a dog"', b'"a cat"').replace(b"a dog", b"a cat"))
    os.utime(path, ns=(stamp, stamp))
    assert read_index(str(path)).caption(0, 0) == "a dog"
    assert "a.tar.index: does not match " in run(capsys, "check", path, "--quick", code=2)


def test_no_process_is_left_of_a_command_that_is_killed(tmp_path):
    command = [sys.executable, "-c", CHECKING, write_set(tmp_path)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment) as killed:
        assert [killed.stdout.readline() for _ in range(2)] == [b"begun\n"] * 2
        killed.send_signal(signal.SIGKILL)
        killed.communicate(timeout=30)  # Until the last process has left its outputs.
