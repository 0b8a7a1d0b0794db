import json
import subprocess
import sys

import pytest
from tiny_corpus import write_karpathy

from soho_fast.data import tokenizer
from soho_fast.data.text import describe_fit, load_tokenizer
from soho_fast.data.tokenizer import build_vocabulary, make_tokenizer, read_texts, words_of, write_tokenizer

LINES = [
    {"file": "a.jpg", "captions": ["Two dogs on a sandy beach.", "dogs"]},
    {"file": "b.jpg", "captions": ["a café"], "questions": [{"question": "What is it?", "answer": "coffee-house"}]},
]


@pytest.fixture
def annotations(tmp_path):
    path = tmp_path / "images.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in LINES))
    return path


def test_the_command_makes_what_loads(annotations, tmp_path, capsys):
    command = [sys.executable, "-m", "soho_fast.data.tokenizer", str(annotations), str(tmp_path / "words")]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "read 4 texts from 1 file" in run.stdout and "1.00 pieces a word, 0.0% of the words [UNK]" in run.stdout
    made = load_tokenizer(tmp_path / "words")
    assert made.convert_ids_to_tokens(range(5)) == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    assert made.tokenize("TWO dogs at a Cafe!") == ["two", "dogs", "a", "##t", "a", "cafe", "!"]
    assert tokenizer.main(command[3:]) == 2
    assert "is not empty; give another folder, or --overwrite" in capsys.readouterr().err


def test_texts_are_found_below_an_object_that_has_a_texts_name(tmp_path):
    path = tmp_path / "nested.json"
    path.write_text('[{"caption": {"raw": "a dog", "id": 3}, "question": ["a cat?", 4]}]')
    assert read_texts(path) == ["a dog", "a cat?"]


def test_texts_that_lie_deep_are_found_in_their_order(monkeypatch):
    """Deeper than Python calls itself; its JSON reader goes deeper in some versions."""
    nested = ["a dog", {"caption": "a cat", "about": [{"question": "which?"}]}]
    for _ in range(5000):
        nested = [{"caption": ["a red"]}, nested, 7]
    monkeypatch.setattr(tokenizer, "load_json", lambda path, what: nested)
    assert read_texts("deep.json") == ["a red"] * 5000 + ["a cat", "which?"]


def test_what_holds_no_text_and_wrong_arguments_are_refused(annotations, tmp_path):
    (tmp_path / "empty.json").write_text('{"images": []}')
    with pytest.raises(ValueError, match=r"empty\.json: no text was found; expected some under a field captions"):
        make_tokenizer([tmp_path / "empty.json"], tmp_path / "words", size=100)
    with pytest.raises(FileNotFoundError, match=r"gone\.json does not exist; expected an annotation file"):
        make_tokenizer([tmp_path / "gone.json"], tmp_path / "words", size=100)
    with pytest.raises(ValueError, match=r"size: 50 is too small; .* tokens are needed for the characters alone"):
        make_tokenizer([annotations], tmp_path / "words", size=50)
    with pytest.raises(ValueError, match=r"output: .*images\.jsonl is a file; expected the folder"):
        make_tokenizer([annotations], annotations, size=1000)
    (tmp_path / "half.jsonl").write_text('{"captions": ["a dog"]}\n{"captions": ["a \\ud83d dog"]}\n')
    with pytest.raises(ValueError, match=r"half\.jsonl: line 2: .*'a \\ud83d dog', which holds half a surrogate pair"):
        make_tokenizer([annotations, tmp_path / "half.jsonl"], tmp_path / "words", size=1000)
    assert not (tmp_path / "words").exists()


def test_texts_of_every_format(annotations, tmp_path):
    assert read_texts(annotations) == ["Two dogs on a sandy beach.", "dogs", "a café", "What is it?"], "no answers"
    assert read_texts(write_karpathy(tmp_path, {"train": ["red"]})) == ["There is a red.", "a red"]
    for content, texts in (
        ({"images": [{"id": 1}], "annotations": [{"caption": "a dog", "image_id": 1}]}, ["a dog"]),
        ([{"id": 1, "regions": [{"phrase": "a tail"}, {"phrase": "an ear"}]}], ["a tail", "an ear"]),
        ({"questions": [{"question": "Why?", "image_id": 1}]}, ["Why?"]),
        ({"sentence": "two dogs", "label": "True"}, ["two dogs"]),
        ({"sentence1": "never", "sentence2": "a cat"}, ["a cat"]),
    ):
        path = tmp_path / "any.json"
        path.write_text(json.dumps(content))
        assert read_texts(path) == texts


def test_every_word_is_a_token_where_they_fit_and_the_order_is_none():
    vocabulary = build_vocabulary(["a dog", "two cats"])
    assert vocabulary == build_vocabulary(["two cats", "a dog"], size=1000)
    assert vocabulary[-2:] == ["dog", "two"] or {"dog", "cats", "two"} < set(vocabulary)
    assert len(set(vocabulary)) == len(vocabulary)


def test_seldom_words_are_made_of_pieces_where_they_do_not_fit(tmp_path):
    stems = [f"{a}{b}{c}" for a in ("ba", "ko", "mi", "tu") for b in ("ndo", "lla", "rri", "ste") for c in "aeiou"]
    texts = [f"{stem}ful {stem}less" for stem in stems] + ["bandoaful"] * 50
    assert len(build_vocabulary(texts)) > 240
    vocabulary = build_vocabulary(texts, size=180)
    assert len(vocabulary) == len(set(vocabulary)) == 180
    write_tokenizer(tmp_path / "words", vocabulary)
    made = load_tokenizer(tmp_path / "words")
    assert made.tokenize("bandoaful") == ["bandoaful"], "frequent words stay whole"
    fit = describe_fit(made, texts)
    assert 1.0 < fit.pieces_per_word < 4.0 and fit.unknown_share == 0.0
    assert made.unk_token_id not in made("zyxwv 42 quick!")["input_ids"]


def test_other_alphabets_are_not_unknown(tmp_path):
    text = "Собака на пляже 犬"
    write_tokenizer(tmp_path / "words", build_vocabulary([text, "a man"], size=200))
    made = load_tokenizer(tmp_path / "words")
    assert made.tokenize(text) == words_of(text) == ["собака", "на", "пляже", "犬"]
    assert describe_fit(made, ["ножка"]).unknown_share == 0.0
