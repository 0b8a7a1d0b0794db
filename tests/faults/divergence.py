"""Values that are not finite, planted in weights, pixels, gradients or the dictionary at some step."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tiny_runs import STEPS, Bench, LostError, newest_step, run

_PLACES = ("weight", "pixels", "gradient", "codebook")


def attempt(bench: Bench, seed: int, folder: Path) -> int:
    """The run ends with one line, or handles it; nothing on disk holds what is not finite."""
    draw = random.Random(seed)
    task, place = ("pretraining", "vqa")[seed % 2], _PLACES[seed // 2 % len(_PLACES)]
    value, at, output = draw.choice((float("nan"), float("inf"))), draw.randint(1, STEPS), folder / "run"
    where = f"{task}, {place} {value} at step {at}"
    planted = folder / "planted"
    done = run(bench.train(task, output), before=_plant(place, value, at, draw.random(), planted))
    done.expect(0, 2, where=where)
    if not planted.exists():
        raise LostError(f"the campaign itself: {where}: nothing was planted")
    bad = _not_finite(output)
    if bad:
        raise LostError(f"{where}: not finite: {bad[0]}")
    if done.code == 2 and "finite" not in done.text and "diverged" not in done.text and " nan" not in done.text:
        raise LostError(f"{where}: the error does not say it: {done.errors[0][:200]}")
    # The newest checkpoint is from before, and with it the run goes on as if nothing had happened.
    if done.code == 2:
        if newest_step(output) < (at - 1) // 2 * 2:
            raise LostError(f"{where}: the newest checkpoint left is of step {newest_step(output)}")
        bench.resume(task, output)
    return 1


def _plant(place: str, value: float, at: int, chance: float, planted: Path) -> Callable[[], None]:
    """Torch's own hooks reach into the model, whatever it is called and however it is wrapped."""

    def before() -> None:
        import torch

        steps = [0]

        def mark() -> None:
            planted.write_text("yes")

        def forward_begins(module: Any, inputs: Any) -> None:
            if not type(module).__name__.startswith("SohoFor") or not module.training:
                return
            steps[0] += 1
            if steps[0] != at or place not in ("weight", "codebook"):
                return
            tensors = [
                tensor for name, tensor in module.named_buffers() if "dictionary" in name and tensor.is_floating_point()
            ]
            if place == "weight" or not tensors:
                tensors = [tensor for tensor in module.parameters() if tensor.requires_grad]
            tensor = tensors[int(chance * len(tensors))]
            with torch.no_grad():
                tensor.view(-1)[int(chance * tensor.numel())] = value
            mark()

        def inner_forward(module: Any, inputs: Any) -> Any:
            if place != "pixels" or steps[0] != at or not isinstance(module, torch.nn.Conv2d) or planted.exists():
                return None
            pixels = inputs[0].clone()
            pixels.view(-1)[int(chance * pixels.numel())] = value
            mark()
            return (pixels, *inputs[1:])

        torch.nn.modules.module.register_module_forward_pre_hook(forward_begins)
        torch.nn.modules.module.register_module_forward_pre_hook(inner_forward)
        if place == "gradient":
            step = torch.Tensor.backward

            def backward(loss: Any, *arguments: Any, **options: Any) -> None:
                if steps[0] == at and not planted.exists():
                    mark()
                    loss = loss * value
                step(loss, *arguments, **options)

            torch.Tensor.backward = backward

    return before


def _not_finite(output: Path) -> list[str]:
    import torch
    from safetensors.torch import load_file

    found = []
    for path in sorted(output.rglob("*")):
        if path.suffix == ".safetensors":
            values: Any = load_file(path)
        elif path.suffix in (".pt", ".bin"):
            values = torch.load(path, weights_only=False)  # written by the run that this campaign started
        else:
            continue
        found += [f"{path.relative_to(output)}: {name}" for name in _names_of_bad(values, "")]
    return found


def _names_of_bad(value: Any, name: str) -> list[str]:
    import torch

    if isinstance(value, dict):
        return [bad for key, item in value.items() for bad in _names_of_bad(item, f"{name}.{key}")]
    if isinstance(value, list | tuple):
        return [bad for number, item in enumerate(value) for bad in _names_of_bad(item, f"{name}.{number}")]
    if isinstance(value, torch.Tensor) and value.is_floating_point() and not torch.isfinite(value).all():
        return [name]
    return []
