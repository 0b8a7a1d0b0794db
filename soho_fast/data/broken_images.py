"""How many broken images a run may skip before it stops."""

from __future__ import annotations

from collections.abc import Sequence

_NUM_SHOWN = 20


class TooManyBrokenImagesError(RuntimeError):
    """The share of broken images passed the limit; the message lists them."""


class BrokenImageLimit:
    """Counts skipped images and stops the run when their share is too high.

    One object serves one process. With several ranks, pass the skipped messages and counts of all of them (so that all
    ranks stop together).
    """

    def __init__(self, max_share: float = 0.01, min_seen: int = 1000) -> None:
        """Set the limit.

        Args:
            max_share: Largest tolerated share of broken images among the samples seen, 0 to 1.
            min_seen: No verdict before so many samples: one broken image in the first batch is not 1 %.
        """
        if not 0.0 <= max_share <= 1.0:
            raise ValueError(f"max_share: expected a share between 0 and 1, got {max_share}")
        self.max_share = max_share
        self.min_seen = min_seen
        self.num_seen = 0
        self.num_broken = 0
        self.messages: dict[str, int] = {}

    def update(self, skipped: Sequence[str], seen: int) -> None:
        """Count a batch.

        Args:
            skipped: Messages of the images skipped, as in a batch's "skipped".
            seen: Samples the batch asked for, the skipped ones included.

        Raises:
            TooManyBrokenImagesError: More than `max_share` of at least `min_seen` samples were broken.
        """
        self.num_seen += seen
        self.num_broken += len(skipped)
        for message in skipped:
            self.messages[message] = self.messages.get(message, 0) + 1
        if self.num_seen >= self.min_seen and self.num_broken > self.max_share * self.num_seen:
            shown = list(self.messages)[:_NUM_SHOWN]
            rest = len(self.messages) - len(shown)
            raise TooManyBrokenImagesError(
                f"{self.num_broken} of {self.num_seen} images seen were broken, more than the limit of "
                f"{self.max_share:.1%}. Replace the files, or raise the limit:\n  "
                + "\n  ".join(shown)
                + (f"\n  ... and {rest} more" if rest else "")
            )
