"""Images that are damaged, or made to do harm: decoded, or refused by name, and nothing else happens."""

import os
import random
import re
import resource
import signal
import sys
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO

import numpy as np
import pytest
import torch
from hostile_images import handmade_images, hostile_images, progressive_jpeg, sound_images, webp
from PIL import Image, ImageFile, ImageOps
from tiny_corpus import draw

from soho_fast.common import images as limits
from soho_fast.common.errors import CorruptImageError
from soho_fast.common.images import decoding
from soho_fast.data import images as images_module
from soho_fast.data.images import SohoImageProcessor, decode_image
from soho_fast.data.readers.records import ImageRef
from soho_fast.data.stores import FolderStore
from soho_fast.explore.sources import ImageError, open_image

_PROGRAMS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "os.startfile")
_started = []
_watching = False


def _watch(event, _):
    if _watching and event in _PROGRAMS:
        _started.append(event)


sys.addaudithook(_watch)  # stays for good: it can't be taken away


@pytest.fixture
def programs():
    """The programs started while the test runs."""
    global _watching
    _started.clear()
    _watching = True
    yield _started
    _watching = False


def outcome(data):
    """True where it is decoded, the message where it is refused."""
    try:
        pixels = decode_image(data, shorter_edge=16)
    except CorruptImageError as error:
        message = str(error)
        assert message.isprintable() and len(message) < 400
        return message
    assert pixels.dtype == torch.uint8 and pixels.ndim == 3 and pixels.shape[0] == 3 and pixels.numel()
    return True


@pytest.mark.parametrize("name", sound_images())
def test_sound_images_are_decoded(name):
    assert outcome(sound_images()[name]) is True
    pixels = decode_image(sound_images()[name])
    assert len(pixels.unique()) > 1 or name.startswith("plain"), "there is something on it"


def test_thousands_of_damaged_images_are_decoded_or_refused(programs, capfd):
    outcomes = [outcome(data) for _, data in hostile_images(1, 4000)]
    capfd.readouterr()
    decoded = outcomes.count(True)
    assert 300 < decoded < 2700, "damage must neither be all fatal nor all harmless"
    assert not programs


DECODED = ("1 x 200000.png", "deep with transparency.png", "rows without end.png")


@pytest.mark.parametrize("name", handmade_images())
def test_images_made_by_hand(name, programs):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    result = outcome(handmade_images()[name])
    assert (result is True) == (name in DECODED), result
    assert not programs
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300 * 1024, "the memory of a bomb was taken"


def test_the_limit_does_not_hang_on_a_setting_of_the_library(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    for name in ("30000 x 30000.png", "30000 x 30000.ppm", "30000 x 30000.tif"):
        with pytest.raises(CorruptImageError, match="30000 x 30000 pixels; expected at least 1 and at most 89,478,485"):
            decode_image(handmade_images()[name])


@pytest.mark.parametrize(
    "error", [RuntimeError, NotImplementedError, KeyError, TypeError, MemoryError, ZeroDivisionError]
)
def test_an_error_of_any_kind_is_a_corrupt_image(error, monkeypatch):
    def fail(image):
        raise error("line\tone \x1b[31m")

    monkeypatch.setattr(images_module, "image_to_pixels", fail)
    assert re.search(rf"bytes\): {error.__name__}: .*line.*one.*\[31m", outcome(sound_images()["RGB.png"]))


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_who_stops_the_run_stops_it(error, monkeypatch):
    def fail(image):
        raise error

    monkeypatch.setattr(images_module, "image_to_pixels", fail)
    with pytest.raises(error):
        decode_image(sound_images()["RGB.png"])


@pytest.mark.parametrize("name", ["exif.jpg", "exif.png", "exif.webp"])
def test_an_image_outlives_damage_to_its_exif(name):
    """Its pixels are intact: it is kept, upright where the orientation can't be read."""
    data = sound_images()[name]
    turned = decode_image(data)
    upright = turned.rot90(1, (1, 2))  # orientation 6 turned it clockwise
    start = (
        data.index(b"Exif\0\0") + 6 if name == "exif.jpg" else data.index(b"II*\0" if b"II*\0" in data else b"MM\0*")
    )
    kinds = set()
    for seed in range(300):
        chance = random.Random(seed)
        changed = bytearray(data)
        for _ in range(chance.choice((1, 2, 8))):
            changed[start + chance.randrange(60)] = chance.choice((0, 1, 0x7F, 0xFF, chance.randrange(256)))
        if name == "exif.png":
            begin = data.index(b"eXIf")
            end = begin + 4 + int.from_bytes(data[begin - 4 : begin], "big")
            changed[end : end + 4] = zlib.crc32(changed[begin:end]).to_bytes(4, "big")
        pixels = decode_image(bytes(changed))
        ways = [pixels.rot90(times, (1, 2)) for times in range(4)]
        ways += [way.flip(2) for way in ways]
        assert any(way.shape == upright.shape and torch.equal(way, upright) for way in ways)
        kinds.add("turned" if torch.equal(pixels, turned) else "upright" if torch.equal(pixels, upright) else "other")
    assert {"turned", "upright"} <= kinds


@pytest.mark.parametrize("orientation", range(10))
def test_every_orientation_as_the_library_turns_it(orientation):
    image, file = Image.open(BytesIO(sound_images()["RGB.png"])), BytesIO()
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(file, "PNG", exif=exif)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(BytesIO(file.getvalue()))))
    assert np.array_equal(decode_image(file.getvalue()).permute(1, 2, 0).numpy(), expected)


@pytest.mark.parametrize("name", ["deep.png", "deep.pgm", "bigendian.tif", "integer.tif", "float.tif", "float.pfm"])
def test_deep_grey_is_the_grey_of_eight_bits(name):
    image = Image.open(BytesIO(sound_images()["rgb.ppm"])).convert("L")
    assert np.array_equal(decode_image(sound_images()[name])[0].numpy(), np.asarray(image))


def test_an_image_that_is_no_file(tmp_path):
    """A pipe would be waited for; a device has no end."""
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "zero.jpg").symlink_to("/dev/zero")
    (tmp_path / "round.jpg").symlink_to("round.jpg")
    processor = SohoImageProcessor()
    for name in ("pipe.jpg", "folder.jpg", "zero.jpg", "round.jpg", "nul\0.jpg"):
        with pytest.raises(CorruptImageError, match=re.escape(name)):
            processor.load(ImageRef(FolderStore(str(tmp_path)), name))


def test_a_link_into_another_folder_is_followed(tmp_path):
    draw(tmp_path / "there/a.jpg")
    (tmp_path / "images").mkdir()
    (tmp_path / "images/a.jpg").symlink_to(tmp_path / "there/a.jpg")
    assert SohoImageProcessor().load(ImageRef(FolderStore(str(tmp_path / "images")), "a.jpg")).shape[0] == 3


@pytest.mark.parametrize(
    "name", ["RGB.png", "RGBA.png", "palette.png", "deep.png", "bigendian.tif", "float.tif", "CMYK.tif"]
)
def test_a_large_image_is_turned_into_rgb_in_bands(name, monkeypatch):
    whole = decode_image(sound_images()[name])
    monkeypatch.setattr(images_module, "_BAND", 100)
    assert torch.equal(decode_image(sound_images()[name]), whole)
    monkeypatch.setattr(images_module, "_BAND", 1)
    assert torch.equal(decode_image(sound_images()[name]), whole)


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (progressive_jpeg(92), "101 scans; expected a JPEG of at most 100"),
        (progressive_jpeg(1, 9459, 9459), "9459 x 9459 pixels in [0-9,]+ bytes; they take more"),
        (progressive_jpeg(90, 12_000, 12_000) + bytes(2**21), "12000 x 12000 pixels in .* or are too many"),
    ],
)
def test_a_jpeg_that_takes_minutes_or_memory_is_refused_before_it_is_decoded(data, told, monkeypatch):
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda *_: pytest.fail("it was decoded"))
    assert re.search(told, outcome(data))
    with pytest.raises(ImageError, match=told):
        open_image(BytesIO(data), "image")


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (webp(8200, 8200), "8200 x 8200 pixels; expected at least 1 and at most 67,108,864"),
        (b"P6\n#" + b"a" * 10**6 + b"\n2 2\n255\n" + bytes(12), "no header of a PPM in its first 4,096 bytes"),
        (b"P6\n2 2\n25#" + b"a" * 10**6 + b"\n5\n" + bytes(12), "no header of a PPM in its first 4,096 bytes"),
        (b"P6\n2 2".ljust(4094) + b"25#" + b"a" * 10**6 + b"\n5\n" + bytes(12), "no header of a PPM in its first"),
        (b"P1\n10 10\n" + b"#\n" * 2**17 + b"0 " * 100, "131,072 comments; expected at most 100"),
        (b"P3\n1 1\n255\n" + b"0 " * 2**22, "8,388,619 bytes; expected a PPM in plain digits of at most 4,194,304"),
    ],
    ids=["webp", "comment", "in a number", "at the end", "comments", "digits"],
)
def test_an_image_that_takes_minutes_or_memory_is_refused_before_it_is_decoded(data, told, monkeypatch):
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda *_: pytest.fail("it was decoded"))
    began = time.process_time()
    assert told in str(outcome(data))
    with pytest.raises(ImageError, match=told):
        open_image(BytesIO(data), "image")
    assert time.process_time() - began < 0.5


@pytest.mark.parametrize("head", [b"P5 #a\n2 #b\r2\n#c\n255\n", b"P4\n8 2\n", b"P2\n2 2\n255 "])
def test_usual_headers_of_a_ppm_are_read(head):
    """Also before pixels that are spaces, as far as the beginning of the file goes."""
    assert outcome(head + (b"1 2 3 4\n" if head.startswith(b"P2") else b"\n" * 9000)) is True


def test_what_is_decoded_at_a_time_stays_within_the_budget():
    """One alone waits for nobody; a process that was forked meanwhile has the whole budget."""
    many, most, lock = [0], [0], threading.Lock()
    image = Image.new("L", (6000, 6000))  # a little less than half

    def decode(_):
        with decoding(image):
            with lock:
                many[0] += 1
                most[0] = max(most[0], many[0])
            time.sleep(0.02)
            with lock:
                many[0] -= 1

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(decode, range(16)))
    assert most == [2] and many == [0]
    with decoding(image), decoding(image):
        if (child := os.fork()) == 0:
            signal.alarm(5)
            with decoding(image):
                os._exit(0)
        assert os.waitpid(child, 0)[1] == 0


def test_one_image_is_decoded_by_one_thread():
    from PIL import AvifImagePlugin

    assert AvifImagePlugin.DEFAULT_MAX_THREADS == 1


def test_a_jpeg_of_usual_scans_is_decoded():
    assert outcome(progressive_jpeg(1)) is True and outcome(progressive_jpeg(80)) is True


def test_a_jpeg_is_measured_as_it_is_read(monkeypatch):
    file = BytesIO()
    Image.new("RGB", (800, 400)).save(file, "JPEG")
    monkeypatch.setattr(limits, "MAX_DECODING_BYTES", 200 * 100 * 12)
    assert decode_image(file.getvalue(), shorter_edge=50).shape == (3, 100, 200)
    with pytest.raises(CorruptImageError, match="800 x 400 pixels"):
        decode_image(file.getvalue())
