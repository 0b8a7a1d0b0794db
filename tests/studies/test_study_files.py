"""Studies as files: those of the package, what is refused, the order of runs, and what tells one from another."""

import pytest
import yaml
from tiny_study import TINY

from soho_fast.common.errors import UserError
from soho_fast.studies.matrix import Cell, chosen, runs_of
from soho_fast.studies.running import build_corpora
from soho_fast.studies.study import STUDIES, find_study, read_study


def written(folder, **changes):
    path = folder / "made.yaml"
    path.write_text(yaml.safe_dump({**TINY, **changes}, sort_keys=False))
    return path


def refused(path):
    with pytest.raises(UserError) as caught:
        runs_of(read_study(path))
    return str(caught.value)


@pytest.mark.parametrize("path", sorted(STUDIES.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_packages_studies_have_runs(path):
    study = read_study(path)
    runs = runs_of(study)
    cells = [cell for run in runs for cell in run.cells]
    assert len(set(cells)) == len(cells) > 1
    assert {cell.condition for cell in cells} == set(study.conditions)
    assert len({run.digest for run in runs}) == len(runs)


def test_runs_come_seed_by_seed_and_condition_by_condition(tmp_path):
    conditions = {**TINY["conditions"], "late": {"seeds": [1], "overrides": {"optim.lr": 0.1}}}
    cells = [run.cell for run in runs_of(read_study(written(tmp_path, seeds=[0, 1], conditions=conditions)))]
    assert cells == [
        *(
            Cell(condition, seed, stage)
            for seed, names in ((0, ("none", "codes")), (1, ("none", "codes", "late")))
            for condition in names
            for stage in ("pretraining", "vqa", "output")
            if condition == "codes" or stage != "output"
        )
    ]


def test_equal_settings_are_one_run_and_other_seeds_are_not(tmp_path):
    conditions = {"codes": {}, "same": {"about": "told otherwise"}, "other": {"seed_offset": 1000}}
    runs = runs_of(read_study(written(tmp_path, conditions=conditions, comparisons=[])))
    tuned = [run for run in runs if run.cell.stage == "vqa"]
    assert [[cell.condition for cell in run.cells] for run in tuned] == [["codes", "same"], ["other"]]
    assert [run.content["seed"] for run in tuned] == [0, 1000]


def test_a_digest_follows_what_metrics_depend_on_and_nothing_else(tmp_path):
    study = read_study(written(tmp_path))
    digests = [run.digest for run in runs_of(study)]

    def changed(**fields):
        now = [run.digest for run in runs_of(study, {name.replace("__", "."): value for name, value in fields.items()})]
        return [one != other for one, other in zip(digests, now, strict=True)]

    assert changed(output="x", engine__threads=7, log__every_steps=9, data_roots__corpus="elsewhere") == [False] * 5
    assert changed(optim__lr=0.5) == [True] * 5
    # A model that starts from another one is another one.
    study.stages["pretraining"].overrides["optim.lr"] = 0.5
    assert changed() == [True] * 5
    study = read_study(written(tmp_path))
    study.stages["vqa"].splits["val"]["data.text_batch"] = 3
    assert changed() == [False, True, False, True, False]
    # In two processes a training is another one.
    study = read_study(written(tmp_path))
    study.conditions["none"].launcher = "deepspeed --num_accelerators 2"
    assert changed() == [True, True, False, False, False]


def test_a_shared_stage_is_one_model_for_all_conditions_and_seeds(tmp_path):
    stages = {"start": {"recipe": "mini", "shared": True, "overrides": {"max_steps": 3}}, **TINY["stages"]}
    stages["pretraining"] = {**stages["pretraining"], "after": "start"}
    other = {"overrides": {"optim.lr": 0.5}, "stages": {"start": {"model.config.use_dictionary": False}}}
    launched = {"launcher": "deepspeed --num_accelerators 2"}
    conditions = {**TINY["conditions"], "other": other, "launched": launched}
    runs = runs_of(read_study(written(tmp_path, seeds=[1, 2], stages=stages, conditions=conditions)))
    starts = [run for run in runs if run.cell.stage == "start"]
    assert [[(cell.condition, cell.seed) for cell in run.cells] for run in starts] == [[("none", 1)], [("other", 1)]]
    # Of a condition it has what is said of this stage alone.
    assert [run.content["model"]["config"].get("use_dictionary", True) for run in starts] == [True, False]
    assert [(run.content["seed"], run.content["optim"]["lr"]) for run in starts] == [(0, 1.6e-3)] * 2
    branches = [run for run in runs if run.cell.stage == "pretraining"]
    assert [run.launcher for run in branches[:4]] == ["", "", "", launched["launcher"]], (
        "which made no start of its own"
    )
    assert [run.start is starts[run.cell.condition == "other"] for run in branches] == [True] * len(branches)
    assert len(branches) == 8
    compared = {**stages, "start": {**stages["start"], "metrics": {"itm": "matching"}}}
    assert "stages.start.metrics: this stage is shared by all" in refused(written(tmp_path, stages=compared))
    stages = {**stages, "start": {**stages["start"], "after": "first"}, "first": TINY["stages"]["pretraining"]}
    stages = {name: stages[name] for name in ("first", "start", "pretraining", "vqa")}
    assert "stages.start.after: first is not shared, and this one is" in refused(written(tmp_path, stages=stages))


def test_overrides_are_put_over_the_recipe_field_by_field(tmp_path):
    content = {run.cell: run.content for run in runs_of(read_study(written(tmp_path)))}
    tuned = content[Cell("none", 0, "vqa")]
    assert tuned["model"]["config"]["use_dictionary"] is False and tuned["model"]["config"]["num_codes"] == 8
    assert tuned["model"]["config"]["visual_pool"] == 1  # The recipe's own.
    assert tuned["max_steps"] == 12 and tuned["data"]["splits"]["val"]["images"] == ["{corpus}"]


def test_default_takes_a_field_out_of_the_recipe(tmp_path):
    study = read_study(written(tmp_path))
    study.overrides |= {"model.config.fusion": "default", "data.mvm_from_epoch": "default", "optim.lr": "default"}
    content = runs_of(study)[0].content
    assert "fusion" not in content["model"]["config"] and "mvm_from_epoch" not in content["data"]
    assert "lr" not in content["optim"] and content["optim"]["beta2"] == 0.98


def test_some_seeds_conditions_or_stages_bring_what_they_start_from(tmp_path):
    runs = runs_of(read_study(written(tmp_path)))
    stages = [run.cell.stage for run in chosen(runs, "stage", ["vqa"])]
    assert stages == ["pretraining", "vqa", "pretraining", "vqa"]
    assert {run.cell.condition for run in chosen(runs, "condition", ["again"])} == {"codes"}
    with pytest.raises(UserError, match="seeds: expected some of 0, got 7"):
        chosen(runs, "seed", [7])


def test_mistakes_are_told_by_their_place(tmp_path):
    with pytest.raises(UserError, match=r"there is no study 'dictonary'; .*did you mean dictionary"):
        find_study("dictonary")
    with pytest.raises(UserError, match=r"nothing\.yaml"):
        find_study(str(tmp_path / "nothing.yaml"))
    assert "there is no field condtions; did you mean conditions" in refused(written(tmp_path, condtions={}))
    assert "conditions: expected at least one" in refused(written(tmp_path, conditions={}))
    assert "seeds" in refused(written(tmp_path, seeds=["one"]))
    wrong = {"none": {"overrides": {"model.config.use_dictionary": False}, "stages": {"vaq": {}}}}
    assert "conditions.none.stages: expected one of pretraining, vqa, output, got 'vaq'" in refused(
        written(tmp_path, conditions=wrong, comparisons=[])
    )
    assert "comparisons[0].against: expected one of none, codes, again, got 'non'" in refused(
        written(tmp_path, comparisons=[{"condition": "codes", "against": "non"}])
    )
    for composite, told in (
        ("third/val.vqa_score", "composite: expected one of pretraining, vqa, output, got 'third'"),
        ("vqa/val.vqa_scor", "composite: expected one of val.vqa_score, got 'val.vqa_scor'; did you mean"),
        ("vqa", "composite: expected STAGE/METRIC, got 'vqa'"),
    ):
        assert told in refused(written(tmp_path, composite=[composite]))
    told = refused(written(tmp_path, overrides={"optim.lrr": 1}))
    assert "none seed 0 pretraining: recipe" in told and "there is no field optim.lrr; did you mean lr" in told
    for composite, told in (
        ("codes", "study {path}: factors: there is a condition 'codes' already"),
        ("none", "comparisons[0]: none is compared with itself"),
    ):
        path = written(
            tmp_path,
            factors={"a": {composite: {}}} if composite == "codes" else {},
            comparisons=[{"condition": composite, "against": composite}],
        )
        assert told.format(path=path) in refused(path)
    twice = ["vqa/val.vqa_score"] * 2
    assert "composite: expected each metric once" in refused(written(tmp_path, composite=twice))
    lift = ["pretraining/codes.lift"]
    assert "composite: expected shares, and pretraining/codes.lift is 'lift (times)', in times" in refused(
        written(tmp_path, composite=lift)
    )
    for stage, changes, told in (
        ("pretraining", {"codes": -1}, "stages.pretraining.codes: expected a number of images, or 0, got -1"),
        (
            "vqa",
            {"splits": {"vall": {}}},
            "stages.vqa.splits: expected one of train, val, test-dev, test, got 'vall'; did",
        ),
        ("vqa", {"splits": {"val": {"data.batch": 1}}}, "stages.vqa.splits.val: recipe"),
        (
            "pretraining",
            {"splits": {"any": {"data.heldout_image": 1}}},
            "there is no field data.heldout_image; did you",
        ),
        ("vqa", {"overrides": {"seed": 5}}, "none seed 0 vqa: seed: a study gives each run its seed"),
    ):
        stages = {**TINY["stages"], stage: {**TINY["stages"][stage], **changes}}
        assert told in refused(written(tmp_path, stages=stages, composite=[]))
    with pytest.raises(UserError, match="seed: a study gives each run its seed; expected it among the seeds"):
        runs_of(read_study(written(tmp_path)), {"seed": 5})
    stages = {**TINY["stages"], "vqa": {**TINY["stages"]["vqa"], "after": "retrieval"}}
    assert "stages.vqa.after: expected one of pretraining, got 'retrieval'" in refused(written(tmp_path, stages=stages))


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("title: [", ", line 1: "),
        ("- title", ": expected fields with values, got a list"),
        ("titel: T", ": there is no field titel; did you mean title?"),
        ("title: T\nseeds: [1.5]", ": seeds: "),
        ("title: T\nstages: {vqa: {recipe: mini_vqa, codes: x}}", ": stages: "),
        ("title: T\nstages: {vqa: {recip: mini}}", ": there is no field stages.vqa.recip; did you mean recipe?"),
    ],
)
def test_a_mistake_in_a_studys_own_file_is_a_studys(tmp_path, content, told):
    path = tmp_path / "own.yaml"
    path.write_text(content)
    assert refused(path).startswith(f"study {path}{told}")


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("optim.lr", "fast", "optim.lr: Not of type NonNegativeFloat"),
        ("optim.lr", float("nan"), "optim.lr: Not of type NonNegativeFloat: NaN does not conform"),
    ],
)
def test_a_value_of_a_later_stage_is_refused_before_the_first_run(tmp_path, field, value, told):
    stages = {name: {**stage, "overrides": {**stage["overrides"]}} for name, stage in TINY["stages"].items()}
    stages["vqa"]["overrides"][field] = value
    runs = runs_of(read_study(written(tmp_path, stages=stages)), {"data_roots.corpus": str(tmp_path / "corpus")})
    with pytest.raises(UserError) as caught:
        build_corpora(runs, tmp_path / "into")
    assert str(caught.value).startswith("none seed 0 vqa: ") and told in str(caught.value)
    assert not (tmp_path / "corpus").exists() and [each.name for each in (tmp_path / "into").iterdir()] == [
        "corpora.lock"
    ]


def test_factors_are_conditions_of_all_combinations(tmp_path):
    factors = {
        "init": {
            "random": {"model.config.dictionary_init": "random"},
            "data": {"model.config.dictionary_init": "data"},
        },
        "lr": {"low": {}, "high": {"optim.lr": 1.0}},
    }
    study = read_study(
        written(tmp_path, factors=factors, comparisons=[{"factor": "init", "condition": "data", "against": "random"}])
    )
    assert list(study.conditions)[-4:] == ["random, low", "random, high", "data, low", "data, high"]
    content = {run.cell.condition: run.content for run in runs_of(study) if run.cell.stage == "pretraining"}
    assert content["data, high"]["optim"]["lr"] == 1.0
    assert content["data, high"]["model"]["config"]["dictionary_init"] == "data"
    assert "comparisons[0].condition: expected one of random, data, got 'low'" in refused(
        written(tmp_path, factors=factors, comparisons=[{"factor": "init", "condition": "low", "against": "random"}])
    )
