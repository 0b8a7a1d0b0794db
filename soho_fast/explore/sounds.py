"""Clips of audio in the place of images: their spectrogram is what is seen, and they can be heard.

S samples of a clip, W patches of it, one after another in time.
"""

from __future__ import annotations

import base64
import math
import os
import warnings
from typing import Any

from soho_fast.common.extras import from_extra
from soho_fast.explore.sources import ImageError, as_array

with from_extra("explore"):
    import numpy as np
    from matplotlib import colormaps
    from PIL import Image
    from scipy.io import wavfile

MOST_PATCHES = 4096
"""Of a clip: its spectrogram is one image."""
RATES = 8_000, 96_000
"""Hz, that every browser plays."""
WINDOW_SECONDS = 0.5
"""What is heard of a clip around a patch, unless something else is asked for."""

_PATCH_WIDTH, _HEIGHT = 4, 96  # Of a spectrogram, pixels.
_WINDOW = 0.025  # Of a column of it, seconds.
_FLOOR = -80.0  # Decibel below the loudest, from where on it is dark.


class Clip:
    """A clip of audio, in the place of an image of `build_from_arrays`.

    Args:
        samples: Floating point of -1 to 1, or int16, (S,) or (channels, S), whose mean is taken.
        rate: Samples a second, 8,000 to 96,000.

    Attributes:
        samples: int16 (S,). rate: int.

    Raises:
        TypeError, ValueError: one of them is something else.
    """

    def __init__(self, samples: Any, rate: int) -> None:
        array = as_array(samples)
        if array.dtype.kind != "f" and array.dtype != np.int16:
            raise TypeError(f"samples: expected floating point or int16, got {array.dtype}")
        if array.ndim not in (1, 2) or 0 in array.shape:
            raise ValueError(f"samples: expected (samples,) or (channels, samples), got shape {array.shape}")
        if array.ndim == 2 and len(array) > array.shape[1]:
            raise ValueError(f"samples: expected (channels, samples), got shape {array.shape}; transpose it")
        if not (isinstance(rate, (int, float, np.number)) and RATES[0] <= rate <= RATES[1] and rate == int(rate)):
            raise ValueError(f"rate: expected {RATES[0]:,} to {RATES[1]:,} samples a second, got {rate}")
        if not np.isfinite(array).all():
            raise ValueError("samples: hold values that are not finite")
        if array.dtype != np.int16:
            array = np.round(array.clip(-1, 1).astype(np.float64) * 32767)
        self.samples = np.atleast_2d(array).mean(0).astype(np.int16)
        self.rate = int(rate)

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Clip:
        """A WAV file. Raises ImageError, a ValueError: it can't be read."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", wavfile.WavFileWarning)  # Chunks that say nothing of the sound.
                rate, samples = wavfile.read(path)
            # WAV files of 8 bits are unsigned, all others signed.
            if samples.dtype == np.uint8:
                samples = samples / 128 - 1
            elif samples.dtype.kind == "i":
                samples = samples / -float(np.iinfo(samples.dtype).min)
            # wavfile gives (samples, channels).
            return cls(samples.T, rate)
        except Exception as error:  # A decoder meets damage with errors of any kind.
            raise ImageError(f"{os.fspath(path)}: can't be read as a WAV file ({error})") from error

    def value(self) -> dict[str, Any]:
        """Of data/sound-000000.js, see `bundle`."""
        return {"rate": self.rate, "samples": base64.b64encode(self.samples.astype("<i2").tobytes()).decode()}


def is_sound(image: Any) -> bool:
    """Whether it is a clip, or the path of a WAV file."""
    return isinstance(image, Clip) or (
        isinstance(image, (str, os.PathLike)) and os.fspath(image)[-4:].lower() == ".wav"
    )


def spectrogram(clip: Clip, patches: int) -> Image.Image:
    """Loudness in decibel, below the clip's loudest, by time and by frequency on the mel scale, the lowest below.

    Args:
        clip: S samples.
        patches: W, into which the clip is divided evenly; each is 4 pixels wide.
    """
    size = 2 ** round(math.log2(clip.rate * _WINDOW))
    centre = (np.arange(_PATCH_WIDTH * patches) + 0.5) * len(clip.samples) / (_PATCH_WIDTH * patches)
    # Padded by one window at both ends: the window that begins at c + size / 2 has sample c in its middle.
    parts = np.lib.stride_tricks.sliding_window_view(np.pad(clip.samples, size), size)
    power = np.abs(np.fft.rfft(parts[(centre + size / 2).astype(int)] * np.hanning(size))) ** 2
    mel = np.linspace(0, 2595 * math.log10(1 + clip.rate / 2 / 700), _HEIGHT, endpoint=False)
    bins = (700 * (10 ** (mel / 2595) - 1) * size / clip.rate).astype(int)
    # Low bands are narrower than a bin, and take the one that they begin in.
    power = np.maximum.reduceat(power, bins, axis=1)
    level = 10 * np.log10(np.maximum(power / max(power.max(), 1e-9), 1e-12))
    shade = 1 - level.clip(_FLOOR, 0).T[::-1] / _FLOOR
    return Image.fromarray(colormaps["magma"](shade, bytes=True)[..., :3])
