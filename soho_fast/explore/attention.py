"""A model that is asked about images and shows where it looked: the attention of each word over an image's cells.

B images, P texts with an image each, S tokens of a text, L = h x w visual tokens of the padded images, T = S + L, H
heads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from soho_fast.explore.sources import digest_of
from soho_fast.extras import from_extra

with from_extra("train"):
    from soho_fast.data.images import BrokenImageError
    from soho_fast.model.outputs import VisualTokens
    from soho_fast.pipeline import SohoPipeline

# Texts that are read at a time: between two lots it is asked whether anybody still waits.
_TEXTS_AT_ONCE = 16

# Of an attention, which is at most 1: enough for a shade and for a tenth of a percent of it.
_DIGITS = 6


class SeeingPipeline(SohoPipeline):
    """A `SohoPipeline` that takes images as the bytes of a file and can say where it looked.

    Its scores are those of `SohoPipeline`, up to the rounding of another order of sums: the attention is computed as it
    is written (transformers' "eager"), since the faster forms never have it as a whole. One thread at a time.
    """

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.model.set_attn_implementation("eager")
        self._go_on: Callable[[], None] = lambda: None
        self._sizes: list[tuple[int, int]] = []
        self._seen: tuple[VisualTokens, dict[str, Tensor | None]] | None = None

    def weights(self) -> str | None:
        """`digest_of` the codebook, by which a bundle is known; None for a model without a dictionary."""
        dictionary = self.model.base().visual_dictionary
        if dictionary is None:
            return None
        return digest_of(dictionary.codebook.cpu().numpy())

    @torch.no_grad()
    def codes_of(self, image: bytes) -> tuple[int, int, list[int]]:
        """Rows and columns of an image's cells, and the nearest code of each, row by row; of a model with a dictionary.

        Raises:
            ValueError: the image can't be used.
        """
        self._sizes = []
        pixels = self.processor.image_processor.collate([self._pixels(image)])
        visual = self.model.encode_images(
            **{name: None if value is None else value.to(self.device) for name, value in pixels.items()}
        )
        (grid,) = self._grids(visual)
        return grid["rows"], grid["columns"], self._codes(visual)[visual.valid].tolist()

    def ask(
        self,
        question: str,
        images: Sequence[bytes],
        texts: Sequence[str],
        attend: int | None = None,
        go_on: Callable[[], None] = lambda: None,
    ) -> dict[str, Any]:
        """Answer a question, and say where the model looked.

        Args:
            question: "rank", "answer", "entails" or "compare".
            images: files, one, or left and right of "compare".
            texts: several for "rank", one else.
            attend: the text whose attention is wanted, by its number; None takes the first of the answers to "rank".
            go_on: called now and then; what it raises ends the work.

        Returns:
            answers: what `SohoPipeline` returns; those of "rank" also have `number`, the text's place in `texts`.
            attended: number of the text that the attention is of.
            tokens: its tokens, [CLS] first, without the closing [SEP].
            reads: "codes" or "features": what the Transformer reads of an image.
            images: of each image `rows`, `columns` of its cells; `cells_high`, `cells_wide`, its own height and width
                in cells, fractions included; `codes`, the nearest code of each cell's feature, row by row, None without
                a dictionary; `attention[layer][token][cell]`: the share of a token's attention that goes to a cell,
                mean over the heads. What is missing to 1 in all cells goes to the text.

        Raises:
            ValueError: a text or an image can't be used, or the model is not for this question.
        """
        self._go_on, self._sizes, self._seen = go_on, [], None
        if question == "rank":
            answers = _numbered(self.rank(images[0], texts), texts)
            attend = answers[0]["number"] if attend is None else attend
        elif question == "compare":
            answers = self.compare(*images, *texts)
        else:
            answers = getattr(self, question)(*images, *texts)
        go_on()
        attend = attend or 0
        if not 0 <= attend < len(texts):
            raise ValueError(f"attend: expected the number of a text, 0 to {len(texts) - 1}, got {attend}")
        return {"answers": answers, "attended": attend, **self._attention(attend)}

    @torch.no_grad()
    def _logits(self, images: Sequence[bytes], texts: Sequence[str]) -> Tensor:
        inputs = self._inputs(images, texts)
        visual = self.model.encode_images(inputs.pop("pixel_values"), inputs.pop("pixel_mask"))
        self._seen = visual, inputs
        lots = []
        for first in range(0, len(texts), _TEXTS_AT_ONCE):
            self._go_on()
            lot = {name: value[first : first + _TEXTS_AT_ONCE] for name, value in inputs.items()}
            output = self.model(visual_tokens=visual, **lot)
            lots.append(output.itm_logits if "itm_logits" in output else output.logits)
        return torch.cat(lots).float().cpu()

    def _pixels(self, image: bytes) -> Tensor:
        processor = self.processor.image_processor
        try:
            pixels_3HW = processor.decode(image)
        except BrokenImageError as error:
            raise ValueError(f"image: {error}") from error
        self._sizes.append(tuple(pixels_3HW.shape[-2:]))
        return pixels_3HW

    @torch.no_grad()
    def _attention(self, attend: int) -> dict[str, Any]:
        visual, inputs = self._seen
        real = int(inputs["attention_mask"][attend].sum())
        text = {name: value[attend : attend + 1] for name, value in inputs.items()}
        for name in ("input_ids", "attention_mask"):
            text[name] = text[name][:, :real]
        output = self.model(visual_tokens=visual, output_attentions=True, **text)
        # As many rows as images: a statement about two is read with each.
        share_layers = [attention_PHTT.float().mean(1).cpu() for attention_PHTT in output.attentions]
        tokens = self.processor.tokenizer.convert_ids_to_tokens(text["input_ids"][0].tolist())[:-1]
        index_BL = self._codes(visual)
        images = []
        for number, grid in enumerate(self._grids(visual)):
            valid_L = visual.valid[number].cpu()
            images.append(
                {
                    **grid,
                    "codes": None if index_BL is None else index_BL[number].cpu()[valid_L].tolist(),
                    "attention": [
                        [
                            [round(share, _DIGITS) for share in row]
                            for row in share_PTT[number, : len(tokens), real:][:, valid_L].tolist()
                        ]
                        for share_PTT in share_layers
                    ],
                }
            )
        reads = "features" if visual.embedding is None else "codes"
        return {"tokens": tokens, "reads": reads, "images": images}

    def _codes(self, visual: VisualTokens) -> Tensor | None:
        dictionary = self.model.base().visual_dictionary
        if visual.index is not None or dictionary is None:
            return visual.index
        return dictionary(visual.features, visual.valid)[1]  # Fine-tuned models read the features themselves.

    def _grids(self, visual: VisualTokens) -> list[dict[str, Any]]:
        edge = 32 * self.model.config.visual_pool  # pixels of a cell
        grids = []
        for (height, width), valid_hw in zip(self._sizes, visual.valid.unflatten(1, (-1, visual.columns)), strict=True):
            rows, columns = int(valid_hw.any(1).sum()), int(valid_hw.any(0).sum())
            cells = {"cells_high": height / edge, "cells_wide": width / edge}
            grids.append({"rows": rows, "columns": columns, **cells})
        return grids


def _numbered(answers: Sequence[dict[str, Any]], texts: Sequence[str]) -> list[dict[str, Any]]:
    """Answers with their text's place among `texts`; of equal texts each has its own."""
    places: dict[str, list[int]] = {}
    for number, text in enumerate(texts):
        places.setdefault(text, []).append(number)
    return [{"number": places[answer["text"]].pop(0), **answer} for answer in answers]
