"""The contrastive vectors, which pairs they choose, and what is lost by it."""

import pytest
import scoring_run
import torch
import torch.nn.functional as F

from soho_fast.model import SohoForPreTraining
from soho_fast.model.inputs import Texts
from soho_fast.tasks.evaluation.metrics.recall import retrieval_recall
from soho_fast.tasks.evaluation.pair_scoring import score_pairs
from soho_fast.tasks.evaluation.two_stage import K_TRIED, best_pairs, choose_k, contrastive_scores, ranked_in_two_stages


@torch.no_grad()
def test_vectors_are_the_models_and_need_nothing_of_the_other_side():
    scorer, images = scoring_run.scorer(), scoring_run.images(5)
    model = scorer.model
    found = contrastive_scores(scorer, scoring_run.blocks(scorer, images))
    by_hand = torch.empty(5, 9)
    for i, image in enumerate(images):
        visual = model.embed_images(model.encode_images(image[None]))
        mean = model.soho.encoder(visual)[0].mean(1)
        image_vector = F.normalize(model.contrastive_head.image_projection(mean), dim=-1)
        for t, text in enumerate(scoring_run.texts()):
            words = model.soho.text_embeddings(input_ids=torch.from_numpy(text.ids)[None])
            text_vector = F.normalize(
                model.contrastive_head.text_projection(model.soho.encoder(words)[0][:, 0]), dim=-1
            )
            by_hand[i, t] = image_vector @ text_vector[0]
    torch.testing.assert_close(found, by_hand, rtol=0.0, atol=2e-3)
    assert by_hand.std() > 0.02


def test_in_bf16_both_stages_are_near_those_in_float32():
    exact, rough = scoring_run.scorer(), scoring_run.scorer(precision="bf16")
    images = scoring_run.images(4)
    blocks = [scoring_run.blocks(scorer, images) for scorer in (exact, rough)]
    first = [contrastive_scores(scorer, own) for scorer, own in zip((exact, rough), blocks, strict=True)]
    logits = [torch.stack(score_pairs(scorer, own)) for scorer, own in zip((exact, rough), blocks, strict=True)]
    # bfloat16 has 8 bits; weights as large as these multiply what it loses.
    for one, other in (first, logits):
        assert 0 < float((one - other).abs().max()) < 0.25 * float(one.std())


def test_padding_moves_no_vector():
    model = scoring_run.model()
    with torch.no_grad():
        narrow, wide = scoring_run.images(2)[1], scoring_run.images(2)[0]
        alone = model.encode_images(narrow[None])
        padded = model.encode_images(*scoring_run.pixels([wide, narrow]).values())
        vectors = model.image_vectors(model.embed_images(padded), padded.valid)
        torch.testing.assert_close(vectors[1:], model.image_vectors(model.embed_images(alone)), rtol=1e-4, atol=1e-4)
        ids = torch.from_numpy(scoring_run.texts()[0].ids)[None]
        longer = F.pad(ids, (0, 4))
        torch.testing.assert_close(
            model.text_vectors(longer, (longer != 0).long()), model.text_vectors(ids), rtol=1e-4, atol=1e-4
        )


def test_training_on_all_pairs_of_aligned_ones():
    """Labels by hand, two texts of one image, an image without text; every parameter of the stage gets a gradient."""
    model = scoring_run.model()
    images = scoring_run.pixels(scoring_run.images(4))
    ids = torch.stack([torch.from_numpy(text.ids) for text in scoring_run.texts()[::3]])
    own = torch.tensor([2, 0, 2])
    out = model(**images, input_ids=ids, own_image=own)
    visual = model.encode_images(*images.values())
    image, text = model.image_vectors(model.embed_images(visual), visual.valid), model.text_vectors(ids)
    logits = (image @ text.T) / 0.07
    texts_choose = F.cross_entropy(logits.T, own, reduction="sum")
    share = logits.softmax(1)
    images_choose = -(share[0, 1].log() + (share[2, 0] + share[2, 2]).log())
    torch.testing.assert_close(out.contrastive_loss, (texts_choose + images_choose) / 5, rtol=1e-4, atol=1e-5)
    labels = torch.tensor([[0, 1, 0], [0, 0, 0], [1, 0, 1], [0, 0, 0]])
    torch.testing.assert_close(out.itm_loss, F.cross_entropy(out.itm_logits, labels.flatten()))
    torch.testing.assert_close(out.loss, out.itm_loss + out.contrastive_loss)
    repeated = model(visual_tokens=visual, input_ids=ids.repeat(4, 1), image_index=torch.arange(4).repeat_interleave(3))
    torch.testing.assert_close(out.itm_logits, repeated.itm_logits)
    out.loss.backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in model.contrastive_head.parameters())
    with pytest.raises(ValueError, match="own_image: expected images, and no image_index"):
        model(**images, input_ids=ids, own_image=own, itm_labels=own)


@pytest.mark.parametrize("reads", ["transformer", "embeddings"])
def test_pre_training_learns_vectors_from_the_words_of_matched_texts_that_are_not_masked(reads):
    """A masked text, one that does not match, an image without a text that does."""
    trained = scoring_run.model(contrastive_reads=reads)
    model = SohoForPreTraining(trained.config).train()
    model.load_state_dict({**model.state_dict(), **trained.state_dict()})
    model.soho.eval()  # Codes and statistics stay as they are.
    images = scoring_run.pixels(scoring_run.images(4))
    whole = torch.stack([torch.from_numpy(text.ids) for text in scoring_run.texts()[2::3]])
    masked, labels = whole.clone(), torch.full_like(whole, -100)
    masked[0, 1], labels[0, 1] = 4, whole[0, 1]
    texts = {"input_ids": masked, "image_index": torch.tensor([2, 0, 2]), "mlm_labels": labels}
    out = model(**images, **texts, itm_labels=torch.tensor([1, 0, 1]))
    visual = model.encode_images(*images.values())
    left = (whole[[0, 2]] != 0).long()
    left[0, 1] = 0
    image = model.image_vectors(model.embed_images(visual), visual.valid)
    text = model.text_vectors(whole[[0, 2]], left)
    logits = (image @ text.T) / 0.07
    texts_choose = F.cross_entropy(logits.T, torch.tensor([2, 2]), reduction="sum")
    expected = (texts_choose - logits.softmax(1)[2].sum().log()) / 3
    torch.testing.assert_close(out.contrastive_loss, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(out.loss, out.mlm_loss + out.itm_loss + out.contrastive_loss, rtol=1e-5, atol=1e-5)
    assert model.eval()(**images, **texts).contrastive_loss is None, "of training alone"


def test_vectors_by_embeddings_are_of_the_words_between_cls_and_sep():
    model = scoring_run.model(contrastive_reads="embeddings").eval()
    ids, mask = torch.tensor([[2, 9, 11, 3, 0], [2, 3, 0, 0, 0]]), torch.tensor([[1, 1, 1, 1, 0], [1, 1, 0, 0, 0]])
    vectors = model.text_vectors(ids, mask)
    assert vectors.isfinite().all()
    words = model.soho.text_embeddings.word_embeddings(torch.tensor([9, 11])).mean(0)
    torch.testing.assert_close(vectors[0], model.contrastive_head.text_vectors(words))
    left_out = torch.tensor([[False, True, False, False, False], [False] * 5])
    texts = Texts(ids, mask)
    assert texts.words().nonzero().tolist() == [[0, 1], [0, 2]]
    assert texts.without(left_out).words().nonzero().tolist() == [[0, 2]]
    assert torch.equal(texts.without(texts.words()).attention_mask, mask), "a text without another word keeps them"


FIRST = torch.tensor([[0.9, 0.5, 0.1, 0.2], [0.8, 0.6, 0.3, 0.7], [0.0, 0.2, 0.4, 0.1]])


def test_best_pairs_are_the_best_of_either_side():
    assert [row.tolist() for row in best_pairs(FIRST, 1)] == [[0], [0, 1, 3], [2]]
    assert [row.tolist() for row in best_pairs(FIRST, 2)] == [[0, 1, 3], [0, 1, 2, 3], [1, 2]]
    assert [len(row) for row in best_pairs(FIRST, 9)] == [4, 4, 4]


def test_scored_pairs_come_first_and_the_rest_keeps_its_order():
    pairs = best_pairs(FIRST, 1)
    logits = [torch.tensor([-9.0]), torch.tensor([5.0, -3.0, 2.0]), torch.tensor([0.0])]
    ranked = ranked_in_two_stages(FIRST, pairs, logits)
    assert ranked[1].argsort(descending=True).tolist() == [0, 3, 1, 2]
    assert ranked[2].argsort(descending=True).tolist() == [2, 1, 3, 0]
    assert ranked[0].argsort(descending=True).tolist() == [0, 1, 3, 2], "below -9 too"
    assert ranked[0, 0] == -9.0 and ranked[0, 1:].max() < -9.0


def test_k_is_the_smallest_that_keeps_the_loss():
    generator = torch.Generator().manual_seed(0)
    own = torch.arange(60).repeat_interleave(2)
    right = (torch.arange(60)[:, None] == own).float()
    logits = torch.randn(60, 120, generator=generator) + 4.0 * right
    first = torch.randn(60, 120, generator=generator) + 2.0 * right
    full = retrieval_recall(logits, own, (1,))

    def losses(k):
        pairs = best_pairs(first, k)
        scored = [row[torch.from_numpy(texts)] for row, texts in zip(logits, pairs, strict=True)]
        found = retrieval_recall(ranked_in_two_stages(first, pairs, scored), own, (1,))
        return (full.image_to_text[1] - found.image_to_text[1], full.text_to_image[1] - found.text_to_image[1])

    k = choose_k(first, logits, own, 0.02)
    assert max(losses(k)) <= 0.02 < max(losses(K_TRIED[K_TRIED.index(k) - 1])) and 2 < k < 40
    assert choose_k(first, logits, own, 0.0) > k
    assert choose_k(logits, logits, own, 0.0) == 1, "a contrastive stage as good as the second"
    with pytest.raises(ValueError, match=r"no k up to \d+ keeps R@1 within 0.00 points"):
        choose_k(-right, logits, own, 0.0)
