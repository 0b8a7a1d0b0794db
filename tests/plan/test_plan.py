"""The plan: every recipe, what does not fit, mistakes, its page; figures beside those of real steps on this CPU."""

import json
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from soho_fast.plan.__main__ import main, planned
from soho_fast.plan.cards import CARDS, GIB
from soho_fast.plan.fake import Kernel, Meter, StepCost
from soho_fast.plan.memory import Sizes, exchanged, states
from soho_fast.plan.roofline import collective_seconds, kernel_seconds, optimizer_seconds
from soho_fast.tasks.recipe import RECIPES

ROOT = Path(__file__).resolve().parents[2]
SMALL_IMAGES = ["--data.shorter_edge", "64", "--data.longer_edge", "64", "--text-length", "4"]
SMALL_MODEL = ["--model.config", "{backbone: resnet10, num_hidden_layers: 1, hidden_size: 64, num_attention_heads: 2}"]
SMALL = [*SMALL_IMAGES, *SMALL_MODEL]
# Recipes that score all pairs want 24 images on each process.
TOGETHER = {"retrieval_coco": 24, "retrieval_flickr": 24, "retrieval_coco_two_stages": 24}


@pytest.fixture(scope="module", autouse=True)
def from_the_root():
    """`benchmarks` can be imported, also in the processes that it starts."""
    sys.path.insert(0, str(ROOT))
    yield
    sys.path.remove(str(ROOT))


def plan_of(*arguments: str) -> dict:
    return json.loads(planned([*arguments, "--json"]))


@pytest.mark.parametrize("name", sorted(path.stem for path in RECIPES.glob("*.yaml")))
def test_every_recipe_has_a_plan(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # nothing that a run would read is here
    batch = ["--batch.global_batch_size", str(2 * TOGETHER[name])] if name in TOGETHER else []
    small = SMALL if name.startswith(("paper", "retrieval", "vqa", "nlvr2", "snli")) else SMALL_IMAGES
    plan = plan_of("--recipe", name, "--gpus", "2", "--card", "h100", *small, *batch, "--samples", "4096")
    last = plan["phases"][-1]
    assert all(last["forward"][part] > 0 for part in ("backbone", "neck", "Transformer", "heads"))
    assert last["backward"]["Transformer"] > last["forward"]["Transformer"]
    # The cosines of recipe official and the contrastive loss's products of vectors are no module's.
    other = last["forward"]["other"] + last["backward"]["other"]
    assert 0 <= other < (2e-2 if name in ("official", "mini_retrieval") else 1e-3) * last["backward"]["Transformer"]
    assert plan["hours"] > 0 and last["readers"]["workers_a_gpu"] >= 1
    assert plan["collectives"]["gradients, reduced"] > 0
    assert all(value["source"] for value in plan["assumed"].values())


def test_a_still_backbone_takes_no_backward():
    plan = plan_of("--gpus", "8", *SMALL, "--samples", "2048", "--optim.frozen_backbone_epochs", "[0, 10]")
    still, trained = plan["phases"]
    assert 0 < still["seconds"]["collectives"]["interconnect"] < trained["seconds"]["collectives"]["interconnect"]
    assert (still["epochs"], trained["epochs"]) == (10, 30)
    assert still["backward"]["backbone"] == 0 < trained["backward"]["backbone"]
    assert still["forward"] == trained["forward"]
    again = plan_of("--gpus", "8", *SMALL, "--engine.activation_checkpointing", "true")["phases"][1]
    # Only the stem's convolution has no gradient of its input to take.
    assert again["backward"]["backbone"] == trained["backward"]["backbone"] + trained["forward"]["backbone"]


def test_a_run_that_ends_by_its_steps_takes_so_many():
    plan = plan_of("--gpus", "8", *SMALL, "--samples", "2048", "--max_steps", "3")
    (phase,) = plan["phases"]
    assert plan["steps_per_epoch"] == 2 and phase["epochs"] == 1.5
    assert plan["hours"] == pytest.approx(3 * phase["step_seconds"] / 3600)


def test_states_by_stage():
    """155 M parameters of 16 bits on 32 GPUs, by hand."""
    sizes = Sizes(backbone=40_000_000, rest=100_000_000, frozen=0, buffers=0)
    by_stage = [states(sizes, stage, "bf16", 32, backbone_rule="sgd") for stage in range(4)]
    moments = 4 * 40_000_000 + 8 * 100_000_000
    assert [each["parameters"] for each in by_stage] == [560_000_000, 280_000_000, 280_000_000, 288_750_000]
    assert [each["gradients"] for each in by_stage] == [560_000_000, 280_000_000, 8_750_000, 8_750_000]
    assert [each["moments of the optimiser"] for each in by_stage] == [moments, *[moments // 32] * 3]
    adamw = states(sizes, 1, "bf16", 1, backbone_rule="adamw")
    assert adamw["moments of the optimiser"] == 8 * 140_000_000
    assert exchanged(sizes, 1, "bf16", 1, 8) == {}
    assert exchanged(sizes, 2, "bf16", 2, 8)["gradients, reduced"] == 8 * 280_000_000


def test_what_does_not_fit_is_told_with_what_makes_it_fit():
    arguments = ["--gpus", "1", "--card", "v100", *SMALL, "--data.shorter_edge", "256", "--data.longer_edge", "256"]
    arguments += ["--batch.global_batch_size", "256", "--batch.gradient_accumulation_steps", "1"]
    whole = plan_of(*arguments)
    assert whole["fits"] and not [line for line in whole["changes"] if "workers" not in line]
    needed = whole["memory"][0]["bytes"]["in all"]
    short = plan_of(*arguments, "--memory-gb", f"{0.8 * needed / GIB:.3f}")
    assert not short["fits"] and short["changes"]
    change, _, size = short["changes"][0].partition(": ")
    assert float(size.split()[0]) < 0.8 * needed / GIB
    changed = plan_of(*arguments, *change.split(), "--memory-gb", f"{0.8 * needed / GIB:.3f}")
    assert changed["fits"], change
    text = planned([*arguments, "--memory-gb", "1.5"])
    assert "DOES NOT FIT" in text and "nothing that the recipe can change makes it fit" in text


def test_a_kernel_takes_the_longer_of_its_products_and_its_tensors():
    card = CARDS["a100"]
    kernels = {
        Kernel("backbone", "bf16", 312e12, 8): 2,  # 1 s at the peak
        Kernel("Transformer", "bf16", 312e12, 8): 1,
        Kernel("dictionary", "float32", 19.5e12, 8): 1,
        Kernel("Transformer", "bf16", 312e12, 10 * 2_039_000_000_000): 1,
        Kernel("backbone", "bf16", 0, 2_039_000_000_000): 3,
    }
    found = kernel_seconds(StepCost(kernels=Counter(kernels)), card, times=4)
    cnn, transformer = (card.efficiency[part] for part in ("CNN", "Transformer"))
    assert found["backbone"]["compute"] == pytest.approx(4 * 2 / cnn)
    assert found["backbone"]["memory bandwidth"] == pytest.approx(4 * 3)
    assert found["Transformer"]["compute"] == pytest.approx(4 / transformer)
    assert found["Transformer"]["memory bandwidth"] == pytest.approx(4 * 10)
    assert found["dictionary"]["compute"] == pytest.approx(4 / transformer)
    held = states(Sizes(0, 1_000_000, 0, 0), 1, "bf16", 1, backbone_rule="sgd")
    moved = optimizer_seconds(held, card)["optimiser"]["memory bandwidth"] * card.bandwidth
    assert moved == pytest.approx(2 * 1_000_000 * (2 + 2 + 4 + 8))


def test_a_kernel_moves_each_of_its_tensors_once_and_a_view_nothing():
    features, weight = torch.empty(8, 16, dtype=torch.float16), torch.empty(32, 16, dtype=torch.float16)
    with Meter([], SimpleNamespace(now=lambda: "neck"), 0) as meter:
        product = features @ weight.t()
        product.view(-1).unsqueeze(0).expand(5, -1)
        torch.empty_like(product)
        product.float() + torch.ones(1).expand(8, 32)
    product, wider, ones, added = meter.take()
    assert product == Kernel("neck", "fp16", 2 * 8 * 16 * 32, 2 * (8 * 16 + 32 * 16 + 8 * 32))
    assert wider.bytes == (2 + 4) * 8 * 32
    assert ones.bytes == 4
    assert added == Kernel("neck", "float32", 0, 4 * 8 * 32 * 2 + 4)


def test_collectives_take_a_ring_over_the_slowest_link():
    card = CARDS["v100"]
    traffic = {"gradients, reduced": 300_000_000, "parameters, gathered": 300_000_000, "dictionary": 6_000_000}

    def seconds(stage, gpus):
        return collective_seconds(traffic, stage, gpus, card)["collectives"]["interconnect"]

    assert seconds(1, 8) == pytest.approx((2 * 306e6 + 300e6) * 7 / 8 / 150e9)
    assert seconds(3, 8) == pytest.approx((2 * 6e6 + 600e6) * 7 / 8 / 150e9)
    assert seconds(1, 16) == pytest.approx((2 * 306e6 + 300e6) * 15 / 16 / 50e9)
    assert collective_seconds({}, 1, 1, card)["collectives"]["interconnect"] == 0


def test_hours_follow_what_bounds_a_step():
    full, half, slow = (
        plan_of("--gpus", "16", *SMALL, "--samples", "2048", *more)
        for more in (["--efficiency", "1"], ["--efficiency", "0.5"], ["--network-gbit", "0.1"])
    )
    assert full["hours"] < half["hours"] < 2 * full["hours"]
    for plan in (full, half, slow):
        last = plan["phases"][-1]
        seconds = last["seconds"]
        assert last["step_seconds"] == pytest.approx(sum(sum(part.values()) for part in seconds.values()))
        assert plan["hours"] == pytest.approx(
            sum(each["epochs"] * plan["steps_per_epoch"] * each["step_seconds"] for each in plan["phases"]) / 3600
        )
        operations = plan["gradient_accumulation_steps"] * (
            sum(last["forward"].values()) + sum(last["backward"].values())
        )
        assert last["mfu"] == pytest.approx(operations / last["step_seconds"] / CARDS["a100"].peak["bf16"])
        assert seconds["optimiser"]["memory bandwidth"] > 0
    assert full["phases"][-1]["bound_by"] == "memory bandwidth"
    assert slow["phases"][-1]["bound_by"] == "interconnect" and slow["hours"] > 10 * half["hours"]
    text = planned(["--gpus", "16", *SMALL, "--samples", "2048", "--network-gbit", "0.1"])
    assert "bound by interconnect" in text and "0.0125 beyond, each way" in text
    # The line on top is of all phases: in ten epochs of eleven the CNN is frozen.
    frozen = ["--epochs", "11", "--optim.frozen_backbone_epochs", "[0, 10]", "--network-gbit", "300"]
    frozen = ["--gpus", "16", *SMALL, "--samples", "2048", *frozen]
    text, (first, last) = planned(frozen), [phase["bound_by"] for phase in plan_of(*frozen)["phases"]]
    assert first != last and f"bound by {first}" in text.splitlines()[2]


def test_published_runs_take_the_time_that_is_published():
    from benchmarks.plan.page import PAGE, with_published
    from benchmarks.plan.published import RUNS, costs

    counted, page = costs(), PAGE.read_text()
    for run in RUNS:
        assert not run.fitted or run.planned(counted[run.model]) == pytest.approx(run.rate, rel=0.015), run
    assert with_published(page, counted) == page, "render it: python -m benchmarks.plan.page"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--card", "tpu"], "card: expected one of 'v100', 'a100', 'h100', got 'tpu'"),
        (["--gpus", "0"], "gpus: expected 1 or more, got 0"),
        (["--efficiency", "1.5"], "efficiency: expected 0.001 to 1, got 1.5"),
        (["--network-gbit", "0"], "network-gbit: expected 0.001 or more, got 0"),
        (["--network-gbit", "100", "--gpus", "8"], "network-gbit: 8 GPUs are in one machine; expected more than 8"),
        (["--image", "480"], "image: expected HEIGHTxWIDTH in pixels, as 480x640, got '480'"),
        (["--stage", "4"], "stage: expected one of 0, 1, 2, 3, got 4"),
        (["--recipe", "papr"], "recipe: there is no recipe 'papr'"),
        (["--gpsu", "8"], "gpsu: there is no such argument; did you mean --gpus"),
        (["--gpus", "7"], "batch.global_batch_size: 1024 does not divide"),
        (["--recipe", "retrieval_coco", "--gpus", "8"], "give --batch.global_batch_size 192"),
        (["--recipe", "mini", *SMALL_MODEL], "model.bag_of_words_epochs: 1.4 epochs of the bag-of-words loss need"),
        (["--recipe", "mini", "--data.mvm_probability", "1"], "data.conditional_masking: expected data.mvm_proba"),
        (
            ["--recipe", "mini", "--data.mvm_probability", "1", "--data.conditional_masking", "false"],
            "model.config.mvm_margin: matching is asked only of pairs that are read without a margin",
        ),
        (["--card", "v100", "--engine.precision", "bf16"], "engine.precision: NVIDIA V100"),
        (["--recipe", "vqa", "--model.pretrained", "runs/other/model"], "model.pretrained: runs/other/model"),
        (["--recipe", "mini", "--answers", "5"], "--answers: recipe mini answers no questions (task pretraining)"),
        (["--card", "A1000"], "card: expected one of 'v100', 'a100', 'h100', got 'a1000'; did you mean a100?"),
    ],
)
def test_mistakes_are_told_in_a_line(arguments, words, capsys):
    assert main(arguments) == 2
    said = capsys.readouterr()
    assert words in said.err and "Traceback" not in said.err and not said.out


@pytest.mark.parametrize("recomputed", [False, True])
def test_operations_and_memory_are_those_of_a_real_step(recomputed):
    from benchmarks.plan.measured import of_a_step

    rows = of_a_step(recomputed)
    assert len(rows) >= 3
    assert not [row for row in rows if row.apart > row.tolerance]


def test_two_ranks_exchange_what_is_planned(tmp_path, monkeypatch):
    from benchmarks.plan.measured import of_two_ranks

    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "compiled"))
    rows = of_two_ranks()
    trained = ["reduced, ZeRO 0", "reduced, ZeRO 1", "gathered, ZeRO 1"]
    assert [row.what for row in rows] == trained + [f"{what}, the CNN frozen" for what in trained]
    assert not [row for row in rows if row.apart > row.tolerance]
    assert not (tmp_path / "compiled").exists(), "what is compiled leaves a lock where it is killed"


def test_the_page_holds_what_its_commands_print():
    from benchmarks.plan.page import PAGE, with_plans

    page = PAGE.read_text()
    assert page.count("recipe paper on ") == 1 and page.count("| `--gpus ") == 2
    assert with_plans(page) == page, "render it: python -m benchmarks.plan.page"
