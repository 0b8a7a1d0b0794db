"""SgdAdamW against torch's own SGD and AdamW, and the schedule."""

import copy
import math
from types import SimpleNamespace

import pytest
import torch

from soho_fast.common.errors import UserError
from soho_fast.engine.optimizer import Schedule, SgdAdamW, optimizer_groups
from soho_fast.engine.settings import OptimSettings, ScheduleSettings
from soho_fast.tasks.recipe import read_recipe


def _parameters(seed: int) -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in ((7, 5), (5,), (3, 2, 2))]


def _train(optimizers: list[torch.optim.Optimizer], params: list[torch.nn.Parameter], steps: int) -> None:
    for step in range(steps):
        generator = torch.Generator().manual_seed(100 + step)
        for number, param in enumerate(params):
            # The second parameter has no gradient at every other step, so its step count falls behind.
            param.grad = None if number == 1 and step % 2 else torch.randn(param.shape, generator=generator)
        for optimizer in optimizers:
            optimizer.step()


def test_equals_torch():
    ours, theirs = _parameters(0) + _parameters(1), _parameters(0) + _parameters(1)
    joint = SgdAdamW(
        [
            {"params": ours[:3], "kind": "sgd", "lr": 0.1, "weight_decay": 0.05, "momentum": 0.9},
            {"params": ours[3:], "kind": "adamw", "lr": 0.01, "weight_decay": 0.1, "betas": (0.8, 0.99), "eps": 1e-6},
        ]
    )
    sgd = torch.optim.SGD(theirs[:3], lr=0.1, weight_decay=0.05, momentum=0.9, foreach=True)
    adamw = torch.optim.AdamW(theirs[3:], lr=0.01, weight_decay=0.1, betas=(0.8, 0.99), eps=1e-6, foreach=True)
    _train([joint], ours, 7)
    _train([sgd, adamw], theirs, 7)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("shape", [(5, 7), (7, 5), (6, 6)])
def test_muon_equals_torchs(shape):
    """Whose products are bfloat16: the float64 steps by the formula are nearer."""

    def parameters() -> list[torch.nn.Parameter]:
        generator = torch.Generator().manual_seed(2)
        return [torch.nn.Parameter(torch.randn(each, generator=generator)) for each in (shape, (3, 4), shape)]

    ours, theirs = parameters(), parameters()
    double = [param.detach().double() for param in ours]
    momentum = [torch.zeros_like(param) for param in double]
    group = {"params": ours, "kind": "muon", "lr": 0.1, "weight_decay": 0.05}
    _train([SgdAdamW([group])], ours, 3)
    options = {"lr": 0.1, "weight_decay": 0.05, "momentum": 0.95, "adjust_lr_fn": "match_rms_adamw"}
    _train([torch.optim.Muon(theirs, **options)], theirs, 3)
    for step in range(3):
        generator = torch.Generator().manual_seed(100 + step)
        for number, (param, moved) in enumerate(zip(double, momentum, strict=True)):
            if number == 1 and step % 2:
                continue
            grad = torch.randn(param.shape, generator=generator).double()
            moved.lerp_(grad, 0.05)
            x = torch.lerp(grad, moved, 0.95)
            x = x / x.norm()
            for _ in range(5):
                x = 3.4445 * x - 4.775 * x @ x.T @ x + 2.0315 * x @ x.T @ x @ x.T @ x
            param.mul_(1 - 0.1 * 0.05).sub_(0.1 * 0.2 * max(param.shape) ** 0.5 * x)
    for mine, other, exact in zip(ours, theirs, double, strict=True):
        torch.testing.assert_close(mine.detach().double(), exact, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(mine, other, rtol=0.02, atol=0.01)


@pytest.mark.parametrize("name", ["Adagrad", "RMSprop", "NAdam", "Rprop"])
def test_an_optimiser_by_import_path_is_that_of_torch(name):
    kind = getattr(torch.optim, name)
    decay = {} if name == "Rprop" else {"weight_decay": 0.05}
    ours, theirs = _parameters(0) + _parameters(1), _parameters(0) + _parameters(1)
    groups = [{"params": ours[:3]}, {"params": ours[3:], "backbone": True}]
    settings = {"kind": f"torch.optim:{name}", "lr": 0.1, "weight_decay": 0.0, **decay}
    joint = SgdAdamW([{**group, **settings} for group in groups])
    others = [kind(theirs[:3], lr=0.1, **decay), kind(theirs[3:], lr=0.1, **decay)]
    _train([joint], ours, 4)
    saved = copy.deepcopy(joint.state_dict())
    joint = SgdAdamW([{**group, **settings} for group in groups])
    joint.load_state_dict(saved)
    _train([joint], ours, 3)
    _train(others, theirs, 4)
    _train(others, theirs, 3)
    assert all(torch.equal(mine, other) for mine, other in zip(ours, theirs, strict=True))


@pytest.mark.parametrize(
    ("kind", "decay", "message"),
    [
        ("torch.optim:Adagrat", 0.0, "optim.rule: torch.optim has no Adagrat; did you mean Adagrad?"),
        ("torch.optim:Optimizer", 0.0, "optim.rule: torch.optim:Optimizer can't be made of tensors and a rate alone: "),
        ("torch.nn:Linear", 0.0, "optim.rule: torch.nn:Linear is code that a file names"),
        ("torch.optim:Rprop", 0.1, "optim.rule: torch.optim:Rprop has no weight decay, got 0.1; give 0"),
        ("torch.optim:LBFGS", 0.0, "optim.rule: torch.optim:LBFGS asks for the loss several times a step"),
        ("torch.optim:Muon", 0.0, "made of tensors and a rate alone: Muon only supports 2D parameters"),
    ],
)
def test_an_optimiser_that_does_not_fit_is_one_line(kind, decay, message):
    with pytest.raises(UserError) as error:
        SgdAdamW([{"params": _parameters(0), "kind": kind, "weight_decay": decay}])
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("rule", ["torch.optim:Adagrad", "muon/adamw", "torch.optim:Muon/torch.optim:Adagrad"])
def test_the_recipe_takes_rules(rule):
    assert read_recipe(["--recipe", "mini", "--optim.rule", rule, "--optim.weight_decay", "0"]).optim.rule == rule


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("muon", "expected one of 'adamw', 'bert_adamw', got muon; muon is for matrices: muon/adamw"),
        ("adamw/muon", "expected one of 'adamw', 'bert_adamw', got muon; muon is for matrices: muon/adamw"),
        ("mouon/adamw", "expected one of 'adamw', 'bert_adamw', 'muon', got mouon; did you mean muon?"),
        ("/adamw", "expected one of 'adamw', 'bert_adamw', 'muon', got ;"),
    ],
)
def test_a_wrong_rule_is_refused(rule, message):
    with pytest.raises(UserError) as error:
        OptimSettings(rule=rule)
    assert f"optim.rule: {message}" in str(error.value)


def test_muon_is_refused_where_zero_cuts_matrices():
    with pytest.raises(UserError) as error:
        read_recipe(["--recipe", "mini", "--optim.rule", "muon/adamw", "--engine.zero_stage", "3"])
    assert "optim.rule: muon/adamw needs whole matrices, which engine.zero_stage 3 cuts" in str(error.value)


def test_rate_zero_leaves_weights_and_state_alone():
    """ZeRO hands zero gradients for a frozen backbone: weight decay and momentum must not move it meanwhile."""
    params = _parameters(0)
    before = [param.detach().clone() for param in params]
    optimizer = SgdAdamW([{"params": params, "kind": "sgd", "lr": 0.0, "weight_decay": 0.5}])
    for param in params:
        param.grad = torch.ones_like(param)
    optimizer.step()
    assert all(torch.equal(param, old) for param, old in zip(params, before, strict=True))
    assert not optimizer.state


def test_groups_take_the_recipes_values():
    groups = [
        {"params": [each], "kind": kind} for each, kind in zip(_parameters(0), ("backbone", "rest"), strict=False)
    ]
    model = SimpleNamespace(parameter_groups=lambda: groups)
    settings = OptimSettings(lr=3.0, weight_decay=0.3, backbone_lr=4.0, backbone_weight_decay=0.4, eps=0.5)
    kinds = [group["kind"] for group in optimizer_groups(model, OptimSettings(rule="bert_adamw"))]
    assert kinds == ["sgd", "bert_adamw"]
    backbone, rest = optimizer_groups(model, settings)
    assert (backbone["kind"], backbone["base_lr"], backbone["weight_decay"]) == ("sgd", 4.0, 0.4)
    assert (rest["kind"], rest["base_lr"], rest["weight_decay"], rest["eps"]) == ("adamw", 3.0, 0.3, 0.5)
    assert [group["backbone"] for group in (backbone, rest)] == [True, False]


def test_schedule_of_the_paper():
    """Warm-up from a third, then a tenth at epochs 25 and 35 of 40."""
    schedule = Schedule(ScheduleSettings(), steps_per_epoch=100, total_steps=4000)
    assert schedule.factor(0) == pytest.approx(1 / 3)
    assert schedule.factor(500) == pytest.approx(2 / 3)
    assert [schedule.factor(step) for step in (1000, 2499)] == [1.0, 1.0]
    assert [schedule.factor(step) for step in (2500, 3499)] == pytest.approx([0.1, 0.1])
    assert [schedule.factor(step) for step in (3500, 3999)] == pytest.approx([0.01, 0.01])


@pytest.mark.parametrize("decay", ["cosine", "linear"])
def test_schedule_falls_to_its_end_by_steps_or_by_time(decay):
    schedule = Schedule(ScheduleSettings(warmup_steps=10, decay=decay, end_factor=0.2), 50, 110)
    assert schedule.factor(10) == 1.0
    assert schedule.factor(60) == pytest.approx(0.6)
    assert schedule.factor(110) == pytest.approx(0.2)
    assert schedule.factor(60, elapsed=1.0) == pytest.approx(0.2)
    values = [schedule.factor(step) for step in range(10, 111)]
    assert values == sorted(values, reverse=True) and all(map(math.isfinite, values))


def test_the_backbones_rate_is_zero_in_its_span_and_begins_anew_behind_it():
    optim = OptimSettings(frozen_backbone_epochs=(1, 2), backbone_warmup_steps=4, thawed_backbone_factor=0.5)
    settings = ScheduleSettings(warmup_steps=2, warmup_start=0.25, decay="linear", end_factor=0.0)
    schedule = Schedule(settings, 10, 40, optim=optim)
    factors = [schedule.backbone_factor(step) for step in range(40)]
    assert [step for step in range(40) if schedule.is_frozen(step)] == list(range(10, 20))
    assert factors[:20] == [schedule.factor(step) for step in range(10)] + [0.0] * 10
    anew = [0.5 * min(1, 0.25 + 0.75 * past / 4) * (1 - past / 20) for past in range(20)]
    assert factors[20:] == pytest.approx(anew)


def test_schedule_refuses_nonsense():
    with pytest.raises(UserError, match="step_epochs"):
        Schedule(ScheduleSettings(step_epochs=[3, 1]), 1, 1)
