"""Draws held-out pictures with the captions that a pre-trained model ranks best: the figure of the README.

python examples/ranked_captions.py runs/mini data/soho-mini docs/demo.png
"""

import argparse
import sys
import textwrap
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot
from PIL import Image

from soho_fast.ask import SohoPipeline
from soho_fast.data.readers.captions import read_karpathy


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="folder of a run or of a model")
    parser.add_argument("corpus", help="folder with dataset_coco.json and the images")
    parser.add_argument("picture", help="PNG to write")
    parser.add_argument("--columns", type=int, default=4, help="pictures shown: every tenth of the test split")
    parser.add_argument("--candidates", type=int, default=200, help="pictures whose first captions are ranked")
    chosen = parser.parse_args()

    soho = SohoPipeline.from_pretrained(chosen.model)
    records = read_karpathy(Path(chosen.corpus) / "dataset_coco.json", chosen.corpus, ["test"])[: chosen.candidates]
    captions = [record.captions[0] for record in records]
    step = max(1, min(10, len(records) // chosen.columns))
    figure, axes = pyplot.subplots(1, chosen.columns, figsize=(3.3 * chosen.columns, 5.0), squeeze=False)
    for cell, record in zip(axes[0], records[::step], strict=False):
        lines = []
        for row in soho.rank(str(record.image), captions, top_k=3):
            mark = "*" if row["text"] == record.captions[0] else " "
            lines.append(
                textwrap.fill(f"{mark} {100 * row['score']:.1f} %  {row['text']}", 36, subsequent_indent="    ")
            )
        cell.imshow(Image.open(str(record.image)))
        cell.set_title("\n".join(lines), loc="left", fontsize=8, family="monospace")
        cell.axis("off")
    figure.tight_layout()
    figure.savefig(chosen.picture, dpi=100, bbox_inches="tight")
    return 0


if __name__ == "__main__":
    sys.exit(main())
