"""What a result is worth: the published metric of each task, offline. Knows records, no model."""

from collections.abc import Collection, Mapping
from typing import Any


def check_complete(predictions: Mapping[Any, Any], examples: Collection[Any]) -> None:
    """Raises ValueError: an example, by its identifier, has no prediction, or a prediction is for no example."""
    if not examples:
        raise ValueError("records: expected at least one example, got none")
    ids = set(examples)
    missing, unknown = ids - predictions.keys(), predictions.keys() - ids
    if missing or unknown:
        raise ValueError(
            f"predictions: expected one for each of {len(ids)} examples; {len(missing)} are missing, "
            f"{len(unknown)} are for unknown ones (first: {min(missing or unknown)})"
        )
