"""Asking a model in one line, in Python and on the command line."""

import json
import shutil
import warnings
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from small_models import ANSWERS, LABELS
from transformers import BertTokenizer

from soho_fast.ask import SohoPipeline
from soho_fast.ask.__main__ import main
from soho_fast.common.versions import write_run_of
from soho_fast.data.tokenizer import build_vocabulary, write_tokenizer
from soho_fast.model import (
    SohoForImageTextRetrieval,
    SohoForPreTraining,
    SohoForQuestionAnswering,
    SohoForVisualEntailment,
    SohoForVisualReasoning,
)


def direct(model, processor, images, texts, **more):
    encoded = processor(images=[Image.open(image).convert("RGB") for image in images], text=texts, padding=True)
    batch = {name: torch.as_tensor(value) for name, value in encoded.items()}
    with torch.no_grad():
        output = model(**batch, **more)
    return output.itm_logits if "itm_logits" in output else output.logits


def test_words_that_a_tokenizer_of_a_corpus_spells_are_unknown(tmp_path):
    vocabulary = build_vocabulary(["a dog runs 4 times", "the fox's box, a zebras jar quick"])
    write_tokenizer(tmp_path, [*vocabulary, "##es"])
    soho = SimpleNamespace(processor=SimpleNamespace(tokenizer=BertTokenizer.from_pretrained(tmp_path)))
    unknown = SohoPipeline.unknown_words(soho, ["A Gorilla's dog, 44", "a fox? gorilla!"])
    assert unknown == ["Gorilla", "44", "gorilla"]
    assert SohoPipeline.unknown_words(soho, ["a dog mangoes"]) == ["mangoes"], "only its ending is known"
    # An ending is a token that texts have trained; a single letter is a word.
    assert not SohoPipeline.unknown_words(soho, ["dogs", "a box s"])
    assert SohoPipeline.unknown_words(soho, ["a \u72d7 dog"]) == ["\u72d7"], "[UNK]"


def test_unknown_words_are_warned_of_once(save, images):
    soho = SohoPipeline.from_pretrained(save(SohoForPreTraining)[1])
    with pytest.warns(UserWarning, match="^this model does not know: 'zebra', 'quagga'$"):
        soho.rank(images[0], ["a red zebra", "blue zebra quagga"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        soho.rank(images[0], ["blue zebra"])


def test_answer(save, processor, images):
    model, folder = save(SohoForQuestionAnswering)
    soho = SohoPipeline.from_pretrained(folder)
    expected = direct(model, processor, images[:1], ["is there a man"])[0].sigmoid()
    found = soho.answer(images[0], "is there a man")
    assert [row["answer"] for row in found] == [ANSWERS[n] for n in expected.argsort(descending=True)]
    assert found[0]["score"] == pytest.approx(float(expected.max()), abs=1e-5)
    assert soho.answer(images[0], "is there a man", top_k=1) == found[:1]
    assert soho.answer(Image.open(images[0]), "is there a man") == soho.answer(str(images[0]), "is there a man")


@pytest.mark.parametrize("kind", [SohoForImageTextRetrieval, SohoForPreTraining])
def test_rank(save, processor, images, kind):
    model, folder = save(kind)
    texts = ["a red", "there is a man and a woman .", "blue"]
    found = SohoPipeline.from_pretrained(folder / "model").rank(images[1], texts)
    one_by_one = {text: float(direct(model, processor, images[1:], [text]).softmax(-1)[0, 1]) for text in texts}
    assert {row["text"]: row["score"] for row in found} == pytest.approx(one_by_one, abs=1e-5)
    scores = [row["score"] for row in found]
    assert scores == sorted(scores, reverse=True) and len(set(scores)) == 3


def test_a_model_saved_in_half_precision_is_asked_in_float32(save, images):
    _, folder = save(SohoForPreTraining)
    texts = ["a red", "there is a man and a woman .", "blue"]
    whole, size = SohoPipeline.from_pretrained(folder), (folder / "model/model.safetensors").stat().st_size
    SohoForPreTraining.from_pretrained(folder / "model").half().save_pretrained(folder / "model")
    assert (folder / "model/model.safetensors").stat().st_size < 0.6 * size
    halved = SohoPipeline.from_pretrained(folder)
    assert {parameter.dtype for parameter in halved.model.parameters()} == {torch.float32}
    expected = {row["text"]: row["score"] for row in whole.rank(images[1], texts)}
    found = {row["text"]: row["score"] for row in halved.rank(images[1], texts)}
    assert found == pytest.approx(expected, rel=0.02) and found != expected


def test_entails_and_compare(save, processor, images):
    model, folder = save(SohoForVisualEntailment)
    found = SohoPipeline.from_pretrained(folder).entails(images[0], "a red")
    expected = direct(model, processor, images[:1], ["a red"])[0].softmax(-1)
    assert {row["label"]: row["score"] for row in found} == pytest.approx(
        dict(zip(LABELS[SohoForVisualEntailment], expected.tolist(), strict=True)), abs=1e-5
    )
    model, folder = save(SohoForVisualReasoning)
    soho = SohoPipeline.from_pretrained(folder)
    there, back = soho.compare(*images, "both a red"), soho.compare(*images[::-1], "both a red")
    expected = direct(model, processor, images, ["both a red"], image_index=torch.tensor([[0, 1]]))[0].softmax(-1)
    assert {row["label"]: row["score"] for row in there} == pytest.approx(
        {"False": float(expected[0]), "True": float(expected[1])}, abs=1e-5
    )
    assert there != back, "left and right"


def test_errors_in_plain_words(save, images, monkeypatch, tmp_path):
    _, folder = save(SohoForQuestionAnswering)
    soho = SohoPipeline.from_pretrained(folder)
    with pytest.raises(ValueError, match=r"^rank: needs a model for image-text retrieval or pre-training; this one is"):
        soho.rank(images[0], ["a"])
    with pytest.raises(ValueError, match="top_k: expected at least 1, got 0"):
        soho.answer(images[0], "a red", top_k=0)
    with pytest.raises(ValueError, match="top_k: expected at least 1, got 0"):
        SohoPipeline.from_pretrained(save(SohoForPreTraining)[1]).rank(images[0], ["a red", "blue"], top_k=0)
    for nothing in ("\u200b", "\N{DOG FACE}", "\N{VARIATION SELECTOR-16}"):
        with pytest.raises(ValueError, match=r"text: .* holds no word that this model knows"):
            SohoPipeline.from_pretrained(folder).rank(images[0], ["a red", nothing])
    with pytest.raises(FileNotFoundError, match="no model could be loaded from /nowhere"):
        SohoPipeline.from_pretrained("/nowhere")
    monkeypatch.chdir(tmp_path)  # where there is no folder `runs`
    monkeypatch.setattr("soho_fast.common.hub.hub_failure", lambda *_: "the hub can't be reached")
    for name, words in (
        ("runs/own", "runs/own: there is no such file or folder, nor runs"),
        ("some/own", "there is no such folder, and the hub can't"),
    ):
        with pytest.raises(FileNotFoundError, match=words):
            SohoPipeline.from_pretrained(name)
    config = json.loads((folder / "model/config.json").read_text())
    (folder / "model/config.json").write_text(json.dumps({**config, "architectures": ["BertModel"]}))
    with pytest.raises(ValueError, match="holds BertModel; expected SohoForPreTraining"):
        SohoPipeline.from_pretrained(folder)


def test_an_answer_of_a_model_whose_run_went_on_says_of_which_step(save, images, capsys):
    """Beside the answer, which a program may read."""
    _, run = save(SohoForQuestionAnswering)
    (run / "recipe.yaml").write_text("task: vqa\n")
    (run / "checkpoints/step-00000006").mkdir(parents=True)
    capsys.readouterr()
    assert main(["answer", str(run), str(images[0]), "a red", "--json"]) == 0
    plain = capsys.readouterr()
    write_run_of(run / "model", 4, "0123456789abcdef")
    assert main(["answer", str(run), str(images[0]), "a red", "--json"]) == 0
    said = capsys.readouterr()
    assert (said.out, plain.err) == (plain.out, "")
    assert said.err == f"{run / 'model'} is of step 4; its run has gone on to step 6\n"


def test_a_model_that_cannot_be_used_gives_no_answer(save, images, tmp_path):
    model, folder = save(SohoForQuestionAnswering)
    weights = folder / "model/model.safetensors"
    whole = weights.read_bytes()
    settings = folder / "model/tokenizer_config.json"
    as_saved = settings.read_text()
    settings.write_text(json.dumps(json.loads(as_saved) | {"sep_token": "[OTHER]"}))
    with pytest.raises(ValueError, match=r"model knows \d+ words, its tokenizer has \d+$"):
        SohoPipeline.from_pretrained(folder)
    settings.write_text(as_saved)
    with torch.no_grad():
        next(model.parameters()).view(-1)[3] = float("nan")
    model.save_pretrained(folder / "model")
    with pytest.raises(ValueError, match=r"not finite in 1 tensors \(.*\): its training has diverged"):
        SohoPipeline.from_pretrained(folder)
    for damaged in (whole[: len(whole) // 2], whole[:5], b""):
        weights.write_bytes(damaged)
        with pytest.raises(ValueError, match="model: the file of its weights is damaged"):
            SohoPipeline.from_pretrained(folder)
    weights.unlink()
    torch.save({"a value that runs code": print}, folder / "model/pytorch_model.bin")
    with pytest.raises(ValueError, match=r"model: the file of its weights is damaged"):
        SohoPipeline.from_pretrained(folder)
    (folder / "model/pytorch_model.bin").unlink()
    with pytest.raises(FileNotFoundError, match="no model could be loaded from"):
        SohoPipeline.from_pretrained(folder)
    (folder / "model/config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"there is no config\.json"):
        SohoForQuestionAnswering.from_pretrained(folder / "model")
    shutil.rmtree(folder / "model")
    (folder / "recipe.yaml").write_text("task: vqa\n")
    with pytest.raises(FileNotFoundError, match="is a run without a model yet"):
        SohoPipeline.from_pretrained(folder)
    with pytest.raises(FileNotFoundError, match=r"no such file or folder; did you mean run\?"):
        SohoPipeline.from_pretrained(tmp_path / "runn")


# A file of a model, fields that it is given (or all that it holds), and what is said of it.
DAMAGE = [
    ("config.json", b"[1]", "config.json is damaged: expected a JSON object, got [1]"),
    ("config.json", b"[" * 100_000, "config.json is damaged: not valid JSON (nested too deeply)"),
    ("config.json", b'{"a":', "config.json is damaged: not valid JSON"),
    ("tokenizer.json", b"[]", "tokenizer.json is damaged: expected a JSON object, got []"),
    ("tokenizer_config.json", b"3", "tokenizer_config.json is damaged: expected a JSON object, got 3"),
    ("config.json", {"model_type": "bert"}, "config.json: model_type: expected 'soho', got 'bert'"),
    ("config.json", {"hidden_size": 10**12}, "hidden_size: expected 1 to 10,000,000, got 1000000000000"),
    ("config.json", {"num_codes": 10**7, "hidden_size": 9_999_992}, "expected at most 10,000,000,000 parameters"),
    ("config.json", {"pad_token_id": 99}, "pad_token_id: expected 0 to vocab_size - 1, got 99"),
    ("config.json", {"hidden_act": "gellu"}, "; did you mean gelu?"),
    ("config.json", {"architectures": 3}, "architectures: expected a list of names, got 3"),
    ("config.json", {"id2label": ["yes"]}, "config.json: SohoConfig: a field is of another type than expected"),
    ("config.json", {"dtype": "nope"}, "config.json: SohoConfig: a field is of another type than expected"),
    ("processor_config.json", {"size": {"shortest_edge": 0, "longest_edge": 0}}, "size: expected 0 < shorter_edge"),
]


@pytest.mark.parametrize(("name", "damage", "words"), DAMAGE)
def test_a_damaged_file_of_a_model_is_one_line(save, images, capsys, name, damage, words):
    _, run = save(SohoForPreTraining)
    path = run / "model" / name
    (path.parent / "SHA256SUMS").unlink(missing_ok=True)  # as of a model of others
    if isinstance(damage, dict):
        content = json.loads(path.read_text())
        content.get("image_processor", content).update(damage)
        damage = json.dumps(content).encode()
    path.write_bytes(damage)
    capsys.readouterr()
    assert main(["rank", str(run), str(images[0]), "a dog"]) == 2
    said = capsys.readouterr()
    (line,) = said.err.splitlines()
    assert words in line and said.out == ""


def test_command_line(save, images, capsys):
    _, folder = save(SohoForImageTextRetrieval)
    assert main(["rank", str(folder), str(images[0]), "a red", "blue"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and lines[0].strip().endswith(("a red", "blue")) and " %  " in lines[0]
    assert main(["--top_k", "1", "--json", "rank", str(folder), str(images[0]), "a red", "blue"]) == 0
    assert set(json.loads(capsys.readouterr().out)[0]) == {"text", "score"}
    assert main(["--top_k", "0", "rank", str(folder), str(images[0]), "a red"]) == 2
    assert capsys.readouterr().err == "error: top_k: expected at least 1, got 0\n"
    for arguments in (
        ["rank", "--top_k", "1", "--json", str(folder), str(images[0]), "a red", "blue"],
        ["rank", str(folder), str(images[0]), "a red", "blue", "--json", "--top_k", "1"],
    ):
        assert main(arguments) == 0
        assert len(json.loads(capsys.readouterr().out)) == 1, arguments
    assert main(["rank", str(folder), str(images[0]), "a red", "blue", "--top_k", "99"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2, "all there are"
    assert main(["rank", str(folder), str(images[0]), "a red\x1b[2J"]) == 0
    assert capsys.readouterr().out.endswith("%  a red\\x1b[2J\n"), "an answer's name may be another's"
    capsys.readouterr()
    assert main(["rank", str(folder), str(images[0]), "a zebra, red", "blue zebra quagga"]) == 0
    assert capsys.readouterr().err == "this model does not know: 'zebra', ',', 'quagga'\n"
    assert main(["compare", str(folder), str(images[0]), str(images[1]), "a red"]) == 2
    assert capsys.readouterr().err.startswith("error: compare: needs a model for visual reasoning")
