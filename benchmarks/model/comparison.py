"""Training steps of the same weights on the same batches: agreement first, then interleaved times.

"soho_fast" is the model after `speed_up_on_cpu`, as the engine trains it.
"""

import copy
import itertools
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import deepspeed
import torch

from benchmarks.model.eager_official import EagerOfficial, EagerOfficialOptimizers
from benchmarks.model.eager_pipeline import EagerOptimizers, EagerPretraining, gradients_of, pad_texts
from benchmarks.model.training_batches import TimedShape, build_model, make_batch
from soho_fast.engine.distributed import deepspeed_config, start_engine, start_processes
from soho_fast.engine.optimizer import SgdAdamW, optimizer_groups
from soho_fast.engine.settings import EngineSettings
from soho_fast.model.fast.cpu import speed_up_on_cpu

# The step sizes of a run's warm-up: the weights of all move on, and stay sane on noise.
_RATE_FACTOR = 0.01
# Steps go through so many batches, whose texts differ in length as they do in training.
_NUM_BATCHES = 4
# bfloat16 rounds by up to 0.4 %. Some tokens lie between two codes, and MVM's mean is over few: 2 % were seen there.
_BF16_TOLERANCES = {"mlm_loss": 0.01, "mvm_loss": 0.05, "itm_loss": 0.01, "bag_of_words_loss": 0.01, "loss": 0.02}

FINISHED: list["Comparison"] = []


@dataclass
class Comparison:
    """Steps of one shape: "soho_fast" and "eager" in float32; `check` before anything is timed.

    With `bf16` also "soho_fast bf16": the step as DeepSpeed's engine takes it at ZeRO stage 0, casts of the weights
    included.
    """

    shape: TimedShape
    bf16: bool = False
    steps: dict[str, Callable[[], None]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        model = build_model(self.shape)
        self.batches = [make_batch(self.shape, seed=1 + number) for number in range(_NUM_BATCHES)]
        self.batch = self.batches[0]
        is_official = self.shape.config.preset == "official"
        if is_official or self.shape.config.dictionary_init == "data":
            # The first training forward fills the codebook; what is compared is the ordinary step after it.
            model(**self.batch)
        # The eager pipeline takes a copy of the plain model.
        self.eager = EagerOfficial(model) if is_official else EagerPretraining(model)
        self.model = speed_up_on_cpu(model)
        length, pad_token_id = self.shape.max_text_length, self.shape.config.pad_token_id
        padded = [pad_texts(batch, length, pad_token_id) for batch in self.batches]
        self.padded = padded[0]
        self.engine = self._start_engine(copy.deepcopy(model)) if self.bf16 else None
        self.optimizer = self._optimizer(model)
        self.parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        rules = EagerOfficialOptimizers if is_official else EagerOptimizers
        self.eager_optimizers = rules(self.eager, self.shape.optim, rate_factor=_RATE_FACTOR)
        of_model, of_engine = itertools.cycle(self.batches), itertools.cycle(self.batches)
        of_eager = itertools.cycle(padded)
        self.steps = {
            "soho_fast": lambda: self._step(next(of_model)),
            "eager": lambda: self._eager_step(next(of_eager)),
        }
        if self.bf16:
            self.steps["soho_fast bf16"] = lambda: self._engine_step(next(of_engine))
        self.seconds: dict[str, list[float]] = {name: [] for name in self.steps}
        self.cpu_seconds: dict[str, list[float]] = {name: [] for name in self.steps}

    def _optimizer(self, model: torch.nn.Module) -> SgdAdamW:
        groups = optimizer_groups(model, self.shape.optim)
        for group in groups:
            group["lr"] = group["base_lr"] * _RATE_FACTOR
        return SgdAdamW(groups)

    def _start_engine(self, model: torch.nn.Module) -> deepspeed.DeepSpeedEngine:
        processes = start_processes(torch.get_num_threads())
        config = deepspeed_config(
            EngineSettings(),
            "bf16",
            micro_batch_size=self.shape.images,
            gradient_accumulation_steps=1,
            clip=self.shape.optim.clip,
        )
        return start_engine(model, self._optimizer(model), config, processes)

    def check(self) -> None:
        """Runs forward and backward of both twice; raises AssertionError where they differ.

        Losses within 1e-5, the updated codebook within 1e-3 of its size: the sums run over up to 50 layers in different
        orders. Gradients, all of them as one vector, within 1e-3 in a second pass that holds the backbone's BatchNorm
        in eval: through batch statistics of few pixels a float32 gradient is not defined so sharply (at recipe `mini`'s
        sizes a change of 1e-7 in the pixels moves the backbone's by 0.7 %). In bfloat16 the losses within 1 % of
        float32's (MVM 5 %, their sum 2 %). Then dropout comes on, with which losses can't be compared.
        """
        if self.engine is not None:
            self._compare_bf16_losses()
        self._compare_losses()
        both = (self.model, self.eager)
        for each in both:
            each.freeze_batch_norm(True)
        self._clear_gradients()
        self._compare_losses()
        ours, theirs = gradients_of(self.model), self.eager.gradients()
        if ours.keys() != theirs.keys():
            raise AssertionError(f"gradients: only one of both has {sorted(ours.keys() ^ theirs.keys())}")
        size = torch.stack([gradient.norm() for gradient in theirs.values()]).norm()
        difference = torch.stack([(ours[name] - theirs[name]).norm() for name in ours]).norm()
        if not difference < 1e-3 * size:
            raise AssertionError(f"gradients: they differ by {float(difference / size):.2e} of their norm")
        for each in both:
            each.freeze_batch_norm(False)
        self._clear_gradients()
        for each in (*both, *([self.engine.module] if self.engine is not None else [])):
            for module in each.modules():
                if isinstance(module, torch.nn.Dropout):
                    module.p = self.shape.dropout

    def _compare_losses(self) -> None:
        output, losses = self.model(**self.batch), self.eager(self.padded)
        output.loss.backward()
        losses.loss.backward()
        pairs = {
            "mlm": (output.mlm_loss, losses.mlm),
            "mvm": (output.mvm_loss, losses.mvm),
            "itm": (output.itm_loss, losses.itm),
            "bag_of_words": (output.bag_of_words_loss, losses.bag_of_words),
            "all": (output.loss, losses.loss),
        }
        for name, (ours, theirs) in pairs.items():
            if ours is None and theirs is None:
                continue
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5, msg=lambda text, n=name: f"{n} loss: {text}")
        codebook_KC, eager_KC = self.model.soho.visual_dictionary.codebook, self.eager.codebook
        worst = float((codebook_KC - eager_KC).abs().max() / eager_KC.abs().max())
        if not worst < 1e-3:
            raise AssertionError(f"codebook: the largest difference is {worst:.2e} of the largest value")

    def _compare_bf16_losses(self) -> None:
        with torch.no_grad():
            exact = copy.deepcopy(self.model)(**self.batch)
            with torch.autocast("cpu", torch.bfloat16):
                output = copy.deepcopy(self.engine.module)(**self.batch)
        for name, tolerance in _BF16_TOLERANCES.items():
            ours, expected = getattr(output, name), getattr(exact, name)
            if expected is not None:
                message = f"{name} in bfloat16: {float(ours)}, in float32 {float(expected)}"
                torch.testing.assert_close(ours, expected, rtol=tolerance, atol=0.0, msg=message)

    def _clear_gradients(self) -> None:
        self.model.zero_grad()
        self.eager.zero_grad()

    def timed(self, name: str) -> None:
        """One step, whose wall time and CPU time (all threads) are kept."""
        began, cpu_began = time.perf_counter(), time.process_time()
        self.steps[name]()
        self.seconds[name].append(time.perf_counter() - began)
        self.cpu_seconds[name].append(time.process_time() - cpu_began)

    def ratio(self, name: str, seconds: dict[str, list[float]]) -> float:
        """How many times faster than the eager pipeline `name` is, by medians."""
        return statistics.median(seconds["eager"]) / statistics.median(seconds[name])

    def rows(self) -> list[dict]:
        """For each of ours: images per second beside the eager pipeline's, and their ratio (by medians, by the fastest
        rounds and by CPU time of all threads)."""
        rates = {name: self.shape.images / statistics.median(times) for name, times in self.seconds.items()}
        return [
            {
                "shape": self.shape.name,
                "method": name,
                "images_per_second": rates[name],
                "eager_images_per_second": rates["eager"],
                "ratio": self.ratio(name, self.seconds),
                "fastest_ratio": min(self.seconds["eager"]) / min(self.seconds[name]),
                "cpu_ratio": self.ratio(name, self.cpu_seconds),
                "target": self.shape.target,
            }
            for name in self.steps
            if name != "eager"
        ]

    def _step(self, batch: dict[str, torch.Tensor]) -> None:
        self.model(**batch).loss.backward()
        if self.shape.optim.clip:
            torch.nn.utils.clip_grad_norm_(self.parameters, self.shape.optim.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def _engine_step(self, batch: dict[str, torch.Tensor]) -> None:
        self.engine.backward(self.engine(**batch).loss)
        self.engine.step()

    def _eager_step(self, batch: dict[str, torch.Tensor]) -> None:
        self.eager(batch).loss.backward()
        self.eager_optimizers.step()
