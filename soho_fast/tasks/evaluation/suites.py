"""The scores of a suite that needs no training, by the ITM head.

Shapes: N examples, I images and T texts of each.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as tvF

from soho_fast.common.errors import CorruptImageError
from soho_fast.common.progress import ProgressLines
from soho_fast.data.images import SohoImageProcessor, decode_image
from soho_fast.data.readers.records import ImageRef
from soho_fast.data.readers.suites import Box, SuiteRecord
from soho_fast.data.text import describe_fit, encode_texts
from soho_fast.tasks.evaluation.pair_scoring import ImageBlocks, PairScorer, score_pairs
from soho_fast.tasks.evaluation.sharing import Sharing


def load_image(processor: SohoImageProcessor, image: ImageRef, box: Box | None) -> Tensor:
    """An image cropped to its box and resized: uint8 (3, height, width). What of the box lies outside of the image is
    black, as Pillow's crop has it.

    Raises:
        CorruptImageError: It can't be read.
    """
    if box is None:
        return processor.load(image)
    left, top, width, height = box
    try:
        return processor.resize_one(tvF.crop(decode_image(image.read()), top, left, height, width))
    except (OSError, ValueError) as error:
        raise CorruptImageError(f"{image}: {error}") from error


def score_suite(task: Any, model: Any, records: Sequence[SuiteRecord], say: Callable[[str], None]) -> Tensor:
    """The log-odds of "matched" of each image of a record with each of its texts, float32 (N, I, T) on the CPU.

    An image that comes again is encoded once. Texts are cut to the model's length.

    Args:
        task: The `RetrievalTask`: its processor, how many images are encoded at a time, and processes that decode them.
        model: `SohoForImageTextRetrieval`.
        records: N examples, of one suite.
        say: Called with lines about how the tokenizer fits the texts, and of progress.

    Raises:
        CorruptImageError: An image can't be read: a published metric covers every one.
    """
    processor = task.processor
    texts = list(dict.fromkeys(text for record in records for text in record.texts))
    say(f"tokenizer: {describe_fit(processor.tokenizer, texts).summary()}")
    encoded = encode_texts(processor.tokenizer, texts, model.config.max_position_embeddings)
    # Texts of the same tokens are one: computed twice they might differ by rounding, and a tie would not be one.
    first: dict[bytes, int] = {}
    place_of = {
        text: first.setdefault(each.ids.tobytes(), place)
        for place, (text, each) in enumerate(zip(texts, encoded, strict=True))
    }
    # Of each distinct image and box the texts that it is scored with.
    texts_of: dict[tuple[ImageRef, Box | None], dict[int, None]] = {}
    for record in records:
        own_texts = dict.fromkeys(place_of[text] for text in record.texts)
        for image in record.images:
            texts_of.setdefault((image, record.box), {}).update(own_texts)
    scorer = PairScorer(model, encoded)
    images, distinct = processor.image_processor, list(texts_of)

    def load(block: range) -> Any:
        return images.collate_bytes([load_image(images, *distinct[number]) for number in block])

    def encode(pixels: Any) -> Any:
        return scorer.encode(task.on_device(scorer.computing.on_device(pixels)))

    size, workers = task.image_batch, task.workers
    blocks = ImageBlocks(len(distinct), encode, load=load, workers=workers, block_images=size)
    wanted = [np.array(list(each)) for each in texts_of.values()]
    found = score_pairs(scorer, blocks, wanted, Sharing(progress=ProgressLines(say, "batches of images")))
    score_of = {
        (key, place): score
        for (key, each), scores in zip(texts_of.items(), found, strict=True)
        for place, score in zip(each, scores.tolist(), strict=True)
    }
    keys = [([(image, each.box) for image in each.images], [place_of[text] for text in each.texts]) for each in records]
    return torch.tensor([[[score_of[image, text] for text in texts] for image in own] for own, texts in keys])
