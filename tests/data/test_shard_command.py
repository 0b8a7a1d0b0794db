"""`python -m soho_fast.data.shards index | check`, in this process."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_shards import sample, write_set, write_tar

from soho_fast.data.shards.__main__ import main
from soho_fast.data.shards.index import read_index

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
