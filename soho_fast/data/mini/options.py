"""What a demo corpus holds."""

from dataclasses import dataclass

# What each number may be: lowest and highest.
_LIMITS = {
    "num_train": (2, 10**6),
    "num_heldout": (2, 10**6),
    "image_size": (32, 1024),
    "seed": (0, 2**63 - 1),
}


@dataclass(frozen=True)
class CorpusOptions:
    """What a demo corpus holds.

    Args:
        num_train: Number of training scenes.
        num_heldout: Number of held-out scenes, half val and half test.
        image_size: Side of the square images, in pixels.
        seed: Seed of the whole corpus.

    Raises:
        TypeError, ValueError: a value of another type, or out of range.
    """

    num_train: int = 4000
    num_heldout: int = 500
    image_size: int = 128
    seed: int = 0

    def __post_init__(self) -> None:
        for name, (low, high) in _LIMITS.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"{name}: expected a whole number, got {value!r}")
            if not low <= value <= high:
                raise ValueError(f"{name}: expected {low} to {high}, got {value}")
