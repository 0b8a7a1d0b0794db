"""The render command: JSON in, the pages' blocks and figures out; the pages hold what the stored results render."""

import json
from pathlib import Path

import pytest

from benchmarks import render
from benchmarks.data import report as decoding
from benchmarks.ops.report import Row
from benchmarks.ops.targets import verdicts
from benchmarks.tables import Table, as_markdown, as_text

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks/results"
WITH_BLAS, WITHOUT = RESULTS / "ops-amd-epyc-family-25-model-17.json", RESULTS / "ops-amd-epyc.json"


@pytest.fixture
def root(tmp_path) -> Path:
    """A folder with pages whose blocks are old."""
    folder = tmp_path / "root"
    blocks = [f"<!-- {kind}: begin -->\nold\n<!-- {kind}: end -->" for kind in ("ops", "inference", "decoding")]
    text = "\n".join(["before", *blocks, "after", ""])
    for page in (render.USERS, render.TARGETS, "docs/training.md"):
        (folder / page).parent.mkdir(parents=True, exist_ok=True)
        (folder / page).write_text(text)
    return folder


def rendered(root: Path, *paths: Path) -> tuple[str, str]:
    """The users' page and that of targets after the command."""
    render.main([*map(str, paths), "--root", str(root)])
    return (root / render.USERS).read_text(), (root / render.TARGETS).read_text()


def test_a_result_fills_its_blocks_and_is_kept(root, capsys):
    first = rendered(root, WITHOUT)
    assert all(page.startswith("before\n<!-- ops: begin -->") and page.endswith("after\n") for page in first)
    assert all(page.count("\nold\n") == 2 and "AMD EPYC, 1 threads" in page for page in first)
    assert (root / "docs/benchmarks.png").read_bytes().startswith(b"\x89PNG")
    assert "docs/benchmarks.png" in capsys.readouterr().out
    (kept,) = (root / "benchmarks/results").iterdir()
    assert rendered(root, kept) == first
    users, targets = rendered(root, WITH_BLAS)
    assert len([*kept.parent.iterdir()]) == 2 and "BLAS kernels: not recorded" not in users
    assert targets.index("family 25 model 17") < targets.index("BLAS kernels: not recorded")
    study = RESULTS / "inference-amd-epyc.json"
    pages = rendered(root, study)
    assert all(page.count("\nold\n") == 1 and "16 words" in page for page in pages)
    assert (root / "docs/inference.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(SystemExit, match="result: expected one file with inference results, got 2"):
        rendered(root, study, study)


def test_parts_of_a_run_are_rendered_as_one(root, tmp_path):
    whole = json.loads(WITH_BLAS.read_text())["ops"]
    # Parts are judged by the targets of today.
    whole["targets"] = [vars(verdict) for verdict in verdicts([Row(**row) for row in whole["rows"]])]
    parts, one = [tmp_path / "a.json", tmp_path / "b.json"], tmp_path / "whole.json"
    one.write_text(json.dumps({"ops": whole}))

    def write(**others) -> None:
        parts[0].write_text(json.dumps({"ops": {**whole, "rows": whole["rows"][:9]}}))
        parts[1].write_text(json.dumps({"ops": {**whole, "rows": whole["rows"][9:], "training_steps": [], **others}}))

    write()
    assert rendered(root, *parts) == rendered(root, one)
    with pytest.raises(SystemExit, match="is in several files"):
        rendered(root, WITH_BLAS, parts[1])
    blas = {name: [{**each, "kernel": "Prescott"} for each in found] for name, found in whole["blas"].items()}
    for others, said in (({"threads": 7}, "expected runs of one setup"), ({"blas": blas}, "several BLAS kernels of")):
        write(**others)
        with pytest.raises(SystemExit, match=said):
            rendered(root, *parts)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "cannot read"),
        ("{}", "expected the JSON of `pytest benchmarks/ --benchmark-only --full"),
        ('{"benchmarks": []}', "this one has no results of them"),
    ],
)
def test_another_file_is_refused_and_nothing_is_written(text, said, root, tmp_path):
    (tmp_path / "result.json").write_text(text)
    before = (root / render.USERS).read_text()
    with pytest.raises(SystemExit, match=f"error: result: .*{said}"):
        rendered(root, tmp_path / "result.json")
    assert (root / render.USERS).read_text() == before and not (root / "benchmarks/results").exists()


@pytest.mark.parametrize("page", [render.USERS, render.TARGETS])
def test_a_page_without_markers_is_refused(page, root):
    (root / page).write_text("no markers")
    with pytest.raises(SystemExit, match="page: expected the markers <!-- ops: begin --> and <!-- ops: end -->"):
        rendered(root, WITHOUT)
    assert not (root / "docs/benchmarks.png").exists()


@pytest.mark.parametrize("kind", ["ops", "inference"])
def test_the_pages_hold_what_the_stored_results_render(kind):
    texts, pages = render.KINDS[kind]
    for page, text in zip(pages, texts(render.stored(kind, ROOT)), strict=True):
        now = (ROOT / page).read_text()
        assert render.with_block(now, kind, text) == now, page


def test_a_table_as_a_page_and_as_a_terminal_has_it():
    table = Table(("op", "", "baselines"), [("mask", "**missed**", "a 1.0x<br>b 12.0x"), ("lookup", "", "a 2.0x")])
    assert as_markdown(table).splitlines()[1:3] == ["|---|---|---|", "| mask | **missed** | a 1.0x<br>b 12.0x |"]
    assert as_text(table).splitlines()[:2] == ["op              baselines", "mask    missed  a 1.0x, b 12.0x"]


def test_the_decoding_benchmarks_have_a_block_of_their_own(root, tmp_path):
    records = [
        {"group": group, "extra_info": {"method": name, "images": 3, **info}, "stats": {"median": seconds}}
        for group, name, seconds, info in (
            ("decode and resize", "Pillow", 0.03, {}),
            ("decode and resize", "soho_fast", 0.01, {}),
            ("decode and batch", "bytes", 0.002, {"bytes_per_image": 2560000}),
            (None, "soho_fast", 1.0, {}),
        )
    ]
    content = {"machine": "EPYC", "datetime": "2026-01-02T03:04:05", "rows": decoding.rows_of(records)}
    (tmp_path / "decoding.json").write_text(json.dumps({"decoding": content}))
    rendered(root, tmp_path / "decoding.json")
    assert (root / "docs/training.md").read_text().splitlines()[-8:-2] == [
        "",
        "|  | images a second | soho_fast | bytes an image |",
        "|---|---|---|---|",
        "| decode and resize: soho_fast | 300 |  |  |",
        "| decode and resize: Pillow | 100 | 3.00x |  |",
        "| decode and batch: bytes | 1,500 |  | 2,560,000 |",
    ]
