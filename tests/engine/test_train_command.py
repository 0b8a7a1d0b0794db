"""The command: recipes, overrides, mistakes, and the whole way from corpus to table."""

import itertools
import json
import operator
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from run_files import evaluations, records

from soho_fast import train
from soho_fast.common.errors import UserError
from soho_fast.common.processes import Processes
from soho_fast.engine import distributed
from soho_fast.engine.report import report_run, say_start
from soho_fast.engine.settings import EngineSettings
from soho_fast.tasks.recipe import RECIPES, read_recipe, with_data_roots, write_recipe

SCRIPT = Path(train.__file__)


def _parse(*arguments: str):
    return read_recipe(arguments)


def test_command_line_goes_over_the_recipe(tmp_path):
    recipe = _parse("--optim.lr", "0.5", "--local_rank=1", "--resume", "false", "--data_roots.corpus", "/c")
    assert (recipe.optim.lr, recipe.resume) == (0.5, False)
    assert recipe.optim.backbone_lr == _parse().optim.backbone_lr
    filled = with_data_roots(recipe).data
    assert filled.sources[0].annotations == "/c/dataset_coco.json" and filled.tokenizer == "/c/tokenizer"
    write_recipe(recipe, tmp_path / "again.yaml")
    assert "python/" not in (tmp_path / "again.yaml").read_text()
    again = _parse("--recipe", str(tmp_path / "again.yaml"))
    assert (again.optim, again.data, again.resume) == (recipe.optim, recipe.data, "auto")


def test_help_explains_every_field(capsys):
    with pytest.raises(SystemExit) as ended:
        _parse("--help")
    assert ended.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for words in (
        "in which the backbone is kept frozen", "Passes over the training data", "Folder of the demo corpus",
        "Longest text in tokens", "Micro-batches accumulated",
    ):  # fmt: skip
        assert words in text, words
    fields = set(yaml.safe_load((RECIPES / "mini.yaml").read_text())["optim"])
    assert all(f"--optim.{name}" in text for name in fields)


NO_LESS_THAN = {
    "mini": {
        "max_steps": 0, "max_minutes": 0, "seed": 0, "optim.lr": 0, "optim.clip": 0, "optim.beta2": 0,
        "schedule.warmup_steps": 0, "schedule.step_factor": 0, "schedule.end_factor": 0,
        "batch.global_batch_size": 1, "batch.gradient_accumulation_steps": 1, "batch.workers": 0,
        "batch.corrupt_images": 0, "checkpoint.every_steps": 0,
        "checkpoint.every_minutes": 0, "checkpoint.keep": 0, "log.every_steps": 1,
        "evaluation.every_epochs": 0, "evaluation.quick_every_steps": 0, "data.shorter_edge": 1,
        "data.longer_edge": 1, "data.max_text_length": 3, "data.num_positive": 1,
        "data.num_negative": 0, "data.masking.probability": 0,
        "model.bag_of_words_epochs": 0,
    },
    "mini_vqa": {
        "data.texts_per_image": 1,
        "data.min_answer_count": 1, "data.max_text_length": 3,
    },
    "mini_retrieval": {
        "data.folds": 0, "data.aligned_pairs": 0,
    },
}  # fmt: skip


@pytest.mark.parametrize("recipe", NO_LESS_THAN)
def test_the_least_numbers_are_taken(recipe):
    least = NO_LESS_THAN[recipe]
    read = _parse("--recipe", recipe, *(f"--{field}={value}" for field, value in least.items()))
    assert {field: operator.attrgetter(field)(read) for field in least} == least


BEYOND = [("epochs", 0), ("optim.beta2", 1), ("seed", 2**64), ("batch.corrupt_images", 1.5),
          ("schedule.warmup_start", 2), ("data.masking.probability", 1.5)]  # fmt: skip
BELOW = [(recipe, field, least - 1) for recipe, fields in NO_LESS_THAN.items() for field, least in fields.items()]


@pytest.mark.parametrize(("recipe", "field", "value"), [*BELOW, *(("mini", *each) for each in BEYOND)])
def test_a_number_that_cannot_be_used_is_refused_before_the_run(recipe, field, value):
    with pytest.raises(UserError, match=field):
        _parse("--recipe", recipe, f"--{field}", str(value))


def test_a_folder_that_can_be_left_out_leaves_its_field_null(tmp_path):
    roots = ["--data_roots.coco", "/c", "--data_roots.visual_genome", "/v"]
    for given, expected in ((), []), (("--data_roots.flickr30k", "/f"), ["/f/dataset_flickr30k.json"]):
        recipe = read_recipe(["--recipe", "paper", *roots, *given])
        genome = with_data_roots(recipe).data.sources[1]
        assert genome.exclude_held_out_of == ["/c/dataset_coco.json", *expected]
    mine = tmp_path / "mine.yaml"
    mine.write_text('data: {tokenizer: "{words?}/t"}')
    assert with_data_roots(read_recipe(["--recipe", str(mine)])).data.tokenizer is None
    recipe = read_recipe(["--recipe", str(mine), "--data_roots.words", "/w"])
    assert with_data_roots(recipe).data.tokenizer == "/w/t"


@pytest.mark.parametrize(
    ("device", "fp16", "bf16", "auto"),
    [
        ("cuda", True, True, "bf16"),
        ("cuda", True, False, "fp16"),
        ("cuda", False, False, "float32"),
        ("cpu", True, True, "float32"),
        ("cpu", False, True, "float32"),
    ],
)
def test_precision_follows_the_device(monkeypatch, capsys, device, fp16, bf16, auto):
    class Accelerator:
        def device_name(self):
            return device

        def is_fp16_supported(self):
            return fp16

        def is_bf16_supported(self):
            return bf16

    accelerator = Accelerator()
    monkeypatch.setattr(distributed, "get_accelerator", lambda: accelerator)
    # A card that only emulates bf16 passes for one that has it otherwise.
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or bf16)
    assert distributed.choose_precision(EngineSettings()) == auto
    for precision, supported in (("float32", True), ("fp16", fp16), ("bf16", bf16)):
        # Where one is emulated, DeepSpeed is told that the device has it.
        with monkeypatch.context() as patched:
            for name in ("fp16", "bf16"):
                patched.setattr(accelerator, f"is_{name}_supported", getattr(accelerator, f"is_{name}_supported"))
            assert distributed.choose_precision(EngineSettings(precision=precision)) == precision
            assert accelerator.is_fp16_supported() or supported
        told = f"warning: engine.precision: {precision} is emulated, slowly: this device ({device}) computes in float32"
        assert capsys.readouterr().out.startswith("" if supported else told)


def test_from_corpus_to_table(launch, small_recipe, tmp_path):
    """The script builds its corpus, trains, evaluates, and leaves all that it promises."""
    from soho_fast.data.processor import SohoProcessor
    from soho_fast.model import SohoForPreTraining

    done = launch(script=SCRIPT, arguments=["--recipe", str(small_recipe)])
    assert done.code == 0, done.text
    for words in (
        "ITM, balanced pairs", "50.0 % majority", "R@1 of 12", "active codes", "next:", "tensorboard --logdir",
    ):  # fmt: skip
        assert words in done.text, done.text
    run = tmp_path / "run"
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["step"] == 3 and 0 <= metrics["metrics"]["itm"] <= 1
    assert list((run / "tensorboard").iterdir())
    told = records({"output": run})
    assert len(evaluations({"output": run})) == 1
    for earlier, later in itertools.pairwise(told):
        assert later["seconds"] > earlier["seconds"]
    last = told[-1]
    assert abs(last["loss"] - last["mlm_loss"] - last["mvm_loss"] - last["itm_loss"]) < 1e-5
    assert set(last["lr"]) == {"backbone", "rest"}
    assert set(last["milliseconds"]) == {"wait", "copy", "forward", "backward", "optimizer"}
    model = SohoForPreTraining.from_pretrained(run / "model")
    assert model.config.num_codes == 16
    assert SohoProcessor.from_pretrained(run / "model").tokenizer.mask_token_id is not None


@pytest.mark.parametrize("module", ["train", "ask"])
def test_threads_without_work_give_their_core_away(module):
    """OpenMP itself is asked, since the variable must be there before torch loads it."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("GOMP_", "OMP_"))}
    done = subprocess.run(
        [sys.executable, "-c", f"import soho_fast.{module}, torch"],
        env={**environment, "OMP_DISPLAY_ENV": "VERBOSE"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    if "GOMP_SPINCOUNT" not in done.stderr:
        pytest.skip("this torch has another OpenMP than GNU's")
    assert "GOMP_SPINCOUNT = '1000'" in done.stderr


@pytest.mark.parametrize(("total_steps", "warned"), [(14, True), (15, False)])
def test_a_run_that_ends_within_its_first_phase_is_told(capsys, total_steps, warned):
    """Ten steps an epoch, and 1.4 epochs in which a part learns alone."""
    engine = SimpleNamespace(module=torch.nn.Linear(2, 1), zero_optimization_stage=lambda: 0)
    run = SimpleNamespace(
        step=SimpleNamespace(engine=engine, precision="float32"),
        plan=SimpleNamespace(global_batch_size=8, steps_per_epoch=10),
        task=SimpleNamespace(phase=lambda epoch: "the encoder learns alone" if epoch < 1.4 else ""),
        total_steps=total_steps, processes=Processes(), folder=Path("run"),
    )  # fmt: skip
    say_start(run, "mini")
    said = capsys.readouterr().out
    assert said.startswith(f"recipe mini: 0.0 M parameters, {total_steps} steps of 8 images")
    assert ("warning: until the last step the encoder learns alone; raise --epochs or" in said) == warned


def test_the_next_commands_of_a_run_with_code_of_a_user_s_own_import_it(tmp_path, capsys):
    asked = [
        "soho evaluate --run run",
        'soho explore build run  # needs: pip install "soho_fast[explore]"',
        "soho ask rank run IMAGE TEXT",
        "soho train --recipe own_vqa --model.pretrained run/model  # where lines have questions",
    ]
    task = SimpleNamespace(next_commands=lambda folder: asked, num_missing=lambda: 0, at_chance=lambda metrics: "")
    run = SimpleNamespace(
        task=task, folder=tmp_path, finished=None, total_steps=2,
        checkpoints=SimpleNamespace(identity={}), step=SimpleNamespace(precision="float32"),
        plan=SimpleNamespace(global_batch_size=8, steps_per_epoch=10),
        progress=SimpleNamespace(step=2, seconds=1.0, corrupt_images=0, best=None),
    )  # fmt: skip
    report_run(run, {})
    assert f"  {asked[0]}\n" in capsys.readouterr().out
    report_run(run, {}, [("model.config.dictionary", "own.codes:Own"), ("model.config.backbone", "net:Net")])
    named = "--model.config.dictionary own.codes:Own --model.config.backbone net:Net"
    told = capsys.readouterr().out
    for command in (
        f"{asked[0]} --trust-file\n", f"{asked[1].replace('  #', ' --trust-file  #')}\n",
        f"{asked[2]} --import own.codes --import net\n", f"{asked[3].replace('  #', f' {named}  #')}\n",
    ):  # fmt: skip
        assert f"  {command}" in told, command
    # The model has nothing of a loss; training it once more does.
    report_run(run, {}, [("model.losses.focal.path", "own:Focal")])
    told = capsys.readouterr().out
    assert all(f"  {command}\n" in told for command in asked)
