"""Results of parts kept on disk: what was damaged or planted is not taken."""

import io
import os
import shutil

import pytest
import torch
from tiny_corpus import Planted

from soho_fast.common.processes import Processes
from soho_fast.tasks.evaluation.sharing import PartialResults, Sharing, compute_parts


def _compute(kept: PartialResults) -> tuple[list, list[int]]:
    computed = []

    def compute(number: int, _: None) -> dict:
        computed.append(number)
        return {"scores": torch.full((5,), float(number)), "name": str(number)}

    return [float(part["scores"].sum()) for part in compute_parts(3, compute, Sharing(kept=kept))], computed


@pytest.fixture
def kept(tmp_path):
    kept = PartialResults(tmp_path / "partial", {"weights": "a"}, Processes())
    assert _compute(kept) == ([0.0, 5.0, 10.0], [0, 1, 2])
    return kept


def test_a_damaged_part_is_computed_again(kept):
    path = kept.folder / "part-000001.pt"
    content = path.read_bytes()
    for at in [*range(0, len(content), 41), len(content) - 1]:
        path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        assert kept.read().keys() == {0, 2}, at
    for size in (0, 10, 40, len(content) - 1):
        path.write_bytes(content[:size])
        assert kept.read().keys() == {0, 2}, size
    assert _compute(kept) == ([0.0, 5.0, 10.0], [1])
    assert path.read_bytes() == content


def test_foreign_files_are_no_parts(kept):
    for name in ("part-abc.pt", "part-000007.pt.12.partial", "part-7.pt", "notes"):
        (kept.folder / name).touch()
    (kept.folder / "part-000008.pt").mkdir()
    assert _compute(kept) == ([0.0, 5.0, 10.0], [])


def test_a_part_of_another_number_or_evaluation_is_computed_again(kept, tmp_path):
    parts = [kept.folder / f"part-00000{number}.pt" for number in range(3)]
    content = [path.read_bytes() for path in parts]
    for path, other in zip(parts[:2], content[1::-1], strict=True):
        path.write_bytes(other)
    assert _compute(kept) == ([0.0, 5.0, 10.0], [0, 1])
    other = PartialResults(tmp_path / "other", {"weights": "b"}, Processes())
    _compute(other)
    shutil.copy(other.folder / parts[2].name, parts[2])
    assert _compute(kept) == ([0.0, 5.0, 10.0], [2])
    assert [path.read_bytes() for path in parts] == content


@pytest.mark.parametrize("digest", [True, False])
def test_a_planted_pickle_is_not_executed(kept, tmp_path, digest):
    content = io.BytesIO()
    torch.save(Planted(tmp_path / "executed"), content)
    head = kept._digest(1, content.getvalue()) if digest else b""
    (kept.folder / "part-000001.pt").write_bytes(head + content.getvalue())
    assert _compute(kept) == ([0.0, 5.0, 10.0], [1])
    assert "executed" not in os.listdir(tmp_path)
