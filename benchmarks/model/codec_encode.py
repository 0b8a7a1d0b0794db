"""The encode step of Mimi and DAC at their published sizes: the quantiser's share, with transformers' lookup and ours.

    python -m benchmarks.model.codec_encode [--seconds 4] [--codec mimi]

Weights are random (none are downloaded); Mimi's codes are drawn, level by level, with the mean and deviation of what
arrives there. Before anything is timed the codes are compared with a float64 evaluation of every distance, level by
level on the same residual; a difference ends the run. Both ways run in turn, in the same process, and the fastest of
the rounds counts: each is the same computation every time, and what is slower is the machine's other work.

Letters: N features, K codes, C channels, B sequences, T steps.
"""

import argparse
import copy
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers import DacConfig, DacModel, MimiConfig, MimiModel

from soho_fast.adapters import accelerate

METHOD = {"mimi": "encode", "dac": "forward"}  # of the quantiser


def brute_force(features_NC: Tensor, codebook_KC: Tensor) -> Tensor:
    """argmin of the squared distance in float64; ties to the lowest index."""
    parts = [
        (rows.double()[:, None] - codebook_KC.double()).square().sum(-1).argmin(-1) for rows in features_NC.split(4)
    ]
    return torch.cat(parts)


def mimi() -> nn.Module:
    return MimiModel(MimiConfig()).eval()


def dac() -> nn.Module:
    return DacModel(DacConfig(sampling_rate=44_100)).eval()  # what descript/dac_44khz says


def levels_of(model: nn.Module) -> list[nn.Module]:
    """The modules that hold one codebook each."""
    return [
        module for module in model.modules() if type(module).__name__ in ("MimiEuclideanCodebook", "DacVectorQuantize")
    ]


@torch.no_grad()
def draw_codes(model: nn.Module, audio: Tensor) -> None:
    """Mimi's codes, which are zero before they are trained, from the residuals of each level."""

    def draw(codebook: nn.Module, features_NC: Tensor) -> Tensor:
        codebook.cluster_usage.fill_(1)
        codebook.embed_sum.copy_(features_NC.mean(0) + features_NC.std() * torch.randn_like(codebook.embed_sum))
        codebook._embed = None
        return brute_force(features_NC, codebook.embed)

    with replaced(levels_of(model), "quantize", draw):
        model.encode(audio)


class replaced:
    """Within it, a method of the modules is a function of (module, argument)."""

    def __init__(self, modules: list[nn.Module], name: str, function: Callable) -> None:
        self.modules, self.name, self.function = modules, name, function

    def __enter__(self) -> None:
        for module in self.modules:
            setattr(module, self.name, lambda *arguments, module=module: self.function(module, *arguments))

    def __exit__(self, *error: object) -> None:
        for module in self.modules:
            delattr(module, self.name)


def in_float64(codec: str) -> tuple[str, Callable]:
    """The method that looks up, and a float64 evaluation of every distance in its place."""
    if codec == "mimi":
        return "quantize", lambda codebook, features_NC: brute_force(features_NC, codebook.embed)

    def decode_latents(quantizer: nn.Module, hidden_BCT: Tensor) -> tuple[Tensor, Tensor]:
        unit_KC = nn.functional.normalize(quantizer.codebook.weight.double())
        index_BT = (hidden_BCT.double().transpose(1, 2) @ unit_KC.T).argmax(-1)
        return quantizer.codebook(index_BT).transpose(1, 2), index_BT

    return "decode_latents", decode_latents


@torch.no_grad()
def timed(model: nn.Module, codec: str, audio: Tensor) -> tuple[float, float]:
    """Seconds of one encode, and of its quantiser."""
    spent = 0.0
    name = METHOD[codec]
    original = getattr(model.quantizer, name)

    def around(*arguments: object, **named: object) -> object:
        nonlocal spent
        start = time.perf_counter()
        result = original(*arguments, **named)
        spent += time.perf_counter() - start
        return result

    setattr(model.quantizer, name, around)
    start = time.perf_counter()
    model.encode(audio)
    whole = time.perf_counter() - start
    delattr(model.quantizer, name)
    return whole, spent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=4.0, help="length of the audio")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--codec", choices=["mimi", "dac"], nargs="*", default=["mimi", "dac"])
    options = parser.parse_args()
    size, threads = f"{options.batch} x {options.seconds:g} s of audio", torch.get_num_threads()
    print(f"{size}, {threads} threads; ms, fastest of {options.rounds}")
    for codec in options.codec:
        compare(codec, options.batch, options.seconds, options.rounds)


@torch.no_grad()
def compare(codec: str, batch: int, seconds: float, rounds: int) -> None:
    torch.manual_seed(0)
    model = {"mimi": mimi, "dac": dac}[codec]()
    audio = torch.randn(batch, 1, int(seconds * model.config.sampling_rate)) * 0.1
    if codec == "mimi":
        draw_codes(model, audio)
    with replaced(levels_of(model), *in_float64(codec)):
        exact = model.encode(audio).audio_codes
    models = {"transformers": model, "soho_fast": accelerate(copy.deepcopy(model))}
    for way in models:
        for _ in range(3):  # the first looks, the second prepares, the third finds it prepared
            codes = models[way].encode(audio).audio_codes
        print(
            f"{codec} {way}: {int((codes != exact).any(1).sum())} of {codes[:, 0].numel()} frames differ from float64"
        )
        if way == "soho_fast" and not torch.equal(codes, exact):
            raise SystemExit("error: what differs is not timed")
    best = dict.fromkeys(models, (float("inf"), float("inf")))
    for _ in range(rounds):
        for way in models:
            whole, quantiser = timed(models[way], codec, audio)
            best[way] = min(best[way][0], whole), min(best[way][1], quantiser)
    for way, (whole, quantiser) in best.items():
        share = quantiser / whole
        print(f"  {way:12} encode {1e3 * whole:8.1f}   quantiser {1e3 * quantiser:7.2f}   share {share:6.1%}")
    encode, quantiser = (best["transformers"][part] / best["soho_fast"][part] for part in (0, 1))
    print(f"  quantiser {quantiser:.2f}x, encode {encode:.2f}x, {exact.shape[1]} levels")


if __name__ == "__main__":
    main()
