"""SgdAdamW against torch's own SGD and AdamW, and the schedule."""

import copy
import math
from types import SimpleNamespace

import pytest
import torch

from soho_fast.common.errors import UserError
from soho_fast.engine.optimizer import Schedule, SgdAdamW, freeze_parameters, optimizer_groups
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


def test_the_average_is_that_of_torch_and_changes_no_weights():
    model, plain = torch.nn.ParameterList(_parameters(0)), _parameters(0)
    averaged = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.8))
    groups = [{"params": list(model)[:1], "kind": "sgd"}, {"params": list(model)[1:], "kind": "torch.optim:Adam"}]
    others = [{"params": plain[:1], "kind": "sgd"}, {"params": plain[1:], "kind": "torch.optim:Adam"}]
    settings = {"lr": 0.1, "weight_decay": 0.0}
    ours = SgdAdamW([{**group, **settings} for group in groups], average_decay=0.8)
    without = SgdAdamW([{**group, **settings} for group in others])
    for _ in range(5):
        for param, other in zip(model, plain, strict=True):
            param.grad = torch.randn(param.shape)
            other.grad = param.grad.clone()
        ours.step()
        without.step()
        averaged.update_parameters(model)
    for param, other, average in zip(model, plain, averaged.parameters(), strict=True):
        torch.testing.assert_close(ours.state[param]["average"], average.data, rtol=0, atol=0)
        assert torch.equal(param, other) and not torch.equal(param, average)
    ours.param_groups[0]["lr"] = 0.0
    before = ours.state[model[0]]["average"].clone()
    ours.step()
    assert torch.equal(ours.state[model[0]]["average"], before), "what is frozen is left alone"


@pytest.mark.parametrize(
    ("name", "options"),
    [("Adagrad", {"initial_accumulator_value": 0.2}), ("RMSprop", {"alpha": 0.8}), ("NAdam", {}), ("Rprop", {})],
)
def test_an_optimiser_by_import_path_is_that_of_torch(name, options):
    kind = getattr(torch.optim, name)
    decay = {} if name == "Rprop" else {"weight_decay": 0.05}
    ours, theirs = _parameters(0) + _parameters(1), _parameters(0) + _parameters(1)
    groups = [{"params": ours[:3]}, {"params": ours[3:], "backbone": True}]
    settings = {"kind": f"torch.optim:{name}", "lr": 0.1, "weight_decay": 0.0, **decay}
    joint = SgdAdamW([{**group, **settings} for group in groups], options)
    others = [kind(theirs[:3], lr=0.1, **decay, **options), kind(theirs[3:], lr=0.1, **decay)]
    _train([joint], ours, 4)
    saved = copy.deepcopy(joint.state_dict())
    joint = SgdAdamW([{**group, **settings} for group in groups], options)
    joint.load_state_dict(saved)
    _train([joint], ours, 3)
    _train(others, theirs, 4)
    _train(others, theirs, 3)
    assert all(torch.equal(mine, other) for mine, other in zip(ours, theirs, strict=True))


@pytest.mark.parametrize(
    ("kind", "options", "decay", "message"),
    [
        ("torch.optim:Adagrat", {}, 0.0, "optim.rule: torch.optim has no Adagrat; did you mean Adagrad?"),
        ("torch.optim:Optimizer", {}, 0.0, "optim.rule_options: torch.optim:Optimizer does not take {}: "),
        ("torch.nn:Linear", {}, 0.0, "optim.rule: expected a subclass of Optimizer, torch.nn:Linear is a class of"),
        ("torch.optim:Adagrad", {"lr_dekay": 1}, 0.0, "optim.rule_options: torch.optim:Adagrad does not take {'lr_dek"),
        ("torch.optim:Adagrad", {"eps": -1}, 0.0, "does not take {'eps': -1}: Invalid epsilon value: -1"),
        ("torch.optim:Adagrad", {"lr": 1}, 0.0, "optim.rule_options: lr is a field of `optim`, expected other keywor"),
        ("torch.optim:Rprop", {}, 0.1, "optim.rule: torch.optim:Rprop has no weight decay, got 0.1; give 0"),
        ("torch.optim:LBFGS", {}, 0.0, "optim.rule: torch.optim:LBFGS asks for the loss several times a step"),
        ("torch.optim:Muon", {}, 0.0, "torch.optim:Muon does not take {}: Muon only supports 2D parameters"),
    ],
)
def test_an_optimiser_that_does_not_fit_is_one_line(kind, options, decay, message):
    with pytest.raises(UserError) as error:
        SgdAdamW([{"params": _parameters(0), "kind": kind, "weight_decay": decay}], options)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_the_recipe_takes_one_by_import_path():
    given = ["--optim.rule", "torch.optim:Adagrad", "--optim.rule_options.eps", "1e-5", "--optim.weight_decay", "0"]
    optim = read_recipe(["--recipe", "mini", *given]).optim
    assert (optim.rule, optim.rule_options) == ("torch.optim:Adagrad", {"eps": 1e-5})
    with pytest.raises(UserError, match=r"optim\.rule: "):
        read_recipe(["--recipe", "mini", "--optim.rule", "Adagrad"])


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


def test_state_survives_saving():
    straight, saved = _parameters(0), _parameters(0)
    first = SgdAdamW([{"params": straight, "kind": "adamw", "lr": 0.01}])
    _train([first], straight, 3)
    second = SgdAdamW([{"params": saved, "kind": "adamw", "lr": 0.01}])
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    with torch.no_grad():
        for param, value in zip(saved, straight, strict=True):
            param.copy_(value)
    _train([first], straight, 3)
    _train([second], saved, 3)
    assert all(torch.equal(one, two) for one, two in zip(straight, saved, strict=True))


def test_groups_take_the_recipes_values():
    class Model:
        def parameter_groups(self, *, exclude_from_decay):
            assert exclude_from_decay
            params = _parameters(0)
            return [
                {"params": params[:1], "kind": "backbone", "decay": True},
                {"params": params[1:2], "kind": "rest", "decay": False},
                {"params": params[2:], "kind": "rest", "decay": True},
            ]

    settings = OptimSettings(lr=3.0, weight_decay=0.3, backbone_lr=4.0, backbone_weight_decay=0.4, eps=0.5)
    settings.decay_norm_and_bias = False
    backbone, bare, rest = optimizer_groups(Model(), settings)
    assert (backbone["kind"], backbone["base_lr"], backbone["weight_decay"]) == ("sgd", 4.0, 0.4)
    assert (bare["kind"], bare["base_lr"], bare["weight_decay"], bare["name"]) == ("adamw", 3.0, 0.0, "rest_no_decay")
    assert (rest["kind"], rest["weight_decay"], rest["eps"]) == ("adamw", 0.3, 0.5)
    assert [group["backbone"] for group in (backbone, bare, rest)] == [True, False, False]


def test_rates_fall_by_layer_but_for_the_backbones():
    def parameter_groups(*, exclude_from_decay, by_layer=False):
        kinds = (
            [("backbone", 0), ("rest", 0), ("rest", 1), ("rest", 13)] if by_layer else [("backbone", 0), ("rest", 0)]
        )
        return [{"params": _parameters(0), "kind": kind, "decay": True, "depth": depth} for kind, depth in kinds]

    model = SimpleNamespace(parameter_groups=parameter_groups)
    rates = {
        group["name"]: group["base_lr"] for group in optimizer_groups(model, OptimSettings(lr=2.0, layer_decay=0.75))
    }
    expected = {"backbone": 1e-2, "rest": 2.0, "rest_depth_1": 1.5, "rest_depth_13": 2.0 * 0.75**13}
    assert rates == pytest.approx(expected)
    assert [group["base_lr"] for group in optimizer_groups(model, OptimSettings(lr=2.0))] == [1e-2, 2.0]


def test_groups_hold_plain_numbers():
    """A checkpoint of a run by a recipe is loaded as plain data, which the types of the recipe's numbers are not."""
    recipe = read_recipe(["--recipe", "mini", "--optim.lr", "1e-3"])
    assert type(recipe.optim.lr) is not float
    model = SimpleNamespace(
        parameter_groups=lambda **_: [
            {"params": _parameters(0), "kind": kind, "decay": True} for kind in ("backbone", "rest")
        ]
    )
    groups = optimizer_groups(model, recipe.optim)
    numbers = [value for group in groups for name, value in group.items() if name not in ("params", "betas")]
    numbers += [beta for group in groups for beta in group["betas"]]
    assert {type(number) for number in numbers} <= {bool, str, float}


def test_what_is_frozen_by_name_needs_no_gradient():
    model = torch.nn.ModuleDict({name: torch.nn.BatchNorm1d(3) for name in ("projection", "feature_norm", "head")})
    freeze_parameters(model, ["projection.*", "*_norm.weight"])
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert trained == ["feature_norm.bias", "head.weight", "head.bias"]
    with pytest.raises(UserError, match=r"no name is like 'feature_nrm\.bias'; did you mean feature_norm\.bias"):
        freeze_parameters(model, ["head.*", "feature_nrm.bias"])


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


def test_what_to_set_against_too_high_rates_is_what_those_of_the_step_follow_from():
    def told(step: int, *span: float | str) -> str:
        return Schedule(ScheduleSettings(), 10, 100, optim=OptimSettings(frozen_backbone_epochs=span)).advice(step)

    later = "lower optim.backbone_lr or optim.lr, or give optim.backbone_warmup_steps more"
    first = "lower optim.lr or optim.backbone_lr, or give schedule.warmup_steps more"
    frozen = "lower optim.lr, or give schedule.warmup_steps more"
    assert told(0, 0, 0) == told(99, 0, 0) == told(13, 1.4, 6) == told(99, 3, 3) == first
    assert told(0, 0, "end") == told(99, 0, "end") == told(14, 1.4, 6) == told(59, 1.4, 6) == frozen
    assert told(60, 1.4, 6) == told(99, 1.4, 6) == later


def test_schedule_refuses_nonsense():
    with pytest.raises(UserError, match="step_epochs"):
        Schedule(ScheduleSettings(step_epochs=[3, 1]), 1, 1)
