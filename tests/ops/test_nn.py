"""The quantiser as a module: what it answers, how its codes move, restart and stay the same on all ranks.

Letters: N features, K codes, C channels.
"""

import copy
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from soho_fast import ops
from soho_fast.ops.nn import VectorQuantizer

PROGRAM = Path(__file__).with_name("quantizer_rank.py")
N, C, K = 200, 6, 16


def started(**options):
    """A quantiser after its first step, which took all codes from features."""
    quantizer = VectorQuantizer(C, K, **options)
    quantizer(torch.randn(N, C))
    return quantizer


def test_it_answers_with_the_codes_before_the_step():
    quantizer, features = started(commitment_weight=0.5), torch.randn(3, 7, C, requires_grad=True)
    before = quantizer.codebook.clone()
    quantized, index, loss = quantizer(features)
    assert torch.equal(index, ops.codebook_lookup(features, before))
    assert torch.equal(quantized, before[index]) and not torch.equal(quantizer.codebook, before)
    assert loss.item() == pytest.approx(0.5 * (features - before[index]).square().mean().item(), rel=1e-5)
    (quantized.sum() + loss).backward()
    torch.testing.assert_close(features.grad, 1 + (features - before[index]).detach() / features.numel())


def test_codes_move_by_the_rule_of_vq_vae():
    quantizer, features = started(decay=0.9, restart_threshold=0.0), torch.randn(N, C)
    size, sums = quantizer.cluster_size.double(), quantizer.cluster_sum.double()
    assert (size > 0).all()
    before = quantizer.codebook.clone()
    one_hot = torch.nn.functional.one_hot(quantizer(features)[1], K).double()
    size, sums = 0.9 * size + 0.1 * one_hot.sum(0), 0.9 * sums + 0.1 * one_hot.T @ features.double()
    expected = torch.where(one_hot.sum(0)[:, None] > 0, sums / size[:, None], before.double())
    torch.testing.assert_close(quantizer.codebook.double(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(quantizer.cluster_size.double(), size, rtol=1e-5, atol=0)


def test_codes_start_from_features_and_unused_ones_restart_from_others():
    quantizer, features = VectorQuantizer(C, K), torch.randn(N, C) + 50
    quantizer(features)
    assert all((features == code).all(-1).any() for code in quantizer.codebook)
    assert len(quantizer.codebook.unique(dim=0)) == K
    quantizer.codebook[3], quantizer.cluster_size[3] = 1e6, 0.0
    quantizer(features)
    assert any(torch.equal(quantizer.codebook[3], feature) for feature in features)
    assert quantizer.cluster_size[3] == pytest.approx(quantizer.cluster_size.mean().item(), rel=0.2)


def test_fewer_features_than_codes_start_as_many_codes():
    quantizer = VectorQuantizer(C, K)
    quantizer(torch.full((5, C), 3.0))
    assert (quantizer.codebook == 3).all(1).sum() == 5
    quantizer(torch.full((0, C), 3.0))
    quantizer(torch.full((20, C), 3.0))
    torch.testing.assert_close(quantizer.codebook, torch.full((K, C), 3.0))


def test_in_evaluation_nothing_moves():
    quantizer = started().eval()
    state = copy.deepcopy(quantizer.state_dict())
    quantizer(torch.randn(N, C))
    assert all(torch.equal(state[name], value) for name, value in quantizer.state_dict().items())
    assert set(state) == {"codebook", "cluster_size", "cluster_sum"}


@pytest.mark.parametrize("rotate", [False, True])
def test_padding_and_what_is_not_finite_move_no_code(rotate):
    torch.manual_seed(0)
    quantizer, features = started(rotate=rotate), torch.randn(4, 9, C)
    other, valid = copy.deepcopy(quantizer), torch.rand(4, 9) < 0.7
    features[0, :3], valid[0, :3] = torch.tensor([torch.nan, torch.inf, -torch.inf])[:, None], True
    features[1, 1], valid[1, 1] = torch.nan, False
    features.requires_grad_()
    quantized, index, loss = quantizer(features, valid)
    assert torch.equal(index == -1, ~valid) and not quantized[~valid].any()
    other(torch.where(valid[..., None], features, 0.0).nan_to_num(0, 0, 0), valid & features.isfinite().all(-1))
    assert all(map(torch.equal, quantizer.buffers(), other.buffers()))
    assert all(buffer.isfinite().all() for buffer in quantizer.buffers())
    finite = torch.randn(4, 9, C, requires_grad=True)
    loss = quantizer(finite.where(valid[..., None], torch.nan), valid)[2]
    loss.backward()
    assert loss.isfinite() and finite.grad.isfinite().all()
    for _ in range(20):  # in which unused codes restart
        quantizer(torch.cat([features[0], torch.randn(9, C)]))
    assert all(buffer.isfinite().all() for buffer in quantizer.buffers())


def test_half_precision_and_autocast():
    quantizer = started()
    for cast in (torch.nn.Module.half, torch.nn.Module.bfloat16):
        model = cast(torch.nn.Sequential(copy.deepcopy(quantizer), torch.nn.Identity()))[0]
        assert all(map(torch.equal, model.buffers(), quantizer.buffers()))
    quantized, _, loss = model(torch.randn(N, C).bfloat16())
    assert quantized.dtype == torch.bfloat16 and loss.dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        quantizer(torch.randn(N, C))
    assert all(buffer.dtype == torch.float32 for buffer in quantizer.buffers())


def test_state_dict_and_deepcopy_go_on_alike():
    quantizer, loaded = started(), VectorQuantizer(C, K)
    loaded.load_state_dict(quantizer.state_dict())
    for other in (copy.deepcopy(quantizer), loaded):
        each = []
        for module in (copy.deepcopy(quantizer), other):
            torch.manual_seed(3)
            each.append([module(torch.randn(N, C))[1] for _ in range(5)])
        assert all(map(torch.equal, *each))


@pytest.mark.parametrize("training", [True, False])
def test_it_compiles_in_one_graph(training):
    quantizer = started().train(training)
    other = copy.deepcopy(quantizer)
    compiled = torch.compile(other, backend="aot_eager", fullgraph=True, dynamic=True)
    for num_rows in (30, 50):
        features = [torch.randn(num_rows, C).requires_grad_()]
        features.append(features[0].detach().clone().requires_grad_())
        expected, got = quantizer(features[0]), compiled(features[1])
        for results, leaf in ((expected, features[0]), (got, features[1])):
            (results[0].square().sum() + results[2]).backward()
            assert leaf.grad.any()
        assert all(map(torch.equal, got, expected)) and torch.equal(features[0].grad, features[1].grad)
        assert all(map(torch.equal, other.buffers(), quantizer.buffers()))


@pytest.mark.parametrize("wrapped", [False, True], ids=["", "DistributedDataParallel"])
def test_ranks_keep_the_same_codes(tmp_path, wrapped):
    """Though they start from other codes, and one has fewer features, some of them not finite."""
    arguments = [(PROGRAM, str(rank), tmp_path, str(int(wrapped))) for rank in range(2)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    processes = [subprocess.Popen([sys.executable, *each], env=environment) for each in arguments]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    for name in first:
        assert torch.equal(first[name], second[name]) and first[name].isfinite().all(), name
    assert (first["cluster_size"] > 0).all()
