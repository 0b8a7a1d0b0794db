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
            "{mvm_no_caption} % no caption, {mvm_words} % the caption's words alone; labels drawn as in the paper "
            "{mvm_paper} %, {mvm_paper_no_caption} % no caption",
        ),
        "of the patches that codes mark, on the code's object; of the objects' patches, marked": (
            "{pointing_all} %; {pointing_found} %",
            "k-means of the CNN {pointing_all_k_means} %; {pointing_found_k_means} %, of what is looked "
            "up {pointing_all_words_k_means} %; {pointing_found_words_k_means} %, of the CNN before training "
            "{pointing_all_start_k_means} %; {pointing_found_start_k_means} %, of colours "
            "{pointing_all_colour_k_means} %; {pointing_found_colour_k_means} %",
        ),
        "a caption ranked above the same with another colour, object, number, side, order of two words": (
            "{foils_colours}, {foils_objects}, {foils_numbers}, {foils_sides}, {foils_order} %",
            "50 % chance",
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
    assert "(a third has none in 1,200 images)" in told and explorer["images"] == 1200
    assert round(3 * explorer["codes_without_a_word"] / explorer["codes"]) == 1
