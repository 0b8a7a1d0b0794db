"""By what a run knows what it is trained on and from."""

import json
import shutil

import pytest

from soho_fast.data.text import load_tokenizer
from soho_fast.tasks.contents import output_identity, words_identity


@pytest.mark.parametrize(
    ("part", "name", "value"),
    [
        ("normalizer", "lowercase", False),
        ("normalizer", "strip_accents", False),
        ("model", "max_input_chars_per_word", 3),
    ],
)
def test_a_tokenizer_of_the_same_words_that_behaves_otherwise_is_another(tokenizer_dir, tmp_path, part, name, value):
    other = shutil.copytree(tokenizer_dir, tmp_path / "other")
    one, same = load_tokenizer(tokenizer_dir), load_tokenizer(other)
    assert output_identity(one) == output_identity(same)
    content = json.loads((other / "tokenizer.json").read_text())
    assert content[part][name] != value
    content[part][name] = value
    (other / "tokenizer.json").write_text(json.dumps(content))
    otherwise = load_tokenizer(other)
    assert words_identity(one) == words_identity(otherwise) and output_identity(one) != output_identity(otherwise)
