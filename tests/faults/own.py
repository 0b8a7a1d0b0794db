"""A folder of one's own images, in which something is odd, and the commands that read it."""

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import yaml
from tiny_runs import Bench

COMMANDS = ("check", "answer", "train", "many", "tokenizer", "label", "csv", "rank", "text", "retrieve")
_SHARED = {"images": ["{images}"], "annotations": "{images}/images.jsonl", "format": "json_lines"}


def own_folder(bench: Bench, folder: Path, text: str, image: bytes | None = None, name: str = "hostile") -> Path:
    """Some images of the corpus with captions and a tokenizer; the first has this content, text and name."""
    content = json.loads((bench.corpus / "dataset_coco.json").read_text())["images"][:8]
    folder.mkdir(parents=True)
    shutil.copytree(bench.corpus / "tokenizer", folder / "tokenizer")
    lines = []
    for number, entry in enumerate(content):
        file = entry["filename"] if number else f"{name}.jpg"
        shutil.copyfile(bench.corpus / entry["filepath"] / entry["filename"], folder / file)
        captions = [sentence["raw"] for sentence in entry["sentences"]] if number else [text]
        (folder / file).with_suffix(".txt").write_text(f"{captions[0]}\n")
        lines.append({"file": file, "captions": captions, "split": "val" if number > 5 else "train"})
    if image is not None:
        (folder / f"{name}.jpg").write_bytes(image)
    (folder / "images.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    with (folder / "captions.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("file", "caption"), *((line["file"], line["captions"][0]) for line in lines)])
    return folder


def reading_own(bench: Bench, command: str, own: Path, text: str, name: str = "hostile") -> list[str]:
    """One of `COMMANDS` about such a folder, or its first image and text."""
    image, out = str(own / f"{name}.jpg"), str(own.with_name("out"))
    recipe = yaml.safe_load(bench.recipes["pretraining"].read_text())
    recipe["data"] |= {"sources": [{**_SHARED, "splits": ["train"]}], "heldout": [{**_SHARED, "splits": ["val"]}]}
    recipe["data"]["tokenizer"] = "{images}/tokenizer"
    recipe |= {"data_roots": {"images": ""}, "corpus": {"folder": ""}}
    path, asked = own.with_name("own.yaml"), own.with_name("asked.jsonl")
    path.write_text(yaml.safe_dump(recipe))
    asked.write_text(f"{json.dumps({'image': f'{name}.jpg', 'texts': [text, 'a cat']})}\n")
    # All images that are trained on are in a batch.
    once = ["--batch.global_batch_size", "6", "--max_steps", "1", "--output", out, "--data_roots.images", str(own)]
    model, short = str(bench.folder / "pretraining"), text[:100_000].replace("\0", "") or "a"
    commands: dict[str, Callable[[], list[str]]] = {
        "check": lambda: ["check", str(own), "--recipe", str(path)],
        "train": lambda: ["train", "--recipe", str(path), *once],
        "answer": lambda: ["ask", "answer", str(bench.folder / "vqa"), image, short],
        "rank": lambda: ["ask", "rank", model, image, short, "a cat"],
        "many": lambda: ["ask", "many", model, str(asked), out, "--images", str(own), "--workers", "0"],
        "tokenizer": lambda: ["tokenizer", str(own / "images.jsonl"), out],
        "label": lambda: ["ask", "label", model, str(own), "--labels", str(own / f"{name}.txt")],
        "csv": lambda: ["import", "csv", str(own / "captions.csv"), str(own), "--overwrite"],
        "retrieve": lambda: ["ask", "retrieve", model, short, "--images", str(own)],
        "text": lambda: ["import", "text", str(own), "--overwrite"],
    }
    return commands[command]()
