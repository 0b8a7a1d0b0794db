"""Fifty natural mistakes: each is told in one line that says what to write instead, with exit code 2."""

import shlex
from pathlib import Path

import pytest

from soho_fast import evaluate, train
from soho_fast.ask import __main__ as ask
from soho_fast.common.processes import Processes
from soho_fast.data import tokenizer
from soho_fast.data.mini import __main__ as mini
from soho_fast.engine import distributed

COMMANDS = {"train": train, "evaluate": evaluate, "ask": ask, "tokenizer": tokenizer, "mini": mini}
# A run of two tasks, a file, and recipes with one mistake each; commands are given in their folder.
FILES = {
    "runs/vqa/recipe.yaml": b"task: vqa\ndata:\n  splits:\n    val: {questions: q.json}\n",
    "runs/vqa/best/config.json": b"{}",
    "runs/mini/recipe.yaml": b"task: pretraining\n",
    "photo.jpg": b"no picture",
    "texts.jsonl": b'{"caption": "a dog"}\n',
    "my images/images.jsonl": b'{"file": "1.jpg", "captions": ["a dog"]}\n',
    "empty_section.yaml": b"epochs: 1\noptim:\n",
    "empty_dict.yaml": b"model:\n  config:\n",
    "empty.yaml": b"",
    "list.yaml": b"- epochs: 1\n",
    "tab.yaml": b"optim:\n\tlr: 1\n",
    "twice.yaml": b"optim:\n  lr: 1\n  lr: 2\n",
    "own_class.yaml": b"model:\n  config:\n    own: {class_path: calendar.Calendar}\n",
    "class_in_text.yaml": b"model:\n  config: {own: '{\"class\\x5fpath\": calendar.Calendar}'}\n",
    "sources_text.yaml": b"data: {sources: '[calendar.Calendar]'}\n",
    "path_in_text.yaml": b"model: {config: {dictionary: planted:Own}}\n",
    "number.yaml": b"optim:\n  1: 2\n",
    "unknown_section.yaml": b"optimm:\n  lr: 1\n",
    "unknown_field.yaml": b"optim:\n  lrr: 1\n",
    "far.yaml": b"schedule: {step_epochs: [1.0, .inf]}\n",
    "losses_text.yaml": b"model: {losses: '{x: calendar.Calendar}'}\n",
    "unknown_split_field.yaml": b"task: vqa\ndata:\n  splits:\n    val: {question: q.json}\n",
    "dotted.yaml": b"optim.lr: 1\n",
    "value.yaml": b"optim: fast\n",
    "type.yaml": b"optim:\n  lr: fast\n",
    "endless.yaml": b"data:\n  masking: {probability: .inf}\n",
    "task.yaml": b"task: vqaa\n",
    "quote.yaml": b'output: "runs\n',
    "bomb.yaml": b"a0: &a0 [x, x, x, x, x, x, x, x, x]\n"
    + b"".join(b"a%d: &a%d [%s]\n" % (n, n, b", ".join([b"*a%d" % (n - 1)] * 9)) for n in range(1, 12)),
    "itself.yaml": b"optim: &a\n  lr: *a\n",
    "code.yaml": b"optim: !!python/object/apply:os.system [touch planted]\n",
    "date.yaml": b"model:\n  config:\n    hidden_size: 2026-01-01\n",
    "pretrained.yaml": b"task: vqa\ndata:\n  splits: {val: {questions: photo.jpg}}\n",
    "source.yaml": b"data:\n  sources:\n  - images: [x]\n",
    "planted.py": b"open('planted', 'w')\n",
}

MISTAKES = [
    ("train --optim.lrr 1", "--optim.lrr: there is no such argument; did you mean --optim.lr?"),
    ("train --lr 1", "did you mean --optim.lr?"),
    ("train --local-rank 0", "did you mean --local_rank?"),
    ("train --batch_size 4", "--batch_size: there is no such argument; did you mean --batch.global_batch_size?"),
    ("train --learning-rate 1", "did you mean --optim.lr?"),
    ("train --recipe own --images photos", "did you mean --data_roots.images?"),
    ("train epochs 3", "epochs: expected a field as --NAME before its value; write --epochs"),
    ("train --optim.lr", "optim.lr: expected one argument"),
    ("train --optim.lr fast", "optim.lr: Not of type NonNegativeFloat: could not convert string to float: 'fast'"),
    ("train --batch.workers 3000", "batch.workers: Not of type NumProcesses: 3000 does not conform to restriction"),
    ("train --data.num_negative 1000000000", "data.num_negative: Not of type NumNegative: 1000000000 does not conform"),
    ("train --optim.lr -1", "optim.lr: Not of type NonNegativeFloat: -1 does not conform to restriction v>=0"),
    ("train --optim.lr [1]", "a real number, not 'list'"),
    ("train --data.sources '[{annotation: x}]'", "CaptionSource': Option 'annotation' is not accepted"),
    ("train --data.sources '[{annotations: x, images: y}]'", "Expected a <class 'list'>. Got value: y"),
    ("train --data.sources '[{images: [x]}]'", "the following arguments are required: annotations"),
    ("train --data.sources '[x]'", "data.sources: Expected a dot import path string: x"),
    ("train --data.sources '[5]'", "data.sources: Not a valid subclass of CaptionSource. Got value: 5"),
    (
        "train --data.sources '[{annotations: x, max_captions: 0}]'",
        "Parser key \"max_captions\": Does not validate against any of the Union subtypes",
    ),
    (
        "train --data.masking '{probabilty: 1}'",
        "--data.masking.probabilty: there is no such argument; did you mean --data.masking.probability?",
    ),
    ("train --recipe source.yaml", "recipe source.yaml: data.sources: Problem with given class_path"),
    ("train --recipe official --data.epoch captions", "texts are replaced within data.epoch caption_groups"),
    ("train --recipe official --data.num_negative 2", "data.num_negative is then 0; got caption_groups and 2"),
    ("train --recipe official --data.hard_negative_share 0.5", "a share of the data.num_negative captions"),
    ("train --data.hard_negative_share 1.5", "data.hard_negative_share: Not of type ClosedUnitInterval: 1.5"),
    ("train --optim.rule bertadam", "optim.rule: expected one of 'adamw', 'bert_adamw', got bertadam"),
    ("train --batch.group_by_aspect_ratio landscape", "batch.group_by_aspect_ratio: Does not validate"),
    ("train --optim.lr 1 2", "2: expected a field as --NAME before its value"),
    ("ask answer model a.jpg is it red", "it: expected a field as --NAME before its value, or quotes around a text"),
    ("train --optim fast", "optim: Unable to load config 'fast'"),
    ("train --epochs inf", "epochs: expected a finite number, got inf"),
    ("train --recipe endless.yaml", "data.masking.probability: Not of type ClosedUnitInterval: inf does not"),
    ("train --max_steps 1e3", "max_steps: Not of type NonNegativeInt: invalid literal for int() with base 10: '1e3'"),
    ("train --schedule.decay lineaar", "schedule.decay: Expected a typing.Literal['step', 'cosine', 'linear', "),
    ("train --engine.precision float16", "'float32', 'bf16', 'fp16']. Got value: float16"),
    ("train --resume nope", "['auto', 'changed'] Given value type: <class 'str'> Given value: nope"),
    ("train --schedule.step_epochs 3", "schedule.step_epochs: Expected a <class 'list'>. Got value: 3"),
    ("train --data.masking.probabilty 0.2", "did you mean --data.masking.probability?"),
    ("train --recipe pretrained.yaml --model.config.hidden_sze 3", "did you mean --model.config.hidden_size?"),
    ("train --data_roots.crpus x", "names {crpus}; did you mean corpus?"),
    ("train --recipe own --data_roots.images photos", "data_roots.images: photos: there is no such file or folder; ex"),
    ("train --recipe own --data_roots.images ./texts.jsonl", "images: ./texts.jsonl: is a file; expected a folder"),
    (
        "train --recipe own --data_roots.images 'my images'",
        "or folder; make it: soho tokenizer 'my images/images.jsonl' 'my images/tokenizer'",
    ),
    ("train --recipe coco", "did you mean retrieval_coco?"),
    ("train --recipe minni", "there is no recipe 'minni'; expected one of easy_vqa, mini,"),
    ("train --recipe mini.yaml", "did you mean mini, the recipe of that name?"),
    ("train --recipe runs/vqa", "runs/vqa is a folder; expected a YAML file; did you mean runs/vqa/recipe.yaml?"),
    ("train --recipe runs/vqqa/recipe.yaml", "no such file or folder, nor runs/vqqa; did you mean vqa?"),
    ("train --recipe paper", "data_roots.coco: '{coco}/dataset_coco.json' needs it; give --data_roots.coco FOLDER"),
    ("train --data.tokenizer ./tokenizer", "data.tokenizer: ./tokenizer: there is no such file or folder"),
    ("train --model.backbone weights.pth", "model.backbone: weights.pth: there is no such file or folder"),
    ("train --recipe pretrained.yaml --model.pretrained runs/vqa/bst", "no such file or folder; did you mean best?"),
    ("train --recipe runs/vqa/recipe.yaml", "data.splits.val.questions: q.json: there is no such file or folder"),
    ("train --recipe empty_section.yaml", "optim: expected fields (lr, weight_decay, beta2, "),
    ("train --recipe empty_dict.yaml", "model.config: expected fields (backbone, "),
    ("train --recipe empty.yaml", "empty.yaml: expected fields with values, got nothing"),
    ("train --recipe list.yaml", "list.yaml: expected fields with values, got a list"),
    ("train --recipe tab.yaml", "tab.yaml, line 2: while scanning for the next token, found character '\\t'"),
    ("train --recipe twice.yaml", "twice.yaml, line 3: lr comes twice; keep one of them"),
    ("train --recipe own_class.yaml", "own_class.yaml, line 3: class_path: no field takes one; own code has"),
    ("train --recipe class_in_text.yaml", "class_in_text.yaml, line 2: class_path: no field takes one"),
    ("train --recipe sources_text.yaml", "data.sources: expected a section or a list, got the text '[calendar.Cal"),
    ("train --recipe path_in_text.yaml", "model.config.dictionary: recipe path_in_text wants planted:Own "),
    ("train --recipe number.yaml", "number.yaml, line 2: expected a name before the colon"),
    ("train --recipe unknown_section.yaml", "there is no field optimm; did you mean optim?"),
    ("train --recipe unknown_field.yaml", "there is no field optim.lrr; did you mean lr?"),
    ("train --recipe far.yaml", "schedule.step_epochs[1]: expected a finite number, got inf"),
    ("train --recipe losses_text.yaml", "model.losses: expected a section or a list, got the text '{x: calendar.Cal"),
    ("train --recipe unknown_split_field.yaml", "no field data.splits.val.question; did you mean questions?"),
    ("train --recipe dotted.yaml", "there is no field optim.lr; expected a section `optim:`"),
    ("train --recipe value.yaml", "thawed_backbone_factor), got 'fast'"),
    ("train --recipe type.yaml", "recipe type.yaml: optim.lr: Not of type NonNegativeFloat: "),
    ("train --recipe task.yaml", "got 'vqaa'; did you mean vqa?"),
    ("train --recipe quote.yaml", "quote.yaml, line 2: while scanning a quoted scalar, found unexpected end of stream"),
    ("train --recipe bomb.yaml", "stands for more than 100,000 values by its aliases"),
    ("train --recipe itself.yaml", "itself.yaml, line 1: stands for more than 100,000 values by its aliases"),
    ("train --recipe code.yaml", "line 1: expected a text, number, list or section, got a python/object/apply"),
    ("train --recipe date.yaml", "line 3: expected a text, number, list or section, got a timestamp"),
    ("train --output runs/\udce9t\udce9", "argument 'runs/\\udce9t\\udce9': not UTF-8 text"),
    ("evaluate", "one of the arguments --run --recipe is required"),
    ("evaluate --rn runs/vqa", "one of the arguments --run --recipe is required"),
    ("evaluate --run runs", "run: runs has no recipe.yaml; expected the folder of a training run"),
    ("evaluate --run runs/mini", "checkpoint: runs/mini is a run without a model yet"),
    ("evaluate --run runs/vqa --splt val", "--splt: there is no such argument; did you mean --split?"),
    ("evaluate --run runs/vqa --split vall", "split: expected one of val, got 'vall'; did you mean val?"),
    ("evaluate --run runs/vqa --checkpoint bset", "or OWNER/NAME on the hub; did you mean best?"),
    ("evaluate --run runs/vqa --checkpoint last", "has no last model; there is: best"),
    ("evaluate --run runs/vqa --checkpoint runs/vqa/bst", "no such file or folder; did you mean best?"),
    ("evaluate --run runs/vqa --into runs/vqa", "into: runs/vqa is a run, whose metrics.json"),
    ("ask", "the following arguments are required: answer|rank|entails|compare|label|retrieve|many"),
    ("ask anwser", "invalid choice: 'anwser' (choose from 'answer', 'rank', 'entails', 'compare', 'label', 'retrieve'"),
    ("ask answer runs/vqa photo.jpg", "the following arguments are required: question"),
    ("ask answer vqa photo.jpg what", "vqa: there is no such file or folder; expected the folder of a run or a model"),
    ("ask answer runs/vqa phto.jpg what", "(there is no such file or folder; did you mean photo.jpg?)"),
    ("ask answer runs/vqa runs what", "image: runs can't be read"),
    ("ask answer runs/mini photo.jpg what", "runs/mini is a run without a model yet"),
    ("ask answer runs/vqa photo.jpg what --topk 3", "--topk: there is no such argument; did you mean --top_k?"),
    ("ask answer runs/vqa photo.jpg what --top_k 0", "top_k: expected at least 1, got 0"),
    ("ask answer runs/vqa photo.jpg what --precision bf15", "precision: invalid choice: 'bf15' (choose"),
    ("ask many runs/vqa texts.jsonl", "the following arguments are required: results"),
    ("ask many runs/vqa text.jsonl out.jsonl", "questions: text.jsonl can't be read (there is no such file or folder;"),
    ("ask many runs/vqa texts.jsonl out.jsonl --batch_size 0", "batch_size: expected at least 1, got 0"),
    ("ask many runs/vqa texts.jsonl runs", "results: runs can't be written (is a folder)"),
    ("tokenizer texts.jsonl", "the following arguments are required: output"),
    ("tokenizer texts.json tokens", "texts.json"),
    ("tokenizer texts.jsonl photo.jpg", "output: photo.jpg is a file"),
    ("mini --num-train few", "num-train: invalid int value: 'few'"),
]  # fmt: skip


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    for name, content in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    # A process group of this process would stay for the tests that follow; nothing here gets as far as a hub.
    monkeypatch.setattr(distributed, "start_processes", lambda **_: Processes())
    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", lambda *_, **__: pytest.fail("the hub was asked"))
    return tmp_path


@pytest.mark.parametrize(("command", "words"), MISTAKES, ids=[ascii(command) for command, _ in MISTAKES])
def test_a_mistake_is_one_line(folder, capsys, command, words):
    before = sorted(folder.rglob("*"))
    name, *arguments = shlex.split(command)
    assert COMMANDS[name].main(arguments) == 2
    said = capsys.readouterr()
    (line,) = said.err.splitlines()
    # Of Python 3.12 and newer argparse lists choices without quotes.
    assert line.startswith("error: ") and words.replace("'", "") in line.replace("'", ""), line
    assert len(line) < 600 and said.out == ""
    made = {path.relative_to(folder).parts[:2] for path in set(folder.rglob("*")) - set(before)}
    assert made <= {("runs", "pretrained")}, made
