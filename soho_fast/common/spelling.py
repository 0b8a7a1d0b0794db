"""What a mistyped name may have been meant to be."""

import re
from collections.abc import Iterable
from difflib import get_close_matches

# Settings as other trainers call them.
_ELSEWHERE = {
    "learning_rate": "lr",
    "num_train_epochs": "epochs",
    "train_batch_size": "batch_size",
    "per_device_train_batch_size": "batch_size",
    "max_seq_length": "max_text_length",
    "max_grad_norm": "clip",
    "model_name_or_path": "pretrained",
    "resume_from_checkpoint": "resume",
    "save_steps": "checkpoint.every_steps",
    "logging_steps": "log.every_steps",
    "eval_steps": "quick_every_steps",
    "lr_scheduler_type": "decay",
    "report_to": "trackers",
    "image_size": "shorter_edge",
    "data_dir": "data_roots",
    "fp16": "precision",
    "bf16": "precision",
}


def did_you_mean(word: object, known: Iterable[object], *, whole: bool = False) -> str:
    """ "; did you mean NAME?" of the most similar known name, or "" where none is similar.

    Args:
        word: What was written.
        known: Names that there are.
        whole: Compare whole names alone, as of files. Else what other trainers call a setting is similar too; of names
            in parts, `optim.lr`, one whose last part was written; and one that has all words that were written, or no
            others.
    """
    names, written = list(dict.fromkeys(str(name) for name in known)), str(word)
    if whole:
        close = get_close_matches(written, names, n=1, cutoff=0.7)
    else:
        written = re.sub(r"(?<=\w)-", "_", written.lower())
        written = _ELSEWHERE.get(written.rpartition(".")[2], written)
        sections = {name.rpartition(".")[0] for name in names}
        names = [name for name in names if name not in sections]
        words, last = _words(written), written.rpartition(".")[2]
        close = [name for name in names if name.endswith(f".{written}")]
        close = close or [c for each in (written, str(word)) for c in get_close_matches(each, names, n=1, cutoff=0.7)]
        close = close or [name for name in names if name.endswith(f".{last}")]
        close = close or sorted((n for n in names if words <= _words(n) or set() < _words(n) <= words), key=len)
    return f"; did you mean {close[0]}?" if close else ""


def _words(name: str) -> set[str]:
    return set(re.findall(r"[a-z0-9]+", name.lower().rpartition(".")[2]))
