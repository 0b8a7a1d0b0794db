"""A model of a task, loaded and made fast for evaluation."""

from collections.abc import Iterator
from typing import Any

import torch

from soho_fast.engine.batches import split_batch
from soho_fast.model import SohoPreTrainedModel

# Of the samples by which int8 chooses the ranges of its layers.
_NUM_SAMPLES, _BATCH_SIZE = 64, 8


def load_for_evaluation(
    task: Any, folder: str, device: torch.device, precision: str | None = None
) -> SohoPreTrainedModel:
    """A model that the task has trained, on a device.

    Args:
        task: The task, a `BaseTask`.
        folder: The model's folder, or its name on the hub.
        device: Where it goes.
        precision: What it is prepared in for inference; None evaluates it as training does.
    """
    model = task.load_model(folder).to(device)
    if precision is None:
        task.speed_up(model, device)
    else:
        calibration = _calibration(task, device) if precision == "int8" else None
        model.prepare_for_inference(precision, calibration=calibration)
    return model


def _calibration(task: Any, device: torch.device) -> Iterator[dict[str, Any]]:
    """Training samples of a task as its model is called with them, without labels."""
    data = task.training_data()
    data.set_epoch(0)
    for begin in range(0, min(_NUM_SAMPLES, len(data)), _BATCH_SIZE):
        batch = task.collate([data[number] for number in range(begin, min(begin + _BATCH_SIZE, len(data)))])
        batch = task.on_device(split_batch(batch, device)[0])
        names = ("pixel_values", "pixel_mask", "input_ids", "attention_mask")
        given = {name: batch[name] for name in names if name in batch}
        yield {**given, "image_index": batch.get("image_index", batch.get("own_image"))}
