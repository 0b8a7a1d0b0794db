"""Who is timed: the region pipeline and SOHO, each in the precisions and by the means that a user can choose.

A method is called with images, words and a clock, and gives logits; `make_methods` builds all from the
same random weights, SOHO's and the region pipeline's.

B images, one text each, S words, A answers.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from benchmarks.inference.clock import Clock
from benchmarks.inference.random_inputs import noise_images, random_words, taking_statistics, with_small_residuals
from benchmarks.inference.region_pipeline import RegionPipeline, RegionSizes
from soho_fast.model import SohoConfig, SohoForQuestionAnswering
from soho_fast.model.fast.prepared import prepared_type
from soho_fast.model.outputs import VisualTokens

REGION, HALVED = "regions", "regions, res5 halved"
SOHO = "SOHO"
EXACT = f"{SOHO} eager, float32"
_NUM_ANSWERS = 3129  # of VQA v2, paper section 4.2


@dataclass(frozen=True)
class Sizes:
    """Section 4.5: 600 x 1000 pixels, ResNet-101, 12 layers, 16 words. `overrides` are fields of SohoConfig."""

    height: int = 600
    width: int = 1000
    words: int = 16
    region: RegionSizes = field(default_factory=RegionSizes)
    backbone: str = "resnet101"
    overrides: tuple[tuple[str, object], ...] = ()

    def inputs(self, num_images: int, seed: int = 0) -> tuple[Tensor, Tensor]:
        """Images (B, 3, H, W) and words (B, S)."""
        return noise_images(num_images, self.height, self.width, seed), random_words(num_images, self.words, seed)


# To see that all runs, in seconds.
SMALL = Sizes(
    height=96,
    width=160,
    region=RegionSizes(layers=(1, 1, 1, 1), pre_nms=200, num_proposals=20, num_classes=30, num_boxes=6, num_layers=1),
    backbone="resnet50",
    overrides=(("num_hidden_layers", 1), ("num_codes", 32)),
)


@dataclass(frozen=True)
class Method:
    """`run` takes images, words and a clock and gives logits; `family` is REGION, HALVED or SOHO."""

    name: str
    family: str
    precision: str
    run: Callable[[Tensor, Tensor, Clock], Tensor] = field(repr=False)

    @property
    def is_soho(self) -> bool:
        return self.family == SOHO


def make_soho(sizes: Sizes) -> SohoForQuestionAnswering:
    """SOHO of preset `paper`, which answers questions; weights at random, statistics and codes those of an image."""
    values = {"dictionary_init": "data", **dict(sizes.overrides)}
    config = SohoConfig.from_preset("paper", backbone=sizes.backbone, **values)
    config.num_labels = _NUM_ANSWERS
    torch.manual_seed(0)
    model = SohoForQuestionAnswering(config)
    with_small_residuals(model.soho.visual_encoder.backbone)
    model.train()
    with taking_statistics(model.soho.visual_encoder):
        model.encode_images(sizes.inputs(2, seed=100)[0])
    return model.eval().requires_grad_(False)


def make_regions(sizes: Sizes, *, halved: bool) -> RegionPipeline:
    """The region pipeline in float32, ready to run."""
    torch.manual_seed(0)
    with torch.no_grad():
        return RegionPipeline(replace(sizes.region, halved=halved)).calibrate(sizes.inputs(4, seed=100)[0])


@dataclass(frozen=True)
class SohoRun:
    """SOHO's two stages as a method's `run`."""

    model: SohoForQuestionAnswering
    autocast: bool = False

    def encode(self, pixels_B3HW: Tensor) -> VisualTokens:
        with torch.autocast(pixels_B3HW.device.type, torch.bfloat16, enabled=self.autocast):
            return self.model.encode_images(pixels_B3HW)

    def read(self, visual: VisualTokens, words_BS: Tensor) -> Tensor:
        """Logits (B, A)."""
        with torch.autocast(words_BS.device.type, torch.bfloat16, enabled=self.autocast):
            return self.model(visual_tokens=visual, input_ids=words_BS).logits

    def __call__(self, pixels_B3HW: Tensor, words_BS: Tensor, clock: Clock) -> Tensor:
        visual = self.encode(pixels_B3HW)
        clock.ends("visual tokens")
        logits_BA = self.read(visual, words_BS)
        clock.ends("Transformer")
        return logits_BA


# SOHO's methods: (means, precision) to what `prepare_for_inference` is told; None is the plain model.
_SOHO_MEANS = {
    ("eager", "float32"): None,
    ("eager", "bf16"): None,
    ("prepared", "float32"): {},
    ("prepared", "bf16"): {},
    ("prepared", "int8"): {},
    ("compiled", "bf16"): {"compile": True},
}
_REGION_PRECISIONS = ("float32", "bf16")
NAMES = (
    *(f"{family}, {precision}" for family in (REGION, HALVED) for precision in _REGION_PRECISIONS),
    *(f"{SOHO} {means}, {precision}" for means, precision in _SOHO_MEANS),
)


def names_here(device: str) -> list[str]:
    """Those of NAMES for whose precision this machine has instructions."""

    def runs(name: str) -> bool:
        try:
            return bool(prepared_type(name.rpartition(", ")[2], torch.device(device)))
        except ValueError:
            return False

    return [name for name in NAMES if runs(name)]


def make_methods(names: Sequence[str], sizes: Sizes, device: str = "cpu") -> list[Method]:
    """The methods of these names, in the order of NAMES, each with weights of its own.

    Raises:
        ValueError: a name is not in NAMES.
    """
    unknown = [name for name in names if name not in NAMES]
    if unknown:
        raise ValueError(f"methods: expected some of {', '.join(map(repr, NAMES))}, got {unknown[0]!r}")
    made, soho = [], None
    for family in (REGION, HALVED):
        pipeline = None
        for precision in _REGION_PRECISIONS:
            if (name := f"{family}, {precision}") in names:
                pipeline = pipeline or make_regions(sizes, halved=family == HALVED)
                run = copy.deepcopy(pipeline).to(device)
                if precision == "bf16":
                    run.to(torch.bfloat16, memory_format=torch.channels_last)
                made.append(Method(name, family, precision, run))
    for (means, precision), options in _SOHO_MEANS.items():
        if (name := f"{SOHO} {means}, {precision}") in names:
            soho = soho or make_soho(sizes)
            model = copy.deepcopy(soho).to(device)
            if options is not None:
                if precision == "int8":
                    options = {
                        **options,
                        "calibration": [_as_keywords(sizes, seed, device) for seed in range(101, 109)],
                    }
                model.prepare_for_inference(precision, **options)
            run = SohoRun(model, autocast=options is None and precision == "bf16")
            made.append(Method(name, SOHO, precision, run))
    return made


def _as_keywords(sizes: Sizes, seed: int, device: str) -> dict[str, Tensor]:
    pixels_B3HW, words_BS = sizes.inputs(1, seed)
    return {"pixel_values": pixels_B3HW.to(device), "input_ids": words_BS.to(device)}
