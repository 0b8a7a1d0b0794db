"""The Transformer without padding: in training on a CPU its layers run on real tokens, the last one on those read.

BERT's layers treat every token alike except in attention, so the tokens of all pairs can stand in one matrix without
the padding of the texts, and only attention sees them pair by pair. Of the last layer nothing but the positions that a
loss reads is used: queries and feed-forward are computed there alone, keys and values everywhere. The first layer's
visual tokens are the same for all texts of an image and are projected once. The modules and their weights are the
encoder's own, the mathematics is unchanged.

P image-text pairs of B images, S text tokens, L visual tokens, T = S + L places of a pair, N packed tokens (words, then
visual tokens), U the same with the tokens of each image once, M tokens that are read, Q places for the queries of a
pair, H heads of E channels, D = H*E, R = P*H or the rows of a table.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers.models.bert.modeling_bert import BertEncoder


def can_pack(encoder: BertEncoder, **kwargs) -> bool:
    """Whether this call may run packed: a training forward on a CPU from which only the last states are wanted.

    Dropout, activation checkpointing, attention other than SDPA, hooks (states or attentions asked for, ZeRO stage 3)
    and torch.compile take the ordinary way.
    """
    config, weight = encoder.config, next(encoder.parameters())
    return (
        encoder.training
        and weight.device.type == "cpu"
        and not (config.hidden_dropout_prob or config.attention_probs_dropout_prob)
        and config._attn_implementation == "sdpa"
        and all(value is None or value is False for value in kwargs.values())
        and not (config.output_hidden_states or config.output_attentions)
        and not any(getattr(layer, "gradient_checkpointing", False) for layer in encoder.layer)
        and not torch.compiler.is_compiling()
        and not any(
            hooks
            for module in encoder.modules()
            for hooks in (
                module._forward_hooks,
                module._forward_pre_hooks,
                module._backward_hooks,
                module._backward_pre_hooks,
            )
        )
    )


def product_dtype(like: Tensor) -> torch.dtype:
    """The type in which products with `like` are taken: autocast's where it is on."""
    kind = like.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else like.dtype


def recurring(count: int, like: Tensor, multiple: int = 32) -> int:
    """A number of rows, rounded up where a kernel is built for each new one.

    In bfloat16 on a CPU a matrix product is oneDNN's, which compiles for every shape. Row counts that are new at each
    step cost recipe `mini` 7 % of its step. (So it is in float16, but there the LayerNorm of a row of zeros divides by
    an epsilon that is too small for the type, and its gradient is NaN.)
    """
    if like.device.type != "cpu" or product_dtype(like) != torch.bfloat16:
        return count
    return -(-count // multiple) * multiple


def _fill(chosen_PT: Tensor, allowed_PT: Tensor, count: int) -> Tensor:
    """`chosen_PT` and further places of `allowed_PT`, those of low number first, up to `count` if there are so many."""
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
    """softmax(q k' / sqrt(E) + mask) v on packed rows; padded tables exist only in here."""

    @staticmethod
    def forward(ctx, query_MD, key_ND, value_ND, queries: Places, keys: Places, mask_R1T, num_heads: int):
        scale = (query_MD.shape[1] // num_heads) ** -0.5
        query_RQE = queries.pad(query_MD, num_heads)
        key_RTE, value_RTE = (keys.pad(rows_ND, num_heads) for rows_ND in (key_ND, value_ND))
        score_RQT = torch.baddbmm(mask_R1T, query_RQE, key_RTE.transpose(1, 2), alpha=scale)
        share_RQT = score_RQT.softmax(-1)
        ctx.save_for_backward(query_RQE, key_RTE, value_RTE, share_RQT)
        ctx.places, ctx.num_heads, ctx.scale = (queries, keys), num_heads, scale
        return queries.unpad(torch.bmm(share_RQT, value_RTE), num_heads)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_MD):
        query_RQE, key_RTE, value_RTE, share_RQT = ctx.saved_tensors
        queries, keys = ctx.places
        grad_RQE = queries.pad(grad_MD, ctx.num_heads)
        grad_value_RTE = torch.bmm(share_RQT.transpose(1, 2), grad_RQE)
        grad_RQT = torch.bmm(grad_RQE, value_RTE.transpose(1, 2)).mul_(share_RQT)
        grad_RQT = grad_RQT.addcmul_(share_RQT, grad_RQT.sum(-1, keepdim=True), value=-1.0).mul_(ctx.scale)
        grads = (
            queries.unpad(torch.bmm(grad_RQT, key_RTE), ctx.num_heads),
            keys.unpad(torch.bmm(grad_RQT.transpose(1, 2), query_RQE), ctx.num_heads),
            keys.unpad(grad_value_RTE, ctx.num_heads),
        )
        return *grads, None, None, None, None


class SharedWords(torch.autograd.Function):
    """The rows of a word table at some ids, and the table itself for whoever else uses it (a tied classifier).

    The gradients of the rows are added to that of the classifier, in place: two dense gradients would be made, and
    summed, otherwise, and with 30,522 words that takes longer than the products with them.
    """

    @staticmethod
    def forward(ctx, table_VD, id_N, padding_id: int | None):
        ctx.save_for_backward(id_N)
        ctx.padding_id, ctx.shape = padding_id, table_VD.shape
        ctx.set_materialize_grads(False)
        return table_VD.index_select(0, id_N), table_VD.view_as(table_VD)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_ND, grad_VD):
        (id_N,) = ctx.saved_tensors
        if grad_ND is None:
            return grad_VD, None, None
        if grad_VD is None:
            grad_VD = grad_ND.new_zeros(ctx.shape)
        if ctx.padding_id is not None:
            # As nn.Embedding has it: padding learns nothing as a word that is read.
            grad_ND = grad_ND.masked_fill((id_N == ctx.padding_id).unsqueeze(1), 0.0)
        return grad_VD.index_add_(0, id_N, grad_ND), None, None


def packed_encode(
    encoder: BertEncoder,
    text_embeddings: nn.Module,
    visual_BLD: Tensor,
    input_ids_PS: Tensor,
    image_index_P: Tensor,
    real_PT: Tensor,
    read_PT: Tensor,
) -> tuple[Tensor, Tensor]:
    """What `encoder` makes of words and visual tokens, at the places that are read.

    Args:
        encoder: for which `can_pack` holds.
        text_embeddings: BERT's.
        visual_BLD: embedded visual tokens of each image.
        input_ids_PS: int64.
        image_index_P: int64, the image of each pair.
        real_PT: bool, False at padding; places are words, then visual tokens.
        read_PT: bool, True where the last hidden state is wanted.

    Returns:
        hidden (P, T, D), zero where nothing is read (where row counts are rounded, some more places hold their states),
        and the word embeddings' table, for a classifier that is tied to it (see `SharedWords`).
    """
    (num_pairs, T), S = real_PT.shape, input_ids_PS.shape[1]
    weight = next(encoder.parameters())
    row_PT = real_PT | read_PT
    row_PT = _fill(row_PT, torch.ones_like(row_PT), recurring(int(row_PT.sum()), weight, 64))
    read_PT = _fill(read_PT, row_PT, recurring(int(read_PT.sum()), weight))
    num_places = recurring(T, weight, 8)
    real_PT, row_PT, read_PT = (F.pad(places_PT, (0, num_places - T)) for places_PT in (real_PT, row_PT, read_PT))

    pair_words, place_words = row_PT[:, :S].nonzero(as_tuple=True)
    pair_visual, place_visual = row_PT[:, S:].nonzero(as_tuple=True)
    place_N = torch.cat([pair_words * num_places + place_words, pair_visual * num_places + S + place_visual])
    keys = Places(place_N, (num_pairs, num_places))

    read_M = read_PT.flatten().nonzero().squeeze(1)
    slot_PT = read_PT.cumsum(1) - 1
    num_slots = recurring(int(slot_PT.max()) + 1, weight, 8)
    slot_M = (read_M // num_places) * num_slots + slot_PT.flatten()[read_M]
    reads = Places(slot_M, (num_pairs, num_slots))
    row_M = keys.row_PT[read_M]

    words = text_embeddings.word_embeddings
    words_D, table_VD = SharedWords.apply(words.weight, input_ids_PS[pair_words, place_words], words.padding_idx)
    words_D = text_embeddings(inputs_embeds=words_D[None], position_ids=place_words[None])[0]
    # Under autocast too the states between the products are of their type: LayerNorm computes in float32 inside.
    words_D, visual_BLD = words_D.to(product_dtype(weight)), visual_BLD.to(product_dtype(weight))
    B, L, _ = visual_BLD.shape
    visual_R = None if pair_visual.numel() == num_pairs * L else pair_visual * L + place_visual

    def expand(rows_UD: Tensor) -> Tensor:
        """Words and the images' visual tokens to words and the pairs' visual tokens, (N, D)."""
        words_D, visual_D = rows_UD.split([place_words.numel(), B * L])
        # Whole images are copied: their gradients are summed in few long rows.
        visual_D = visual_D.reshape(B, -1).index_select(0, image_index_P).view(num_pairs * L, -1)
        return torch.cat([words_D, visual_D if visual_R is None else visual_D.index_select(0, visual_R)])

    shared_UD = torch.cat([words_D, visual_BLD.flatten(0, 1)])
    hidden_ND = expand(shared_UD)

    num_heads = encoder.config.num_attention_heads
    mask_P1T = torch.zeros(num_pairs, 1, num_places, dtype=hidden_ND.dtype)
    mask_P1T.masked_fill_(~real_PT.unsqueeze(1), torch.finfo(hidden_ND.dtype).min)
    mask_R1T = mask_P1T.repeat_interleave(num_heads, dim=0)
    for number, layer in enumerate(encoder.layer):
        attention, is_last = layer.attention.self, number == len(encoder.layer) - 1
        query_MD, queries = (hidden_ND.index_select(0, row_M), reads) if is_last else (hidden_ND, keys)
        if number == 0:
            key_ND, value_ND = expand(attention.key(shared_UD)), expand(attention.value(shared_UD))
        else:
            key_ND, value_ND = attention.key(hidden_ND), attention.value(hidden_ND)
        projected_MD = expand(attention.query(shared_UD)) if number == 0 and not is_last else attention.query(query_MD)
        context_MD = _Attention.apply(projected_MD, key_ND, value_ND, queries, keys, mask_R1T, num_heads)
        hidden_ND = layer.feed_forward_chunk(layer.attention.output(context_MD, query_MD))
    hidden_RD = hidden_ND.new_zeros(num_pairs * num_places, hidden_ND.shape[1]).index_copy(0, read_M, hidden_ND)
    return hidden_RD.view(num_pairs, num_places, -1)[:, :T], table_VD
