"""How a model is called where it is evaluated: on its device, in which precision."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import nn

from soho_fast.common.errors import CorruptImageError
from soho_fast.common.workers import loaded_ahead
from soho_fast.data.readers.records import ImageRef
from soho_fast.engine.batches import split_batch

_TYPES = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Computing:
    """The device and the precision of a model that is evaluated.

    Products run under autocast; the codebook and the lookup in it stay as they are, and so does a model whose weights
    are in half precision already, or that was prepared for inference (`prepare_for_inference`).

    Args:
        model: the model.
        precision: "float32", "bf16", "fp16" or "auto": bf16 on a GPU that has it, with TF32 for products that autocast
            leaves in float32; float32 elsewhere.

    Attributes:
        device: where the model is.
        weight_type: the type of its weights.
        precision: of the products: "float32", "bf16" or "fp16"; of a prepared model "prepared" and its own.

    Raises:
        ValueError: another precision than that of a prepared model.
    """

    def __init__(self, model: nn.Module, precision: str = "auto") -> None:
        weight = next(model.parameters(), torch.empty(0))
        prepared = getattr(model, "prepared", None)
        self.device, self.weight_type = weight.device, weight.dtype
        on_gpu = self.device.type == "cuda"
        self._allows_tf32 = on_gpu and precision == "auto"
        self._dtype = None
        if prepared is not None:
            own = prepared["precision"]
            if precision not in ("auto", own):
                raise ValueError(
                    f"precision: the model is prepared in {own}; expected auto or {own}, got {precision!r}"
                )
            self.precision = f"prepared {own}"
            return
        if precision == "auto":
            names = {dtype: name for name, dtype in _TYPES.items()}
            has_bf16 = on_gpu and torch.cuda.is_bf16_supported(including_emulation=False)
            precision = "bf16" if has_bf16 and self.weight_type == torch.float32 else names[self.weight_type]
        self.precision = precision
        dtype = _TYPES[precision]
        # In float32, and with weights of that type, there is nothing for autocast to do.
        self._dtype = None if dtype in (torch.float32, self.weight_type) else dtype

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """The context in which the model is called."""
        before = torch.get_float32_matmul_precision()
        if self._allows_tf32:
            torch.set_float32_matmul_precision("high")
        try:
            with nullcontext() if self._dtype is None else torch.autocast(self.device.type, self._dtype):
                yield
        finally:
            if self._allows_tf32:
                torch.set_float32_matmul_precision(before)

    def on_device(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """A batch whose tensors are on the device; copied without waiting where they are pinned."""
        return split_batch(batch, self.device)[0]


def readable(task: Any, images: Sequence[ImageRef]) -> Iterator[tuple[list[int], Any]]:
    """Batches of the images that can be read, with their numbers; the others are reported where the metrics of all
    held-out images are measured."""
    processor = task.processor.image_processor

    def load(first: int) -> tuple[list[int], Any]:
        numbers, pixels = [], []
        for number in range(first, min(first + task.image_batch, len(images))):
            try:
                pixels.append(processor.load(images[number]))
                numbers.append(number)
            except CorruptImageError:
                continue
        return numbers, processor.collate_bytes(pixels) if numbers else None

    for numbers, batch in loaded_ahead(load, range(0, len(images), task.image_batch), workers=task.workers):
        if numbers:
            yield numbers, batch
