"""Clips of audio in the place of images: what is seen and heard of them, and every mistake by name."""

import base64

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import wavfile

from soho_fast.explore import Bundle, Clip, build_from_arrays, build_from_batches
from soho_fast.explore.figure import draw_figure
from soho_fast.explore.sounds import spectrogram
from soho_fast.explore.sources import ImageError

RATE, PATCHES = 8000, 20


def quiet(line):
    pass


def tone(hertz, seconds=0.4):
    return 0.5 * np.sin(2 * np.pi * hertz * np.arange(int(RATE * seconds)) / RATE)


@pytest.fixture
def clips():
    """A low tone that becomes a high one in the middle, six times; code 0 is low, 1 is high."""
    return [Clip(np.concatenate([tone(300), tone(2500)]), RATE)] * 6


@pytest.fixture
def index():
    return np.repeat([[[0] * (PATCHES // 2) + [1] * (PATCHES // 2)]], 6, axis=0)


def heard(bundle, number):
    value = bundle.read(f"sound-{number:06d}")
    return value["rate"], np.frombuffer(base64.b64decode(value["samples"]), "<i2")


def test_a_clip_is_seen_and_heard(clips, index, tmp_path):
    folder = build_from_arrays(index=index, images=clips, folder=tmp_path / "explorer", say=quiet)
    bundle = Bundle(folder)
    bundle.check()
    rate, samples = heard(bundle, 5)
    assert rate == RATE and (samples == clips[5].samples).all() and 16000 < samples.max() <= 16384
    entry = bundle.image(0)
    assert (entry["name"], entry["rows"], entry["columns"]) == ("clip 0", 1, PATCHES)
    shown = np.asarray(Image.open(folder / "images/0000/000000.jpg").convert("L")).astype(int)
    assert shown.shape[1] == entry["width"] == 4 * PATCHES
    loudest = shown.shape[0] - 1 - shown.argmax(0)  # From below.
    for part, hertz in ((slice(2, 2 * PATCHES - 2), 300), (slice(2 * PATCHES + 2, -2), 2500)):
        row = shown.shape[0] * np.log1p(hertz / 700) / np.log1p(RATE / 2 / 700)  # On the mel scale.
        assert np.abs(loudest[part] - row).max() <= 6, (hertz, row)
    assert bundle.meta["has_sound"] and bundle.meta["window"] == pytest.approx(0.5 / 0.8 * PATCHES)
    draw_figure(folder, codes=[0, 1], columns=2, into=tmp_path / "codes.png")


def test_batches_of_clips_give_the_same(clips, index, tmp_path):
    codebook = np.zeros((2, 3))
    folders = [
        build_from_arrays(None, codebook, clips, tmp_path / "all", index=index, say=quiet),
        build_from_batches(
            ((None, clips[n : n + 2], None, None, index[n : n + 2]) for n in (0, 2, 4)), codebook, tmp_path / "parts",
            say=quiet,
        ),
    ]  # fmt: skip
    one, other = (
        {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.j*") if path.is_file()}
        for folder in folders
    )
    assert one == other


@pytest.mark.parametrize("dtype", ["u1", "<i2", "<i4", "<f4"])
def test_wav_files_of_all_kinds_sound_the_same(dtype, tmp_path):
    wave = tone(500)
    scale = {"u1": (127, 128), "<i2": (32767, 0), "<i4": (2**31 - 1, 0), "<f4": (1, 0)}[dtype]
    stereo = np.stack([2 * wave, 0 * wave], axis=1) * scale[0] + scale[1]
    wavfile.write(tmp_path / "a.wav", RATE, stereo.astype(dtype))
    clip = Clip.read(tmp_path / "a.wav")
    assert clip.rate == RATE and np.abs(clip.samples / 32767 - wave).max() < (0.01 if dtype == "u1" else 1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_loud_samples_of_any_precision(dtype):
    """32,767 is 32,768 in float16, which would be -32,768 in int16."""
    loud = torch.ones(2, 3, dtype=dtype, requires_grad=True)
    assert Clip(loud, RATE).samples.tolist() == [32767] * 3


def test_silence_is_dark_and_short_clips_are_drawn():
    assert np.asarray(spectrogram(Clip(np.zeros(3), RATE), 2)).max() < 5


@pytest.mark.parametrize(
    ("samples", "rate", "error", "told"),
    [
        ([1, 2], RATE, TypeError, "samples: expected floating point or int16, got int64"),
        (np.zeros((1, 2, 3)), RATE, ValueError, r"samples: expected \(samples,\) or .*, got shape \(1, 2, 3\)"),
        (np.zeros(0), RATE, ValueError, r"samples: .* got shape \(0,\)"),
        ([0.0, np.nan], RATE, ValueError, "samples: hold values that are not finite"),
        (np.zeros((RATE, 2)), RATE, ValueError, r"samples: expected .*, got shape \(8000, 2\); transpose it"),
        ([0.0], None, ValueError, "rate: expected 8,000 to 96,000 samples a second, got None"),
        ([0.0], np.nan, ValueError, "rate: expected 8,000 to 96,000 samples a second, got nan"),
        ([0.0], 200_000, ValueError, "rate: expected 8,000 to 96,000 samples a second, got 200000"),
    ],
)
def test_what_is_no_clip(samples, rate, error, told):
    with pytest.raises(error, match=told):
        Clip(samples, rate)


def test_mistakes_are_told_by_the_number_of_the_clip(clips, index, tmp_path):
    arguments = {"folder": tmp_path / "explorer", "say": quiet}
    with pytest.raises(ValueError, match=r"index\[0\]: expected one row .* \(1, patches, levels\), got 4 x 5"):
        build_from_arrays(index=index.reshape(6, 4, 5), images=clips, **arguments)
    images = [*clips[:5], np.zeros((8, 8, 3), np.uint8)]
    with pytest.raises(ValueError, match=r"images\[5\]: expected clips only, like the first, got one image"):
        build_from_arrays(index=index, images=images, **arguments)
    Image.new("RGB", (8, 8)).save(tmp_path / "leaf.png")
    with pytest.raises(ValueError, match=r"images\[5\] \(.*leaf\.png\): expected clips only"):
        build_from_arrays(index=index, images=[*clips[:5], tmp_path / "leaf.png"], **arguments)
    (tmp_path / "broken.wav").write_bytes(b"RIFF")
    with pytest.raises(ImageError, match=r"broken\.wav: can't be read as a WAV file"):
        Clip.read(tmp_path / "broken.wav")
    assert {path.name for path in tmp_path.iterdir()} == {"broken.wav", "leaf.png"}
