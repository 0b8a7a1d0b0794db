"""Scoring image-text pairs by matching: all of them, or a list; in blocks that processes share and a killed run keeps.

Shapes: I images, T texts, P pairs, S tokens of a text, L visual tokens of an image, D channels.

A block is a run of consecutive images with all the texts they are scored with. What is computed together depends on the
block alone, so that any number of processes gets the same scores. The texts of a call have one length and its images
one number of tokens: nothing is spent on padding.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from soho_fast.data.text import EncodedText
from soho_fast.model import VisualTokens
from soho_fast.tasks.evaluation.computing import Computing
from soho_fast.tasks.evaluation.sharing import Sharing, compute_parts

# Texts and images of a call are this many by this many where all pairs are scored: each text and each image is then
# prepared once for so many pairs.
_TILE = 16


class PairScorer:
    """A model that scores pairs, on one device, in evaluation mode and without gradients.

    Images are kept as `encode` gives them: embedded tokens without padding, in half precision.
    """

    def __init__(
        self,
        model: Any,
        texts: Sequence[EncodedText],
        *,
        pair_batch: int = 256,
        precision: str = "auto",
    ) -> None:
        """Keep the model and the texts.

        Args:
            model: With `encode_images`, `embed_images` and `matching_logits`, as `SohoForImageTextRetrieval`.
            texts: The T texts.
            pair_batch: Pairs of one call.
            precision: See `Computing`.
        """
        self.model, self.pair_batch = model, pair_batch
        self.computing = Computing(model, precision)
        self.num_scored, self.seconds = 0, 0.0
        self._ids = [torch.from_numpy(text.ids) for text in texts]
        self.length_T = np.array([len(ids) for ids in self._ids], dtype=np.int64)
        # The number of each text among those of its length.
        self._place_T = np.zeros_like(self.length_T)
        for length in np.unique(self.length_T):
            alike = self.length_T == length
            self._place_T[alike] = np.arange(alike.sum())

    def ids(self, rows: np.ndarray) -> Tensor:
        """int64 (texts, S) of texts of one length."""
        return torch.stack([self._ids[row] for row in rows]).to(self.computing.device)

    @torch.no_grad()
    def encode(self, pixels: Mapping[str, Tensor | None]) -> list[Tensor]:
        """Images (`pixel_values`, `pixel_mask`) to their tokens; see `keep`."""
        with self.computing():
            return self.keep(self.model.encode_images(**self.computing.on_device(pixels)))

    @torch.no_grad()
    def keep(self, visual: VisualTokens) -> list[Tensor]:
        """The tokens that the Transformer reads of each image, without padding, float16 (L, D)."""
        with self.computing():
            embedded_BLD = self.model.embed_images(visual).half()
        return [tokens_LD[valid_L] for tokens_LD, valid_L in zip(embedded_BLD, visual.valid, strict=True)]

    @torch.no_grad()
    def image_vectors(self, tokens: Sequence[Tensor]) -> Tensor:
        """The contrastive vectors of images, float32 (images, E) on the CPU."""
        vectors: dict[int, Tensor] = {}
        for count in sorted({len(tokens_LD) for tokens_LD in tokens}):
            alike = [row for row, tokens_LD in enumerate(tokens) if len(tokens_LD) == count]
            visual_ILD = torch.stack([tokens[row] for row in alike]).to(self.computing.weight_type)
            with self.computing():
                found = self.model.image_vectors(visual_ILD)
            for row, vector in zip(alike, found.float().cpu(), strict=True):
                vectors[row] = vector
        return torch.stack([vectors[row] for row in range(len(tokens))])

    @torch.no_grad()
    def text_vectors(self, rows: np.ndarray) -> Tensor:
        """The contrastive vectors of texts of one length, float32 (texts, E) on the CPU."""
        with self.computing():
            return self.model.text_vectors(self.ids(rows)).float().cpu()

    @torch.no_grad()
    def score(self, tokens: Sequence[Tensor], image_P: np.ndarray, text_P: np.ndarray) -> np.ndarray:
        """Logit difference of "matched", float32 (P,).

        Args:
            tokens: The visual tokens of images.
            image_P, text_P: int64, the image (among `tokens`) and the text of each pair.
        """
        began = time.perf_counter()
        logit_P = np.empty(len(image_P), dtype=np.float32)
        count_I = np.array([len(tokens_LD) for tokens_LD in tokens])
        tiles = (self._place_T[text_P] // _TILE, image_P // _TILE)
        # `lexsort` sorts by the last key first: sizes, then tiles of 16 x 16, then pairs within a tile.
        keys = (text_P, image_P, *tiles, self.length_T[text_P], count_I[image_P])
        order_P = np.lexsort(keys)
        sizes_P2 = np.stack([count_I[image_P], self.length_T[text_P]], 1)[order_P]
        # Where a size changes: a call has texts of one length and images of one number of tokens.
        ends = np.flatnonzero((np.diff(sizes_P2, axis=0) != 0).any(1)) + 1
        for alike in np.split(order_P, ends):
            for begin in range(0, len(alike), self.pair_batch):
                chosen = alike[begin : begin + self.pair_batch]
                logit_P[chosen] = self._call(tokens, image_P[chosen], text_P[chosen])
        self.num_scored += len(logit_P)
        self.seconds += time.perf_counter() - began
        return logit_P

    def _call(self, tokens: Sequence[Tensor], image_P: np.ndarray, text_P: np.ndarray) -> np.ndarray:
        images, image_index_P = np.unique(image_P, return_inverse=True)
        texts, text_index_P = np.unique(text_P, return_inverse=True)
        visual_ILD = torch.stack([tokens[image] for image in images]).to(self.computing.weight_type)
        index = (torch.from_numpy(index_P).to(self.computing.device) for index_P in (text_index_P, image_index_P))
        with self.computing():
            return self.model.matching_logits(visual_ILD, self.ids(texts), *index).float().cpu().numpy()


class ImageBlocks:
    """Images in blocks of consecutive ones, encoded when first asked for, once, and kept in half precision."""

    def __init__(
        self,
        num_images: int,
        encode: Callable[[Any], list[Tensor]],
        *,
        load: Callable[[range], Any] | None = None,
        workers: int = 0,
        block_images: int = 32,
    ) -> None:
        """Encode nothing yet.

        Args:
            num_images: I.
            encode: Visual tokens of consecutive images, as `PairScorer.encode` gives them, from what `load` gave.
            load: What `encode` needs of consecutive images, the images' numbers without it; see `compute_parts`.
            workers: Processes that load.
            block_images: Images of a block; a batch of the CNN.
        """
        self.num_images = num_images
        begins = range(0, num_images, block_images)
        self.blocks = [range(begin, min(begin + block_images, num_images)) for begin in begins]
        self._load, self._encode, self._workers = load, encode, workers
        self._tokens: dict[int, list[Tensor]] = {}

    def __len__(self) -> int:
        return len(self.blocks)

    def load(self, number: int) -> Any:
        """What `tokens` needs to encode block `number`; None where it is encoded."""
        if number in self._tokens:
            return None
        block = self.blocks[number]
        return block if self._load is None else self._load(block)

    @property
    def workers(self) -> int:
        """Processes that load; none where nothing is left to encode, or there is nothing to load."""
        return 0 if self._load is None or len(self._tokens) == len(self.blocks) else self._workers

    def tokens(self, number: int, loaded: Any = None) -> list[Tensor]:
        """The visual tokens of the images of block `number`, of which `load` may have been called before."""
        if number not in self._tokens:
            # Kept for the other stage; each process has those of the blocks that it computed.
            self._tokens[number] = self._encode(self.load(number) if loaded is None else loaded)
        return self._tokens[number]


def score_pairs(
    scorer: PairScorer,
    images: ImageBlocks,
    wanted: Sequence[np.ndarray] | None = None,
    sharing: Sharing | None = None,
) -> list[Tensor]:
    """Logit difference of every image with every text, or with those that are wanted.

    Args:
        scorer: The model and the T texts.
        images: The I images.
        wanted: For each image int64 texts; None scores all.
        sharing: Of the blocks.

    Returns:
        For each image float32 on the CPU, one for each of its texts; the same on every process.
    """
    every_T = np.arange(len(scorer.length_T))

    def score_block(number: int, loaded: Any) -> list[Tensor]:
        block = images.blocks[number]
        texts_I = [every_T if wanted is None else wanted[image] for image in block]
        counts_I = [len(texts) for texts in texts_I]
        image_P = np.repeat(np.arange(len(block)), counts_I)
        logit_P = scorer.score(images.tokens(number, loaded), image_P, np.concatenate(texts_I))
        # Without a copy each would be kept and sent with the scores of the whole block.
        return [part.clone() for part in torch.from_numpy(logit_P).split(counts_I)]

    parts = compute_parts(len(images), score_block, sharing or Sharing(), load=images.load, workers=images.workers)
    return [logits for part in parts for logits in part]
