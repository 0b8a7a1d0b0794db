"""What is fast on a CPU, part by part: packed encoder, pairs, classifier, convolutions. `test_speed_up.py` compares the
whole with the plain model."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from soho_fast.model import Texts, VisualEncoder
from soho_fast.model.fast.cpu import classifier, packed_encoder, speed_up_on_cpu
from soho_fast.model.fast.cpu.classifier import classify_on_cpu
from soho_fast.model.fast.cpu.convolutions import speed_up_convolutions
from soho_fast.model.heads import TokenHead
from soho_fast.model.normalization import BatchNorm2d
from soho_fast.model.pair_encoder import encode_pairs


@pytest.fixture
def fast_model(tiny_model):
    return lambda **overrides: speed_up_on_cpu(tiny_model(**overrides).train())


@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_attention_gradients_are_exact(dropout):
    """Against finite differences in float64, with queries of their own places and pairs of different lengths."""
    generator = torch.Generator().manual_seed(0)
    real_PT = torch.tensor([[1, 1, 1, 0], [1, 0, 1, 1], [1, 1, 1, 1]], dtype=torch.bool)
    keys = packed_encoder.Places(real_PT.flatten().nonzero().squeeze(1).flip(0), (3, 4))
    queries = packed_encoder.Places(torch.tensor([0, 2, 3, 5]), (3, 2))
    mask_P1T = torch.zeros(3, 1, 4, dtype=torch.float64).masked_fill(~real_PT.unsqueeze(1), -1e300)
    query, key, value = (
        torch.randn(rows, 6, dtype=torch.float64, generator=generator, requires_grad=True) for rows in (4, 10, 10)
    )
    mask_R1T = mask_P1T.repeat_interleave(2, dim=0)

    def attend(query, key, value):
        torch.manual_seed(1)  # the same draw of dropout each time
        return packed_encoder._Attention.apply(query, key, value, queries, keys, mask_R1T, 2, dropout)

    assert torch.autograd.gradcheck(attend, (query, key, value))


def test_when_it_steps_aside(fast_model, batch, packed):
    model, inputs, seen = fast_model(), batch(), []
    model(**inputs)
    assert len(packed) == 1
    model.eval()(**inputs)
    assert len(packed) == 2
    model.soho.encoder.layer[0].gradient_checkpointing = True
    model.eval()(**inputs)
    assert len(packed) == 2
    model.soho.encoder.layer[0].gradient_checkpointing = False
    model.train()(**inputs, output_hidden_states=False, return_dict=True)
    assert len(packed) == 3
    # Who looks into a layer, or asks for all states, sees them all.
    hook = model.soho.encoder.layer[0].output.register_forward_hook(lambda _, __, output: seen.append(len(output)))
    model(**inputs)
    hook.remove()
    visual = model.encode_images(inputs["pixel_values"])
    hidden = model.soho(visual, Texts(inputs["input_ids"], inputs["attention_mask"], inputs["image_index"]))
    assert bool((hidden.last_hidden_state.abs().sum(-1) > 0).all())
    assert seen == [len(inputs["input_ids"])] and len(packed) == 3
    assert len(model(**inputs, output_hidden_states=True).hidden_states) == 3 and len(packed) == 3


def test_bf16_in_row_counts_that_recur(monkeypatch, fast_model, batch):
    """Kernels are compiled per shape there: whatever the texts' lengths, the row counts are multiples."""
    sizes, functional = set(), torch.nn.functional.linear

    def linear(x, *args):
        if x.dim() == 2:
            sizes.add(x.shape[0])
        return functional(x, *args)

    monkeypatch.setattr(torch.nn.functional, "linear", linear)
    model, inputs = fast_model().bfloat16(), batch()
    for length in range(3, 8):
        inputs["attention_mask"] = torch.ones(12, 7, dtype=torch.int64)
        inputs["attention_mask"][:7, length:] = 0
        model(**inputs)
    # Pairs; what is read; a multiple of 64 rows, or all 156 places, and without the 9 repetitions of 6 visual tokens.
    assert sizes <= {12, 32, 128, 128 - 54, 156, 156 - 54}


def test_filling_up_changes_nothing_in_float32(monkeypatch, fast_model, batch, packed):
    def step():
        model = fast_model(num_hidden_layers=3)
        model.freeze_batch_norm()
        loss = model(**batch()).loss
        loss.backward()
        return loss, [parameter.grad for parameter in model.parameters()]

    exact_loss, exact_grads = step()
    rounded = lambda count, like, multiple=32: -(-count // multiple) * multiple  # noqa: E731
    monkeypatch.setattr(packed_encoder, "recurring", rounded)
    loss, grads = step()
    assert len(packed) == 2
    torch.testing.assert_close(loss, exact_loss, rtol=1e-6, atol=1e-6)
    for grad, exact in zip(grads, exact_grads, strict=True):
        assert float((grad - exact).norm()) <= 2e-5 * float(exact.norm()) + 1e-7


def pairs(model, num_texts=3, num_images=4):
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 60, (num_texts, 6), generator=generator)
    visual = model.encode_images(torch.randn(num_images, 3, 64, 96, generator=generator))
    text_index = torch.tensor([0, 2, 1, 1, 0, 2, 2])
    image_index = torch.tensor([3, 0, 0, 2, 2, 3, 1])
    return ids, visual, text_index, image_index


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("dictionary_output", [True, False])
@torch.no_grad()
def test_odds_are_the_plain_models(tiny_model, layers, dictionary_output):
    model = tiny_model(num_hidden_layers=layers, use_dictionary_output=dictionary_output).eval()
    for weight in (*model.soho.encoder.parameters(), *model.itm_head.parameters()):
        weight.mul_(20.0) if weight.dim() > 1 else weight.normal_()  # as drawn, biases are 0 and words hardly look
    ids, visual, text_index, image_index = pairs(model)
    logits = model(visual_tokens=visual, input_ids=ids[text_index], image_index=image_index).itm_logits
    difference = model.matching_logits(model.embed_images(visual), ids, text_index, image_index)
    torch.testing.assert_close(difference, logits[:, 1] - logits[:, 0], rtol=1e-5, atol=1e-5)
    assert difference.std() > 0.01


@torch.no_grad()
def test_nothing_is_projected_twice_or_unread(tiny_model, monkeypatch):
    model = tiny_model(num_hidden_layers=3).eval()
    ids, visual, text_index, image_index = pairs(model)
    words, embedded = model.soho.text_embeddings(input_ids=ids), model.embed_images(visual)
    rows = {}
    for number, layer in enumerate(model.soho.encoder.layer):
        for name, module in layer.named_modules():
            if isinstance(module, torch.nn.Linear):
                module.register_forward_hook(
                    lambda module, args, output, key=(number, name): rows.setdefault(key, []).append(
                        args[0].numel() // args[0].shape[-1]
                    )
                )
    encode_pairs(model.soho.encoder, words, embedded, text_index, image_index)
    num_pairs, num_places = 7, 6 + embedded.shape[1]
    for name in ("query", "key", "value"):
        assert rows[0, f"attention.self.{name}"] == [3 * 6, 4 * embedded.shape[1]]
        assert rows[1, f"attention.self.{name}"] == [num_pairs * num_places]
    assert rows[2, "attention.self.query"] == [num_pairs]
    assert (2, "attention.self.key") not in rows and (2, "attention.self.value") not in rows
    assert rows[2, "intermediate.dense"] == rows[2, "output.dense"] == [num_pairs]


@torch.no_grad()
def test_adapters_of_every_projection_are_read(tiny_model):
    peft = pytest.importorskip("peft")
    model = tiny_model().eval()
    ids, visual, text_index, image_index = pairs(model)
    embedded = model.embed_images(visual)
    before = model.matching_logits(embedded, ids, text_index, image_index)
    targets = {"target_modules": r".*layer\.1\.attention\.self\.(key|value)", "init_lora_weights": False}
    peft.get_peft_model(model, peft.LoraConfig(r=2, **targets)).eval()
    logits = model(visual_tokens=visual, input_ids=ids[text_index], image_index=image_index).itm_logits
    difference = model.matching_logits(embedded, ids, text_index, image_index)
    torch.testing.assert_close(difference, logits[:, 1] - logits[:, 0], rtol=1e-5, atol=1e-5)
    assert (difference - before).abs().max() > 1e-3


def fast_head(config, num_classes):
    head = TokenHead(config, num_classes)
    head.classify = classify_on_cpu
    return head


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("num_rows", [0, 1, 33])
def test_gradients_are_finite_whatever_the_number_of_rows(tiny_config, dtype, num_rows):
    """At first the biases are zero: a row of zeros, such as filling would add, has no variance for the LayerNorm."""
    head = fast_head(tiny_config(), 8).to(dtype)
    for name, parameter in head.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.zeros_(parameter)
    hidden = torch.randn(num_rows, 16, dtype=dtype, requires_grad=True)
    logits = head(hidden)
    assert logits.shape == (num_rows, 8)
    logits.float().logsumexp(-1).sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in (hidden, *head.parameters()))


def test_a_classifier_by_parts_is_the_linear_layer(monkeypatch):
    """With an odd rest, rows that repeat a class and both gradients; in float32, where nothing is rounded off."""
    monkeypatch.setattr(classifier, "_PART", 5 * 16)
    hidden, weight, bias = (torch.randn(size, requires_grad=True) for size in ((6, 16), (23, 16), (23,)))
    target = torch.tensor([0, 22, 7, 7, 4, 5])

    def step(logits):
        inputs = (hidden, weight, bias)
        return logits, *torch.autograd.grad(torch.nn.functional.cross_entropy(logits, target), inputs)

    expected = step(torch.nn.functional.linear(hidden, weight, bias))
    got = step(classifier._ClassifyByParts.apply(hidden, weight, bias, torch.float32))
    for ours, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_large_classifiers_are_cast_by_parts_under_autocast(monkeypatch, tiny_config):
    head, hidden = fast_head(tiny_config(), 50), torch.randn(9, 16)

    def gradients():
        head.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            logits = head(hidden)
        logits.float().logsumexp(-1).sum().backward()
        return logits, {name: parameter.grad for name, parameter in head.named_parameters()}

    plain, expected = gradients()
    monkeypatch.setattr(classifier, "_PART", 64)
    calls, parts = [], classifier._parts
    monkeypatch.setattr(classifier, "_parts", lambda weight: calls.append(parts(weight)) or calls[-1])
    logits, grads = gradients()
    assert len(calls) == 2 and len(calls[0]) == 13 and logits.dtype == plain.dtype == torch.bfloat16
    torch.testing.assert_close(logits, plain, rtol=2**-7, atol=2**-7)
    for name, grad in expected.items():
        assert grads[name].dtype == torch.float32
        assert float((grads[name] - grad).norm()) <= 0.01 * float(grad.norm()) + 1e-6, name


@pytest.mark.parametrize("padding_id", [None, 3])
def test_shared_words_sum_both_gradients(padding_id):
    """Rows that repeat, a padding word, and each of the two gradients missing, against nn.functional.embedding."""
    id_N = torch.tensor([5, 3, 5, 0])
    table_VD = torch.randn(7, 4, dtype=torch.float64, requires_grad=True)
    weight_N4 = torch.randn(4, 4, dtype=torch.float64)
    weight_V4 = torch.randn(7, 4, dtype=torch.float64)

    def gradient(rows_N4, all_V4, use_rows: bool, use_table: bool):
        losses = [(rows_N4 * weight_N4).sum()] * use_rows + [(all_V4.square() * weight_V4).sum()] * use_table
        return torch.autograd.grad(sum(losses), table_VD)[0]

    for use_rows, use_table in ((True, True), (True, False), (False, True)):
        rows_N4 = torch.nn.functional.embedding(id_N, table_VD, padding_id)
        expected = gradient(rows_N4, table_VD, use_rows, use_table)
        rows_N4, all_V4 = classifier.SharedWords.apply(table_VD, id_N, padding_id)
        torch.testing.assert_close(gradient(rows_N4, all_V4, use_rows, use_table), expected, rtol=1e-12, atol=1e-12)


def fast_encoder(config) -> VisualEncoder:
    encoder = VisualEncoder(config)
    speed_up_convolutions(encoder)
    return encoder


@pytest.mark.parametrize("backbone", ["resnet10", "resnet50", "mobilenet_v2"])
@pytest.mark.parametrize("padded", [False, True], ids=["full", "padded"])
def test_without_gradient_batch_norm_becomes_a_part_of_the_convolution(tiny_config, backbone, padded, monkeypatch):
    encoder = fast_encoder(tiny_config(backbone=backbone))
    generator = torch.Generator().manual_seed(0)
    for norm in encoder.modules():
        if isinstance(norm, BatchNorm2d):
            for tensor in (norm.weight.data, norm.bias.data, norm.running_mean, norm.running_var):
                tensor.add_(torch.rand(tensor.shape, generator=generator))
    pixels = torch.randn(2, 3, 64, 96, generator=generator)
    mask = torch.ones(2, 64, 96)
    if padded:
        mask[0, :, 64:] = 0
    with_gradient = encoder.eval()(pixels, mask)[0].detach()
    monkeypatch.setattr(BatchNorm2d, "forward", None)
    with torch.no_grad():
        folded, _ = encoder(pixels, mask)
    torch.testing.assert_close(folded, with_gradient, rtol=0, atol=1e-5 * float(with_gradient.abs().max()))


def test_bf16_backward_avoids_onednns_reference_for_strided_depthwise(tiny_config):
    class Recorder(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func is torch.ops.aten.convolution_backward.default and args[4] == [2, 2] and args[9] > 1:
                types_seen.append(args[0].dtype)
            return func(*args, **(kwargs or {}))

    types_seen = []
    encoder = fast_encoder(tiny_config(backbone="mobilenet_v2")).train().bfloat16()
    feat, _ = encoder(torch.randn(2, 3, 64, 64))
    assert feat.dtype == torch.bfloat16
    with Recorder():
        feat.float().square().sum().backward()
    assert types_seen == [torch.float32] * 4
