"""A file as the authors' code saves it becomes a model, which gives the released modules' numbers; what is no such file
is refused, and nothing of it runs."""

import hashlib
import os
import shlex
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from comparison import differences
from official_parity_rule import weight
from published_file import words_file, write
from released_model import official_state, recorded, run_pretraining, run_vqa, vqa_inputs
from safetensors.torch import save_file
from tiny_corpus import draw
from torch.torch_version import TorchVersion

from soho_fast.ask.pipeline import SohoPipeline
from soho_fast.export.official import main
from soho_fast.model import SohoConfig, SohoForPreTraining, SohoForQuestionAnswering, VisualDictionary
from soho_fast.model.official import keys
from soho_fast.model.official.convert import convert, read_checkpoint
from soho_fast.model.official.keys import dictionary_counters

SMALL = {
    "backbone": "resnet10", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
    "intermediate_size": 32, "vocab_size": 60, "max_position_embeddings": 16, "num_codes": 12,
}  # fmt: skip
MEANS = "backbone.bn1.running_mean"
CODES = "neck.vq.embed"


def small_state(preset: str = "official") -> OrderedDict:
    """By the rule, in the authors' names and shapes."""
    kind = SohoForPreTraining if preset == "official" else SohoForQuestionAnswering
    with torch.device("meta"):
        own = kind(SohoConfig.from_preset(preset, **SMALL)).state_dict()
    shapes = {name: tuple(own[ours].shape) for ours in own if (name := keys.official_name(ours))}
    if preset == "official":
        shapes |= {
            "neck.gate_fc.conv.weight": (2, 32, 1, 1), "neck.mask_emb.weight": (1, 16), keys.TIED: shapes[keys.WORDS],
        }  # fmt: skip
    return OrderedDict((name, torch.from_numpy(weight(name, shape)).clone()) for name, shape in shapes.items())


@pytest.fixture(scope="module")
def states():
    return {preset: small_state(preset) for preset in ("official", "official_vqa")}


@pytest.fixture
def state(states):
    return OrderedDict((name, tensor.clone()) for name, tensor in states["official"].items())


@pytest.fixture
def convert_small():
    return lambda path, **options: convert(read_checkpoint(path), **SMALL, **options)


def assert_is(model: torch.nn.Module, state: dict) -> None:
    """Every tensor of the file is in the model, bit for bit."""
    own = model.state_dict()
    for name, tensor in state.items():
        if name != keys.TIED:
            assert torch.equal(own[keys.our_name(name)].flatten(), tensor.flatten()), name


def test_every_tensor_is_loaded(tmp_path, state, convert_small):
    path = write(tmp_path / "soho.pth", state)
    model = convert_small(path)
    assert_is(model, state)
    theirs = {keys.our_name(name) for name in state if name != keys.TIED}
    made = set(keys.dictionary_counters(state["neck.vq.cluster_size"]))
    assert theirs | made == {name for name in model.state_dict() if not name.startswith("mlm_head.")}
    assert not model.training
    assert read_checkpoint(path).report() == [f"soho.pth: the authors' pre-training model, {len(state)} tensors"]


def test_a_vqa_model_is_known_by_its_names(tmp_path, states, convert_small):
    path = write(tmp_path / "vqa.pth", states["official_vqa"])
    model = convert_small(path)
    assert type(model) is SohoForQuestionAnswering
    assert_is(model, states["official_vqa"])
    answers = [f"answer {number}" for number in range(3129)]
    assert convert_small(path, answers=answers).config.id2label[17] == "answer 17"
    for wrong in (answers[:-1], [*answers[:-1], answers[0]]):
        with pytest.raises(ValueError, match="answers: expected 3,129"):
            convert_small(path, answers=wrong)


@pytest.mark.parametrize(
    "options",
    [{}, {"zip_format": False}, {"torch_version": TorchVersion("1.13.1")}],
    ids=["zip", "before the zip format", "TorchVersion"],
)
@pytest.mark.parametrize("on_gpu", [False, True])
def test_any_torch_and_any_device_may_have_saved_it(tmp_path, state, convert_small, monkeypatch, options, on_gpu):
    if on_gpu:  # Each tensor's copy is in the file, so the tied one twice.
        monkeypatch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:0")
        state[keys.TIED] = state[keys.WORDS].clone()
    else:
        state[keys.TIED] = state[keys.WORDS]
    assert_is(convert_small(write(tmp_path / "soho.pth", state, **options)), state)


def test_a_prefix_of_data_parallel_training_is_taken_off(tmp_path, state, convert_small):
    prefixed = OrderedDict((f"module.{name}", tensor) for name, tensor in state.items())
    assert_is(convert_small(write(tmp_path / "soho.pth", prefixed)), state)
    torch.save(prefixed, tmp_path / "bare.pth")
    assert_is(convert_small(tmp_path / "bare.pth"), state)
    with pytest.raises(ValueError, match="of one name twice"):
        convert_small(write(tmp_path / "twice.pth", {**prefixed, MEANS: state[MEANS]}))


def lost(state, *begins):
    for name in [name for name in state if name.startswith(begins)]:
        del state[name]


def written(state, name, value, place=None):
    """Other values of a tensor, or of an element of it."""
    if place is None:
        state[name] = value
    else:
        state[name] = state[name].clone()
        state[name][place] = value


# How a state is spoilt, and what is said of it.
SPOILT = {
    "missing": (lambda state: lost(state, MEANS, "neck.ln.bias"), rf": 2 missing: {MEANS}, neck\.ln\.bias$"),
    "many missing": (lambda state: lost(state, "language.", keys.TIED), r": 22 missing: .* and 17 more$"),
    "unexpected": (lambda state: written(state, "neck.foo", torch.ones(1)), r": 1 unexpected: neck\.foo$"),
    "another size": (lambda state: written(state, CODES, state[CODES][:7].clone()),
                     r"1 of another size or type: neck\.vq\.embed is float32 \(7, 16\), expected float32 \(12, 16\)"),
    "another type": (lambda state: written(state, MEANS, state[MEANS].double()),
                     rf"1 of another size or type: {MEANS} is float64 .*, expected float32 \(\d+,\)$"),
    "nan": (lambda state: [written(state, CODES, float("nan"), (3, 2)), written(state, MEANS, float("inf"), 0)],
            r"not finite in 2 tensors \(soho\..*running_mean, soho\.visual_dictionary\.codebook"),
    "variance": (lambda state: written(state, "neck.conv.bn.running_var", -1e-6, 1),
                 r"1 with negative values: neck\.conv\.bn\.running_var$"),
    "tied": (lambda state: written(state, keys.TIED, 9.0, (3, 4)),
             rf"1 unequal to {keys.WORDS}, to which it is tied: {keys.TIED}$"),
}  # fmt: skip


@pytest.mark.parametrize("kind", SPOILT)
def test_other_tensors_are_refused_with_a_list(tmp_path, state, convert_small, kind):
    spoil, words = SPOILT[kind]
    spoil(state)
    with pytest.raises(ValueError, match=words):
        convert_small(write(tmp_path / "soho.pth", state))


@pytest.mark.parametrize("right", [True, False])
def test_the_hash_in_the_name_is_compared(tmp_path, state, right):
    path = write(tmp_path / "soho.pth", state)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:8] if right else "9441cdd3"
    path = path.rename(tmp_path / f"soho_res18_fp16_40-{digest}.pth")
    _, *warnings = read_checkpoint(path).report()
    assert len(warnings) == (0 if right else 1)
    assert right or "begins with 9441cdd3" in warnings[0]


class Planted:
    """A pickle of it makes a file where it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.path),)


PART = {MEANS: torch.zeros(64), "neck.ln.bias": torch.zeros(16)}


def planted(path: Path) -> Planted:
    return Planted(path.with_name("planted"))


def cut_off(path: Path) -> None:
    write(path, PART)
    path.write_bytes(path.read_bytes()[:-200])


def zipped(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.txt", "hello")


# How a file is made that is no checkpoint, and what is said of it.
NO_CHECKPOINT = {
    "calls something": (lambda path: write(path, {**PART, "x": planted(path)}),
                        "asks for posix.mkdir, which is no plain data, and is not loaded"),
    "calls something, before the zip format": (lambda path: write(path, {**PART, "x": planted(path)}, zip_format=False),
                                               "asks for posix.mkdir"),
    "calls something in its meta": (lambda path: write(path, PART, torch_version=planted(path)),
                                    "asks for posix.mkdir"),
    "a module": (lambda path: torch.save({"state_dict": torch.nn.Linear(2, 2)}, path),
                 "asks for torch.nn.modules.linear.Linear"),
    "cut off": (cut_off, "can't be read as a file of torch.save, or is damaged"),
    "zip": (zipped, "can't be read as a file of torch.save"),
    "text": (lambda path: path.write_text("hello\n" * 9), "can't be read as a file of torch.save"),
    "safetensors": (lambda path: save_file({"a": torch.ones(2)}, path), "can't be read as a file of torch.save"),
    "empty": (Path.touch, "can't be read as a file of torch.save"),
    "folder": (Path.mkdir, "is a folder; expected the file of a checkpoint"),
    "not there": (lambda path: None, "there is no such file or folder"),
    "a list": (lambda path: torch.save([torch.ones(1)], path),
               "a dict with a state_dict, or a state_dict alone; got a list"),
    "sparse": (lambda path: write(path, {"backbone.conv1.weight": torch.eye(3).to_sparse()}),
               "1 entries are no plain tensors"),
}  # fmt: skip


@pytest.mark.parametrize("kind", NO_CHECKPOINT)
def test_what_is_no_checkpoint_is_refused_in_a_line(tmp_path, capsys, kind):
    path = tmp_path / "soho.pth"
    make, words = NO_CHECKPOINT[kind]
    make(path)
    assert main([str(path), str(tmp_path / "out"), "--vocab", str(words_file(tmp_path))]) == 2
    said = capsys.readouterr()
    (line,) = said.err.splitlines()
    assert line.startswith(f"error: {path}") and words in line and len(line) < 700 and said.out == "", line
    assert not (tmp_path / "planted").exists() and not list(tmp_path.glob("*out*"))


# Arguments, where all else is right, and what is said.
MISTAKES = [
    ("", "the following arguments are required: checkpoint, output"),
    ("soho.pht out --vocab vocab.txt", "soho.pht: there is no such file or folder; did you mean soho.pth?"),
    ("soho.pth out --vocb vocab.txt", "--vocb: there is no such argument; did you mean --vocab?"),
    ("soho.pth soho.pth --vocab vocab.txt", "output: soho.pth is a file; expected the folder to write"),
    ("soho.pth full --vocab vocab.txt", "output: full is not empty; give another folder, or --overwrite"),
    ("soho.pth out --vocab vcab.txt", "vocab: vcab.txt can't be read (there is no such file or folder"),
    ("soho.pth out --vocab full", "vocab: full can't be read (it is a folder)"),
    ("soho.pth out --vocab soho.pth", "vocab: soho.pth is no text in UTF-8"),
    ("soho.pth out --vocab few.txt", "vocab: few.txt: [UNK], [CLS], [SEP], [MASK] is missing"),
    ("soho.pth out --vocab twice.txt", "vocab: twice.txt: a word comes twice"),
    ("soho.pth out --vocab vocab.txt --answers few.txt", "answers: soho.pth is no model of VQA"),
    ("vqa.pth out --vocab vocab.txt --answers few.txt", "few.txt"),
    ("vqa.pth out --vocab vocab.txt --answers holes.json", "holes.json: expected a JSON list of answers"),
    ("vqa.pth out --vocab vocab.txt --answers two.json", "answers: expected 3,129 different ones, got 2"),
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory, states):
    """Small checkpoints, words, answers, and a folder with something in it."""
    root = tmp_path_factory.mktemp("mistakes")
    write(root / "soho.pth", states["official"])
    write(root / "vqa.pth", states["official_vqa"])
    words_file(root)
    (root / "few.txt").write_text("[PAD]\na\n")
    (root / "twice.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\na\n")
    (root / "holes.json").write_text('{"yes": 0, "no": 2}')
    (root / "two.json").write_text('{"yes": 1, "no": 0}')
    (root / "full").mkdir()
    (root / "full/kept").touch()
    return root


@pytest.mark.parametrize(("arguments", "words"), MISTAKES, ids=[arguments for arguments, _ in MISTAKES])
def test_a_mistake_is_told_in_a_line(folder, monkeypatch, capsys, arguments, words):
    monkeypatch.chdir(folder)
    before = sorted(folder.rglob("*"))
    assert main(shlex.split(arguments)) == 2
    said = capsys.readouterr()
    (line,) = said.err.splitlines()
    assert line.startswith("error: ") and words in line and said.out == "", line
    assert sorted(folder.rglob("*")) == before


def counted(cluster_size: list[float]) -> VisualDictionary:
    """A dictionary of four codes with what is made of these running members."""
    dictionary = VisualDictionary(SohoConfig(num_codes=4, hidden_size=8, num_attention_heads=2))
    made = dictionary_counters(torch.tensor(cluster_size))
    state = {name.removeprefix("soho.visual_dictionary."): value for name, value in made.items()}
    missing, unexpected = dictionary.load_state_dict(state, strict=False)
    assert missing == ["codebook"] and not unexpected
    return dictionary


def test_usage_is_the_share_of_members_and_a_dead_code_is_not_live():
    dictionary = counted([6.0, 2.0, 0.0, 0.0])
    perplexity, live, usage = dictionary.statistics()
    torch.testing.assert_close(usage, torch.tensor([3.0, 1.0, 0.0, 0.0]))
    assert int(live) == 2 and 1 < float(perplexity) < 2
    assert bool(dictionary.initialised) and int(dictionary.step) > 1000


def test_where_nothing_was_learnt_nothing_is_told():
    dictionary = counted([0.0] * 4)
    _, live, usage = dictionary.statistics()
    assert not usage.any() and int(live) == 0 and not bool(dictionary.initialised) and int(dictionary.step) == 0


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """What the command makes of the two published files; that of pre-training has the tied weight twice."""
    root = tmp_path_factory.mktemp("published")
    vocabulary = words_file(root)
    for name, kind in (("soho", "keys"), ("vqa", "vqa_keys")):
        state = official_state(kind)
        if keys.TIED in state:
            state[keys.TIED] = state[keys.WORDS].clone()
        file = write(root / f"{name}.pth", state)
        assert main([str(file), str(root / name), "--vocab", str(vocabulary)]) == 0
        file.unlink()
    return root


def test_pre_training(folders):
    model = SohoForPreTraining.from_pretrained(folders / "soho").eval()
    assert not differences("eval_landscape", run_pretraining(model, "eval_landscape"))


def test_question_answering(folders):
    model = SohoForQuestionAnswering.from_pretrained(folders / "vqa").eval()
    assert not differences("vqa_landscape", run_vqa(model, "vqa_landscape"))


def test_fine_tuning_starts_where_theirs_does(folders):
    """The features go to the Transformer as in the authors' VQA model, whose weights the same rule made."""
    model, _ = SohoForQuestionAnswering.from_pretraining(str(folders / "soho"), answers=["yes", "no"])
    inputs = vqa_inputs("vqa_landscape")
    del inputs["answer_scores"]
    with recorded(model.eval()) as found, torch.no_grad():
        model(**inputs)
    assert not differences("vqa_landscape", found, ("visual_input", "visual_mask", "hidden.2"))


def test_it_ranks_texts(folders, tmp_path):
    picture = draw(tmp_path / "ball.jpg", "red", (64, 48))
    soho = SohoPipeline.from_pretrained(folders / "soho")
    rows = soho.rank(picture, ["a red ball", "a man and a woman"])
    assert sorted(row["text"] for row in rows) == ["a man and a woman", "a red ball"]
    assert rows[0]["score"] >= rows[1]["score"] > 0
    processor = soho.processor.image_processor
    assert (processor.size.shortest_edge, processor.size.longest_edge, processor.antialias) == (600, 1000, False)


def test_counters_may_be_missing(tmp_path, state, convert_small):
    counters = [name for name in state if name.endswith("num_batches_tracked")]
    for name in counters:
        del state[name]
    assert counters
    assert_is(convert_small(write(tmp_path / "soho.pth", state)), state)
