"""The render command: JSON in, the pages' blocks and figures out; the pages hold what the stored results render."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from benchmarks import render
from benchmarks.data import report as decoding
from benchmarks.inference import report as inference_report
from benchmarks.inference import targets
from benchmarks.inference.targets import BATCHED, BY_CLASS, Row
from benchmarks.ops import report
from benchmarks.ops.report import rows_of
from benchmarks.ops.targets import verdicts
from benchmarks.tables import Table, as_markdown, as_text

ROOT = Path(__file__).resolve().parents[2]


def record(op, case, method, seconds, **info) -> dict:
    level = "avx2" if method.startswith("soho_fast") else ""
    known = dict(op=op, case=case, method=method, wrong=0.0, level=level, shape=[2, 3, 4], work={})
    return {"extra_info": {**known, **info}, "stats": {"min": seconds}}


@pytest.fixture
def result(tmp_path) -> Path:
    """A small result file."""
    rows = rows_of(
        [
            record("machine limit", "read", "read", 1.0, work={"read": 4e9}),
            record("group_mask", "8x9x10", "soho_fast in place", 0.002, work={"read": 2e6}),
            record("group_mask", "8x9x10", "soho_fast out of place", 0.001),
            record("group_mask", "8x9x10", "torch where", 0.003, wrong=0.5),
            *(
                record(
                    "lookup growth",
                    f"{series}={size}",
                    name,
                    size * factor,
                    series=series,
                    size=size,
                    shape=[*{"N": 4096, "K": 1024, "C": 32, series: size}.values()],
                )
                for series in "NKC"
                for size in (64, 128)
                for name, factor in (("soho_fast", 1e-5), ("faiss-cpu", 3e-5))
            ),
        ]
    )
    step = {"shape": "mini", "images_per_second": 32.0, "eager_images_per_second": 10.0, "target": 3.0}
    content = {
        "ops": {
            "machine": "A CPU",
            "versions": {"torch": "2.11", "faiss-cpu": "absent"},
            "blas": {"torch": [{"library": "mkl", "version": "2024.0", "kernel": "AVX2", "file": "torch"}]},
            "threads": 2,
            "build": {"cpu_level": "avx2"},
            "datetime": "2026-01-02T03:04:05",
            "rows": [asdict(row) for row in rows],
            "targets": [asdict(verdict) for verdict in verdicts(rows)],
        },
        "training_steps": [
            {**step, "method": "soho_fast", "ratio": 2.9, "fastest_ratio": 3.1, "cpu_ratio": 3.2},
            {**step, "method": "soho_fast bf16", "ratio": 3.2, "fastest_ratio": 3.1, "cpu_ratio": 2.9},
        ],
    }
    path = tmp_path / "result.json"
    path.write_text(json.dumps(content))
    return path


@pytest.fixture
def root(tmp_path) -> Path:
    """A folder with pages."""
    folder = tmp_path / "root"
    for name in ("docs", "benchmarks"):
        (folder / name).mkdir(parents=True)
    blocks = [
        line for kind in ("ops", "inference") for line in (f"<!-- {kind}: begin -->", "old", f"<!-- {kind}: end -->")
    ]
    for page in (render.USERS, render.TARGETS):
        (folder / page).write_text("\n".join(["before", *blocks, "after", ""]))
    (folder / "docs/training.md").write_text("<!-- decoding: begin -->\nold\n<!-- decoding: end -->\n")
    return folder


def rendered(paths: list[Path], root: Path) -> tuple[str, str]:
    """The users' page and that of targets after the command."""
    render.main([*map(str, paths), "--root", str(root)])
    return (root / render.USERS).read_text(), (root / render.TARGETS).read_text()


def test_pages_and_figure(result, root, capsys):
    first = rendered([result], root)
    # The copy that is kept renders the same, into the block that the first wrote.
    assert rendered([root / "benchmarks/results/ops-a.json"], root) == first
    users, lines = (page.splitlines() for page in first)
    for page in (users, lines):
        assert page[:2] == ["before", "<!-- ops: begin -->"] and page[-2:] == ["<!-- inference: end -->", "after"]
        head = "A CPU, 2 threads, level avx2; torch 2.11; 2026-01-02. BLAS kernels: torch AVX2 (mkl 2024.0)."
        assert head in page
        assert page.count("old") == 1, "the other block is left alone"
    assert (
        users[4:8]
        == [
            "### group_mask",
            "",
            "| case | ours | torch where |",
            "|---|---|---|",
        ]
        and users[8] == "| 8x9x10 | 1 ms (out of place) | 3x (50.00% wrong) |"
    )
    assert "| 8x9x10 | 1 ms (out of place) |  | 3x (50.00% wrong) |" in lines
    assert "| mini, float32 | 32.0 images/s | 10.0 images/s | 2.90x | 3.20x | >= 3x | **missed** |" in lines
    assert "| mini, bf16 | 32.0 images/s | 10.0 images/s | 3.20x | 2.90x | >= 3x | met |" in lines
    assert "| group_mask: soho_fast in place against torch where | >= 4x, every case | 1.50x | **missed** |" in lines
    layer = "VisualDictionary real: soho_fast against vector-quantize-pytorch"
    assert f"| {layer} | >= 25x, every case |  | not measured here |" in lines
    assert not any("missed" in line for line in users)
    other = json.loads(result.read_text())
    other["ops"].update(machine="Another(R) CPU @ 2.00GHz", datetime="2026-02-03T04:05:06")
    result.write_text(json.dumps(other))
    users, text = rendered([result], root)
    assert "Another(R) CPU @ 2.00GHz, 2 threads" in users and "A CPU, 2 threads" not in users
    kept = sorted(path.name for path in (root / "benchmarks/results").iterdir())
    assert kept == ["ops-a.json", "ops-another.json"]
    end = text.index("<!-- ops: end -->")
    assert text.index("Another(R) CPU @ 2.00GHz, 2 threads") < text.index("A CPU, 2 threads") < end
    figure = root / "docs/benchmarks.png"
    assert figure.read_bytes().startswith(b"\x89PNG")
    assert str(figure) in capsys.readouterr().out


def test_parts_of_a_run_are_rendered_as_one(result, root, tmp_path):
    whole = json.loads(result.read_text())
    masks, others = ([row for row in whole["ops"]["rows"] if (row["op"] == "group_mask") == is_mask]
                     for is_mask in (True, False))  # fmt: skip
    parts = [{**whole, "ops": {**whole["ops"], "rows": masks}}, {"ops": {**whole["ops"], "rows": others}}]
    paths = [tmp_path / "a.json", tmp_path / "b.json"]
    for path, part in zip(paths, parts, strict=True):
        path.write_text(json.dumps(part))
    assert rendered([result], root) == rendered(paths, root)

    with pytest.raises(SystemExit, match="result: group_mask 8x9x10 soho_fast in place is in several files"):
        rendered([result, paths[0]], root)
    paths[1].write_text(json.dumps({"ops": {**parts[1]["ops"], "threads": 1}}))
    with pytest.raises(SystemExit, match=r"expected runs of one setup, got A CPU, 2 threads.* and A CPU, 1 threads"):
        rendered(paths, root)


def test_blas_kernels_are_joined_and_old_results_say_that_they_have_none(result, root, tmp_path):
    whole = json.loads(result.read_text())["ops"]
    (torchs,) = whole["blas"]["torch"]
    faisss = {**torchs, "library": "openblas", "version": "0.3.15", "kernel": "SkylakeX"}
    paths = [tmp_path / "a.json", tmp_path / "b.json"]

    def parts(kernels: dict, other_kernels: dict | None) -> None:
        rows = {"rows": whole["rows"][:4]}, {"rows": whole["rows"][4:]}
        other = {key: value for key, value in whole.items() if key != "blas"} | rows[1]
        paths[0].write_text(json.dumps({"ops": {**whole, "blas": kernels, **rows[0]}}))
        paths[1].write_text(json.dumps({"ops": other if other_kernels is None else {**other, "blas": other_kernels}}))

    parts({"torch": [torchs]}, {"faiss-cpu": [faisss], "torch": [torchs]})
    kernels = "BLAS kernels: torch AVX2 (mkl 2024.0), faiss-cpu SkylakeX (openblas 0.3.15)."
    assert all(kernels in page for page in rendered(paths, root))
    parts({"torch": [torchs], "faiss-cpu": [faisss]}, {"faiss-cpu": [{**faisss, "kernel": "Prescott"}]})
    with pytest.raises(SystemExit, match="expected runs of one setup, got several BLAS kernels of faiss-cpu"):
        rendered(paths, root)
    parts({"torch": [torchs]}, None)
    with pytest.raises(SystemExit, match="got parts with and without BLAS kernels"):
        rendered(paths, root)


def test_a_result_without_blas_kernels_marks_what_was_measured_against_openblas(result, root):
    whole = json.loads(result.read_text())["ops"]
    ours, torchs = (dict(row, op="KMeans", work={}) for row in whole["rows"][1:4:2])
    faisss = {**torchs, "method": "faiss-cpu", "seconds": 3 * ours["seconds"]}
    rows = [*whole["rows"], {**ours, "method": "soho_fast"}, torchs, faisss]
    checked = [vars(verdict) for verdict in verdicts([report.Row(**row) for row in rows])]

    def pages(**others: object) -> tuple[str, str]:
        result.write_text(json.dumps({"ops": {**whole, "rows": rows, "targets": checked, **others}}))
        return rendered([result], root)

    users, lines = pages()
    assert "kernel not recorded" not in users + lines and "| case | ours | torch where | faiss-cpu |" in users
    del whole["blas"]
    users, lines = pages()
    assert all("2026-01-02. BLAS kernels: not recorded." in page for page in (users, lines))
    assert "| case | ours | torch where | faiss-cpu (kernel not recorded) |" in users
    claim = "| KMeans: soho_fast against faiss-cpu | >= 5x, every case | 3.00x; kernel not recorded | **missed** |"
    assert claim in lines
    assert "| group_mask: soho_fast in place against torch where | >= 4x, every case | 1.50x | **missed** |" in lines


def test_the_figure_has_a_line_per_method_and_series(result, root, monkeypatch):
    from matplotlib.figure import Figure

    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *args, **kwargs: drawn.append(figure))
    rendered([result], root)
    axes = drawn[0].axes
    assert [panel.get_xlabel() for panel in axes] == ["features N", "codes K", "channels C"]
    assert all(panel.get_xscale() == panel.get_yscale() == "log" for panel in axes)
    assert [panel.get_title() for panel in axes] == [
        "K = 1,024 codes, C = 32 channels", "N = 4,096 features, C = 32 channels", "N = 4,096 features, K = 1,024 codes"
    ]  # fmt: skip
    assert drawn[0].get_suptitle().endswith("A CPU, 2 threads, 2026-01-02")
    assert [line.get_label() for line in axes[0].lines] == ["soho_fast (avx2)", "faiss-cpu"]
    assert axes[0].lines[1].get_ydata() == pytest.approx([1.92, 3.84])


def without_growth(content: dict) -> dict:
    return {"ops": {**content["ops"], "rows": content["ops"]["rows"][:4]}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: None, "cannot read"),
        (lambda content: {}, "expected the JSON of `pytest benchmarks/ --benchmark-only --full"),
        (lambda content: {"benchmarks": []}, "this one has no results of them"),
        (without_growth, "it holds no growth curves: no figure .test_lookup_growth.py runs with --full"),
    ],
    ids=["no JSON", "empty", "of other benchmarks", "of a short run"],
)
def test_another_file_is_refused_and_nothing_is_written(change, message, result, root):
    content = change(json.loads(result.read_text()))
    result.write_text("{" if content is None else json.dumps(content))
    before = (root / render.USERS).read_text()
    with pytest.raises(SystemExit, match=f"error: result: .*{message}"):
        rendered([result], root)
    assert (root / render.USERS).read_text() == before and len(list((root / "docs").iterdir())) == 2
    assert not (root / "benchmarks/results").exists()


@pytest.mark.parametrize("page", [render.USERS, render.TARGETS])
def test_a_page_without_markers_is_refused(page, result, root):
    (root / page).write_text("no markers")
    with pytest.raises(SystemExit, match="page: expected the markers <!-- ops: begin --> and <!-- ops: end -->"):
        rendered([result], root)
    assert not (root / "docs/benchmarks.png").exists()


def test_a_table_as_a_page_and_as_a_terminal_has_it():
    table = Table(("op", "", "baselines"), [("mask", "**missed**", "a 1.0x<br>b 12.0x"), ("lookup", "", "a 2.0x")])
    assert as_markdown(table).splitlines() == [
        "| op |  | baselines |",
        "|---|---|---|",
        "| mask | **missed** | a 1.0x<br>b 12.0x |",
        "| lookup |  | a 2.0x |",
    ]
    assert as_text(table).splitlines() == [
        "op              baselines",
        "mask    missed  a 1.0x, b 12.0x",
        "lookup          a 2.0x",
    ]


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
    pages = rendered([tmp_path / "decoding.json"], root)
    assert all("old" in page for page in pages) and not (root / "benchmarks/results").exists()
    assert (root / "docs/training.md").read_text().splitlines() == [
        "<!-- decoding: begin -->",
        "One core of an EPYC, 2026-01-02:",
        "",
        "|  | images a second | soho_fast | bytes an image |",
        "|---|---|---|---|",
        "| decode and resize: soho_fast | 300 |  |  |",
        "| decode and resize: Pillow | 100 | 3.00x |  |",
        "| decode and batch: bytes | 1,500 |  | 2,560,000 |",
        "<!-- decoding: end -->",
    ]


@pytest.mark.parametrize("kind", ["ops", "inference"])
def test_the_pages_hold_what_the_stored_results_render(kind):
    texts, pages = render.KINDS[kind]
    for page, text in zip(pages, texts(render.stored(kind, ROOT)), strict=True):
        now = (ROOT / page).read_text()
        assert render.with_block(now, kind, text) == now, page


def test_the_page_says_why_a_target_is_missed():
    page = (ROOT / render.TARGETS).read_text()
    reasons = page[page.index("<!-- ops: end -->") :]
    for result in render.stored("ops", ROOT):
        missed = [target["claim"] for target in result["targets"] if target["met"] is False]
        if any(step["ratio"] < step["target"] for step in result["training_steps"]):
            missed.append("training step")
        assert [claim for claim in missed if claim not in reasons] == []


def study() -> dict:
    """A small result of the inference study."""
    region = {"CNN": 1.0, "proposals": 0.1, "features of boxes": 5.0, BY_CLASS: 0.3, BATCHED: 0.02, "Transformer": 0.2}
    soho = {"visual tokens": 0.5, "Transformer": 0.1}
    rows = [
        {"method": "regions, float32", "family": "regions", "precision": "float32", "batch": 1, "seconds": region},
        {"method": "SOHO prepared, bf16", "family": "SOHO", "precision": "bf16", "batch": 1, "seconds": soho},
        {"method": "SOHO prepared, bf16", "family": "SOHO", "precision": "bf16", "batch": 4, "seconds": soho},
    ]
    found = {"features": 0.02, "logits": 0.004, "same_codes": 0.991, "same_answers": 1.0}
    result = {
        "machine": "A CPU",
        "threads": 2,
        "versions": {"torch": "2.11"},
        "datetime": "2026-01-02T03:04:05",
        "input": "600 x 1000 pixels, 16 words",
        "rows": rows,
        "boxes": {"regions, float32": {BY_CLASS: [480000, 1234]}},
        "agreement": {"SOHO prepared, bf16": found},
        "operations": {"regions": {"CNN": int(3e12)}, "SOHO": {"visual tokens": int(2e11)}},
        "products": {"float32": 1e12, "bf16": 4e12},
        "peak_bytes": {"regions, float32": int(2.5e9), "SOHO prepared, bf16": None},
    }
    verdicts = targets.verdicts([Row(**row) for row in rows], result["operations"], result["products"])
    return {**result, "targets": [vars(verdict) for verdict in verdicts]}


def test_the_inference_study_has_blocks_and_a_figure(root, tmp_path):
    (tmp_path / "study.json").write_text(json.dumps({"inference": study()}))
    pages = rendered([tmp_path / "study.json"], root)
    users, lines = (page.splitlines() for page in pages)
    for page in (users, lines):
        assert page[:4] == ["before", "<!-- ops: begin -->", "old", "<!-- ops: end -->"] and page[-1] == "after"
        assert "A CPU, 2 threads; 600 x 1000 pixels, 16 words; torch 2.11; 2026-01-02." in page
    stages = "| regions, float32 | 1 s | 100 ms | 5 s | 300 ms / 20 ms | 200 ms | 6.6 s / 6.32 s |"
    assert f"{stages} 2.50 GB | 3,000 G |  |" in lines
    assert "| SOHO prepared, bf16 | 500 ms |  |  |  | 100 ms | 600 ms |  | 200 G | 0.02, 99.1% |" in lines
    assert "| SOHO prepared, bf16 | 1.67 | 6.67 | 99.1% |" in users and "| regions, float32 | 0.16 |  |  |" in users
    assert "| regions, float32 | 480,000 to 1,234 |" in lines
    claim = "SOHO in bf16 against regions in float32, NMS by class"
    assert f"| {claim} | >= 12x | 11.00x (SOHO prepared, bf16: 0.600 s, 6.600 s); " in pages[1]
    assert (root / "docs/inference.png").read_bytes().startswith(b"\x89PNG")
    kept = root / "benchmarks/results/inference-a.json"
    assert rendered([kept], root) == pages
    with pytest.raises(SystemExit, match="result: expected one file with inference results, got 2"):
        rendered([tmp_path / "study.json", kept], root)


def test_the_figure_of_stages_has_a_bar_for_each_kind_of_nms(tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *args, **kwargs: drawn.append(figure))
    inference_report.draw(study(), tmp_path / "figure.png")
    (axes,) = drawn[0].axes
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names == ["regions, float32, NMS by class", "regions, float32, batched NMS", "SOHO prepared, bf16"]
    ends = {
        place: max(bar.get_x() + bar.get_width() for bar in axes.patches if round(bar.get_y() + 0.4) == place)
        for place in range(3)
    }
    assert list(ends.values()) == pytest.approx([6.6, 6.32, 0.6])
    assert [text.get_text() for text in axes.texts] == ["6.6 s, 1.0x", "6.32 s, 1.0x", "600 ms, 11.0x"]
