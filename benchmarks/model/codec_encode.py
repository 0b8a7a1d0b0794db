"""The encode step of Mimi and DAC at their published sizes: the quantiser's share, with transformers' lookup and ours.

    python -m benchmarks.model.codec_encode [--seconds 4] [--codec mimi]

Weights are random (none are downloaded); each level's codes are drawn with the mean and deviation of what arrives
there. Before anything is timed the codes are compared with a float64 evaluation of every distance, level by level on
the same residual; a difference ends the run. Both ways run in turn, in the same process, and the fastest of the rounds
counts: each is the same computation every time, and what is slower is the machine's other work.

Letters: N features, K codes, C channels, B sequences, T steps.
"""

import argparse
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers import DacConfig, DacModel, MimiConfig, MimiModel

from soho_fast.adapters import accelerate, restore


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
        mean_C, deviation_C = features_NC.mean(0), features_NC.std(0)
        codebook.cluster_usage.fill_(1)
        codebook.embed_sum.copy_(mean_C + deviation_C * torch.randn_like(codebook.embed_sum))
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
        unit_NC = nn.functional.normalize(hidden_BCT.transpose(1, 2).flatten(0, 1))
        unit_KC = nn.functional.normalize(quantizer.codebook.weight)
        index_BT = brute_force(unit_NC, unit_KC).view(hidden_BCT.shape[0], -1)
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


@torch.no_grad()
def reaches_quantiser(model: nn.Module, codec: str, audio: Tensor) -> Tensor:
    """What the quantiser is given."""
    seen: list[Tensor] = []
    name = METHOD[codec]
    original = getattr(model.quantizer, name)
    setattr(model.quantizer, name, lambda hidden, *rest: (seen.append(hidden), original(hidden, *rest))[1])
    model.encode(audio)
    delattr(model.quantizer, name)
    return seen[0]


@torch.no_grad()
def quantise(model: nn.Module, codec: str, hidden_BCT: Tensor) -> None:
    getattr(model.quantizer, METHOD[codec])(hidden_BCT)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=4.0, help="length of the audio")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--codec", choices=["mimi", "dac"], nargs="*", default=["mimi", "dac"])
    arguments = parser.parse_args()
    print(
        f"{arguments.batch} x {arguments.seconds:g} s of audio, {torch.get_num_threads()} threads; ms, fastest of {arguments.rounds}"
    )
    for codec in arguments.codec:
        torch.manual_seed(0)
        model = {"mimi": mimi, "dac": dac}[codec]()
        rate = model.config.sampling_rate
        audio = torch.randn(arguments.batch, 1, int(arguments.seconds * rate)) * 0.1
        if codec == "mimi":
            draw_codes(model, audio)
        with torch.no_grad():
            theirs = model.encode(audio).audio_codes
            with replaced(levels_of(model), *in_float64(codec)):
                exact = model.encode(audio).audio_codes
            accelerate(model)
            for _ in range(3):  # the first looks, the second prepares
                ours = model.encode(audio).audio_codes
        restore(model)
        hidden = reaches_quantiser(model, codec, audio)
        if not torch.equal(ours, exact):
            raise SystemExit(f"error: {codec}: {int((ours != exact).sum())} codes differ from the float64 evaluation")
        differ = int((theirs != exact).any(1).sum())
        frames = exact.shape[0] * exact.shape[2]
        best: dict[str, tuple[float, float]] = {}
        for _ in range(arguments.rounds):
            for way, change in (("transformers", restore), ("soho_fast", accelerate)):
                change(model)
                for _ in range(2 if way == "soho_fast" else 0):  # the second call prepares
                    quantise(model, codec, hidden)
                whole, quantiser = timed(model, codec, audio)
                before = best.get(way, (float("inf"), float("inf")))
                best[way] = min(before[0], whole), min(before[1], quantiser)
        restore(model)
        print(
            f"{codec}: {exact.shape[1]} levels, {frames} frames; codes equal to float64: all of ours; "
            f"frames in which transformers' differ from it: {differ}"
        )
        for way, (whole, quantiser) in best.items():
            print(
                f"  {way:12} encode {1e3 * whole:8.1f}   quantiser {1e3 * quantiser:7.2f}   share {quantiser / whole:6.1%}"
            )
        print(
            f"  quantiser {best['transformers'][1] / best['soho_fast'][1]:.2f}x, encode {best['transformers'][0] / best['soho_fast'][0]:.3f}x"
        )


if __name__ == "__main__":
    main()
