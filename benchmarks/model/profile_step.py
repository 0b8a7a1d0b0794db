"""Where the time of a training step goes: python -m benchmarks.model.profile_step [--recipe mini]

Times are wall times of consecutive spans in one process, so the shares sum to 100 %; backward spans are cut where the
gradient crosses a boundary (autograd runs a CPU backward in the forward's reverse order). Phases:

- decode: reading, decoding and scaling images, drawing and masking texts, batching, all in this process; a run with
  loader processes does this beside the step, on another core where there is one;
- backbone: the CNN with its 1x1 projection and pooling;
- dictionary: BatchNorm of the features, lookup, codebook update; backward also of masking and expansion to texts;
- transformer: embeddings, attention mask, BERT layers, heads;
- optimiser: clipping, update, clearing gradients;
- rest: position, masking, expansion to texts, losses.

A recipe whose data is not there is profiled on a small demo corpus drawn at its image size, with weights at random.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from soho_fast.data.mini import build_corpus
from soho_fast.data.text import load_tokenizer
from soho_fast.engine.batches import Batches, plan_batches, split_batch
from soho_fast.engine.optimizer import SgdAdamW, optimizer_groups
from soho_fast.engine.settings import BatchSettings
from soho_fast.model import SohoForPreTraining
from soho_fast.tasks.recipe import Recipe, read_recipe, with_data_roots
from soho_fast.tasks.settings import CaptionSource

PHASES = ("decode", "backbone", "dictionary", "transformer", "optimiser", "rest")
_STAND_IN_IMAGES = 64
_BERT_VOCABULARY = 30522


class StepProfile:
    """Attributes the time between marks to phases, and counts the images that enter the backbone.

    `seconds[phase]` and `images` are sums over all steps since `clear`.
    """

    def __init__(self, model: SohoForPreTraining) -> None:
        self.clear()
        soho = model.soho
        self._span(soho.visual_encoder, "backbone")
        for module in (soho.feature_norm, soho.visual_dictionary):
            self._span(module, "dictionary")
        heads = (model.mlm_head, model.mvm_head, model.itm_head, model.bag_of_words_head)
        for module in (soho.text_embeddings, soho.visual_embeddings, *heads):
            self._span(module, "transformer")
        # All between the embeddings and the first head, however the layers are called.
        model.itm_head.register_forward_pre_hook(lambda *_: self.mark("transformer"), prepend=True)
        # Backward: what ends when the gradient of this tensor is there.
        soho.visual_embeddings.register_forward_pre_hook(lambda _, inputs: self._ends(inputs[0], "transformer"))
        soho.visual_encoder.register_forward_hook(lambda _, __, output: self._ends(output[0], "dictionary"))
        *_, last = (m for m in soho.visual_encoder.backbone.modules() if isinstance(m, nn.Conv2d))
        last.register_forward_pre_hook(self._count_images)

    def clear(self) -> None:
        """Forget all; the next span begins now."""
        self.seconds = dict.fromkeys(PHASES, 0.0)
        self.images = 0
        self._last = time.perf_counter()

    def mark(self, phase: str) -> None:
        """The time since the last mark was `phase`'s."""
        now = time.perf_counter()
        self.seconds[phase] += now - self._last
        self._last = now

    def step(self, inputs: dict, model: SohoForPreTraining, update: Callable[[], None]) -> None:
        """One training step on a batch that was just loaded (the time before it is decode's)."""
        self.mark("decode")
        loss = model(**inputs).loss
        self.mark("rest")
        loss.backward()
        self.mark("backbone")
        update()
        self.mark("optimiser")

    def rows(self) -> list[tuple[str, float]]:
        """(phase, share in percent), which sum to 100."""
        total = sum(self.seconds.values())
        return [(phase, 100.0 * seconds / total) for phase, seconds in self.seconds.items()]

    def _span(self, module: nn.Module | None, phase: str) -> None:
        if module is not None:
            module.register_forward_pre_hook(lambda *_: self.mark("rest"))
            module.register_forward_hook(lambda *_: self.mark(phase))

    def _ends(self, tensor: Tensor, phase: str) -> None:
        if tensor.requires_grad:
            tensor.register_hook(lambda _: self.mark(phase))

    def _count_images(self, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self.images += inputs[0].shape[0]


def profile_training(recipe: Recipe, num_steps: int, num_images: int) -> StepProfile:
    """Profiles training steps of a recipe whose data is there (one more, unmeasured, goes first).

    Raises:
        RuntimeError: the backbone saw more or fewer images than the batches held.
    """
    torch.manual_seed(recipe.seed)
    task = recipe.make_task(print)
    model = task.build_model().train()
    task.speed_up(model, torch.device("cpu"))
    groups = optimizer_groups(model, recipe.optim)
    for group in groups:
        group["lr"] = 0.1 * group["base_lr"]
    optimizer = SgdAdamW(groups)
    parameters = [parameter for group in groups for parameter in group["params"]]

    def update() -> None:
        if recipe.optim.clip:
            nn.utils.clip_grad_norm_(parameters, recipe.optim.clip)
        optimizer.step()
        optimizer.zero_grad()

    profile = StepProfile(model)
    settings = BatchSettings(global_batch_size=num_images, workers=0)
    plan = plan_batches(settings, len(task.training_data()), 1, recipe.seed)
    batches = Batches(task.training_data(), task.collate, plan.micro_batches(0, 0, num_steps + 1), settings)
    expected = 0
    for step in range(num_steps + 1):
        if step == 1:
            profile.clear()
        inputs, _ = split_batch(next(batches), torch.device("cpu"))
        expected += len(inputs["pixel_values"]) if step else 0
        profile.step(task.on_device(inputs), model, update)
    if profile.images != expected:
        raise RuntimeError(f"the backbone ran on {profile.images} images, the batches held {expected}")
    return profile


def stand_in_data(recipe: Recipe, folder: Path) -> None:
    """Puts a small demo corpus in `folder` in the place of the recipe's data, and random weights for downloads."""
    size = min(recipe.data.shorter_edge, 1024)
    build_corpus(folder, num_train=_STAND_IN_IMAGES, num_heldout=8, image_size=size, progress=False)
    recipe.data.sources = [CaptionSource(str(folder / "dataset_coco.json"), [str(folder)], splits=["train", "restval"])]
    recipe.data.heldout = []
    if recipe.data.tokenizer == "bert-base-uncased":
        tokenizer = load_tokenizer(str(folder / "tokenizer"))
        tokenizer.add_tokens([f"[unused{number}]" for number in range(_BERT_VOCABULARY - len(tokenizer))])
        tokenizer.save_pretrained(folder / "tokenizer")
    recipe.data.tokenizer = str(folder / "tokenizer")
    recipe.model.backbone = recipe.model.text_encoder = None


def main(arguments: list[str] | None = None) -> int:
    """Prints the table of a recipe."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], epilog="Every field of the recipe can be given too.", allow_abbrev=False
    )
    parser.add_argument("--recipe", default="mini", help="name of a recipe, or path of a YAML file")
    parser.add_argument("--steps", type=int, default=5, help="measured steps")
    parser.add_argument("--images", type=int, default=0, help="images of a step; 0 takes the recipe's")
    chosen, overrides = parser.parse_known_args(arguments)
    recipe = read_recipe(["--recipe", chosen.recipe, *overrides])
    num_images = chosen.images or recipe.batch.global_batch_size // recipe.batch.gradient_accumulation_steps
    with tempfile.TemporaryDirectory() as temporary:
        if all(recipe.data_roots.values()):
            recipe = with_data_roots(recipe)
        if not all(Path(source.annotations).is_file() for source in recipe.data.sources):
            print(f"recipe {recipe.name}: its data is not here; a small demo corpus stands in")
            stand_in_data(recipe, Path(temporary) / "corpus")
        profile = profile_training(recipe, chosen.steps, num_images)
    total = sum(profile.seconds.values())
    print(f"{num_images} images a step, {torch.get_num_threads()} threads, mean of {chosen.steps} steps:")
    for phase, share in profile.rows():
        print(f"  {phase:12} {1e3 * profile.seconds[phase] / chosen.steps:9.1f} ms {share:6.1f} %")
    print(f"  {'step':12} {1e3 * total / chosen.steps:9.1f} ms {sum(share for _, share in profile.rows()):6.1f} %")
    print(f"the backbone ran on {profile.images} images, once for each")
    return 0


if __name__ == "__main__":
    sys.exit(main())
