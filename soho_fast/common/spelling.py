"""What a mistyped name may have been meant to be."""

from collections.abc import Iterable
from difflib import get_close_matches


def did_you_mean(word: object, known: Iterable[object]) -> str:
    """ "; did you mean NAME?" of the most similar known name, or "" where none is similar.

    Args:
        word: What was written.
        known: Names that there are. Of names in parts, `optim.lr`, one whose last part was written is similar too.
    """
    names = list(dict.fromkeys(str(name) for name in known))
    close = get_close_matches(str(word), names, n=1, cutoff=0.7)
    last = str(word).rpartition(".")[2]
    close = close or [name for name in names if "." in name and name.rpartition(".")[2] == last]
    return f"; did you mean {close[0]}?" if close else ""
