"""A Space of an exported model on Hugging Face, or on this machine: these three files beside those of `soho export`.

soho export runs/mini exported
cp examples/space/* exported/
python exported/app.py
"""

import json
from pathlib import Path

import gradio as gr
from run import ask

FOLDER = Path(__file__).resolve().parent
ABOUT = json.loads((FOLDER / "about.json").read_text())


def answer(*inputs: str) -> dict[str, float]:
    """Probabilities of the texts, or of the answers to the first line."""
    *files, lines = inputs
    texts = [line for line in lines.splitlines() if line.strip()]
    if not texts or None in files:
        raise gr.Error("expected an image and a text")
    rows, _ = ask(FOLDER, files, texts if ABOUT["question"] == "rank" else texts[:1])
    return dict(row for some in rows for row in some)


images = [gr.Image(label=name, type="filepath") for name in ABOUT["images"]]
app = gr.Interface(answer, [*images, gr.Textbox(label="texts, one a line", lines=4)], gr.Label(label="probability"))

if __name__ == "__main__":
    app.launch()
