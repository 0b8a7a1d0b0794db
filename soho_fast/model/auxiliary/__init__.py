"""What is not SOHO's: auxiliary losses beside the paper's, which the configuration switches on.

Each is a head of the model, `None` where its weight in the configuration is 0, and an `if` where the model adds up its
losses.
"""

from .bag_of_words import BagOfWordsHead, captions_of
from .contrastive import ContrastiveHead, ContrastiveVectors

__all__ = ["BagOfWordsHead", "ContrastiveHead", "ContrastiveVectors", "captions_of"]
