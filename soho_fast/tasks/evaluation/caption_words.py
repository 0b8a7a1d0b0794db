"""What a caption's words alone tell of the codes of its image: the rival of masked visual modelling that sees no image.

On training images it is counted how often captions with a word go with each code that could be masked. The code of a
held-out caption is the most likely one by these counts, each word for itself (naive Bayes).

V tokens of the vocabulary, K codes, S tokens of a caption.
"""

from typing import Any

import numpy as np
import torch

from soho_fast.data.batches.record_table import RecordTable
from soho_fast.data.text import encode_texts
from soho_fast.model import SohoForPreTraining
from soho_fast.tasks.evaluation.computing import Computing, readable

_MOST_IMAGES = 1000
# Labels drawn of each image.
_DRAWS = 4


class CaptionWords:
    """Counts of codes by the words of captions."""

    def __init__(self, vocab_size: int, num_codes: int) -> None:
        self._both_VK = np.zeros((vocab_size, num_codes))
        self._of_code_K = np.zeros(num_codes)
        self._of_word_V = np.zeros(vocab_size)

    def add(self, ids_S: np.ndarray, codes: np.ndarray) -> None:
        """A caption, int (S,), and the codes that were drawn of its image, each counted; int of any number."""
        words = np.unique(ids_S)
        np.add.at(self._both_VK, (words[:, None], codes), 1)
        np.add.at(self._of_code_K, codes, 1)
        self._of_word_V[words] += len(codes)

    def code_of(self, ids_S: np.ndarray) -> int:
        """The most likely code of a caption, int (S,); of equally likely ones the first."""
        words = np.unique(ids_S)
        # One more caption of each code, which has each word as often as all captions have it.
        share_V = (self._of_word_V[words] + 1) / (self._of_code_K.sum() + 2)
        share_VK = (self._both_VK[words] + share_V[:, None]) / (self._of_code_K + 1)
        return int((np.log(share_VK).sum(0) + np.log(np.maximum(self._of_code_K, 1e-9))).argmax())


@torch.no_grad()
def count_caption_words(task: Any, model: SohoForPreTraining, training: RecordTable) -> CaptionWords | None:
    """Count on training images, at most a thousand, evenly spread; None of a model that masks no codes.

    Args:
        task: The `PretrainingTask`.
        model: In evaluation mode.
        training: Images with captions.
    """
    if not (model.config.dictionary != "none" and model.config.use_dictionary_output):
        return None
    counts = CaptionWords(model.config.vocab_size, model.config.num_codes)
    spread = np.unique(np.linspace(0, len(training) - 1, min(_MOST_IMAGES, len(training))).round().astype(int))
    computing, tokenizer = Computing(model, task.precision), task.processor.tokenizer
    for numbers, batch in readable(task, [training[place] for place in spread.tolist()]):
        with computing():
            images = task.processor.image_processor.normalised(computing.on_device(batch))
            visual = model.encode_images(**images)
            uniforms = [
                torch.full((len(numbers),), (draw + 0.5) / _DRAWS, dtype=torch.float64) for draw in range(_DRAWS)
            ]
            codes_DB = [model.base().label_to_mask(visual, each.to(computing.device)).cpu() for each in uniforms]
        codes_BD = torch.stack(codes_DB, dim=1).numpy()
        for number, codes in zip(numbers, codes_BD, strict=True):
            for text in encode_texts(tokenizer, training.texts.all(int(spread[number])), task.data.max_text_length):
                counts.add(text.ids, codes[codes >= 0])
    return counts
