"""A folder of a model is what was written: truncated, flipped, missing files are told in one line."""

import shutil
import subprocess

import pytest
import torch
from safetensors.torch import load_file

from soho_fast.common.checksums import SUMS, check_checksums, write_checksums
from soho_fast.data.text import load_tokenizer
from soho_fast.model import SohoConfig, SohoForPreTraining

SMALL = {
    "backbone": "resnet10", "visual_pool": 1, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
    "intermediate_size": 64, "num_codes": 8, "max_position_embeddings": 16, "vocab_size": 31,
}  # fmt: skip
WEIGHTS = "model.safetensors"


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(0)
    SohoForPreTraining(SohoConfig.from_preset(**SMALL)).save_pretrained(tmp_path / "model")
    write_checksums(tmp_path / "model")
    return tmp_path / "model"


def _flip(path, at=0.5):
    content = bytearray(path.read_bytes())
    content[int(at * len(content))] ^= 1
    path.write_bytes(content)


def _truncate(path):
    path.write_bytes(path.read_bytes()[:-100])


def _refused(load) -> str:
    with pytest.raises(ValueError) as refused:
        load()
    assert "\n" not in str(refused.value)
    return str(refused.value)


@pytest.mark.parametrize("damage", [_flip, _truncate])
@pytest.mark.parametrize("name", [WEIGHTS, "config.json"])
def test_a_damaged_file_is_refused(folder, damage, name):
    SohoForPreTraining.from_pretrained(folder)
    damage(folder / name)
    said = _refused(lambda: SohoForPreTraining.from_pretrained(folder))
    assert said.startswith(f"{folder}: {name} has changed since the model was written (SHA256SUMS); ")


def test_what_is_damaged_of_a_tokenizer_is_told_before_it_is_loaded(folder):
    (folder / "tokenizer.json").write_text("{}")
    write_checksums(folder)
    _flip(folder / "tokenizer.json")
    assert "tokenizer.json has changed" in _refused(lambda: load_tokenizer(folder))
    (folder / "tokenizer.json").unlink()
    assert "tokenizer.json is missing" in _refused(lambda: load_tokenizer(folder))


def test_each_flipped_bit_of_the_list_is_noticed(folder):
    content = (folder / SUMS).read_bytes()
    for at in range(0, 8 * len(content), 7):  # each byte, and each of its bits in some
        flipped = bytearray(content)
        flipped[at // 8] ^= 1 << at % 8
        (folder / SUMS).write_bytes(flipped)
        _refused(lambda: check_checksums(folder))
    for end in range(0, len(content), 7):
        (folder / SUMS).write_bytes(content[:end])
        _refused(lambda: check_checksums(folder))


def test_a_folder_without_a_list_is_loaded_as_it_is(folder):
    (folder / SUMS).unlink()
    _flip(folder / WEIGHTS, 0.9)
    there, loaded = load_file(folder / WEIGHTS), SohoForPreTraining.from_pretrained(folder).state_dict()
    assert there and all(torch.equal(value, loaded[name]) for name, value in there.items())
    check_checksums("name/on-the-hub")
    check_checksums(folder / WEIGHTS)


def test_a_model_that_the_hubs_cache_has_is_loaded_by_its_name(folder, tmp_path):
    there = tmp_path / "hub/models--ada--soho"
    shutil.copytree(folder, there / "snapshots/0123456789abcdef0123456789abcdef01234567")
    (there / "refs").mkdir()
    (there / "refs/main").write_text("0123456789abcdef0123456789abcdef01234567")
    found = SohoForPreTraining.from_pretrained("ada/soho", cache_dir=tmp_path / "hub", local_files_only=True)
    expected = SohoForPreTraining.from_pretrained(folder).state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in found.state_dict().items())


def test_coreutils_reads_the_list(folder):
    done = subprocess.run(["sha256sum", "-c", SUMS], cwd=folder, capture_output=True, text=True, check=True)
    assert done.stdout == f"config.json: OK\n{WEIGHTS}: OK\n"
