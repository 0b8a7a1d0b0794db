"""The render command: JSON in, the page's block and figure out; the page holds what the stored result renders."""

import json
from pathlib import Path

import pytest

from benchmarks import render
from benchmarks.inference import bars
from benchmarks.inference import page as inference_page
from benchmarks.inference.bars import BATCHED, BY_CLASS, Row
from benchmarks.ops.bars import verdicts
from benchmarks.ops.report import rows_of

ROOT = Path(__file__).resolve().parents[2]
STORED = ROOT / "benchmarks/results"


def record(op, case, contender, seconds, **info) -> dict:
    level = "avx2" if contender.startswith("soho_fast") else ""
    known = dict(op=op, case=case, contender=contender, wrong=0.0, level=level, shape=[2, 3, 4], work={})
    return {"extra_info": {**known, **info}, "stats": {"min": seconds}}


@pytest.fixture
def result(tmp_path) -> Path:
    """A small result file."""
    records = [
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
    bars = [vars(verdict) for verdict in verdicts(rows_of(records))]
    setup = {"versions": {"torch": "2.11", "faiss-cpu": "absent"}, "threads": 2, "build": {"cpu_level": "avx2"}}
    path = tmp_path / "result.json"
    machine = {"cpu": {"brand_raw": "A CPU"}}
    step = {"shape": "mini", "images_per_second": 32.0, "eager_images_per_second": 10.0, "bar": 3.0}
    steps = [
        {**step, "contender": "soho_fast", "ratio": 2.9, "fastest_ratio": 3.1, "cpu_ratio": 3.2},
        {**step, "contender": "soho_fast bf16", "ratio": 3.2, "fastest_ratio": 3.1, "cpu_ratio": 2.9},
    ]
    content = {"benchmarks": records, "soho_fast": {**setup, "bars": bars}, "machine_info": machine}
    content["training_steps"] = steps
    path.write_text(json.dumps({**content, "datetime": "2026-01-02T03:04:05"}))
    return path


def test_page_and_figure(result, tmp_path, capsys):
    page, figure = tmp_path / "results.md", tmp_path / "docs/figure.png"
    page.write_text(f"before\n{render.BEGIN}\nold\n{render.END}\nafter\n")
    store = tmp_path / "results"
    options = ["--page", str(page), "--figure", str(figure), "--store", str(store)]
    render.main([str(result), *options])
    first = page.read_text()
    render.main(
        [str(store / "ops-a.json"), *options]
    )  # the copy that is kept renders the same, into the block that the first wrote
    assert page.read_text() == first
    lines = page.read_text().splitlines()
    assert lines[:2] == ["before", render.BEGIN] and lines[-2:] == [render.END, "after"]
    assert "A CPU, 2 threads, level avx2; torch 2.11; 2026-01-02." in lines
    assert "| mini, float32 | 32.0 images/s | 10.0 images/s | 2.90x | 3.20x | >= 3x | **missed** |" in lines
    assert "| mini, bf16 | 32.0 images/s | 10.0 images/s | 3.20x | 2.90x | >= 3x | held |" in lines
    assert "| group_mask 8x9x10 | 1 ms (out of place) |  | torch where 3.0x (50.00% wrong) |" in lines
    assert "| group_mask: soho_fast in place against torch where | >= 4x, every case | 1.50x | **missed** |" in lines
    layer = "VisualDictionary real: soho_fast against vector-quantize-pytorch"
    assert f"| {layer} | >= 25x, every case | | not measured here |" in lines
    assert "old" not in lines
    other = json.loads(result.read_text())
    other.update(machine_info={"cpu": {"brand_raw": "Another(R) CPU @ 2.00GHz"}}, datetime="2026-02-03T04:05:06")
    result.write_text(json.dumps(other))
    render.main([str(result), *options])
    assert sorted(path.name for path in store.iterdir()) == ["ops-a.json", "ops-another.json"]
    text = page.read_text()
    assert text.index("Another(R) CPU @ 2.00GHz, 2 threads") < text.index("A CPU, 2 threads") < text.index(render.END)
    assert figure.read_bytes().startswith(b"\x89PNG")
    assert str(figure) in capsys.readouterr().out
    other["machine_info"]["cpu"] |= {"family": 25, "model": 17, "flags": ["avx2"]}
    result.write_text(json.dumps(other))
    render.main([str(result), *options])
    assert len(list(store.iterdir())) == 3
    assert "Another(R) CPU @ 2.00GHz, family 25 model 17, 2 threads" in page.read_text()


def test_parts_of_a_run_are_rendered_as_one(result, tmp_path, capsys):
    whole = json.loads(result.read_text())
    masks, others = ([it for it in whole["benchmarks"] if (it["extra_info"]["op"] == "group_mask") == is_mask]
                     for is_mask in (True, False))  # fmt: skip
    parts = [{**whole, "benchmarks": masks}, {**whole, "benchmarks": others}]
    paths = [tmp_path / "a.json", tmp_path / "b.json"]
    pages = [tmp_path / "whole.md", tmp_path / "parts.md"]
    for page, given in zip(pages, ([result], paths), strict=True):
        page.write_text(f"{render.BEGIN}\n{render.END}\n")
        for path, part in zip(paths, parts, strict=True):
            path.write_text(json.dumps({**part, "training_steps": part["training_steps"] * (path == paths[0])}))
        options = ["--page", str(page), "--figure", str(tmp_path / "f.png"), "--store", str(tmp_path / page.stem)]
        render.main([*map(str, given), *options])
    assert pages[0].read_text() == pages[1].read_text()

    with pytest.raises(SystemExit, match="result: group_mask 8x9x10 soho_fast in place is in several files"):
        render.main([str(result), str(paths[0]), *options])
    paths[1].write_text(json.dumps({**parts[1], "soho_fast": {**whole["soho_fast"], "threads": 1}}))
    with pytest.raises(SystemExit, match=r"expected runs of one setup, got A CPU, 2 threads.* and A CPU, 1 threads"):
        render.main([*map(str, paths), *options])


def test_the_figure_has_a_line_per_contender_and_series(result, tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *args, **kwargs: drawn.append(figure))
    render.draw(json.loads(result.read_text()), tmp_path / "figure.png")
    axes = drawn[0].axes
    assert [panel.get_xlabel() for panel in axes] == ["features N", "codes K", "channels C"]
    assert all(panel.get_xscale() == panel.get_yscale() == "log" for panel in axes)
    assert [panel.get_title() for panel in axes] == [
        "K = 1,024 codes, C = 32 channels", "N = 4,096 features, C = 32 channels", "N = 4,096 features, K = 1,024 codes"
    ]  # fmt: skip
    assert drawn[0].get_suptitle().endswith("A CPU, 2 threads, 2026-01-02")
    assert [line.get_label() for line in axes[0].lines] == ["soho_fast (avx2)", "faiss-cpu"]
    assert axes[0].lines[1].get_ydata() == pytest.approx([1.92, 3.84])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot read"),
        ("{}", "expected the JSON of `pytest benchmarks/ops --benchmark-only"),
        (json.dumps({"benchmarks": [], "soho_fast": {}}), "this one has none"),
    ],
)
def test_another_file_is_refused_and_nothing_is_written(content, message, tmp_path):
    (tmp_path / "result.json").write_text(content)
    page = tmp_path / "results.md"
    page.write_text(f"{render.BEGIN}\n{render.END}\n")
    before = page.read_text()
    with pytest.raises(SystemExit, match=f"error: result: .*{message}"):
        render.main([str(tmp_path / "result.json"), "--page", str(page), "--figure", str(tmp_path / "f.png")])
    assert page.read_text() == before and not (tmp_path / "f.png").exists()


def test_a_page_without_markers_is_refused(result, tmp_path):
    (tmp_path / "results.md").write_text("no markers")
    with pytest.raises(SystemExit, match="page: expected the markers"):
        render.main([str(result), "--page", str(tmp_path / "results.md"), "--figure", str(tmp_path / "f.png")])


def test_the_page_holds_what_the_stored_result_renders():
    page = (ROOT / "docs/results.md").read_text()
    assert list(STORED.glob("ops-*.json"))
    assert render.with_table(page, render.tables(STORED)) == page
    assert render.with_table(page, render.inference_tables(STORED), render.INFERENCE) == page


def test_the_page_says_why_a_bar_is_missed():
    page = (ROOT / "docs/results.md").read_text()
    reasons = page[page.index(render.END) :]
    for path in STORED.glob("ops-*.json"):
        result = render.read_result(path)
        missed = [bar["claim"] for bar in result["soho_fast"]["bars"] if bar["held"] is False]
        if any(step["ratio"] < step["bar"] for step in result.get("training_steps", [])):
            missed.append("training step")
        assert [claim for claim in missed if claim not in reasons] == []


def study() -> dict:
    """A small result of the inference study."""
    region = {"CNN": 1.0, "proposals": 0.1, "features of boxes": 5.0, BY_CLASS: 0.3, BATCHED: 0.02, "Transformer": 0.2}
    soho = {"visual tokens": 0.5, "Transformer": 0.1}
    rows = [
        {"contender": "regions, float32", "family": "regions", "precision": "float32", "batch": 1, "seconds": region},
        {"contender": "SOHO prepared, bf16", "family": "SOHO", "precision": "bf16", "batch": 1, "seconds": soho},
        {"contender": "SOHO prepared, bf16", "family": "SOHO", "precision": "bf16", "batch": 4, "seconds": soho},
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
    verdicts = bars.verdicts([Row(**row) for row in rows], result["operations"], result["products"])
    return {**result, "bars": [vars(verdict) for verdict in verdicts]}


def test_the_inference_study_has_a_block_and_a_figure(tmp_path):
    page, figure, store = tmp_path / "results.md", tmp_path / "figure.png", tmp_path / "results"
    page.write_text("\n".join(["before", render.BEGIN, "ops", render.END, *render.INFERENCE, "after", ""]))
    (tmp_path / "study.json").write_text(json.dumps({"inference": study()}))
    options = ["--page", str(page), "--figure", str(figure), "--store", str(store)]
    render.main([str(tmp_path / "study.json"), *options])
    lines = page.read_text().splitlines()
    assert lines[:4] == ["before", render.BEGIN, "ops", render.END] and lines[-1] == "after"
    assert "A CPU, 2 threads; 600 x 1000 pixels, 16 words; torch 2.11; 2026-01-02." in lines
    stages = "| regions, float32 | 1 s | 100 ms | 5 s | 300 ms / 20 ms | 200 ms | 6.6 s / 6.32 s |"
    assert f"{stages} 2.50 GB | 3,000 G |  |" in lines
    assert "| SOHO prepared, bf16 | 500 ms |  |  |  | 100 ms | 600 ms |  | 200 G | 0.02, 99.1% |" in lines
    assert "| SOHO prepared, bf16 | 1.67 | 6.67 |" in lines and "| regions, float32 | 0.16 |  |" in lines
    assert any("regions, float32: NMS by class 480,000 to 1,234." in line for line in lines)
    claim = "SOHO in bf16 against regions in float32, NMS by class"
    assert f"| {claim} | >= 12x | 11.00x (SOHO prepared, bf16: 0.600 s, 6.600 s); " in page.read_text()
    assert figure.read_bytes().startswith(b"\x89PNG") and (store / "inference-a.json").is_file()
    render.main([str(store / "inference-a.json"), *options])
    assert page.read_text().splitlines() == lines


def test_the_figure_of_stages_has_a_bar_for_each_kind_of_nms(tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *args, **kwargs: drawn.append(figure))
    inference_page.draw(study(), tmp_path / "figure.png")
    (axes,) = drawn[0].axes
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names == ["regions, float32, NMS by class", "regions, float32, batched NMS", "SOHO prepared, bf16"]
    ends = {
        place: max(bar.get_x() + bar.get_width() for bar in axes.patches if round(bar.get_y() + 0.4) == place)
        for place in range(3)
    }
    assert list(ends.values()) == pytest.approx([6.6, 6.32, 0.6])
    assert [text.get_text() for text in axes.texts] == ["6.6 s, 1.0x", "6.32 s, 1.0x", "600 ms, 11.0x"]
