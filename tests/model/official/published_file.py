"""Files as the authors published theirs."""

from collections import OrderedDict
from pathlib import Path

import torch


def write(path: Path, state: dict, *, torch_version: object = "1.4.0", zip_format: bool = True) -> Path:
    """As the authors' code: with an optimiser's and apex's states."""
    moments = {"step": 7, "exp_avg": torch.ones(3), "exp_avg_sq": torch.ones(3)}
    content = {
        "meta": {"VLB_version": "0.1", "config": "a\nb", "epoch": 40, "iter": 7, "torch_version": torch_version,
                 "time": "Sun May  2 10:00:00 2021"},
        "state_dict": state,
        "optimizer": {"state": {0: moments}, "param_groups": [{"lr": 1e-4, "params": [0]}]},
        "amp": OrderedDict(loss_scaler0={"loss_scale": 65536.0, "unskipped": 3}),
    }  # fmt: skip
    torch.save(content, path, _use_new_zipfile_serialization=zip_format)
    return path


def words_file(folder: Path) -> Path:
    """As many words as bert-base-uncased has, of which most are made up."""
    words = ["[PAD]", *(f"[unused{number}]" for number in range(99)), "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words += ["a", "man", "and", "woman", "red", "ball", "dog"]
    path = folder / "vocab.txt"
    path.write_text("".join(f"{word}\n" for word in [*words, *(f"word{n}" for n in range(30522 - len(words)))]))
    return path
