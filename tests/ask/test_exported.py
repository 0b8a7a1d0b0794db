"""An exported model, in a process that has torch alone: the pipeline's answers and codes, for any sizes of a call."""

import contextlib
import importlib.util
import io
import json
import os
import platform
import re
import shutil
import subprocess
import sys

import pytest
import torch
from PIL import Image
from small_models import KINDS
from tokenizers import Tokenizer

from soho_fast import ops
from soho_fast.ask.pipeline import load_model
from soho_fast.common.versions import program, write_run_of
from soho_fast.export.__main__ import main as export_main
from soho_fast.export.graphs import EncodeImages, PlainLookup, ReadTexts
from soho_fast.export.package import _about
from soho_fast.export.run import read_ppm

TEXTS = ["a red", "there is a man and a woman .", "blue", "the man"]
# Runs run.py's `Model` on saved calls, where nothing but torch can be imported of what could help it.
CHILD = """
import importlib.util, sys
class Nothing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("soho_fast", "transformers", "torchvision", "tokenizers", "PIL", "safetensors"):
            raise ModuleNotFoundError(f"no {name} here")
sys.meta_path.insert(0, Nothing())
folder, calls, found, *arguments = sys.argv[1:]
spec = importlib.util.spec_from_file_location("run", folder + "/run.py")
run = importlib.util.module_from_spec(spec)
spec.loader.exec_module(run)
import torch
model, answers = run.Model(folder), []
for images, *texts in torch.load(calls):
    pixels = model.pixels(images)
    visual, valid, codes = model.encode(*pixels)
    answers.append([*pixels, valid, codes, model.read(visual, valid, *texts)])
torch.save(answers, found)
run.main(arguments)
assert not {"soho_fast", "transformers", "torchvision"} & set(sys.modules)
"""


def drawn(height, width, seed):
    patches = torch.randint(0, 256, (3, 4, 4), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    rows, columns = (torch.arange(edge) * 4 // edge for edge in (height, width))
    return patches[:, rows][:, :, columns].contiguous()


def padded(processor, texts):
    encoded = processor.tokenizer(texts, padding=True, return_tensors="pt", return_token_type_ids=False)
    return encoded["input_ids"], encoded["attention_mask"]


@pytest.fixture(scope="session")
def exported(folder_of, tmp_path_factory):
    """Of a run's best model, of step 4; the run went on to step 6."""
    run = tmp_path_factory.mktemp("exported")
    shutil.copytree(folder_of("compare"), run / "best")
    write_run_of(run / "best", 4, "0123456789abcdef")
    (run / "recipe.yaml").write_text("task: nlvr2\n")
    (run / "checkpoints/step-00000006").mkdir(parents=True)
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        assert export_main([str(run), str(run / "model-of-torch")]) == 0
    assert f"{run / 'best'} is of step 4; its run has gone on to step 6\n" in said.getvalue()
    return run / "model-of-torch"


@pytest.fixture(scope="session")
def runner(exported):
    """run.py's `Model`, in this process."""
    spec = importlib.util.spec_from_file_location("exported_run", exported / "run.py")
    run = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(run)
    return run.Model(exported)


# Images (height, width) of a call, texts by number, and which images each is about.
CALLS = [
    ([(64, 64), (64, 64)], [0], [(0, 1)]),
    ([(40, 60)], [1, 2], [(0, 0), (0, 0)]),
    ([(100, 60), (60, 100), (64, 64), (30, 200)], [0, 1, 2, 3, 0], [(0, 1), (1, 0), (2, 3), (3, 3), (0, 3)]),
    ([(128, 64)] * 3, [2], [(2, 1)]),
]


@pytest.fixture(scope="session")
def answers(exported, processor, tmp_path_factory):
    """Calls, what came of them in a process with torch alone, and what run.py printed there."""
    folder = tmp_path_factory.mktemp("child")
    calls = []
    for seed, (sizes, texts, pairs) in enumerate(CALLS):
        images = [drawn(*size, 10 * seed + number) for number, size in enumerate(sizes)]
        calls.append([images, *padded(processor, [TEXTS[text] for text in texts]), torch.tensor(pairs)])
    torch.save(calls, folder / "calls.pt")
    for name, pixels in zip(("left", "right"), calls[0][0], strict=True):
        Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(folder / f"{name}.ppm")
    ids = [str(each) for each in Tokenizer.from_file(str(exported / "tokenizer.json")).encode(TEXTS[0]).ids]
    paths = [str(exported), *(str(folder / name) for name in ("calls.pt", "found.pt", "left.ppm", "right.ppm"))]
    done = subprocess.run(
        [sys.executable, "-I", "-c", CHILD, *paths, *ids], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    return calls, torch.load(folder / "found.pt"), done.stdout


@pytest.mark.parametrize("number", range(len(CALLS)))
def test_with_torch_alone_the_answers_are_the_pipelines(answers, soho_of, number):
    soho, (calls, found, _) = soho_of("compare"), answers
    images, input_ids, attention_mask, pairs = calls[number]
    pixel_values, pixel_mask, valid, codes, logits = found[number]
    processor = soho.processor.image_processor
    expected = processor.collate([processor.resize_one(image) for image in images])
    torch.testing.assert_close(pixel_values, expected["pixel_values"], rtol=0, atol=1e-6)
    assert torch.equal(
        pixel_mask, torch.ones_like(pixel_mask) if expected["pixel_mask"] is None else expected["pixel_mask"]
    )
    for image, valid_L, codes_L in zip(images, valid, codes, strict=True):
        assert codes_L[valid_L].tolist() == soho.encode(image).index[0].tolist()
        assert (codes_L[~valid_L] == -1).all()
    for row, (left, right) in enumerate(pairs.tolist()):
        text = soho.processor.tokenizer.decode(input_ids[row][attention_mask[row] == 1][1:-1])
        label = {each["label"]: each["score"] for each in soho.compare(images[left], images[right], text)}
        assert logits[row].softmax(-1).tolist() == pytest.approx([label["False"], label["True"]], abs=1e-5)
    with torch.no_grad():
        inputs = {**expected, "input_ids": input_ids, "attention_mask": attention_mask, "image_index": pairs}
        torch.testing.assert_close(logits, soho.model(**inputs).logits, rtol=0, atol=2e-5)


def test_the_codes_tell_images_apart(answers):
    codes = [tuple(codes[codes >= 0].tolist()) for *_, codes, _ in answers[1]]
    assert len(set(codes)) == len(CALLS) and len({code for each in codes for code in each}) > 4


def test_the_example_prints_the_answer(answers, soho_of):
    calls, found, said = answers
    best, _, codes = said.splitlines()
    expected = soho_of("compare").compare(*calls[0][0], TEXTS[0])[0]
    assert best.split("%  ")[1] == expected["label"] and float(best.split("%")[0]) == pytest.approx(
        100 * expected["score"], abs=0.06
    )
    assert codes.split()[1:] == [str(code) for code in found[0][3].flatten().tolist()]


_SNIPPET = """```python
from soho_fast.model import SohoForPreTraining

model = SohoForPreTraining.from_pretrained("FOLDER_OR_NAME")
```"""


def test_the_model_card_goes_with_it(folder_of, tmp_path, monkeypatch):
    monkeypatch.setattr("soho_fast.export.package._compile", lambda stage, inputs, path: path.write_bytes(b"compiled"))
    shutil.copytree(folder_of("compare"), tmp_path / "model")
    (tmp_path / "model" / "README.md").write_text(f"# A card\n\n{_SNIPPET}\n\n## Base\n")
    assert export_main([str(tmp_path / "model"), str(tmp_path / "exported")]) == 0
    assert (tmp_path / "exported" / "README.md").read_text() == (
        "# A card\n\n```bash\npython run.py left.ppm right.ppm TOKEN ...\n```\n\n## Base\n"
    )
    assert "README.md" not in (tmp_path / "exported" / "SHA256SUMS").read_text(), "it may be completed"


def test_what_lies_beside_the_stages(exported, processor, folder_of):
    assert sorted(path.name for path in exported.iterdir() if path.is_file()) == [
        "SHA256SUMS", "about.json", "encode.pt2", "read.pt2", "run.py", "tokenizer.json",
    ]  # fmt: skip
    about = json.loads((exported / "about.json").read_text())
    assert about["run"] == {"step": 4, "identity": "0123456789abcdef", "program": program()}
    assert about["made_with"] == {**program(), "machine": platform.machine()}
    assert about["labels"] == ["False", "True"] and about["images"] == ["left", "right"]
    assert (about["image"]["shortest_edge"], about["image"]["longest_edge"]) == (64, 128)
    assert about["text"]["max_tokens"] == 16 and about["text"]["cls_token"] == processor.tokenizer.cls_token_id
    text = "unpaintedly there is a man"
    assert (
        Tokenizer.from_file(str(exported / "tokenizer.json")).encode(text).ids == processor.tokenizer(text)["input_ids"]
    )
    (file,) = [
        line
        for line in (exported / "run.py").read_text().splitlines()
        if line.startswith("import ") and "torch" in line
    ][:1]
    assert file == "import torch"


@pytest.mark.parametrize(
    "damage", [lambda content: content[:-9], lambda content: bytes([content[0] ^ 1]) + content[1:]]
)
@pytest.mark.parametrize("name", ["SHA256SUMS", "about.json", "encode.pt2", "read.pt2", "run.py", "tokenizer.json"])
def test_an_altered_file_is_named_before_anything_is_loaded(exported, tmp_path, name, damage):
    from soho_fast.export.run import Model

    folder = shutil.copytree(exported, tmp_path / "copy")
    (folder / name).write_bytes(damage((folder / name).read_bytes()))
    named = "" if name == "SHA256SUMS" else f"{name} "
    with pytest.raises(ValueError, match=rf"copy: .*{named}is missing or has changed since it was exported"):
        Model(folder)
    (folder / name).unlink()
    if name != "SHA256SUMS":
        with pytest.raises(ValueError, match=rf"{name} is missing or has changed"):
            Model(folder)


def test_wrong_inputs_are_refused(runner, exported):
    images = torch.zeros(2, 3, 64, 64), torch.ones(2, 64, 64, dtype=torch.bool)
    visual, valid, _ = runner.encode(*images)
    ids, ones, pairs = torch.full((1, 4), 7), torch.ones(1, 4, dtype=torch.int64), torch.tensor([[0, 1]])
    read, encode = runner.read, runner.encode
    for call, words in (
        (
            lambda: encode(images[0].double(), images[1]),
            "pixel_values: expected torch.float32 (images, 3, height, width), got torch.float64",
        ),
        (
            lambda: encode(images[0][:, :2], images[1]),
            "pixel_values: expected torch.float32 (images, 3, height, width), got torch.float32 (2, 2, 64, 64)",
        ),
        (lambda: encode(images[0][..., :60], images[1][..., :60]), "multiples of 32, at least 64, got (2, 3, 64, 60)"),
        (lambda: encode(images[0][..., :32], images[1][..., :32]), "at least 64, got (2, 3, 64, 32)"),
        (
            lambda: encode(images[0], images[1][:1]),
            "pixel_mask: expected torch.bool (2, 64, 64), got torch.bool (1, 64, 64)",
        ),
        (lambda: encode(images[0], None), "pixel_mask: expected torch.bool (2, 64, 64), got NoneType"),
        (
            lambda: read(visual[..., :5], valid, ids, ones, pairs),
            "visual: expected torch.float32 (images, patches, 32), got",
        ),
        (lambda: read(visual, valid, ids.int(), ones, pairs), "input_ids: expected torch.int64 (texts, tokens)"),
        (
            lambda: read(visual, valid, ids.repeat(1, 5), ones.repeat(1, 5), pairs),
            "input_ids: expected at most 16 tokens, got 20",
        ),
        (
            lambda: read(visual, valid, ids, ones[:, :3], pairs),
            "attention_mask: expected torch.int64 (1, 4), got torch.int64 (1, 3)",
        ),
        (lambda: read(visual, valid, ids + 24, ones, pairs), "input_ids: expected 0 to 30, got 31 to 31"),
        (lambda: read(visual, valid, ids, ones, pairs + 1), "image_index: expected 0 to 1, got 1 to 2"),
        (
            lambda: read(visual, valid, ids, ones, pairs[0]),
            "image_index: expected torch.int64 (1, 2), got torch.int64 (2,)",
        ),
        (
            lambda: runner.pixels([torch.zeros(3, 9, 9)]),
            "image: expected torch.uint8 (3, height, width), got torch.float32",
        ),
    ):
        with pytest.raises(ValueError, match=re.escape(words)):
            call()


@pytest.mark.parametrize("question", KINDS)
def test_the_stages_of_every_kind_of_model(question, folder_of, processor):
    model, _ = load_model(folder_of(question))
    images = [drawn(*size, seed) for seed, size in enumerate([(64, 90), (100, 64), (64, 64)])]
    collated = processor.image_processor.collate([processor.image_processor.resize_one(image) for image in images])
    input_ids, attention_mask = padded(processor, TEXTS)
    index = torch.tensor([0, 1, 2, 2])
    if question == "compare":
        index = torch.stack([index, index.flip(0)], dim=1)
    with torch.no_grad():
        output = model(**collated, input_ids=input_ids, attention_mask=attention_mask, image_index=index)
        expected = output.itm_logits if "itm_logits" in output else output.logits
        expected_codes = model.soho.encode_images(**collated).index
        visual, valid, codes = EncodeImages(model)(**collated)
        logits = ReadTexts(model)(visual, valid, input_ids, attention_mask, index)
    assert torch.equal(codes, expected_codes)
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5)


def test_a_model_leaves_gradients_of_the_process_alone(monkeypatch, tmp_path):
    """Loaded and called, it switches nothing off for the rest of a program; what it gives has no gradient."""
    from soho_fast.export import run

    about = {
        "image": {"size_divisor": 1, "least_edge": 1, "std": [1.0] * 3, "mean": [0.0] * 3, "rescale_factor": 1.0,
                  "longest_edge": 9, "shortest_edge": 2, "antialias": True},
        "text": {"max_tokens": 4, "vocab_size": 9}, "images": ["image"], "channels": 3, "question": "rank",
    }  # fmt: skip
    (tmp_path / "about.json").write_text(json.dumps(about))
    weight = torch.ones((), requires_grad=True)
    stages = [
        lambda pixels, mask: (pixels[:, :, 0].mT * weight, mask[:, 0]),
        lambda visual, valid, ids, mask, index: visual.sum(1)[index][:, :2],
    ]
    monkeypatch.setattr(torch._inductor, "aoti_load_package", lambda path: stages.pop(0))
    model = run.Model(tmp_path)
    assert torch.is_grad_enabled()
    visual, valid = model.encode(*model.pixels([torch.zeros(3, 2, 2, dtype=torch.uint8)]))
    ids = torch.ones(1, 2, dtype=torch.int64)
    logits = model.read(visual, valid, ids, ids, torch.zeros(1, dtype=torch.int64))
    assert not visual.requires_grad and not logits.requires_grad and not model.scores(logits).requires_grad
    assert torch.is_grad_enabled() and (weight * 2).requires_grad


def test_no_size_of_a_call_is_built_in(monkeypatch, tmp_path):
    """What torch.export assumes of sizes is what a call is checked for; with tokens of 2 x 2 cells, as in the paper."""
    from small_models import SMALL

    from soho_fast.export import package
    from soho_fast.model import SohoConfig, SohoForPreTraining

    programs = []
    monkeypatch.setattr(package, "aoti_compile_and_package", lambda program, package_path: programs.append(program))
    for pool in (1, 2):
        model = SohoForPreTraining(SohoConfig.from_preset(**{**SMALL, "visual_pool": pool})).eval()
        stage = EncodeImages(model)
        package._compile(stage, package._images(model.config), tmp_path / "encode.pt2")
        bounds = [int(bound.lower) for symbol, bound in programs[-1].range_constraints.items() if symbol.is_Symbol]
        assert sorted(bounds) == [1, pool + 1, pool + 1]
        program, edge = programs[-1].module(), 32 * (pool + 1)
        with torch.no_grad():
            for size in ((1, 3, edge, edge), (3, 3, edge + 32, edge), (2, 3, 224, 160)):
                pixel_values, pixel_mask = torch.randn(size), torch.ones(size[0], *size[2:], dtype=torch.bool)
                pixel_mask[0, edge - 20 :] = False
                for one, other in zip(program(pixel_values, pixel_mask), stage(pixel_values, pixel_mask), strict=True):
                    assert torch.equal(one, other)


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
    monkeypatch.setenv("CXX", "/nowhere/g++")
    assert "there is no C++ compiler /nowhere/g++; install g++" in reported(folder_of("answer"), tmp_path / "out")
    assert not list(tmp_path.glob("out*"))


def test_a_failed_compilation_leaves_nothing(folder_of, tmp_path, capsys, monkeypatch):
    from soho_fast.export import package

    def fail(*_, **__):
        raise RuntimeError("a long\nlog")

    monkeypatch.setattr(package, "aoti_compile_and_package", fail)
    monkeypatch.setattr(package, "export", lambda *_, **__: None)
    assert export_main([str(folder_of("answer")), str(tmp_path / "out")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "encode.pt2 can't be compiled (RuntimeError: a long log)" in line and not os.listdir(tmp_path)


def test_a_ppm_file_is_read_with_its_comments(tmp_path):
    pixels = bytes(range(18))
    for header in (b"P6 3 2 255\n", b"P6\n# by hand: 4 5 255\n3 # wide\n2\n255\t", b"P6\n3\n2\n#\n255 "):
        (tmp_path / "image.ppm").write_bytes(header + pixels)
        assert read_ppm(tmp_path / "image.ppm").permute(1, 2, 0).flatten().tolist() == list(pixels), header
    for header in (
        b"",
        b"P5 3 2 255\n",
        b"P6 3 2 65535\n",
        b"P6 3 x 255\n",
        b"P6 3 " + b"9" * 5000 + b" 255\n",
        b"P6 3 2",
        b"P6 0 2 255\n",
        b"P6 3 3 255\n",
    ):
        (tmp_path / "image.ppm").write_bytes(header + pixels)
        with pytest.raises(ValueError, match=r"image\.ppm: expected"):
            read_ppm(tmp_path / "image.ppm")


def test_images_are_padded_to_what_the_stages_take_whatever_the_recipe_pads_to(folder_of):
    model, processor = load_model(folder_of("rank"))
    for divisor, expected in ((1, 32), (48, 96), (64, 64)):
        processor.image_processor.size_divisor = divisor
        assert _about(model, processor, "rank")["image"]["size_divisor"] == expected
