"""Tiny data sets in the published formats, written on the fly: one flat-coloured image per colour."""

import json
import zipfile
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

COLOURS = {
    "red": (250, 10, 10), "green": (10, 250, 10), "blue": (10, 10, 250), "yellow": (250, 250, 10),
    "cyan": (10, 250, 250), "magenta": (250, 10, 250), "white": (250, 250, 250), "black": (5, 5, 5),
    "grey": (125, 125, 125), "brown": (125, 60, 10), "navy": (5, 5, 120), "olive": (125, 125, 10),
}  # fmt: skip

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *COLOURS, "a", "there", "is", "and", "the", "man", "woman", "."]
PIECES = ["sheet", "##ing", "paint", "##ed", "##ly", "un"]


def write_tokenizer(folder: Path, size: int = 0) -> Path:
    """A WordPiece tokenizer that AutoTokenizer loads; `painting` and `unpaintedly` are made of several pieces.

    Words that no text has fill the vocabulary up to `size`.
    """
    filling = [f"word{number}" for number in range(size - len(WORDS + PIECES))]
    vocab = {word: number for number, word in enumerate(WORDS + PIECES + filling)}
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", vocab["[SEP]"]), ("[CLS]", vocab["[CLS]"]))
    special = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    return folder


def draw(path: Path, colour: str = "red", size: tuple[int, int] = (48, 40)) -> Path:
    """A JPEG (or what the suffix says) of one colour, `size` = (width, height), like no other name's file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    named = PngInfo()
    named.add_text("Title", path.name)
    Image.new("RGB", size, COLOURS[colour]).save(path, comment=path.name, pnginfo=named)
    return path


def sentences_of(colour: str) -> list[str]:
    """Two captions whose only content word is the colour."""
    return [f"There is a {colour}.", f"a {colour}"]


def write_karpathy(
    folder: Path,
    splits: dict[str, list[str]],
    *,
    coco: bool = True,
    sentences=sentences_of,
    size: tuple[int, int] = (48, 40),
) -> Path:
    """dataset_coco.json, or dataset_flickr30k.json with `coco=False`, and its images; split -> colours."""
    entries = []
    for split, colours in splits.items():
        for colour in colours:
            imgid = len(entries)
            texts = [
                {"tokens": text.split(), "raw": text, "imgid": imgid, "sentid": 10 * imgid + number}
                for number, text in enumerate(sentences(colour))
            ]
            entry = {"filename": f"{imgid:04d}.jpg", "imgid": imgid, "split": split, "sentences": texts}
            entry["sentids"] = [text["sentid"] for text in texts]
            if coco:
                entry |= {"filepath": "val2014" if split != "train" else "train2014", "cocoid": 1000 + imgid}
            entries.append(entry)
            draw(folder / entry.get("filepath", "flickr30k-images") / entry["filename"], colour, size)
    path = folder / ("dataset_coco.json" if coco else "dataset_flickr30k.json")
    path.write_text(json.dumps({"images": entries, "dataset": "coco" if coco else "flickr30k"}))
    return path


def write_images(folder: Path) -> Path:
    """`images.jsonl` of one's own: colours under names of all kinds, with captions, a question, an answer."""
    lines = []
    for number, colour in enumerate(COLOURS):
        file = (f"IMG {number:04d}.JPG", f"pics/{colour}.png")[number == 0 or number % 3 == 2]
        draw(folder / file, colour)
        questions = [{"question": "What colour is it?", "answer": colour.capitalize()}]
        lines.append({"file": file, "captions": sentences_of(colour), "questions": questions})
    path = folder / "images.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def write_zip(path: Path, folder: Path, pattern: str = "**/*.jpg") -> Path:
    """Pack the images below a folder under their relative names."""
    with zipfile.ZipFile(path, "w") as archive:
        for member in sorted(folder.glob(pattern)):
            archive.write(member, member.relative_to(folder).as_posix())
    return path


class Planted:
    """Unpickled, it creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def edit_json(path: Path, change) -> Path:
    """Apply `change(content)` in place to a JSON file."""
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    return path
