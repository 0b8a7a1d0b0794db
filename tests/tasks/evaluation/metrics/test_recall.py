import pytest
import torch

from soho_fast.tasks.evaluation.metrics.recall import (
    mean_reciprocal_rank,
    recall_at,
    retrieval_recall,
    retrieval_recall_in_folds,
)

SCORES = torch.tensor(
    [
        [0.9, 0.1, 0.2, 0.3],  # target 0: first
        [0.9, 0.8, 0.1, 0.2],  # target 1: second
        [0.5, 0.6, 0.1, 0.9],  # target 2: last
        [0.5, 0.5, 0.1, 0.5],  # target 3: ties with two others
    ]
)


def test_hand_made_scores():
    recall = recall_at(SCORES, torch.arange(4), (1, 2, 3, 4))
    assert recall[1] == pytest.approx((1 + 0 + 0 + 1 / 3) / 4)
    assert recall[2] == pytest.approx((1 + 1 + 0 + 2 / 3) / 4)
    assert recall[3] == pytest.approx((1 + 1 + 0 + 1) / 4)
    assert recall[4] == 1.0


def test_the_mean_reciprocal_rank_of_hand_made_scores():
    tied = (1 + 1 / 2 + 1 / 3) / 3
    assert mean_reciprocal_rank(SCORES, torch.arange(4)) == pytest.approx((1 + 1 / 2 + 1 / 4 + tied) / 4)
    blind = sum(1 / rank for rank in range(1, 41)) / 40
    assert mean_reciprocal_rank(torch.zeros(40, 40), torch.arange(40)) == pytest.approx(blind)


def test_columns_are_the_other_direction():
    recall = recall_at(SCORES.T, torch.arange(4), (1,))
    assert recall[1] == pytest.approx((0.5 + 1 + 0 + 0) / 4)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int8, torch.uint8, torch.float16])
def test_scores_of_other_types(dtype):
    """Ranks, counts of votes or quantised logits; the lowest value of the type is a score like any other."""
    largest, lowest = (torch.finfo if dtype.is_floating_point else torch.iinfo)(dtype).max, 0
    if dtype != torch.uint8:
        lowest = -torch.inf if dtype.is_floating_point else torch.iinfo(dtype).min
    scores = torch.tensor([[3, 1, 2], [largest, lowest, lowest], [0, 2, 1]]).to(dtype)
    if dtype == torch.int64:
        scores[1] = torch.tensor([2**60 + 1, 2**60, lowest])  # equal in float32 and float64
    recall = retrieval_recall(scores, torch.arange(3), (1, 2))
    second = 1 if dtype == torch.int64 else 1 / 2
    assert recall.image_to_text == pytest.approx({1: 1 / 3, 2: (1 + second + 1) / 3})
    assert retrieval_recall(scores.T, torch.arange(3), (1,)).text_to_image == {1: recall.image_to_text[1]}


def test_a_blind_model_gets_exactly_chance():
    recall = recall_at(torch.zeros(40, 40), torch.arange(40))
    assert recall == {1: pytest.approx(1 / 40), 5: pytest.approx(5 / 40), 10: pytest.approx(10 / 40)}


def chance_with_ties(scores, right, k, trials=20_000):
    """Share of random orders of equal scores that put a right candidate among the first k."""
    noise = torch.rand(trials, len(scores), generator=torch.Generator().manual_seed(0)) * 1e-6
    best = (scores.double() + noise).topk(k).indices
    return torch.isin(best, torch.tensor(right)).any(1).double().mean().item()


def test_several_right_candidates_and_ties():
    scores = torch.tensor([0.5, 0.9, 0.5, 0.5, 0.5, 0.1])
    group = torch.tensor([7, 3, 7, 4, 5, 7])  # right: 0, 2 (tied with two wrong ones) and 5
    recall = recall_at(scores[None], torch.tensor([7]), (1, 2, 3, 4, 5), group_N=group)
    # One wrong candidate is ahead; then C(2, places) / C(4, places) is the chance that only wrong ones follow.
    assert recall == {1: 0.0, 2: pytest.approx(1 - 2 / 4), 3: pytest.approx(1 - 1 / 6), 4: 1.0, 5: 1.0}
    for k in (2, 3):
        assert recall[k] == pytest.approx(chance_with_ties(scores, [0, 2, 5], k), abs=0.015)


def test_five_texts_an_image_by_hand():
    image_of_text = torch.tensor([0, 0, 1, 1])
    scores = torch.tensor([[0.1, 0.8, 0.9, 0.0], [0.2, 0.3, 0.4, 0.5]])
    recall = retrieval_recall(scores, image_of_text, (1, 2))
    assert recall.image_to_text == {1: 0.5, 2: 1.0}
    assert recall.text_to_image == {1: 0.5, 2: 1.0}  # texts 1 and 3 find their image first


def test_folds_hold_their_own_candidates_only():
    scores = torch.tensor([[1.0, 0, 5, 5], [0, 1, 5, 5], [9, 9, 1, 2], [9, 9, 1, 2]])
    image_of_text = torch.arange(4)
    assert retrieval_recall(scores, image_of_text, (1,)).image_to_text == {1: 0.0}
    folds = retrieval_recall_in_folds(scores, image_of_text, (1,), num_folds=2)
    assert folds.image_to_text == {1: pytest.approx((1.0 + 0.5) / 2)}
    assert folds.text_to_image == {1: pytest.approx((1.0 + 0.5) / 2)}


def test_coco_5k_and_1k_against_the_published_ground_truth():
    """The real images and captions of COCO's test split, 5,000 x 25,000 synthetic scores, eccv-caption's evaluator."""
    eccv = pytest.importorskip("eccv_caption", reason="eccv-caption (extra test) holds COCO's ground truth")
    truth = eccv.Metrics().coco_gts["i2t"]
    images = list(truth)
    captions = [caption for image in images for caption in truth[image]]
    image_of_text = torch.arange(5000).repeat_interleave(5)
    scores = torch.randn(5000, 25000, generator=torch.Generator().manual_seed(0))
    scores[image_of_text, torch.arange(25000)] += 3.5

    def retrieved(scores_QN, queries, candidates):
        ranked = scores_QN.topk(10).indices.tolist()
        return {query: [candidates[n] for n in row] for query, row in zip(queries, ranked, strict=True)}

    both = {"i2t": retrieved(scores, images, captions), "t2i": retrieved(scores.T, captions, images)}
    ours = retrieval_recall(scores, image_of_text)
    for k in (1, 5, 10):
        theirs = eccv.Metrics().coco_5k_recalls(both, "all", k)
        assert ours.image_to_text[k] == pytest.approx(theirs["i2t"], abs=1e-9)
        assert ours.text_to_image[k] == pytest.approx(theirs["t2i"], abs=1e-9)
        assert 0.05 < theirs["t2i"] < theirs["i2t"] < 1.0

    from eccv_caption._metrics import compute_r_at_k

    folds = retrieval_recall_in_folds(scores, image_of_text)
    theirs = []
    for begin in range(0, 5000, 1000):
        some, own = images[begin : begin + 1000], captions[5 * begin : 5 * begin + 5000]
        ranked = retrieved(scores[begin : begin + 1000, 5 * begin : 5 * begin + 5000], some, own)
        theirs.append(compute_r_at_k(ranked, {image: truth[image] for image in some}, 1))
    assert folds.image_to_text[1] == pytest.approx(sum(theirs) / 5, abs=1e-9)
    assert folds.image_to_text[1] > ours.image_to_text[1]


def test_refusals():
    with pytest.raises(ValueError, match="query 1 has no right candidate"):
        retrieval_recall(torch.zeros(2, 2), torch.zeros(2, dtype=torch.int64))
    with pytest.raises(ValueError, match="NaN"):
        recall_at(torch.full((2, 2), float("nan")), torch.arange(2))
    for number in (3, 20):
        with pytest.raises(ValueError, match=f"num_folds: expected a divisor of the 10 images, got {number}"):
            retrieval_recall_in_folds(torch.eye(10), torch.arange(10), (1,), num_folds=number)
