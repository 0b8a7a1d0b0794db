"""The explorer of an audio codec: what each code of EnCodec, Mimi or DAC looks and sounds like.

python examples/explore_codec.py codec_explorer
python examples/explore_codec.py codec_explorer --codec mimi
python examples/explore_codec.py codec_explorer --model facebook/encodec_24khz --sounds my_sounds

Without --model a small codec has random weights, and codes drawn from its features. Without --sounds the clips are
made here. --model takes any of the three, as kyutai/mimi or descript/dac_24khz.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
import scipy.signal
import torch
from transformers import AutoModel, DacConfig, EncodecConfig, MimiConfig

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


NAMES = {"encodec": "EnCodec", "mimi": "Mimi", "dac": "DAC"}
SMALL = {
    "encodec": EncodecConfig(
        hidden_size=32, num_filters=8, codebook_size=64, codebook_dim=32, num_lstm_layers=1,
        upsampling_ratios=[8, 5, 4], target_bandwidths=[1.0], sampling_rate=8_000,
    ),
    "mimi": MimiConfig(
        hidden_size=32, num_filters=8, codebook_size=64, codebook_dim=32, num_quantizers=4, num_hidden_layers=1,
        intermediate_size=64, num_attention_heads=2, num_key_value_heads=2, head_dim=16, upsample_groups=32,
        vector_quantization_hidden_dimension=32, upsampling_ratios=[8, 5, 4], frame_rate=25.0, sampling_rate=8_000,
    ),
    "dac": DacConfig(
        encoder_hidden_size=8, downsampling_ratios=[2, 4, 5, 4], decoder_hidden_size=64, n_codebooks=4,
        codebook_size=64, codebook_dim=8, sampling_rate=8_000,
    ),
}  # fmt: skip


def codebooks_of(model: Any) -> list[list[Any]]:
    """Codebooks of the levels, those of levels that quantise the same features in a list."""
    quantizer = model.quantizer
    if model.config.model_type == "mimi":
        both = quantizer.semantic_residual_vector_quantizer, quantizer.acoustic_residual_vector_quantizer
        return [[layer.codebook for layer in each.layers] for each in both]
    layers = quantizer.quantizers if model.config.model_type == "dac" else quantizer.layers
    return [[layer.codebook for layer in layers]]


def small_model(codec: str, values: list[torch.Tensor]) -> Any:
    """A codec with random weights, and codes of each level drawn from what the levels before leave of features."""
    torch.manual_seed(0)
    model = AutoModel.from_config(SMALL[codec]).eval()
    if codec == "dac":
        return model  # Its random codes lie among its features: it compares directions.
    features_TC = torch.cat([features_of(model, values_11T) for values_11T in values])
    for codebooks in codebooks_of(model):
        rest_TC = features_TC
        for codebook in codebooks:
            table_KC = codebook.embed_sum if codec == "mimi" else codebook.embed
            codes_KC = rest_TC[torch.randperm(len(rest_TC))[: len(table_KC)]]
            table_KC.copy_(codes_KC)
            rest_TC = rest_TC - codes_KC[torch.cdist(rest_TC, codes_KC).argmin(1)]
    return model


def features_of(model: Any, values_11T: torch.Tensor) -> torch.Tensor:
    """(patches, channels): what EnCodec or Mimi quantises of a clip."""
    found = model.encoder(values_11T)
    return (found if isinstance(found, torch.Tensor) else found.latents)[0].T


@torch.no_grad()
def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", help="folder for the explorer")
    parser.add_argument("--codec", choices=list(SMALL), default="encodec", help="codec with random weights")
    parser.add_argument("--model", help="weights of a codec: a folder or a name on the hub")
    parser.add_argument("--sounds", help="folder of WAV files")
    chosen = parser.parse_args()

    model = AutoModel.from_pretrained(chosen.model).eval() if chosen.model else None
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
    model = model or small_model(chosen.codec, values[:20])
    codec = model.config.model_type
    options = {"bandwidth": model.config.target_bandwidths[0]} if codec == "encodec" else {}
    found = [model.encode(each, **options).audio_codes.flatten(0, -2) for each in values]
    codebooks = [each for some in codebooks_of(model) for each in some][: len(found[0])]
    explorer = build_from_arrays(
        index=[codes_QT.T[None] for codes_QT in found],  # (1, patches, levels) of each clip
        codebook=torch.stack([each.weight if codec == "dac" else each.embed for each in codebooks]),
        images=clips,
        folder=chosen.folder,
        captions=captions,
        names=names,
        title=f"Codes of {NAMES[codec]}",
        licences=None if chosen.sounds else "made by this example",
    )
    if not chosen.sounds:
        print(f"siren: codes {codes_of_word(explorer, 'siren')['code'].tolist()}")
    print(f"open {explorer / 'index.html'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
