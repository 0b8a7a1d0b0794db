"""An exported model, in a process without this package: the pipeline's answers and codes, for any sizes of a call."""

import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from small_models import KINDS, SMALL
from tokenizers import Tokenizer

from soho_fast import ops
from soho_fast.ask.pipeline import load_model
from soho_fast.common.versions import program, write_run_of
from soho_fast.export import package, run
from soho_fast.export.__main__ import main as export_main
from soho_fast.export.graphs import EncodeImages, PlainLookup, ReadTexts
from soho_fast.model import SohoConfig, SohoForPreTraining

TEXTS = ["a red", "there is a man and a woman .", "blue", "the man"]
FORMATS = {"pt2": [], "onnx": ["--onnx"]}
# Runs run.py where nothing of this package, or of what it brings, can be imported.
CHILD = """
import runpy, sys
class Nothing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("soho_fast", "transformers", "torchvision", "safetensors", "timm"):
            raise ModuleNotFoundError(f"no {name} here")
sys.meta_path.insert(0, Nothing())
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def drawn(height, width, seed):
    patches = torch.randint(0, 256, (3, 4, 4), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    rows, columns = (torch.arange(edge) * 4 // edge for edge in (height, width))
    return patches[:, rows][:, :, columns].contiguous()


def padded(processor, texts):
    encoded = processor.tokenizer(texts, padding=True, return_tensors="pt", return_token_type_ids=False)
    return encoded["input_ids"], encoded["attention_mask"]


@pytest.fixture(scope="session")
def exported_of(folder_of, tmp_path_factory):
    """The exported folder of a question in a format, made once."""
    made = {}

    def exported(question, kind="pt2"):
        if kind == "onnx":
            pytest.importorskip("onnxruntime"), pytest.importorskip("onnxscript")
        if (question, kind) not in made:
            made[question, kind] = tmp_path_factory.mktemp("exported") / "folder"
            assert export_main([str(folder_of(question)), str(made[question, kind]), *FORMATS[kind]]) == 0
        return made[question, kind]

    return exported


@pytest.mark.parametrize(
    ("question", "kind"), [*((name, "pt2") for name in KINDS), ("rank", "onnx"), ("compare", "onnx")]
)
def test_the_example_prints_the_pipelines_answers(question, kind, exported_of, soho_of, tmp_path):
    soho, folder = soho_of(question), exported_of(question, kind)
    paths = [tmp_path / "left.png", tmp_path / "right.png"]
    for number, path in enumerate(paths):
        Image.fromarray(drawn(100, 60 + 50 * number, number).permute(1, 2, 0).numpy()).save(path)
    paths = paths[: 2 if question == "compare" else 1]
    command = [sys.executable, "-I", "-c", CHILD, str(folder / "run.py"), *map(str, paths), *TEXTS]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    *lines, codes = done.stdout.splitlines()
    found = iter(lines)
    if question in ("rank", "pretrained"):
        expected = {each["text"]: each["score"] for each in soho.rank(str(paths[0]), TEXTS)}
        told = {text: float(share) for share, _, text in (line.strip().partition(" %  ") for line in found)}
        assert told == pytest.approx({text: 100 * score for text, score in expected.items()}, abs=0.06)
    else:
        for text in TEXTS:
            assert next(found) == text
            for each in getattr(soho, question)(*map(str, paths), text):
                share, _, label = next(found).strip().partition(" %  ")
                assert label == each.get("answer", each.get("label"))
                assert float(share) == pytest.approx(100 * each["score"], abs=0.06)
    of_images = [soho.encode(str(path)).index for path in paths]
    assert not list(found) and codes.split()[1:] == [str(code) for one in of_images for code in one.flatten().tolist()]


@pytest.mark.parametrize("question", ["rank", "answer"])
def test_the_space_answers_as_the_pipeline(question, exported_of, soho_of, tmp_path):
    pytest.importorskip("gradio", reason="the extra `app` is not installed")
    shutil.copytree(exported_of(question, "pt2"), tmp_path / "space")
    shutil.copytree(Path(__file__).parents[2] / "examples/space", tmp_path / "space", dirs_exist_ok=True)
    Image.fromarray(drawn(100, 60, 0).permute(1, 2, 0).numpy()).save(tmp_path / "photo.png")
    program = (
        f"import app, json; print(json.dumps(app.answer({str(tmp_path / 'photo.png')!r}, {chr(10).join(TEXTS)!r})))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path / "space", capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    asked = TEXTS if question == "rank" else TEXTS[0]
    found = getattr(soho_of(question), question)(str(tmp_path / "photo.png"), asked)
    expected = {each.get("text", each.get("answer")): each["score"] for each in found}
    assert json.loads(done.stdout.splitlines()[-1]) == pytest.approx(expected, abs=1e-3)


SIZES = [[(64, 64), (64, 64)], [(40, 60)], [(100, 60), (60, 100), (64, 64), (30, 200)], [(128, 64)] * 3]


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_images_become_the_processors_pixels(sizes, exported_of, processor, tmp_path):
    images, paths = [drawn(*size, seed) for seed, size in enumerate(sizes)], []
    for number, pixels in enumerate(images):
        paths.append(str(tmp_path / f"{number}.png"))
        Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(paths[-1])
    about = json.loads((exported_of("compare") / "about.json").read_text())
    pixel_values, pixel_mask = run.pixels_of(paths, about["image"])
    expected = processor.image_processor.collate([processor.image_processor.resize_one(image) for image in images])
    torch.testing.assert_close(pixel_values, expected["pixel_values"], rtol=0, atol=1e-5)
    whole = torch.ones_like(pixel_mask) if expected["pixel_mask"] is None else expected["pixel_mask"]
    assert torch.equal(pixel_mask, whole)


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("question", ["rank", "compare"])
def test_graphs_take_other_sizes_and_numbers_than_they_were_made_with(question, kind, exported_of, folder_of):
    model, _ = load_model(folder_of(question))
    encode, read = (run.load_stage(exported_of(question, kind), name) for name in ("encode", "read"))
    pixels, mask = torch.randn(3, 3, 128, 160), torch.ones(3, 128, 160, dtype=torch.bool)
    pixels[1, :, 64:], mask[1, 64:] = 0.0, False
    texts, index = torch.randint(5, 31, (2, 7)), torch.tensor([2, 1])
    index = index if question == "rank" else torch.stack([index, index.flip(0)], 1)
    with torch.no_grad():
        stages = EncodeImages(model), ReadTexts(model)
        expected = stages[0](pixels, mask)
        given = *expected[:2], texts, torch.ones_like(texts), index
        logits = read(*given)
        for got, value in zip(
            (*encode(pixels, mask), logits if isinstance(logits, torch.Tensor) else logits[0]),
            (*expected, stages[1](*given)),
            strict=True,
        ):
            torch.testing.assert_close(got, value, rtol=1e-4, atol=1e-4)


def test_no_size_of_a_call_is_built_in():
    """What torch.export assumes of sizes is what a call is checked for; with tokens of 2 x 2 cells, as in the paper."""
    for pool in (1, 2):
        model = SohoForPreTraining(SohoConfig.from_preset(**{**SMALL, "visual_pool": pool})).eval()
        stage, inputs = EncodeImages(model), package._images(model.config)
        sizes = {name: sizes for name, (_, sizes) in inputs.items()}
        with torch.no_grad():
            program = torch.export.export(stage, tuple(example for example, _ in inputs.values()), dynamic_shapes=sizes)
            bounds = [int(bound.lower) for symbol, bound in program.range_constraints.items() if symbol.is_Symbol]
            assert sorted(bounds) == [1, pool + 1, pool + 1]
            edge = 32 * (pool + 1)
            for size in ((1, 3, edge, edge), (3, 3, edge + 32, edge), (2, 3, 224, 160)):
                pixel_values, pixel_mask = torch.randn(size), torch.ones(size[0], *size[2:], dtype=torch.bool)
                pixel_mask[0, edge - 20 :] = False
                found = program.module()(pixel_values, pixel_mask)
                for one, other in zip(found, stage(pixel_values, pixel_mask), strict=True):
                    assert torch.equal(one, other)


_SNIPPET = """```python
from soho_fast.model import SohoForPreTraining

model = SohoForPreTraining.from_pretrained("FOLDER_OR_NAME")
```"""


def test_what_lies_beside_the_graphs(folder_of, processor, tmp_path, monkeypatch):
    """Of a run's best model, of step 4; the run went on to step 6."""
    monkeypatch.setattr(package, "_write", lambda stage, inputs, outputs, path: path.write_bytes(b"graph"))
    shutil.copytree(folder_of("compare"), tmp_path / "run/best")
    write_run_of(tmp_path / "run/best", 4, "0123456789abcdef")
    (tmp_path / "run/best/README.md").write_text(f"# A card\n\n{_SNIPPET}\n\n## Base\n")
    (tmp_path / "run/recipe.yaml").write_text("task: nlvr2\n")
    (tmp_path / "run/checkpoints/step-00000006").mkdir(parents=True)
    said, out = io.StringIO(), tmp_path / "exported"
    with contextlib.redirect_stdout(said):
        assert export_main([str(tmp_path / "run"), str(out)]) == 0
    assert f"{tmp_path / 'run/best'} is of step 4; its run has gone on to step 6\n" in said.getvalue()
    assert sorted(path.name for path in out.iterdir()) == [
        "README.md", "SHA256SUMS", "about.json", "encode.pt2", "read.pt2", "run.py", "tokenizer.json",
    ]  # fmt: skip
    card = (out / "README.md").read_text()
    assert card == "# A card\n\n```bash\npython run.py left.jpg right.jpg TEXT ...\n```\n\n## Base\n"
    assert "README.md" not in (out / "SHA256SUMS").read_text(), "it may be completed"
    about = json.loads((out / "about.json").read_text())
    assert about["run"] == {"step": 4, "identity": "0123456789abcdef", "program": program(), "metrics": {}}
    assert about["made_with"] == program() and about["question"] == "compare"
    assert about["labels"] == ["False", "True"] and about["images"] == ["left", "right"]
    assert (about["image"]["shortest_edge"], about["image"]["longest_edge"]) == (64, 128)
    assert about["text"] == {"max_tokens": 16, "pad_token": processor.tokenizer.pad_token_id}
    text = "unpaintedly there is a man"
    assert Tokenizer.from_file(str(out / "tokenizer.json")).encode(text).ids == processor.tokenizer(text)["input_ids"]


def test_the_plain_lookup_is_the_op():
    generator = torch.Generator().manual_seed(0)
    codebook = torch.randn(300, 37, generator=generator)
    codebook[100:110] = codebook[90]  # dead codes are often equal
    codebook[0] = codebook[299]
    near = codebook[200:205].clone()
    codebook[205:210] = torch.nextafter(near, near + 1)
    left, right = torch.randint(300, (2, 400), generator=generator)
    features = torch.cat(
        [
            torch.randn(400, 37, generator=generator),
            (codebook[left] + codebook[right]) / 2,
            codebook,
            near.repeat(20, 1),
        ]
    )
    features[5, 3] = float("nan")
    index = PlainLookup(codebook)(features.view(5, -1, 37)).flatten()
    assert torch.equal(index, ops.codebook_lookup(features, codebook, backend="reference"))
    assert int(index[5]) == 0 and {90, 0} <= set(index.tolist()) and not {299, *range(100, 110)} & set(index.tolist())


def test_mistakes_are_one_line(folder_of, tmp_path, capsys, monkeypatch):
    def reported(*arguments):
        assert export_main([str(each) for each in arguments]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line

    assert "no such file or folder" in reported(tmp_path / "nowhere", tmp_path / "out")
    assert "output: " in (line := reported(folder_of("answer"), tmp_path)) and "exists; give the name" in line
    assert "can't be made (there is no such" in reported(folder_of("answer"), tmp_path / "a/b")
    assert "arguments are required: output" in reported(folder_of("answer"))
    (tmp_path / "empty").mkdir()
    assert "no model could be loaded from" in reported(tmp_path / "empty", tmp_path / "out")
    monkeypatch.setattr("soho_fast.export.__main__.find_spec", lambda name: None)
    said = reported(folder_of("answer"), tmp_path / "out", "--onnx")
    assert "--onnx needs onnx and onnxscript; install with: pip install " in said and "[onnx]" in said
    assert not list(tmp_path.glob("out*"))


def test_a_full_disk_leaves_nothing(folder_of, tmp_path, capsys, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(package, "_write", fail)
    assert export_main([str(folder_of("answer")), str(tmp_path / "out")]) == 2
    assert "No space left on device" in capsys.readouterr().err and not os.listdir(tmp_path)


def test_images_are_padded_to_what_the_stages_take_whatever_the_recipe_pads_to(folder_of):
    model, processor = load_model(folder_of("rank"))
    for divisor, expected in ((1, 32), (48, 96), (64, 64)):
        processor.image_processor.size_divisor = divisor
        assert package._about(model, processor, "rank")["image"]["size_divisor"] == expected
