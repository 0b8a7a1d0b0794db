import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from soho_fast.data.text import (
    EncodedText,
    PackedTexts,
    content_words,
    describe_fit,
    encode_texts,
    load_tokenizer,
    mask_tokens,
)

MASK, VOCAB, SPECIAL = 4, 1000, frozenset(range(5))


def long_text(num_words=20_000, pieces=2):
    body = np.random.default_rng(1).integers(5, VOCAB, num_words * pieces)
    ids = np.concatenate([[2], body, [3]])
    return EncodedText(ids, np.concatenate([[-1], np.repeat(np.arange(num_words), pieces), [-1]]))


def mask(text, seed=0, **options):
    options = {"mask_token_id": MASK, "vocab_size": VOCAB, "special_ids": SPECIAL, **options}
    return mask_tokens(text, np.random.default_rng(seed), **options)


@pytest.mark.parametrize("probability", [0.15, 0.4])
def test_share_chosen_and_what_becomes_of_it(probability):
    text = long_text()
    ids, labels = mask(text, probability=probability)
    chosen = labels != -100
    assert abs(chosen.mean() - probability) < 0.01
    assert (labels[chosen] == text.ids[chosen]).all(), "the label is the word before masking"
    assert (ids[~chosen] == text.ids[~chosen]).all(), "nothing else changes"
    masked, kept = ids[chosen] == MASK, ids[chosen] == text.ids[chosen]
    assert abs(masked.mean() - 0.8) < 0.02
    assert abs(kept.mean() - 0.1) < 0.02
    drawn = ids[chosen][~masked & ~kept]
    assert len(drawn) and drawn.min() >= 5 and drawn.max() < VOCAB, "random words, never special tokens"
    assert labels[0] == labels[-1] == -100, "[CLS] and [SEP] are never chosen"


def test_random_words_of_the_whole_vocabulary():
    """As BERT's first PyTorch code; each id as likely as any other."""
    text = long_text()
    ids, labels = mask(text, probability=1.0, mask_token_id=60, vocab_size=50, random_special=True)
    drawn = ids[(labels != -100) & (ids != 60) & (ids != labels)]
    assert len(drawn) > 3000 and set(drawn.tolist()) == set(range(50))
    assert labels[0] == labels[-1] == -100 and ids[0] == 2 and ids[-1] == 3, "[CLS] and [SEP] are never chosen"


def test_text_without_words():
    ids, labels = mask(EncodedText(np.array([2, 3]), np.array([-1, -1])))
    assert ids.tolist() == [2, 3] and (labels == -100).all()


def test_encoding_knows_words_and_is_cut(tokenizer):
    text, short = encode_texts(tokenizer, ["a red painting .", "a"], 16)
    assert tokenizer.convert_ids_to_tokens(text.ids.tolist()) == ["[CLS]", "a", "red", "paint", "##ing", ".", "[SEP]"]
    assert text.word_ids.tolist() == [-1, 0, 1, 2, 2, 3, -1]
    assert len(short.ids) == 3
    (cut,) = encode_texts(tokenizer, ["a red painting ."], 5)
    assert tokenizer.convert_ids_to_tokens(cut.ids.tolist()) == ["[CLS]", "a", "red", "paint", "[SEP]"]


def test_content_words():
    assert content_words("There is a picture of Two red dogs, to the LEFT of it.") == {"two", "red", "dogs", "left"}


def test_tokenizer_errors(tmp_path, tokenizer_dir):
    with pytest.raises(
        FileNotFoundError, match=r"tokenizer: .*nowhere can't be loaded: there is no such file or folder"
    ):
        load_tokenizer(tmp_path / "nowhere")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        text = (tokenizer_dir / name).read_text()
        for word in ("man", "woman", "and"):
            text = text.replace(f'"{word}":', f'"x{word}x":')
        (tmp_path / name).write_text(text.replace('"a":', '"xax":'))
    with pytest.raises(ValueError, match=r"turns plain English into \[UNK\] only"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": 5}')
    with pytest.raises(FileNotFoundError, match=rf"tokenizer: {tmp_path} can't be loaded: .*Expected a folder with"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("count", [6, 24])
def test_a_tokenizer_that_makes_texts_grow_without_end_is_refused_before_it_reads_one(tmp_path, tokenizer_dir, count):
    folder = Path(shutil.copytree(tokenizer_dir, tmp_path / "tokenizer"))
    (folder / "SHA256SUMS").unlink(missing_ok=True)
    content = json.loads((folder / "tokenizer.json").read_text())
    twice = {"type": "Replace", "pattern": {"String": "z"}, "content": "zz"}
    content["normalizer"] = {"type": "Sequence", "normalizers": [twice] * count}
    (folder / "tokenizer.json").write_text(json.dumps(content))
    (folder / "tokenizer_config.json").write_text(
        json.dumps(
            json.loads((folder / "tokenizer_config.json").read_text()) | {"tokenizer_class": "TokenizersBackend"}
        )
    )
    if count == 6:
        assert load_tokenizer(folder).backend_tokenizer.normalizer.normalize_str("z") == "z" * 64
    else:
        with pytest.raises(ValueError, match=r"tokenizer.json replaces what makes texts 16,777,216 times as long; at"):
            load_tokenizer(folder)


def test_texts_that_fit_give_no_warning(tokenizer):
    fit = describe_fit(tokenizer, ["a red .", "there is a painting"] * 100)
    assert fit.pieces_per_word == pytest.approx(8 / 7) and fit.unknown_share == 0.0
    assert fit.lengths.tolist() == [5] * 100 + [7] * 100
    assert fit.warnings(7) == []
    assert fit.summary() == (
        "1.14 pieces a word, 0.0% of the words [UNK]; 99% of the texts have at most 7 tokens, the longest 7"
    )


def test_texts_that_are_cut_are_counted_with_the_length_they_need(tokenizer):
    texts = ["a red"] * 90 + ["a red and a blue"] * 10
    assert describe_fit(tokenizer, texts).warnings(5) == [
        "warning: 10.0% of the texts are cut at data.max_text_length 5; 7 would keep 99% whole"
    ]
    assert describe_fit(tokenizer, ["a red"] * 999 + ["a red and a blue"]).warnings(4) == [], "one in a thousand"


def test_a_tokenizer_of_other_words_is_told(tokenizer):
    (line,) = describe_fit(tokenizer, ["a red dog"] * 10).warnings(16)
    assert line.startswith("warning: the tokenizer does not fit these texts: 1.0 pieces a word, 33.3% of the words unk")
    assert "soho tokenizer ANNOTATIONS FOLDER" in line
    (line,) = describe_fit(tokenizer, ["paintedly"] * 10).warnings(16)
    assert "3.0 pieces a word, 0.0% of the words unknown" in line
    with pytest.raises(ValueError, match="texts: expected at least one"):
        describe_fit(tokenizer, [])


def test_of_many_texts_some_are_counted(tokenizer):
    assert len(describe_fit(tokenizer, ["a red"] * 50_000).lengths) == 20_000


def test_a_hub_that_is_out_of_reach_is_tried_once(tmp_path, monkeypatch):
    """The hub's own library tries each file again for half a minute."""
    tries = []

    def unreachable(url, **options):
        tries.append(url)
        raise OSError("Name or service not known")

    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", unreachable)
    with pytest.raises(FileNotFoundError) as error:
        load_tokenizer("nobody/no-such-tokenizer", cache_dir=str(tmp_path))
    assert len(tries) == 1 and "nobody/no-such-tokenizer" in tries[0]
    for words in ("no such folder", "the hub can't be reached (Name or service not known)", "soho tokenizer"):
        assert words in str(error.value)


def test_what_was_downloaded_before_is_found_without_a_hub(tmp_path, tokenizer_dir, monkeypatch):
    def unreachable(url, **options):
        raise OSError("Name or service not known")

    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", unreachable)
    kept = tmp_path / "models--nobody--words"
    shutil.copytree(tokenizer_dir, kept / "snapshots/abc")
    (kept / "snapshots/abc/config.json").write_text(json.dumps({"model_type": "bert"}))
    (kept / "refs").mkdir()
    (kept / "refs/main").write_text("abc")
    assert len(load_tokenizer("nobody/words", cache_dir=str(tmp_path))) == len(load_tokenizer(tokenizer_dir))


def test_packed_texts():
    packed = PackedTexts([["a", "größer ✓"], [""], ["b c"]])
    assert len(packed) == 3
    assert [packed.count(index) for index in range(3)] == [2, 1, 1]
    assert packed.all(0) == ["a", "größer ✓"] and packed.all(1) == [""] and packed.get(2, 0) == "b c"
