"""The Transformer without padding: on a CPU its layers run on real tokens, the last one on those that are read.

BERT's layers treat every token alike except in attention, so the tokens of all pairs can stand in one matrix without
the padding of the texts, and only attention sees them pair by pair. Of the last layer nothing but the positions that a
loss reads is used: queries and feed-forward are computed there alone, keys and values everywhere. The first layer's
visual tokens are the same for all texts of an image and are projected once (dropout, where there is some, makes them
differ). The modules and their weights are the encoder's own, the mathematics is unchanged.

P image-text pairs of B images, S text tokens, L visual tokens, T = S + L places of a pair, N packed tokens (words, then
visual tokens), U the same with the tokens of each image once, M tokens that are read, Q places for the queries of a
pair, H heads of E channels, D = H*E, R = P*H or the rows of a table.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ...inputs import Texts
from ...outputs import VisualTokens
from ...transformer import Pairs, TransformerBackend, TransformerParts
from .classifier import SharedWords
from .native_encoder import can_run_natively, encode_natively
from .products import product_dtype, recurring

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def can_pack(soho: TransformerParts, **kwargs: Any) -> bool:
    """Whether this call may run packed: a forward on a CPU from which only the last states are wanted.

    Activation checkpointing, hooks (states or attentions asked for, ZeRO stage 3), a compiled encoder and word
    embeddings with an adapter take the ordinary way.
    """
    encoder, config = soho.encoder, soho.config
    return (
        next(encoder.parameters()).device.type == "cpu"
        and all(value is None or value is False for value in kwargs.values())
        and not (config.output_hidden_states or config.output_attentions)
        and not any(layer.gradient_checkpointing for layer in encoder.layer)
        and not (soho.encoder_compiled or torch.compiler.is_compiling())
        and isinstance(soho.text_embeddings.word_embeddings, nn.Embedding)
        and not any(getattr(module, hooks) for module in encoder.modules() for hooks in _HOOKS)
    )


def _fill(chosen_PT: Tensor, allowed_PT: Tensor, count: int) -> Tensor:
    """`chosen_PT` and further places of `allowed_PT`, those of low number first, up to `count` if there are so many."""
    # Transposed, so that `nonzero` goes through the places first and the pairs second.
    spare = (allowed_PT & ~chosen_PT).T.nonzero()[: count - int(chosen_PT.sum())]
    filled_PT = chosen_PT.clone()
    filled_PT[spare[:, 1], spare[:, 0]] = True
    return filled_PT


class Places:
    """Where rows lie in a padded (pairs, places) table, for moving them there and back.

    Args:
        place_N: int64, the place of each row in the flattened table, all different.
        shape: (P, T) of the table.
    """

    def __init__(self, place_N: Tensor, shape: tuple[int, int]) -> None:
        self.place_N, self.shape = place_N, shape
        row_PT = place_N.new_full((shape[0] * shape[1],), -1)
        row_PT[place_N] = torch.arange(place_N.numel())
        # An empty place takes row 0, and `pad` sets it to zero.
        self.row_PT = row_PT.clamp(min=0)
        self.empty = (row_PT < 0).nonzero().squeeze(1)

    def pad(self, rows_ND: Tensor, num_heads: int) -> Tensor:
        """(N, D) to (P*H, T, E), zero where no row lies."""
        (num_pairs, num_places), head_size = self.shape, rows_ND.shape[1] // num_heads
        table_RD = rows_ND.index_select(0, self.row_PT).index_fill_(0, self.empty, 0.0)
        table_PTHE = table_RD.view(num_pairs, num_places, num_heads, head_size)
        return table_PTHE.transpose(1, 2).reshape(num_pairs * num_heads, num_places, head_size)

    def unpad(self, table_RTE: Tensor, num_heads: int) -> Tensor:
        """(P*H, T, E) to (N, D): what lies at the rows' places."""
        num_pairs, num_places = self.shape
        table_PHTE = table_RTE.view(num_pairs, num_heads, num_places, table_RTE.shape[-1])
        return table_PHTE.transpose(1, 2).reshape(num_pairs * num_places, -1).index_select(0, self.place_N)


class _Attention(torch.autograd.Function):
    """dropout(softmax(q k' / sqrt(E) + mask)) v on packed rows; padded tables exist only in here."""

    @staticmethod
    def forward(
        ctx: Any,
        query_MD: Tensor,
        key_ND: Tensor,
        value_ND: Tensor,
        queries: Places,
        keys: Places,
        mask_R1T: Tensor,
        num_heads: int,
        dropout: float,
    ) -> Tensor:
        scale = (query_MD.shape[1] // num_heads) ** -0.5
        query_RQE = queries.pad(query_MD, num_heads)
        key_RTE, value_RTE = (keys.pad(rows_ND, num_heads) for rows_ND in (key_ND, value_ND))
        # alpha scales the product, not the mask, which broadcasts over the queries.
        score_RQT = torch.baddbmm(mask_R1T, query_RQE, key_RTE.transpose(1, 2), alpha=scale)
        share_RQT = score_RQT.softmax(-1)
        kept_RQT = F.dropout(share_RQT, dropout) if dropout else share_RQT
        ctx.save_for_backward(query_RQE, key_RTE, value_RTE, share_RQT, kept_RQT)
        ctx.places, ctx.num_heads, ctx.scale = (queries, keys), num_heads, scale
        return queries.unpad(torch.bmm(kept_RQT, value_RTE), num_heads)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_MD: Tensor) -> tuple[Tensor | None, ...]:
        query_RQE, key_RTE, value_RTE, share_RQT, kept_RQT = ctx.saved_tensors
        queries, keys = ctx.places
        grad_RQE = queries.pad(grad_MD, ctx.num_heads)
        grad_value_RTE = torch.bmm(kept_RQT.transpose(1, 2), grad_RQE)
        # Of the softmax's input: share * (g - sum(share * g)), where g, the gradient of share, is that of kept times
        # what dropout multiplied by. The product of that and share is kept.
        grad_RQT = torch.bmm(grad_RQE, value_RTE.transpose(1, 2)).mul_(kept_RQT)
        grad_RQT = grad_RQT.addcmul_(share_RQT, grad_RQT.sum(-1, keepdim=True), value=-1.0).mul_(ctx.scale)
        grads = (
            queries.unpad(torch.bmm(grad_RQT, key_RTE), ctx.num_heads),
            keys.unpad(torch.bmm(grad_RQT.transpose(1, 2), query_RQE), ctx.num_heads),
            keys.unpad(grad_value_RTE, ctx.num_heads),
        )
        return *grads, None, None, None, None, None


def _probability(dropout: nn.Dropout) -> float:
    return dropout.p if dropout.training else 0.0


class PackedTransformer(TransformerBackend):
    """The Transformer without padding, for callers who say what they read; where it can't be, BERT's layers."""

    name = "packed"

    def __call__(self, soho: TransformerParts, pairs: Pairs, **kwargs: Any) -> Tensor:
        """As `TransformerBackend.__call__`."""
        texts, reads, labels_PL = pairs.texts, pairs.reads, pairs.mvm_labels_PL
        if reads is None or not can_pack(soho, **kwargs):
            return super().__call__(soho, pairs, **kwargs)
        words_PS = reads.words_PS
        # A copy of the caller's words, to which [CLS] is added.
        read_PS = torch.zeros_like(texts.input_ids, dtype=torch.bool) if words_PS is None else words_PS.clone()
        read_PS[:, 0] = True
        read_PL = texts.of_images(torch.zeros_like(pairs.visual.valid))
        if reads.masked_P is not None and labels_PL is not None:
            read_PL = (labels_PL != -100) & reads.masked_P.unsqueeze(1)
        read_PT = torch.cat([read_PS, read_PL], dim=1)
        hidden_PTD, reads.word_table = packed_encode(soho, pairs.visual, texts, pairs.real_PT, read_PT)
        return hidden_PTD


class _PackedRows:
    """Rows for all that is real or read, in numbers that recur for products with `like`; see `packed_encode`.

    Attributes:
        num_places: T, rounded up.
        real_PT: bool, whom attention sees.
        pair_words, place_words: int64, of each row that is a word.
        pair_visual, place_visual: of each row that is a visual token, its place counted from the first of them.
        keys: places of all N rows, words first.
        reads: places of the M rows that are read, in a table of the queries.
        read_M: of these, the places in the flattened (P, T).
        row_M: of these, which of the N rows they are.
    """

    def __init__(self, real_PT: Tensor, read_PT: Tensor, num_words: int, like: Tensor) -> None:
        (num_pairs, T), S = real_PT.shape, num_words
        # What is read needs a row, though it be padding.
        row_PT = real_PT | read_PT
        # The rows that round the number up are padding, which `real_PT` hides from attention.
        row_PT = _fill(row_PT, torch.ones_like(row_PT), recurring(int(row_PT.sum()), like, 64))
        read_PT = _fill(read_PT, row_PT, recurring(int(read_PT.sum()), like))
        self.num_places = num_places = recurring(T, like, 8)
        self.real_PT, row_PT, read_PT = (F.pad(at_PT, (0, num_places - T)) for at_PT in (real_PT, row_PT, read_PT))

        self.pair_words, self.place_words = row_PT[:, :S].nonzero(as_tuple=True)
        self.pair_visual, self.place_visual = row_PT[:, S:].nonzero(as_tuple=True)
        words_N, visual_N = self.pair_words * num_places + self.place_words, self.pair_visual * num_places + S
        self.keys = Places(torch.cat([words_N, visual_N + self.place_visual]), (num_pairs, num_places))

        self.read_M = read_PT.flatten().nonzero().squeeze(1)
        # The queries of a pair move together: their table is as wide as the pair that has most.
        slot_PT = read_PT.cumsum(1) - 1
        num_slots = recurring(int(slot_PT.max()) + 1, like, 8)
        slot_M = (self.read_M // num_places) * num_slots + slot_PT.flatten()[self.read_M]
        self.reads = Places(slot_M, (num_pairs, num_slots))
        # Each place that is read has a row, so none of these is a clamped one.
        self.row_M = self.keys.row_PT[self.read_M]


def _embed(
    soho: TransformerParts, visual: VisualTokens, texts: Texts, pair_N: Tensor, place_N: Tensor, dropout: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The embeddings of the words at some places, (N, D), and of the images' visual tokens, (B, L, D), these before
    `dropout`; and the word table for whoever else uses it."""
    words, visual_embeddings = soho.text_embeddings.word_embeddings, soho.visual_embeddings
    words_ND, table_VD = SharedWords.apply(words.weight, texts.input_ids[pair_N, place_N], words.padding_idx)
    # To BERT one long text, with the position of each token in its own.
    words_ND = soho.text_embeddings(inputs_embeds=words_ND[None], position_ids=place_N[None])[0]
    # Dropout draws for each pair by itself, after which the pairs of an image have no visual tokens in common.
    if dropout:
        visual_BLD = visual_embeddings.LayerNorm(visual.tokens + visual.position.to(visual.tokens.dtype))
    else:
        visual_BLD = visual_embeddings(visual.tokens, visual.position)
    return words_ND, visual_BLD, table_VD


def packed_encode(
    soho: TransformerParts, visual: VisualTokens, texts: Texts, real_PT: Tensor, read_PT: Tensor
) -> tuple[Tensor, Tensor]:
    """What embeddings and encoder make of words and visual tokens, at the places that are read.

    Args:
        soho: for which `can_pack` holds.
        visual: the images.
        texts: words, and the image of each pair.
        real_PT: bool, False at padding; places are words, then visual tokens.
        read_PT: bool, True where the last hidden state is wanted.

    Returns:
        hidden (P, T, D), zero where nothing is read (where row counts are rounded, some more places hold their states);
        and the word table for whoever else uses it, see `SharedWords`.
    """
    encoder, image_index_P = soho.encoder, texts.image_index
    if image_index_P is None:
        image_index_P = torch.arange(len(texts.input_ids))
    weight, (num_pairs, T) = encoder.layer[-1].attention.self.query.weight, real_PT.shape
    dropout = _probability(soho.visual_embeddings.dropout)
    if not dropout and can_run_natively(encoder, real_PT, read_PT):
        real_PS = real_PT[:, : texts.input_ids.shape[1]]
        pair_N, place_N = real_PS.nonzero(as_tuple=True)
        words_D, visual_BLD, table_VD = _embed(soho, visual, texts, pair_N, place_N, dropout)
        return encode_natively(encoder, words_D, visual_BLD, image_index_P, real_PT, read_PT), table_VD
    rows = _PackedRows(real_PT, read_PT, texts.input_ids.shape[1], weight)
    words_D, visual_BLD, table_VD = _embed(soho, visual, texts, rows.pair_words, rows.place_words, dropout)
    # Under autocast too the states between the products are of their type: LayerNorm computes in float32 inside.
    words_D, visual_BLD = words_D.to(product_dtype(weight)), visual_BLD.to(product_dtype(weight))
    B, L, _ = visual_BLD.shape
    # Then the tokens of the pairs are whole images, in order, and nothing is to be picked.
    all_visual = rows.pair_visual.numel() == num_pairs * L
    visual_R = None if all_visual else rows.pair_visual * L + rows.place_visual

    def expand(rows_UD: Tensor) -> Tensor:
        """Words and the images' visual tokens to words and the pairs' visual tokens, (N, D)."""
        # U rows: words, and the tokens of each image once.
        words_D, visual_D = rows_UD.split([rows.place_words.numel(), B * L])
        # Whole images are copied: their gradients are summed in few long rows.
        visual_D = visual_D.reshape(B, -1).index_select(0, image_index_P).view(num_pairs * L, -1)
        return torch.cat([words_D, visual_D if visual_R is None else visual_D.index_select(0, visual_R)])

    shared_UD = torch.cat([words_D, visual_BLD.flatten(0, 1)])
    hidden_ND = expand(shared_UD)
    if dropout:
        words_D, visual_D = hidden_ND.split([rows.place_words.numel(), rows.place_visual.numel()])
        hidden_ND = torch.cat([words_D, F.dropout(visual_D, dropout)])

    def project(linear: nn.Linear, in_first_layer: bool) -> Tensor:
        """Queries, keys or values of all rows."""
        return expand(linear(shared_UD)) if in_first_layer and not dropout else linear(hidden_ND)

    num_heads = encoder.config.num_attention_heads
    mask_P1T = torch.zeros(num_pairs, 1, rows.num_places, dtype=hidden_ND.dtype)
    # Not minus infinity: a pair of which nothing is real would become NaN.
    mask_P1T.masked_fill_(~rows.real_PT.unsqueeze(1), torch.finfo(hidden_ND.dtype).min)
    mask_R1T = mask_P1T.repeat_interleave(num_heads, dim=0)
    for number, layer in enumerate(encoder.layer):
        attention, is_last = layer.attention.self, number == len(encoder.layer) - 1
        # `query_MD` is the residual path, too: in the last layer of the rows that are read alone.
        query_MD, queries = (hidden_ND.index_select(0, rows.row_M), rows.reads) if is_last else (hidden_ND, rows.keys)
        key_ND, value_ND = (project(linear, number == 0) for linear in (attention.key, attention.value))
        projected_MD = attention.query(query_MD) if is_last else project(attention.query, number == 0)
        context_MD = _Attention.apply(
            projected_MD, key_ND, value_ND, queries, rows.keys, mask_R1T, num_heads, _probability(attention.dropout)
        )
        hidden_ND = layer.feed_forward_chunk(layer.attention.output(context_MD, query_MD))
    # After the last layer the rows are the M that are read; places beyond T were there to round up.
    hidden_RD = hidden_ND.new_zeros(num_pairs * rows.num_places, hidden_ND.shape[1]).index_copy(
        0, rows.read_M, hidden_ND
    )
    return hidden_RD.view(num_pairs, rows.num_places, -1)[:, :T], table_VD
