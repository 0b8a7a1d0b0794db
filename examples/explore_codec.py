"""The explorer of an audio codec: what each code of EnCodec looks and sounds like.

python examples/explore_encodec.py codec_explorer
python examples/explore_encodec.py codec_explorer --model facebook/encodec_24khz --sounds my_sounds

Without --model a small EnCodec has random weights, and codes drawn from its features. Without --sounds the clips are
made here. The codes of other codecs go in alike: Mimi's `encode(...).audio_codes`, DAC's `encode(...).audio_codes`.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import scipy.signal
import torch
from transformers import EncodecConfig, EncodecModel

from soho_fast.explore import Clip, build_from_arrays, codes_of_word


def made_sounds(rate: int) -> list[tuple[np.ndarray, str]]:
    """(samples, caption) of 120 clips of a second."""
    rng, time = np.random.default_rng(0), np.arange(rate) / rate
    sounds = []
    for _ in range(24):
        low, high = rng.uniform(100, 200), rng.uniform(1500, 3000)
        clicks = np.zeros(rate)
        clicks[:: rng.integers(rate // 20, rate // 10)] = 1
        sounds += [
            (np.sin(2 * np.pi * low * time), "a low hum"),
            (np.sin(2 * np.pi * high * time), "a high whistle"),
            (scipy.signal.chirp(time, low, 1, high), "a rising siren"),
            (rng.normal(scale=0.3, size=rate), "noise of rain"),
            (scipy.signal.lfilter([1], [1, -1.8, 0.9], clicks) / 4, "clicks of a clock"),
        ]
    return [(0.5 * samples, caption) for samples, caption in sounds]


def small_model(values: list[torch.Tensor]) -> EncodecModel:
    """An EnCodec with random weights, and codes of each level drawn from what the levels before leave of features."""
    torch.manual_seed(0)
    config = EncodecConfig(
        hidden_size=32, num_filters=8, codebook_size=64, codebook_dim=32, num_lstm_layers=1,
        upsampling_ratios=[8, 5, 4], target_bandwidths=[1.0], sampling_rate=8_000,
    )  # fmt: skip
    model = EncodecModel(config).eval()
    rest_TC = torch.cat([model.encoder(values_11T)[0].T for values_11T in values])
    for level in model.quantizer.layers:
        codes_KC = rest_TC[torch.randperm(len(rest_TC))[: config.codebook_size]]
        level.codebook.embed.copy_(codes_KC)
        rest_TC = rest_TC - codes_KC[torch.cdist(rest_TC, codes_KC).argmin(1)]
    return model


@torch.no_grad()
def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", help="folder for the explorer")
    parser.add_argument("--model", help="EnCodec's weights: a folder or a name on the hub")
    parser.add_argument("--sounds", help="folder of WAV files")
    chosen = parser.parse_args()

    model = EncodecModel.from_pretrained(chosen.model).eval() if chosen.model else None
    rate = model.config.sampling_rate if model else 8_000
    names: list[str] | None = None
    if chosen.sounds:
        paths = sorted(Path(chosen.sounds).rglob("*.wav"))
        if not paths:
            parser.error(f"--sounds: expected a folder of WAV files, got none in {chosen.sounds}")
        read = [Clip.read(path) for path in paths]
        clips = [Clip(scipy.signal.resample_poly(clip.samples / 2**15, rate, clip.rate), rate) for clip in read]
        captions, names = [path.stem for path in paths], [path.relative_to(chosen.sounds).as_posix() for path in paths]
    else:
        sounds = made_sounds(rate)
        clips, captions = [Clip(samples, rate) for samples, _ in sounds], [caption for _, caption in sounds]

    values = [torch.from_numpy(clip.samples / np.float32(2**15))[None, None] for clip in clips]
    model = model or small_model(values[:20])
    found = [model.encode(each, bandwidth=model.config.target_bandwidths[0]).audio_codes[0, 0] for each in values]
    levels = model.quantizer.layers[: len(found[0])]
    explorer = build_from_arrays(
        index=[codes_QT.T[None] for codes_QT in found],  # (1, patches, levels) of each clip
        codebook=torch.stack([level.codebook.embed for level in levels]),
        images=clips,
        folder=chosen.folder,
        captions=captions,
        names=names,
        title="Codes of EnCodec",
        licences=None if chosen.sounds else "made by this example",
    )
    if not chosen.sounds:
        print(f"siren: codes {codes_of_word(explorer, 'siren')['code'].tolist()}")
    print(f"open {explorer / 'index.html'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
