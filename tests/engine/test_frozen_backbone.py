"""The span of epochs in which the backbone is frozen while the rest trains on, and the features that are kept then."""

import json
import resource
import signal

import pytest
import torch
import yaml
from run_files import events, records, weights
from safetensors.torch import load_file

from soho_fast.common.files import read_log
from soho_fast.engine import feature_cache
from soho_fast.tasks.recipe import read_recipe


def test_the_backbone_stands_still_from_and_until_the_given_epochs_and_its_batch_norm_learns_again(launch, request_for):
    def make(name: str, steps: int, span: tuple[float, float] = (1, 1.5), **engine: bool) -> dict:
        optim = {"frozen_backbone_epochs": span}
        return request_for(name, max_steps=steps, task={"size": 64}, optim=optim, engine=engine)

    before, through, after = make("before", 8, (0, 0)), make("through", 12), make("after", 14)
    runs = [before, through, after, make("still", 14, freeze_batch_norm=True)]
    done = launch(*runs)
    assert done.code == 0, done.text
    stands = (8, "the backbone is frozen")
    assert [events(run) for run in (before, through)] == [[], [stands]]
    assert events(after) == [stands, (12, "no longer: the backbone is frozen")]
    start, held, moved, never = map(weights, runs)
    weight, mean = "backbone.0.weight", "backbone.1.running_mean"
    assert torch.equal(held[weight], start[weight]) and not torch.equal(moved[weight], start[weight])
    assert not torch.equal(moved[mean], held[mean]), "BatchNorm learns again too"
    assert not torch.equal(held["mask_vector"], start["mask_vector"])
    assert not never[mean].any()


def test_a_span_to_the_end_outlasts_more_epochs(launch, request_for):
    runs = [request_for(f"{steps}", max_steps=steps, optim={"frozen_backbone_epochs": (1, "end")}) for steps in (8, 20)]
    done = launch(*runs)
    assert done.code == 0, done.text
    assert [events(run) for run in runs] == [[(5, "the backbone is frozen")]] * 2
    assert torch.equal(*(weights(run)["backbone.0.weight"] for run in runs))


@pytest.mark.parametrize("name", ["mini_vqa", "mini_retrieval", "own", "own_vqa"])
def test_a_longer_run_of_a_recipe_whose_backbone_is_frozen_does_not_unfreeze_it(name):
    begin, end = read_recipe(["--recipe", name, "--epochs", "100000"]).optim.frozen_span()
    assert begin <= 1.4 and end == float("inf")
    given = read_recipe(["--recipe", name, "--optim.frozen_backbone_epochs", "[2, end]"]).optim
    assert given.frozen_span() == (2, float("inf"))


def test_the_log_tells_of_phases_rate_steps_and_warnings(launch, request_for):
    schedule = {"decay": "step", "step_epochs": [1.0], "step_factor": 0.1}
    request = request_for("told", max_steps=10, task={"size": 64, "reported": True}, schedule=schedule)
    done = launch(request)
    assert done.code == 0, done.text
    told = [
        (0, "the first epoch"),
        (3, "it goes wrong"),
        (8, "no longer: the first epoch"),
        (8, "learning rates x 0.1"),
    ]
    assert events(request) == told
    assert done.text.count("warning: step 3: it goes wrong; do something") == 1


def test_the_gradient_norm_is_logged_with_and_without_partitions(launch, request_for):
    none, partitioned = (request_for(f"zero{stage}", max_steps=3, engine={"zero_stage": stage}) for stage in (0, 1))
    done = launch(none, partitioned)
    assert done.code == 0, done.text
    norms = [[record["grad_norm"] for record in records(request)] for request in (none, partitioned)]
    assert len(norms[0]) == 3 and min(norms[0]) > 0
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)


@pytest.mark.parametrize("span", [(2, 1), (-1, 3)])
def test_impossible_span_is_refused(launch, request_for, span):
    done = launch(request_for("run", optim={"frozen_backbone_epochs": span}))
    assert done.code == 2
    assert f"optim.frozen_backbone_epochs: expected 0 <= from <= until, got [{span[0]}, {span[1]}]" in done.text


# Five steps an epoch: the backbone is frozen from step 2 on, for two epochs.
SPAN = {"optim": {"frozen_backbone_epochs": (0.4, 2.4)}, "max_steps": 15}
BACKBONE = "soho.visual_encoder.backbone."


@pytest.fixture
def make(request_for):
    """A request that caches features within these budgets."""

    def request(name: str, memory: float = 0, task: dict | None = None, **changes: object) -> dict:
        engine = {"feature_cache_gb": memory}
        task = {"soho": True, "pixels": 32, "cacheable": True, **(task or {})}
        return request_for(name, task=task, **{**SPAN, "engine": engine, **changes})

    return request


def test_losses_of_two_ranks_are_those_without(launch, make, losses):
    many = {"batch": {"gradient_accumulation_steps": 2}}
    runs = [make("without", **many), make("memory", memory=1, **many)]
    done = launch(*runs, processes=2)
    assert done.code == 0, done.text
    assert losses(runs[0]) == losses(runs[1])
    assert done.text.count("feature cache: filled for 40 images (") == 1
    assert "cached in memory (engine.feature_cache_gb 1)" in done.text


def test_a_run_goes_on_within_the_span_and_what_is_not_cached_is_said(launch, make, losses):
    through, once = make("through", memory=1e-5), make("once", memory=1, max_steps=7)
    # Asked to stop while features are computed, then in the middle of the span.
    tasks = {"signal_in_pass": 24}, {"signal_at": 5}, {}
    done = launch(through, once, *(make("run", memory=1, task=task) for task in tasks))
    assert done.code == 128 + signal.SIGTERM, done.text
    assert [(result["step"], bool(result["signal"])) for result in done.results()[2:]] == [
        (2, True),
        (6, True),
        (15, False),
    ]
    # 512 channels of one place in float32, for 40 images.
    assert "take 8.19e-05 GB, more than engine.feature_cache_gb 1e-05 allows" in done.text
    assert "the backbone is frozen for 5 steps, at most one pass over the 40 images" in done.text
    assert done.text.count("feature cache: filled for 40 images (") == 2
    assert losses(make("run")) == losses(through)


def test_a_corrupt_image_is_told_as_without_and_the_backbone_learns_after_the_span(again, small_recipe, tmp_path):
    recipe = yaml.safe_load(small_recipe.read_text())
    recipe["optim"] |= {"frozen_backbone_epochs": [0.4, 2.4]}
    recipe["batch"] |= {"corrupt_images": 1.0}
    recipe |= {"evaluation": {"at_end": False}}
    small_recipe.write_text(yaml.safe_dump(recipe))

    def train(name: str, steps: int, budget: int) -> tuple[str, list[dict], dict]:
        options = ["--recipe", str(small_recipe), "--output", str(tmp_path / name), "--max_steps", str(steps)]
        code, text = again(*options, "--engine.feature_cache_gb", str(budget))
        assert code == 0, text
        records = [record for record in read_log(tmp_path / name / "log.jsonl")[0] if record["kind"] == "train"]
        return text, records, load_file(tmp_path / name / "model" / "model.safetensors")

    train("first", 1, 0)
    described = json.loads((tmp_path / "corpus" / "dataset_coco.json").read_text())["images"]
    image = next(image for image in described if image["split"] == "train")
    picture = tmp_path / "corpus" / image["filepath"] / image["filename"]
    # Of another size, the corpus would be drawn anew.
    picture.write_bytes(bytes(picture.stat().st_size))
    text, records, weights = train("without", 15, 0)
    text_kept, records_kept, weights_kept = train("kept", 15, 1)
    *_, weights_before = train("span", 12, 1)

    def told(text: str) -> list[str]:
        return [line for line in text.splitlines() if line.startswith("skipped:")]

    (kept,) = [line for line in text_kept.splitlines() if line.startswith("feature cache")]
    assert kept.startswith("feature cache: filled for 40 images, 1 of them corrupt (")
    assert told(text_kept) == told(text) and len(told(text)) == records[-1]["corrupt_images"] == 1
    for record, kept in zip(records, records_kept, strict=True):
        same = ("loss", "mlm_loss", "mvm_loss", "itm_loss", "grad_norm", "corrupt_images", "perplexity")
        assert [kept[name] for name in same] == [record[name] for name in same]
    assert all(weights_kept[name].equal(value) for name, value in weights.items())
    assert any(not value.equal(weights_before[name]) for name, value in weights.items() if name.startswith(BACKBONE))


def test_memory_that_fills_up_is_told():
    cache = feature_cache.FeatureCache(rank=0)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        cache.open()
        cache.write({0: torch.ones(1000)})
        cache.write({1: torch.ones(1000)})
        cache.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert cache.error == "the features could not be written: File too large"
