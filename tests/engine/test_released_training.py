"""What the released code trains by, against the numbers that it computes: optimiser, rates; and its batches."""

import copy
import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from official_parity_rule import centred
from parity import fixture

from soho_fast.engine.batches import plan_batches
from soho_fast.engine.optimizer import Schedule, SgdAdamW
from soho_fast.engine.settings import BatchSettings
from soho_fast.tasks.recipe import read_recipe

NAMES = ("sgd", "adamw", "adamw_small")


def _trained(rule: str, steps: int = 5) -> dict[str, torch.Tensor]:
    """The parameters after each step, (steps, 6, 5), and the gradient's norm under "norm"."""
    params = {name: torch.nn.Parameter(torch.tensor(centred(f"optimizer/{name}", (6, 5), 0, 0.5))) for name in NAMES}
    groups = [
        {"params": [param], "kind": "sgd" if name == "sgd" else rule, "weight_decay": 1e-4 if name == "sgd" else 1e-2}
        for name, param in params.items()
    ]
    optimizer = SgdAdamW(groups)
    after, norms = {name: [] for name in NAMES}, []
    for step in range(steps):
        for (name, param), group in zip(params.items(), optimizer.param_groups, strict=True):
            half = 2e-5 if name == "adamw_small" else 5.0 if step == 1 else 0.5
            param.grad = torch.tensor(centred(f"optimizer/{name}/{step}", (6, 5), 0, half))
            group["lr"] = (1e-2 if name == "sgd" else 1e-4) * (0.1 if step >= 3 else 1.0)
        norms.append(torch.nn.utils.clip_grad_norm_(params.values(), 10.0))
        optimizer.step()
        for name, param in params.items():
            after[name].append(param.detach().clone())
    return {**{name: torch.stack(each) for name, each in after.items()}, "norm": torch.stack(norms)}


def test_sgd_and_berts_adamw_step_as_the_released_ones():
    expected, ours, torchs = fixture(), _trained("bert_adamw"), _trained("adamw")
    for name in (*NAMES, "norm"):
        torch.testing.assert_close(ours[name], expected[f"optimizer.{name}"], rtol=1e-6, atol=1e-6)
    apart = (torchs["adamw_small"] - expected["optimizer.adamw_small"]).abs().amax((1, 2))
    assert apart[-1] == pytest.approx(2.0e-4, rel=0.05), "epsilon stands beside another root in torch's"


def test_berts_adamw_counts_each_tensors_steps_and_lives_through_saving():
    """The formula of the release in float64; the second tensor has no gradient in every other step."""
    beta1, beta2, lr, eps, decay = 0.8, 0.99, 0.02, 1e-3, 0.1
    start = [torch.tensor(centred(f"start/{n}", (4, 3), 0, 1)) for n in range(2)]
    params = [torch.nn.Parameter(value.clone()) for value in start]
    kwargs = {"kind": "bert_adamw", "lr": lr, "betas": (beta1, beta2), "eps": eps, "weight_decay": decay}
    optimizer = SgdAdamW([{"params": params, **kwargs}])
    value, mean, square = ([each.double() * factor for each in start] for factor in (1, 0, 0))
    count = [0, 0]
    for step in range(6):
        for n, param in enumerate(params):
            if n == 1 and step % 2:
                param.grad = None
                continue
            param.grad = torch.tensor(centred(f"gradient/{n}/{step}", (4, 3), 0, 1e-2))
            grad = param.grad.double()
            count[n] += 1
            mean[n] = beta1 * mean[n] + (1 - beta1) * grad
            square[n] = beta2 * square[n] + (1 - beta2) * grad**2
            rate = lr * (1 - beta2 ** count[n]) ** 0.5 / (1 - beta1 ** count[n])
            value[n] = (value[n] - rate * mean[n] / (square[n].sqrt() + eps)) * (1 - lr * decay)
        if step == 3:
            state = copy.deepcopy(optimizer.state_dict())
            optimizer = SgdAdamW([{"params": params, **kwargs}])
            optimizer.load_state_dict(state)
        optimizer.step()
    assert count == [6, 3]
    for param, expected in zip(params, value, strict=True):
        torch.testing.assert_close(param.detach().double(), expected, rtol=0, atol=1e-6)


def test_rates_of_the_release():
    """Its rates are those of a micro-batch; a step of two has that of the first."""
    settings = read_recipe(["--recipe", "official"]).schedule
    schedule = Schedule(settings, 300, 40 * 300)
    rows = zip(fixture()["schedule.iteration"].tolist(), fixture()["schedule.lr"].tolist(), strict=True)
    asked = [(number // 2, rates) for number, rates in rows if number % 2 == 0]
    assert len(asked) >= 6
    for step, rates in asked:
        assert [base * schedule.factor(step) for base in (1e-4, 1e-2)] == pytest.approx(rates, rel=1e-12)


def _plan(kinds: np.ndarray, world: int = 2, parts: int = 2, images: int = 24, seed: int = 3):
    settings = BatchSettings(global_batch_size=images, gradient_accumulation_steps=parts)
    return replace(plan_batches(settings, len(kinds), world, seed), kinds=kinds)


def test_micro_batches_of_one_kind_hold_an_epoch_in_random_order():
    kinds = np.random.default_rng(0).random(101) < 0.3
    plan = _plan(kinds)
    assert plan.steps_per_epoch == 4 and plan.micro_batch_size == 6
    ranks = [list(plan.micro_batches(rank, 0, 12)) for rank in range(2)]
    seen_first, num_turns = set(), 0
    for epoch in range(3):
        parts = range(8 * epoch, 8 * epoch + 8)
        batches = [rank[part] for part in parts for rank in ranks]
        assert all({number for number, _ in batch} == {epoch} for batch in batches)
        found = [[int(index) for _, index in batch] for batch in batches]
        assert all(len(set(kinds[batch])) == 1 for batch in found), "never of both kinds"
        assert all(len(set(batch)) == 6 for batch in found)
        indices = [index for batch in found for index in batch]
        # 101 samples in 12 + 6 micro-batches of at most 6: at most one filled up of each kind, one or two left out.
        assert len(indices) - len(set(indices)) <= 10
        assert 96 - 10 <= len(set(indices)) <= 96
        seen_first.add(found[0][0])
        num_turns += sum(kinds[one[0]] != kinds[other[0]] for one, other in itertools.pairwise(found))
    assert len(seen_first) == 3, "epochs differ"
    assert num_turns > 3, "kinds come in random order, not one after the other"
    assert [list(plan.micro_batches(1, 7, 12))] == [ranks[1][14:]], "a resumed run goes on in this order"
    assert list(_plan(kinds, seed=4).micro_batches(0, 0, 1)) != ranks[0][:2]


@pytest.mark.parametrize("num_true", [0, 1, 4, 50])
def test_a_kind_of_few_samples_fills_its_own_micro_batch(num_true):
    kinds = np.arange(50) < num_true
    plan = _plan(kinds, world=1, parts=2, images=12)
    for step in range(2 * plan.steps_per_epoch):
        for batch in plan.micro_batches(0, step, step + 1):
            assert len(batch) == 6 and len({bool(kinds[index]) for _, index in batch}) == 1
