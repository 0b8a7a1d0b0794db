"""Of which step of which run a model is, and whether its run has gone on since."""

import json

import pytest

import soho_fast
from soho_fast.common import versions
from soho_fast.common.versions import RUN_OF, cautions, program, read_run_of, write_run_of


@pytest.fixture
def best(tmp_path):
    """The best model, of step 4, of a run at step 6."""
    (tmp_path / "run/best").mkdir(parents=True)
    (tmp_path / "run/recipe.yaml").write_text("task: vqa\n")
    (tmp_path / "run/checkpoints/step-00000006").mkdir(parents=True)
    write_run_of(tmp_path / "run/best", 4, "0123456789abcdef", {"itm": 0.5, "nothing": float("nan")})
    return tmp_path / "run/best"


def test_what_is_written_is_read(best):
    expected = {"step": 4, "identity": "0123456789abcdef", "program": program(), "metrics": {"itm": 0.5}}
    assert read_run_of(best) == expected


def test_an_edit_is_another_program_and_so_is_one_without_its_compiled_ops(tmp_path, monkeypatch):
    """Edited twice since the commit, or installed, which no commit tells."""
    package = tmp_path / "site-packages/soho_fast"
    (package / "ops").mkdir(parents=True)
    monkeypatch.setattr(soho_fast, "__file__", str(package / "__init__.py"))
    seen = []
    for name, content in (
        ("__init__.py", "a"), ("ops/op.py", "b"), ("ops/op.py", "c"), ("_C.cpython-311.so", "d"),
        ("_C.cpython-311.so", "e"),
    ):  # fmt: skip
        (package / name).write_text(content)
        seen.append(versions._installed_program.__wrapped__())
    digests = [(each["sources"], each["compiled ops"]) for each in seen]
    assert len(set(digests)) == 5 and digests[2][1] == "" and digests[2][0] == digests[3][0] and not seen[0]["commit"]
    (package / "_C.cpython-311.so").unlink()
    (package / "notes.txt").write_text("nothing of it")
    assert versions._installed_program.__wrapped__() == seen[2]


def test_a_model_whose_run_went_on_says_so(best):
    assert cautions(best) == [f"{best} is of step 4; its run has gone on to step 6"]
    write_run_of(best, 6, "0123456789abcdef")
    (best.parent / "checkpoints/step-00000008.partial").mkdir()
    (best.parent / "checkpoints/notes").mkdir()
    assert cautions(best) == [], "half-written, a step may never be there"


def test_a_model_whose_run_ended_at_chance_says_so(best):
    for content, told in (({"at_chance": "matching is"}, True), ({"at_chance": ""}, False), ({}, False)):
        (best.parent / "metrics.json").write_text(json.dumps(content))
        assert (f"{best.parent}: matching is" in cautions(best)) == told


@pytest.mark.parametrize("best_step, told", [(4, False), (6, True)])
def test_the_best_of_a_run_that_has_ended_is_no_news(best, best_step, told):
    (best.parent / "metrics.json").write_text(json.dumps({"step": 6, "best": {"step": best_step, "vqa_score": 0.271}}))
    assert bool(cautions(best)) == told


@pytest.mark.parametrize(
    "content", ["{", pytest.param("[" * 10**5, id="deep"), "[]", "{}", '{"step": "4", "identity": "a"}', '{"step": 4}']
)
def test_what_is_not_known_is_not_said(best, content):
    (best / RUN_OF).write_text(content)
    assert read_run_of(best) is None and cautions(best) == []
    assert read_run_of("owner/name") is None and cautions("owner/name") == []
    (best.parent / "metrics.json").write_text(content)
    assert cautions(best) == []


def test_other_libraries_are_told(best, monkeypatch):
    now = {**program(), "pillow": "12.3.0", "commit": "a"}
    monkeypatch.setattr(versions, "program", lambda known=(): now)
    write_run_of(best, 6, "0123456789abcdef")
    assert cautions(best) == []
    now |= {"pillow": "12.4.1", "commit": "b"}
    assert cautions(best) == [f"{best} was trained with pillow 12.3.0, here 12.4.1"]


@pytest.mark.parametrize(
    ("name", "before", "now", "told"),
    [
        ("pillow", "12.3.0", "12.3.1", True), ("torch", "2.8.0+cpu", "2.8.0+cu128", True),
        ("pillow", "12.3.0", "12.4.0", False), ("numpy", "1.26.4", "2.0.0", False), ("timm", None, "1.0.2", True),
        ("soho_fast", "0.1.0", "0.2.0", True), ("code.own", "own.py 0", "own.py 1", False),
        ("code.own", None, "own.py 1", False),
    ],
)  # fmt: skip
def test_which_differences_of_a_program_are_told_only(name, before, now, told):
    assert versions.is_told(name, before, now) == told


def test_a_folder_beside_is_no_run(best):
    """A model that was copied elsewhere tells its step, and nothing of what lies beside it."""
    (best.parent / "recipe.yaml").unlink()
    assert cautions(best) == [] and json.loads((best / RUN_OF).read_text())["step"] == 4
