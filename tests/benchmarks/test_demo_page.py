"""The demo's figures in README and docs are those of the run on record, benchmarks/results/demo-amd-epyc.json."""

import json
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RECORD = json.loads((ROOT / "benchmarks/results" / "demo-amd-epyc.json").read_text())


def share(name: str) -> str:
    return f"{100 * RECORD['metrics'][name]:.1f}"


def test_readme_has_the_demos_figures_beside_their_baselines():
    told = (ROOT / "README.md").read_text()
    rows = {
        "masked content words": ("{mlm_content} %", "{mlm_content_shuffled} % with a shuffled image"),
        "masked visual tokens (256 codes), labels drawn by lift": (
            "{mvm} %",
            "{mvm_most_frequent} % most frequent code, {mvm_shuffled} % shuffled caption, "
            "{mvm_no_caption} % no caption",
        ),
        "codes on their object in all images (that show it); patches of objects found": (
            "{pointing_all} % ({pointing}); {pointing_found} %",
            "k-means of the CNN: {pointing_all_k_means} % ({pointing_k_means}); {pointing_found_k_means} %, "
            "any patch: {pointing_all_any_patch} % ({pointing_any_patch})",
        ),
        "image-text matching, balanced pairs": ("{itm} %", "50 % chance"),
        "R@1 among 200, image to text, text to image": (
            "{image_to_text_r1} %, {text_to_image_r1} %",
            f"{share('chance_r1')} % chance",
        ),
    }
    shares = {name: share(name) for name in RECORD["metrics"]}
    for label, (value, baseline) in rows.items():
        row = f"| demo: {label} | {value.format(**shares)} | {baseline.format(**shares)} |"
        assert row in told, row
    assert sum(line.startswith("| demo: ") for line in told.splitlines()) == len(rows)
    explorer = RECORD["explorer"]
    assert "(a quarter has none in 1,200 images)" in told and explorer["images"] == 1200
    assert round(4 * explorer["codes_without_a_word"] / explorer["codes"]) == 1


def test_the_page_of_the_demo_has_its_row_and_what_k_means_does_better():
    told = " ".join((ROOT / "docs/demo.md").read_text().split())
    names = ("mlm_content", "mlm_content_shuffled"), ("mvm", "mvm_shuffled"), ("itm",), ("image_to_text_r1",)
    cells = [f"{share(one)} %{''.join(f' ({share(each)})' for each in rest)}" for one, *rest in names]
    cells += [f"{share('text_to_image_r1')} %", f"{share('pointing')} % ({share('pointing_any_patch')})"]
    row = f"| seed 0, two threads, {RECORD['processor']} | {' | '.join(cells)} |"
    assert row in told, row
    assert f"Without any caption {share('mvm_no_caption')} % of the masked visual tokens" in told
    for label, name in (
        ("their patches that lie on it, in images that show it", "pointing"),
        ("their patches that lie on it, in all images", "pointing_all"),
        ("patches of objects that such codes find", "pointing_found"),
    ):
        chance = f"{share(f'{name}_any_patch')} %" if f"{name}_any_patch" in RECORD["metrics"] else ""
        row = " ".join(f"| {label} | {share(name)} % | {share(f'{name}_k_means')} % | {chance} |".split())
        assert row in told, row
    for name in ("pointing_all", "pointing_found"):
        assert RECORD["metrics"][name] < RECORD["metrics"][f"{name}_k_means"]
    assert "k-means is ahead of the dictionary" in told
    numbers, explorer = " ".join((ROOT / "docs/explorer_numbers.md").read_text().split()), RECORD["explorer"]
    without = f"there {explorer['codes_without_a_word']} of the {explorer['codes']} codes"
    assert f"shows {explorer['images']:,} images and corrects for all words of all codes: {without}" in numbers
