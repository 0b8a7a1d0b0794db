"""Two training steps of the same weights on the same batch: agreement first, then interleaved times."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from benchmarks.model.eager_pipeline import EagerOptimizers, EagerPretraining, pad_texts
from benchmarks.model.training_batches import TimedShape, build_model, make_batch
from soho_fast.engine.optimizer import SgdAdamW, optimizer_groups

BAR = 3.0
# The step sizes of a run's warm-up: the weights of both move on, and stay sane on noise.
_RATE_FACTOR = 0.01

FINISHED: list["Comparison"] = []


@dataclass
class Comparison:
    """Steps of one shape: "soho_fast" and "eager"; `check` before anything is timed."""

    shape: TimedShape
    steps: dict[str, Callable[[], None]] = field(default_factory=dict)
    seconds: dict[str, list[float]] = field(default_factory=lambda: {"soho_fast": [], "eager": []})
    cpu_seconds: dict[str, list[float]] = field(default_factory=lambda: {"soho_fast": [], "eager": []})

    def __post_init__(self) -> None:
        model = build_model(self.shape)
        batch = make_batch(self.shape, seed=1)
        if self.shape.config.dictionary_init == "data":
            # The first training forward fills the codebook; what is compared is the ordinary step after it.
            model(**batch)
        self.model, self.batch = model, batch
        self.eager = EagerPretraining(model)
        self.padded = pad_texts(batch, self.shape.max_text_length, self.shape.config.pad_token_id)
        groups = optimizer_groups(model, self.shape.optim)
        for group in groups:
            group["lr"] = group["base_lr"] * _RATE_FACTOR
        self.optimizer = SgdAdamW(groups)
        self.parameters = [parameter for group in groups for parameter in group["params"]]
        self.eager_optimizers = EagerOptimizers(self.eager, self.shape.optim, rate_factor=_RATE_FACTOR)
        self.steps = {"soho_fast": self._step, "eager": self._eager_step}

    def check(self) -> None:
        """Runs forward and backward of both twice; raises AssertionError where they differ.

        Losses within 1e-5, the updated codebook within 1e-3 of its size: the sums run over up to 50 layers in different
        orders. Gradients, all of them as one vector, within 1e-3 in a second pass that holds the backbone's BatchNorm
        in eval: through batch statistics of few pixels a float32 gradient is not defined so sharply (at recipe `mini`'s
        sizes a change of 1e-7 in the pixels moves the backbone's by 0.7 %).
        """
        self._compare_losses()
        encoders = (self.model.soho.visual_encoder, self.eager.visual_encoder)
        for encoder in encoders:
            encoder.freeze_batch_norm(True)
        self._clear_gradients()
        self._compare_losses()
        ours, theirs = _gradients(self.model), _gradients(self.eager.parts)
        if self.eager.feature_norm is not None:
            for name, parameter in self.eager.feature_norm.named_parameters():
                theirs[f"soho.feature_norm.{name}"] = parameter.grad
        if ours.keys() != theirs.keys():
            raise AssertionError(f"gradients: only one of both has {sorted(ours.keys() ^ theirs.keys())}")
        size = torch.stack([gradient.norm() for gradient in theirs.values()]).norm()
        difference = torch.stack([(ours[name] - theirs[name]).norm() for name in ours]).norm()
        if not difference < 1e-3 * size:
            raise AssertionError(f"gradients: they differ by {float(difference / size):.2e} of their norm")
        for encoder in encoders:
            encoder.freeze_batch_norm(False)
        self._clear_gradients()

    def _compare_losses(self) -> None:
        output, losses = self.model(**self.batch), self.eager(self.padded)
        output.loss.backward()
        losses.loss.backward()
        pairs = {
            "mlm": (output.mlm_loss, losses.mlm),
            "mvm": (output.mvm_loss, losses.mvm),
            "itm": (output.itm_loss, losses.itm),
            "caption_word": (output.caption_word_loss, losses.caption_word),
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

    def _clear_gradients(self) -> None:
        self.model.zero_grad()
        self.eager.zero_grad()

    def timed(self, name: str) -> None:
        """One step, whose wall time and CPU time (all threads) are kept."""
        began, cpu_began = time.perf_counter(), time.process_time()
        self.steps[name]()
        self.seconds[name].append(time.perf_counter() - began)
        self.cpu_seconds[name].append(time.process_time() - cpu_began)

    def ratio(self, seconds: dict[str, list[float]]) -> float:
        """How many times faster soho_fast is, by medians."""
        return statistics.median(seconds["eager"]) / statistics.median(seconds["soho_fast"])

    def summary(self) -> str:
        """Images per second of both, their ratio and the bar."""
        rates = {name: self.shape.images / statistics.median(times) for name, times in self.seconds.items()}
        ratio = self.ratio(self.seconds)
        best = min(self.seconds["eager"]) / min(self.seconds["soho_fast"])
        verdict = "held" if ratio >= BAR else "MISSED"
        return (
            f"{self.shape.name}: {rates['soho_fast']:.1f} images/s against {rates['eager']:.1f}: {ratio:.2f}x "
            f"(fastest rounds {best:.2f}x, CPU time {self.ratio(self.cpu_seconds):.2f}x), bar {BAR:g}x {verdict}"
        )

    def _step(self) -> None:
        self.model(**self.batch).loss.backward()
        if self.shape.optim.clip:
            torch.nn.utils.clip_grad_norm_(self.parameters, self.shape.optim.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def _eager_step(self) -> None:
        self.eager(self.padded).loss.backward()
        self.eager_optimizers.step()


def _gradients(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.grad for name, p in module.named_parameters() if p.grad is not None}
