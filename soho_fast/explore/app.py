"""A model in the browser, by Gradio: its question, and the codes and the attention of an image; `soho app` shows it.

Only this machine can reach it. h x w patches of an image of H x W pixels.
"""

from __future__ import annotations

import argparse
import colorsys
import contextlib
import heapq
import html
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from soho_fast.ask import MODELS, does_not_know
from soho_fast.common.command_line import quiet_transformers
from soho_fast.common.errors import print_line
from soho_fast.common.extras import from_extra
from soho_fast.common.hub import model_folder
from soho_fast.common.versions import cautions
from soho_fast.explore.build import Opened, default_folder, open_model
from soho_fast.explore.bundle import Bundle, BundleError

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
with from_extra("app"):
    import gradio as gr
    from PIL import Image

    from soho_fast.common.images import one_line
    from soho_fast.explore.door import App, Turns, serve

if TYPE_CHECKING:
    from soho_fast.explore.attention import SeeingPipeline

EXAMPLES, RETRIEVED = 8, 64
"""So many held-out images are shown as examples, and searched through by a text."""
_SHOWN_TEXTS = 20
_SHOWN, _CANDIDATES = 12, 24  # of these, those that fit best, of those that a contrastive head chooses

# What was uploaded is deleted after an hour, and at the end.
_SHOWS = {
    "rank": "How well each text describes the image.",
    "answer": "The most probable answers to a question about the image.",
    "entails": "Whether the text follows from the image, contradicts it, or neither.",
    "compare": "Whether a statement about the two images is true.",
    "retrieve": "The held-out images that a text describes best.",
    "codes": "The code, a word of the model's visual dictionary, that stands for each patch of the image.",
    "attention": "Where in the image the model looks while it reads each token of the text.",
}
_BLOCKS: dict[str, Any] = {"analytics_enabled": False, "delete_cache": (3600, 3600)}
_MOST_CODES = 48  # of an image that get a colour each, those with the most patches
_LARGEST_SHOWN = 640  # pixels, of an image that codes or attention are painted on
_CHUNK, _IMAGES_AHEAD = 64, 8  # texts, images: of a step of a call; others' steps come between


@dataclass(frozen=True)
class Example:
    """Held-out images that belong together, as files, and their texts."""

    files: tuple[str, ...]
    texts: tuple[str, ...]


@dataclass(frozen=True)
class About:
    """What the app shows beside a model.

    title: what heads the page. names: of codes, each the word that its images' captions share. examples: of its
    held-out images. explorer: the folder of its codes' pages. data: what it is trained on.
    """

    title: str
    names: Mapping[int, str] = field(default_factory=dict)
    examples: Sequence[Example] = ()
    explorer: Path | None = None
    data: str = ""


def serve_model(run: str, port: int | None = None, accept_changes: bool = False) -> None:
    """Show a model in the browser until Ctrl-C.

    Args:
        run: Folder of a run or of a model, or a name on the hub.
        port: The first free one from 7860 on if not given.
        accept_changes: Whether own code may be another than the model was trained with.

    Raises:
        FileNotFoundError, ValueError: it is no model that can be used.
        UserError: the port can't be used.
    """
    quiet_transformers()
    with from_extra("train"):
        from soho_fast.explore.attention import SeeingPipeline

    told = cautions(model_folder(run), accept_changes)
    soho = SeeingPipeline.from_pretrained(run)
    for line in told:
        print_line(line, file=sys.stderr)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["GRADIO_TEMP_DIR"] = f"{folder}/uploads"  # where no other user can read them
        title = f"{Path(run).resolve().name}: {MODELS[type(soho.model).__name__][0]}"
        explorer, names = explorer_of(run, soho.weights())
        data, examples = data_of(run, Path(folder))
        about = About(title, names, examples, explorer, data)
        show(model_app(soho, about), port, explorer)


def show(app: gr.Blocks, port: int | None = None, explorer: Path | None = None) -> None:
    """Serve an app, with an explorer, to this machine alone, and say where, until Ctrl-C. Raises UserError: the port
    can't be used."""
    address = serve(app, port, explorer)
    try:
        print_line(f"{app.title}: {address}   (Ctrl-C ends)")
        app.server.thread.join()
    finally:
        app.close(verbose=False)


def explorer_of(run: str, weights: str | None) -> tuple[Path | None, dict[int, str]]:
    """The explorer of a run, and what it calls its codes; nothing where there is none, or one of another model."""
    try:
        bundle = Bundle(default_folder(run))
        if bundle.meta["weights"] == weights and not bundle.of_another_model():
            return bundle.folder, {code: word for code, word in enumerate(bundle.read("wall")["word"]) if word}
    except (FileNotFoundError, BundleError):
        pass
    return None, {}


def data_of(run: str, folder: Path) -> tuple[str, list[Example]]:
    """What a run is trained on, and held-out images and their texts, evenly spread, as files in `folder`; nothing where
    they can't be read, which is said."""
    from soho_fast.explore.from_model import heldout_of, records_of, shown_of
    from soho_fast.tasks.card import trained_on

    options = argparse.Namespace(model=run, recipe=None, checkpoint=None, split=[], images=0, fields=[])
    data, found = "", list[Example]()
    try:
        opened = open_model(options, lambda line: None)
        data = trained_on(opened.task.data)
        with contextlib.chdir(_started_in(opened)):
            records = [record for _, _, some in records_of(opened.task, [heldout_of(opened.task)]) for record in some]
            for place in np.unique(np.linspace(0, len(records) - 1, min(RETRIEVED, len(records))).astype(int)):
                refs, texts = shown_of(opened.task, records[place])
                files = [folder / f"{place}-{number}{Path(ref.name).suffix}" for number, ref in enumerate(refs)]
                for ref, file in zip(refs, files, strict=True):
                    file.write_bytes(ref.read())
                found.append(Example(tuple(map(str, files)), tuple(texts)))
    except (ValueError, OSError, ImportError) as error:
        print_line(f"no more examples: {one_line(error)}", file=sys.stderr)
    return data, found


def _started_in(opened: Opened) -> Path:
    """The folder that paths in the recipe of a run are relative to, if the run lies where training has put it."""
    run, output = Path(os.path.abspath(opened.run or "")), Path(opened.recipe.output)
    is_there = opened.run and not output.is_absolute() and run.parts[-len(output.parts) :] == output.parts
    return run.parents[len(output.parts) - 1] if is_there else Path()


def model_app(soho: SeeingPipeline, run: About) -> gr.Blocks:
    """The app of a model: a tab for its question, and, where it can, one to retrieve images, for codes, attention."""
    labels = ["left", "right"] if soho.action == "compare" else ["image"]
    turns = Turns()
    with App(title=run.title, **_BLOCKS) as app:
        gr.Markdown(f"# {run.title}\n{_what_it_is(soho, run)}")
        _question_tab(turns, soho, run, labels)
        if soho.action == "rank" and run.examples:
            _retrieve_tab(turns, soho, run)
        if soho.dictionary is not None:

            def codes(file: str) -> Iterator[Any]:
                pixels, visual, size = soho.see(_content(file))
                index_hw = soho.codes_of(visual)
                yield *code_map(pixels, index_hw, size, run.names), code_links(index_hw, run)

            _codes_tab(soho, turns, codes, [list(example.files[:1]) for example in run.examples[:EXAMPLES]])
        _attention_tab(turns, soho, run, labels)
    return app


def _what_it_is(soho: SeeingPipeline, run: About) -> str:
    size = (
        "no dictionary" if soho.dictionary is None else f"a dictionary of {len(soho.dictionary.codebook_of(0)):,} codes"
    )
    trained = f", trained on {run.data}" if run.data else ""
    return f"A SOHO model for {MODELS[type(soho.model).__name__][0]} with {size}{trained}."


def _question_tab(turns: Turns, soho: SeeingPipeline, run: About, labels: Sequence[str]) -> None:
    ranks = soho.action == "rank"

    def ask(*inputs: Any) -> Iterator[dict[str, float]]:
        *files, text = inputs
        images = [_content(file) for file in files]
        if not ranks:
            found = getattr(soho, soho.action)(*images, text or "")
            yield {row.get("answer") or row["label"]: row["score"] for row in found}
            return
        texts = list(dict.fromkeys(line for line in (text or "").splitlines() if line.strip()))
        (visual,), score_of = soho.encode(images), dict[str, float]()
        for first in range(0, max(1, len(texts)), _CHUNK):
            found = soho.rank(visual, texts[first : first + _CHUNK])
            score_of |= {row["text"]: row["score"] for row in found}
            best = heapq.nlargest(_SHOWN_TEXTS, score_of, key=score_of.__getitem__)  # of those read so far
            yield {each: score_of[each] for each in best}

    texts = [example.texts[0] for example in run.examples if example.texts]
    shown = [
        [*example.files, "\n".join(dict.fromkeys([example.texts[0], *texts[:4]])) if ranks else example.texts[0]]
        for example in run.examples[:EXAMPLES]
        if example.texts
    ]
    words = gr.Textbox(label="texts, one a line" if ranks else "text", lines=5 if ranks else 1)
    answers = gr.Label(
        label="probability" if soho.head == "itm" else "similarity (cosine)", num_top_classes=_SHOWN_TEXTS
    )
    _tab(soho, turns, soho.action, ask, [*_uploads(labels), words], answers, shown)


def _retrieve_tab(turns: Turns, soho: SeeingPipeline, run: About) -> None:
    from soho_fast.ask.retrieval import Retriever

    files = [example.files[0] for example in run.examples]
    encoded: list[Any] = []  # when the first text is asked for, not when the app starts
    retriever = Retriever(soho, encoded, say=lambda line: None)

    def retrieve(text: str) -> Iterator[Any]:
        soho.texts_of([text or ""])
        while len(encoded) < len(files):
            encoded.extend(soho.encode(files[len(encoded) : len(encoded) + _IMAGES_AHEAD]))
            yield gr.skip()
        (answer,) = retriever([text or ""], _SHOWN, _CANDIDATES)
        yield [(files[row["image"]], soho.shown(row["score"]).strip()) for row in answer]

    text = gr.Textbox(label=f"text; {len(run.examples)} held-out images are searched")
    gallery = gr.Gallery(label="images that fit best", columns=4)
    texts = [[example.texts[0]] for example in run.examples[:EXAMPLES] if example.texts]
    _tab(soho, turns, "retrieve", retrieve, [text], gallery, texts)


def _codes_tab(
    soho: SeeingPipeline, turns: Turns, codes: Callable[[str], Iterator[Any]], examples: list[list[str]]
) -> None:
    shown = gr.AnnotatedImage(label="code map: point at a code to see its patches", format="png")
    grid = gr.JSON(visible=False)  # for programs
    _tab(soho, turns, "codes", codes, _uploads(["image"]), [shown, grid, gr.HTML()], examples)


def _attention_tab(turns: Turns, soho: SeeingPipeline, run: About, labels: Sequence[str]) -> None:
    layers = soho.model.config.num_hidden_layers

    def attention(*inputs: Any) -> Iterator[list[tuple[np.ndarray, str]]]:
        *files, text, layer = inputs
        seen = [soho.see(_content(file)) for file in files]
        tokens, shares = soho.attention(text or "", [visual for _, visual, _ in seen])
        yield [
            (shaded(pixels, share_DShw[int(layer) - 1, number], size), token)
            for (pixels, _, size), share_DShw in zip(seen, shares, strict=True)
            for number, token in enumerate(tokens)
        ]

    layer = gr.Dropdown(list(range(1, layers + 1)), value=layers, label="layer")
    gallery = gr.Gallery(label="mean of the heads; bright is most", columns=4)
    examples = [[*one.files, one.texts[0], layers] for one in run.examples[:EXAMPLES] if one.texts]
    _tab(soho, turns, "attention", attention, [*_uploads(labels), gr.Textbox(label="text"), layer], gallery, examples)


def _uploads(labels: Sequence[str]) -> list[gr.Image]:
    images = [gr.Image(label=label, type="filepath", image_mode=None, sources=["upload"]) for label in labels]
    for image in images:
        # Gradio's own opens the file, without the limits and the messages of `common/images.py`.
        image.preprocess = lambda payload: payload and payload.path
    return images


def _tab(
    soho: SeeingPipeline,
    turns: Turns,
    name: str,
    act: Callable[..., Iterator[Any]],
    inputs: Any,
    outputs: Any,
    examples: list[list[Any]],
) -> None:
    """A tab that shows what the steps of `act` give; what can't be used is said in one line. Gradio ends a call between
    two steps, when its button is pressed or its page is left."""

    def told(request: gr.Request, *values: Any) -> Iterator[Any]:
        texts = [each or "" for each, shown in zip(values, inputs, strict=True) if isinstance(shown, gr.Textbox)]
        lines = [line for text in texts for line in text.splitlines() or [""]]
        try:
            yield from turns.take(request.session_hash or "", lambda: act(*values), len(lines))
            if lines and (unknown := soho.unknown_words(lines)):
                gr.Warning(html.escape(does_not_know(unknown), quote=False))
        except (ValueError, OSError) as error:
            raise gr.Error(one_line(error), print_exception=False) from error

    plain: dict[str, Any] = {"cache_examples": False, "flagging_mode": "never", "clear_btn": None}
    with gr.Tab(name):
        about = {"description": _SHOWS[name], "api_name": name, "submit_btn": name}
        gr.Interface(told, inputs, outputs, examples or None, **about, **plain)


def _content(file: str | None) -> bytes:
    """Raises ValueError: no file was chosen."""
    if not file:
        raise ValueError("image: expected one; upload a file, or choose an example")
    return Path(file).read_bytes()


def code_map(
    pixels: np.ndarray, index_hw: np.ndarray, size: tuple[float, float], names: Mapping[int, str]
) -> tuple[Any, dict[str, Any]]:
    """An image with its codes in colours, the most frequent ones, and its grid of codes.

    Args:
        pixels: uint8 (H, W, 3).
        index_hw: The codes of its patches, -1 where there is none.
        size: Its height and width in patches, fractions included.
        names: Of codes.
    """
    pixels = _smaller(pixels)
    place_HW = _patch_of_pixels(pixels, index_hw.shape, size)
    most = Counter(index_hw[index_hw >= 0].tolist()).most_common(_MOST_CODES)
    labels = {code: _called(code, names) for code, _ in most}
    masks = [(0.6 * (index_hw.ravel()[place_HW] == code), label) for code, label in labels.items()]
    colours = {label: _colour(code) for code, label in labels.items()}
    grid = {"rows": index_hw.shape[0], "columns": index_hw.shape[1], "codes": index_hw.ravel().tolist()}
    return gr.AnnotatedImage((pixels, masks), color_map=colours), grid


def code_links(index_hw: np.ndarray, run: About) -> str:
    """HTML: the codes of an image, the most frequent first, as links to their pages of the explorer; see `code_map`."""
    if run.explorer is None:
        return "What other images have these codes is shown once <code>soho explore build</code> has made an explorer."
    links = [
        f'<a href="explorer/?app#/code/{code}" target="_blank">{html.escape(_called(code, run.names))}</a> ({count})'
        for code, count in Counter(index_hw[index_hw >= 0].tolist()).most_common()
    ]
    return f"Each code's page, with other images that have it (patches of this image): {', '.join(links)}"


def _called(code: int, names: Mapping[int, str]) -> str:
    return f"{names.get(code, 'code')} {code}"


def shaded(pixels: np.ndarray, share_hw: np.ndarray, size: tuple[float, float]) -> np.ndarray:
    """An image, uint8 (H, W, 3), the darker the less of the attention goes to a patch; see `code_map`."""
    pixels = _smaller(pixels)
    share_HW = share_hw.ravel()[_patch_of_pixels(pixels, share_hw.shape, size)]
    light = 0.2 + 0.8 * share_HW / max(float(share_hw.max()), 1e-12)
    return (pixels * light[..., None]).astype(np.uint8)


def _smaller(pixels: np.ndarray) -> np.ndarray:
    image = Image.fromarray(pixels)
    image.thumbnail((_LARGEST_SHOWN, _LARGEST_SHOWN))
    return np.asarray(image)


def _patch_of_pixels(pixels: np.ndarray, grid: tuple[int, ...], size: tuple[float, float]) -> np.ndarray:
    """int (H, W), the number of the patch that each pixel lies in."""
    row_H, column_W = (
        np.minimum((np.arange(edge) + 0.5) * patches / edge, most - 1).astype(int)
        for edge, patches, most in zip(pixels.shape, size, grid, strict=False)
    )
    return row_H[:, None] * grid[1] + column_W


def _colour(code: int) -> str:
    """Of neighbouring numbers, hues that lie apart."""
    red, green, blue = colorsys.hls_to_rgb(0.618034 * code % 1, 0.4 + 0.2 * (0.7548 * code % 1), 0.85)
    return "#" + "".join(f"{round(255 * part):02x}" for part in (red, green, blue))
