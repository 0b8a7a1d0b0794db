"""Settings of the demo corpus in a recipe."""

from dataclasses import dataclass


@dataclass
class DemoCorpus:
    """The demo corpus, built where it is absent.

    Args:
        folder: Where it is, or goes; empty uses none.
        num_train: Training scenes.
        num_heldout: Held-out scenes.
        image_size: Side of its square pictures, in pixels.
        seed: Seed of everything in it.
    """

    folder: str = ""
    num_train: int = 4000
    num_heldout: int = 500
    image_size: int = 128
    seed: int = 0
