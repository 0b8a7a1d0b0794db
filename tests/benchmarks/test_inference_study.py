"""The region pipeline of the inference study computes what was published, and its measurement refuses wrong results."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from benchmarks.inference import baselines, measure, region_pipeline
from benchmarks.inference.baselines import EXACT, HALVED, REGION, SMALL, SOHO, Method, make_regions
from benchmarks.inference.clock import Clock
from benchmarks.inference.random_inputs import noise_images, taking_statistics
from benchmarks.inference.region_pipeline import CLASS_NMS, MIN_SCORE, nms_batched, nms_by_class
from soho_fast.model.outputs import VisualTokens


@pytest.fixture(scope="module")
def pipeline() -> region_pipeline.RegionPipeline:
    """A small one in float32."""
    return make_regions(SMALL, halved=False)


@pytest.fixture
def boxes_and_scores() -> tuple[torch.Tensor, torch.Tensor]:
    """40 boxes that overlap, and scores of 25 classes, of which a part reaches the threshold."""
    generator = torch.Generator().manual_seed(0)
    corner_N2 = 60 * torch.rand(40, 2, generator=generator)
    boxes_N4 = torch.cat([corner_N2, corner_N2 + 20 + 30 * torch.rand(40, 2, generator=generator)], dim=1)
    return boxes_N4, (4 * torch.randn(40, 25, generator=generator)).softmax(1)


def overlap(one: torch.Tensor, other: torch.Tensor) -> float:
    """Intersection over union of two boxes, written out."""
    sides = (torch.minimum(one[2:], other[2:]) - torch.maximum(one[:2], other[:2])).clamp(min=0)
    areas = [(box[2:] - box[:2]).prod() for box in (one, other)]
    return float(sides.prod() / (areas[0] + areas[1] - sides.prod()))


def test_a_box_counts_by_its_best_score_in_a_class_where_it_survived(boxes_and_scores):
    boxes_N4, score_NK = boxes_and_scores
    expected_N, survived = torch.zeros(len(boxes_N4)), 0
    for score_N in score_NK.T:
        kept: list[int] = []
        for number in score_N.argsort(descending=True).tolist():
            if all(overlap(boxes_N4[number], boxes_N4[other]) <= CLASS_NMS for other in kept):
                kept.append(number)
                expected_N[number] = max(expected_N[number], score_N[number])
        survived += len(kept)
    best_N, seen = nms_by_class(boxes_N4, score_NK)
    torch.testing.assert_close(best_N, expected_N, rtol=0, atol=0)
    assert seen == (40 * 25, survived) and survived < 40 * 25


def test_both_kinds_of_nms_agree_where_a_box_reaches_the_threshold(boxes_and_scores):
    boxes_N4, score_NK = boxes_and_scores
    (by_class_N, _), (batched_N, (entered, left)) = nms_by_class(boxes_N4, score_NK), nms_batched(boxes_N4, score_NK)
    torch.testing.assert_close(batched_N, by_class_N.where(by_class_N >= MIN_SCORE, 0.0), rtol=0, atol=0)
    assert left < entered == int((score_NK >= MIN_SCORE).sum())


class Soho(baselines.SohoRun):
    """Features are an image's columns' mean colours, logits those of the image, times a factor; autocast adds 1 %."""

    def __init__(self, model: tuple[float, float] = (1.0, 1.0), autocast: bool = False) -> None:
        super().__init__(model, autocast)

    def encode(self, pixels):
        feat_BLC = (self.model[0] + 0.01 * self.autocast) * pixels.mean(2).transpose(1, 2)
        return VisualTokens(features=feat_BLC, index=(1000 * feat_BLC[..., 0]).round().long())

    def read(self, visual, words):
        return (self.model[1] + 0.01 * self.autocast) * visual.features.mean(1)


def test_what_is_off_is_not_timed(monkeypatch):
    monkeypatch.setattr(measure, "SohoRun", Soho)
    exact = Soho()
    near = Method("near", SOHO, "bf16", Soho((1.015, 1.005)))
    found = measure.check([Method(EXACT, SOHO, "float32", exact), near], exact, SMALL, "cpu")
    assert list(found) == ["near"] and found["near"]["features"] == pytest.approx(0.015, rel=0.3)
    assert found["near"]["logits"] == pytest.approx(0.005, rel=0.3)
    assert found["near"]["same_codes"] < found["near"]["same_answers"] == 1.0
    for factors, what in (((1.03, 1.0), "features"), ((1.0, float("nan")), "logits")):
        with pytest.raises(RuntimeError, match=rf"far: {what} are off by .*: nothing is timed"):
            measure.check([replace(near, name="far", run=Soho(factors))], exact, SMALL, "cpu")
    assert measure.check([replace(near, precision="int8", run=Soho((1.5, 1.5)))], exact, SMALL, "cpu")


def test_a_result_and_its_targets(monkeypatch):
    monkeypatch.setattr(measure, "pass_bytes", lambda *_: 10**9)
    names = [EXACT, f"{SOHO} prepared, float32", f"{REGION}, float32", f"{HALVED}, bf16"]
    said: list[str] = []
    result = measure.measure(names, SMALL, [1, 2], 2, "cpu", said.append)
    assert [(row["method"], row["batch"]) for row in result["rows"]] == [
        (name, batch) for batch in (1, 2) for name in baselines.NAMES if name in names
    ]
    ran = {target["claim"]: target["met"] is not None for target in result["targets"]}
    assert ran["SOHO in float32 against regions in float32, batched NMS"]
    assert not ran["SOHO in int8 against regions in float32, NMS by class"]
    assert result["operations"][REGION]["features of boxes"] > result["operations"][HALVED]["features of boxes"] > 0
    assert result["operations"][SOHO]["visual tokens"] > 0
    assert result["agreement"].keys() == {f"{SOHO} prepared, float32"}


def test_folding_changes_nothing():
    torch.manual_seed(1)
    pipeline, images = region_pipeline.RegionPipeline(SMALL.region), noise_images(1, 96, 160, seed=2)
    with torch.no_grad():
        plain = [pipeline.cnn, pipeline.res5]
        with taking_statistics(pipeline.cnn):
            pipeline.cnn(images)
        before = pipeline.cnn(images)
        pipeline.calibrate(images)
        assert not any(isinstance(each, nn.BatchNorm2d) for module in plain for each in module.modules())
        torch.testing.assert_close(pipeline.cnn(images), before, rtol=1e-4, atol=1e-4)


def test_two_kinds_that_choose_different_boxes_are_not_timed(pipeline, monkeypatch):
    monkeypatch.setattr(region_pipeline, "nms_batched", lambda boxes, scores: (scores.amin(1) + 1, (1, 1)))
    with torch.inference_mode(), pytest.raises(RuntimeError, match="choose different boxes: nothing is timed"):
        pipeline(*SMALL.inputs(1), Clock())
