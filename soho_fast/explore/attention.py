"""A model that is asked about images and shows where it looked: the attention of each word over an image's patches.

B images, P texts with an image each, S tokens of a text, L = h x w visual tokens of the padded images, T = S + L, H
heads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from soho_fast.common.extras import from_extra
from soho_fast.explore.sources import digest_of

with from_extra("train"):
    from soho_fast.ask.pipeline import SohoPipeline, usable_tokens
    from soho_fast.ask.questions import ScoredText
    from soho_fast.model.image_tokens import join_images
    from soho_fast.model.outputs import VisualTokens

# By which texts are read 16 at a time: between two lots it is asked whether anybody still waits.
_IMAGES_AT_ONCE = 4

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

    def weights(self) -> str | None:
        """`digest_of` the first level's codes, by which a bundle is known; None for a model without a dictionary."""
        dictionary = self.model.base().visual_dictionary
        return None if dictionary is None else digest_of(dictionary.codebook_of(0).cpu().numpy())

    @torch.no_grad()
    def codes_of(self, image: bytes) -> tuple[int, int, list[int]]:
        """Rows and columns of an image's patches, and the nearest code of each, row by row. The model has a dictionary.

        Raises:
            ValueError: the image can't be used.
        """
        pixels_3HW = self._pixels(image)
        (visual,) = self._encode([pixels_3HW], 1)
        grid = self._grid(visual, pixels_3HW)
        return grid["rows"], grid["columns"], grid["codes"]

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
            question: "rank", "answer", "entails", "compare" or "codes", which takes no text: `images` is the reply.
            images: files, one, or left and right of "compare".
            texts: several for "rank", none for "codes", one else.
            attend: the text whose attention is wanted, by its number; None takes the first of the answers to "rank".
            go_on: called now and then; what it raises ends the work.

        Returns:
            answers: what `SohoPipeline` returns; those of "rank" also have `number`, the text's place in `texts`.
            attended: number of the text that the attention is of.
            tokens: its tokens, [CLS] first, without the closing [SEP].
            reads: "codes" or "features": what the Transformer reads of an image.
            images: of each image `rows`, `columns` of its patches; `patches_high`, `patches_wide`, its own height and
                width in patches, fractions included; `codes`, the nearest code (of the first level) of each patch's
                feature, row by row, None without a dictionary; `attention[layer][token][patch]`: the share of a token's
                attention that goes to a patch, mean over the heads. What is missing to 1 in all patches goes to the
                text.

        Raises:
            ValueError: a text or an image can't be used, or the model is not for this question.
        """
        self._go_on = go_on
        pixels = [self._pixels(image) for image in images]
        seen = [self._encode([pixels_3HW], 1)[0] for pixels_3HW in pixels]
        grids = [self._grid(*both) for both in zip(seen, pixels, strict=True)]
        if question == "codes":
            return {"images": grids}
        if question == "rank":
            answers = _numbered(self.rank(seen[0], texts, batch_size=_IMAGES_AT_ONCE), texts)
            attend = answers[0]["number"] if attend is None else attend
        else:
            answers = getattr(self, question)(*seen, *texts)
        go_on()
        attend = attend or 0
        if not 0 <= attend < len(texts):
            raise ValueError(f"attend: expected the number of a text, 0 to {len(texts) - 1}, got {attend}")
        return {"answers": answers, "attended": attend, **self._attention(texts[attend], seen, grids)}

    def read(self, *inputs: Any) -> Tensor:
        self._go_on()
        return super().read(*inputs)

    @torch.no_grad()
    def _attention(self, text: str, seen: Sequence[VisualTokens], grids: Sequence[dict[str, Any]]) -> dict[str, Any]:
        (ids,) = usable_tokens(self._token_ids([text]))
        input_ids_1S, index = torch.tensor([ids]), torch.arange(len(seen)).unsqueeze(0)
        output = self.model(
            visual_tokens=join_images(seen),
            input_ids=input_ids_1S.to(self.device),
            image_index=(index if len(seen) > 1 else index[0]).to(self.device),
            output_attentions=True,
        )
        # As many rows as images: a statement about two is read with each.
        share_layers = [attention_PHTT.float().mean(1).cpu() for attention_PHTT in output.attentions]
        images = []
        for number, (visual, grid) in enumerate(zip(seen, grids, strict=True)):
            patches = slice(len(ids), len(ids) + visual.valid.shape[1])
            images.append(
                {
                    **grid,
                    "attention": [
                        [
                            [round(share, _DIGITS) for share in row]
                            for row in share_PTT[number, : len(ids) - 1, patches].tolist()
                        ]
                        for share_PTT in share_layers
                    ],
                }
            )
        reads = "features" if seen[0].embedding is None else "codes"
        tokens = self.processor.tokenizer.convert_ids_to_tokens(ids)[:-1]
        return {"tokens": tokens, "reads": reads, "images": images}

    def _pixels(self, image: bytes) -> Tensor:
        pixels_3HW = self._load(image)
        assert isinstance(pixels_3HW, Tensor), "bytes are no encoded image"
        return pixels_3HW

    @torch.no_grad()
    def _grid(self, visual: VisualTokens, pixels_3HW: Tensor) -> dict[str, Any]:
        index_1L, dictionary = visual.index, self.model.base().visual_dictionary
        if index_1L is None and dictionary is not None:  # Fine-tuned models read the features themselves.
            index_1L = dictionary(visual.features, visual.valid)[1]
        codes = None if index_1L is None else index_1L[0].tolist()
        edge = self.model.config.token_stride  # pixels of a patch
        (height, width), columns = pixels_3HW.shape[-2:], visual.columns
        rows = visual.valid.shape[1] // columns
        high, wide = height / edge, width / edge
        return {"rows": rows, "columns": columns, "patches_high": high, "patches_wide": wide, "codes": codes}


def _numbered(answers: Sequence[ScoredText], texts: Sequence[str]) -> list[dict[str, Any]]:
    """Answers with their text's place among `texts`; of equal texts each has its own."""
    places: dict[str, list[int]] = {}
    for number, text in enumerate(texts):
        places.setdefault(text, []).append(number)
    return [{"number": places[answer["text"]].pop(0), **answer} for answer in answers]
