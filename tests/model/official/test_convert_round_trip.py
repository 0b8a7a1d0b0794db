"""The published file, made by the rule: converted, saved and loaded it still gives the released modules' numbers."""

import pytest
import torch
from comparison import differences
from published_file import words_file, write
from released_model import official_state, recorded, run_pretraining, run_vqa, vqa_inputs
from tiny_corpus import draw

from soho_fast.ask.pipeline import SohoPipeline
from soho_fast.export.official import main
from soho_fast.model import SohoForPreTraining, SohoForQuestionAnswering
from soho_fast.model.official import keys


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """What the command makes of the two published files; that of pre-training has the tied weight twice."""
    root = tmp_path_factory.mktemp("published")
    vocabulary = words_file(root)
    for name, kind in (("soho", "keys"), ("vqa", "vqa_keys")):
        state = official_state(kind)
        if keys.TIED in state:
            state[keys.TIED] = state[keys.WORDS].clone()
        file = write(root / f"{name}.pth", state)
        assert main([str(file), str(root / name), "--vocab", str(vocabulary)]) == 0
        file.unlink()
    return root


def test_pre_training(folders):
    model = SohoForPreTraining.from_pretrained(folders / "soho").eval()
    assert not differences("eval_landscape", run_pretraining(model, "eval_landscape"))


def test_question_answering(folders):
    model = SohoForQuestionAnswering.from_pretrained(folders / "vqa").eval()
    assert not differences("vqa_landscape", run_vqa(model, "vqa_landscape"))


def test_fine_tuning_starts_where_theirs_does(folders):
    """The features go to the Transformer as in the authors' VQA model, whose weights the same rule made."""
    model, _ = SohoForQuestionAnswering.from_pretraining(str(folders / "soho"), answers=["yes", "no"])
    inputs = vqa_inputs("vqa_landscape")
    del inputs["answer_scores"]
    with recorded(model.eval()) as found, torch.no_grad():
        model(**inputs)
    assert not differences("vqa_landscape", found, ("visual_input", "visual_mask", "hidden.2"))


def test_it_ranks_texts(folders, tmp_path):
    picture = draw(tmp_path / "ball.jpg", "red", (64, 48))
    soho = SohoPipeline.from_pretrained(folders / "soho")
    rows = soho.rank(picture, ["a red ball", "a man and a woman"])
    assert sorted(row["text"] for row in rows) == ["a man and a woman", "a red ball"]
    assert rows[0]["score"] >= rows[1]["score"] > 0
    processor = soho.processor.image_processor
    assert (processor.size.shortest_edge, processor.size.longest_edge, processor.antialias) == (600, 1000, False)
