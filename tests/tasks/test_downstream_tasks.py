"""VQA, NLVR2 and SNLI-VE as the engine and the evaluation use them, with a small model."""

import inspect
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_corpus import draw, edit_json, write_tokenizer
from tiny_tasks import NAMES, SMALL, TASKS, Threads, make_task
from transformers import AutoModelForVisualQuestionAnswering

from soho_fast.common.errors import CorruptImageError
from soho_fast.model import SohoConfig, SohoForPreTraining, SohoForQuestionAnswering
from soho_fast.model.inputs import SohoInputs
from soho_fast.model.values import ModelChanges
from soho_fast.tasks.evaluation import answering
from soho_fast.tasks.evaluation.sharing import Sharing
from soho_fast.tasks.recipe import read_recipe
from soho_fast.tasks.settings import QuestionAnsweringModel, VqaSplit

IMAGES_PER_EXAMPLE = {"vqa": 1, "nlvr2": 2, "snli_ve": 1}


def batch_of(task, count=None):
    samples = task.training_data()
    return task.collate([samples[index] for index in range(count or len(samples))])


@pytest.mark.parametrize("name", TASKS)
def test_a_training_step_and_the_metrics(name, tmp_path, tokenizer_dir):
    task, said = make_task(name, tmp_path, tokenizer_dir, texts_per_image=3)
    torch.manual_seed(0)
    model = task.build_model()
    batch = batch_of(task)
    inputs = {key: value for key, value in batch.items() if key not in ("skipped", "sample_ids")}
    read = {*inspect.signature(type(model).forward).parameters, *SohoInputs.__annotations__}
    assert set(inputs) <= read, "the forward would not read it"
    inputs = task.on_device(inputs)
    seen = []
    model.soho.visual_encoder.register_forward_hook(lambda module, args, output: seen.append(len(args[0])))
    output = model.train()(**inputs)
    output.loss.backward()
    assert torch.isfinite(output.loss)
    assert seen == [len(task.training_data().examples.images)], "each image is encoded once for all its texts"
    assert sorted(batch["sample_ids"]) == list(range(len(task.training_data().examples)))
    metrics = task.evaluate(model.eval())
    assert 0 <= metrics[task.selection] <= 1 and metrics[f"{task.selection}_majority"] >= 0
    assert metrics["num_examples"] == len(task.records(task.data.validate))
    assert task.evaluate(model, quick=True) == metrics, "the split is smaller than a quick one"
    table = task.table(metrics)
    assert table.rows[0][0] == task.selection.replace("_", " ") and "majority" in table.rows[0][2]
    assert said[1].startswith(f"{task.data.validate}: ") and "training on" in said[2]


@pytest.mark.parametrize("name", TASKS)
def test_every_example_once_an_epoch_whoever_asks(name, tmp_path, tokenizer_dir):
    task, _ = make_task(name, tmp_path, tokenizer_dir, texts_per_image=2)
    data = task.training_data()
    drawn = []
    for epoch in (0, 1, 0):
        data.set_epoch(epoch)
        samples = [data[index] for index in range(len(data))]
        assert sorted(row for sample in samples for row in sample.sample_ids) == list(range(len(data.examples)))
        assert max(len(sample.sample_ids) for sample in samples) <= 2
        assert all(len(sample.pixels) == IMAGES_PER_EXAMPLE[name] for sample in samples)
        drawn.append([tuple(sample.sample_ids) for sample in samples])
    assert drawn[0] == drawn[2]
    if name != "nlvr2":
        assert drawn[0] != drawn[1], "three texts of an image come together in other ways in the next epoch"


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("world", [2, 3])
def test_answers_do_not_depend_on_the_number_of_processes(name, world, tmp_path, tokenizer_dir, monkeypatch):
    task, _ = make_task(name, tmp_path, tokenizer_dir)
    torch.manual_seed(1)
    model = task.build_model().eval()
    split = task.data.validate
    alone = task.evaluate_split(model, split, Sharing())
    computed = []
    load = answering.load_batch

    def counted(task, examples, groups):
        computed.append([row for rows in groups for row in rows])
        return load(task, examples, groups)

    monkeypatch.setattr(answering, "load_batch", counted)
    shared = Threads(world).run(lambda processes: task.evaluate_split(model, split, Sharing(processes)))
    for other in shared:
        assert (other.answers, other.scores, other.metrics) == (alone.answers, alone.scores, alone.metrics)
    rows = sorted(row for part in computed for row in part)
    assert rows == list(range(len(task.records(split)))), "no example is lost or computed twice"


def test_an_evaluation_does_not_go_on_over_images_that_were_replaced(tmp_path, tokenizer_dir):
    task, _ = make_task("vqa", tmp_path, tokenizer_dir)
    model, kept, steps = task.build_model().eval(), tmp_path / "partial", []

    def killed(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        task.evaluate_split(model, "val", Sharing(keep_in=kept, progress=killed))
    assert [path.name for path in kept.glob("part-*")] == ["part-000000.pt"]
    image = next((tmp_path / "val2014").iterdir())
    image.write_bytes(image.read_bytes() + b"x")
    other, _ = make_task("vqa", tmp_path / "other", tokenizer_dir)

    def refused(processes):
        with pytest.raises(ValueError, match=r"rank 1 has images 5 images, .*, not 5 images, .*, as rank 0 has"):
            (task, other)[processes.rank].evaluate_split(model, "val", Sharing(processes, keep_in=kept))
        return True

    assert Threads(2).run(refused) == [True, True]
    mine, theirs = task.contents(), other.contents()
    assert [name for name in mine if mine[name] != theirs[name]] == ["held-out images"], "so are ranks that train"
    task.evaluate_split(model, "val", Sharing(keep_in=kept, progress=lambda *done: steps.append(done)))
    assert steps[-1] == (3, 3), "nothing of the images before is kept"


def test_a_killed_evaluation_goes_on_with_other_processes(tmp_path, tokenizer_dir):
    task, _ = make_task("vqa", tmp_path, tokenizer_dir)
    torch.manual_seed(1)
    model = task.build_model().eval()
    whole = task.evaluate_split(model, "val", Sharing())
    kept = tmp_path / "partial"

    def killed_after(count):
        def progress(done, total):
            if done == count:
                raise KeyboardInterrupt

        return progress

    with pytest.raises(KeyboardInterrupt):
        task.evaluate_split(model, "val", Sharing(keep_in=kept, identity={"weights": "a"}, progress=killed_after(2)))
    (kept / "part-000002.pt.123.partial").write_bytes(b"half")
    steps = []
    again = task.evaluate_split(
        model,
        "val",
        Sharing(keep_in=kept, identity={"weights": "a"}, progress=lambda done, total: steps.append((done, total))),
    )
    assert steps == [(1, 1)], "two of three parts were kept"
    assert (again.answers, again.scores) == (whole.answers, whole.scores)
    other = Threads(2).run(
        lambda processes: task.evaluate_split(model, "val", Sharing(processes, keep_in=kept, identity={"weights": "b"}))
    )
    assert other[0].answers == other[1].answers == whole.answers
    assert json.loads((kept / "identity.json").read_text())["weights"] == "b", "parts of other weights are not used"
    again.write(tmp_path)
    assert not kept.exists()
    rows = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == [record.question_id for record in task.records("val")]
    assert [row["answer"] for row in rows] == whole.answers


@pytest.mark.parametrize("field", ["question", "image_id"])
def test_parts_of_other_examples_are_not_used(field, tmp_path, tokenizer_dir, monkeypatch):
    task, _ = make_task("vqa", tmp_path, tokenizer_dir)
    monkeypatch.setattr(type(task), "image_batch", 2)
    model = task.build_model().eval()

    def parts_computed():
        steps = []
        fresh = type(task)(task.data, 3, task.model, say=str)
        sharing = Sharing(keep_in=tmp_path / "kept", progress=lambda *done: steps.append(done))
        fresh.evaluate_split(model, "test", sharing)
        return len(steps)

    assert (first := parts_computed()) > 0 == parts_computed()

    def exchange(content):
        first, last = content["questions"][0], content["questions"][-1]
        first[field], last[field] = last[field], first[field]

    edit_json(tmp_path / "v2_OpenEnded_mscoco_test2015_questions.json", exchange)
    assert parts_computed() == first


def test_the_list_of_answers_and_the_soft_scores(tmp_path, tokenizer_dir):
    task, _ = make_task("vqa", tmp_path, tokenizer_dir)
    assert task.answers == ["no", "yes"], "each colour comes once only; equally frequent ones in the order of letters"
    batch = batch_of(task)
    rows = [batch["sample_ids"].index(row) for row in range(3)]
    # Image 1: nine of ten said yes; seven said no and two yes; seven said the colour, which is not in the list.
    torch.testing.assert_close(batch["answer_scores"][rows], torch.tensor([[0.0, 1.0], [1.0, 0.6], [0.0, 0.6]]))
    targets = torch.tensor([[0, 0, 0, 1, -1, -1, -1, -1, -1, -1], [1, 1, 1, 1, 0, 0, -1, -1, -1, -1]])
    scores = task.target_keywords(targets)["answer_scores"]
    torch.testing.assert_close(scores, torch.tensor([[0.9, 0.3], [0.6, 1.0]]))
    assert task.build_model().head[-1].bias.tolist() == [0, 0], "the paper says nothing of it"
    task.model.answer_bias = "frequency"
    model = task.build_model()
    share = torch.tensor([1 / 3, (1 + 0.6 + 0.6) / 3])  # how right each answer is over the training questions
    torch.testing.assert_close(model.head[-1].bias.sigmoid(), share)
    task.export(model, model.state_dict(), tmp_path / "model")
    loaded = AutoModelForVisualQuestionAnswering.from_pretrained(tmp_path / "model")
    assert type(loaded) is SohoForQuestionAnswering and loaded.config.id2label == {0: "no", 1: "yes"}
    few, _ = make_task("vqa", tmp_path, tokenizer_dir, min_answer_count=7)
    with pytest.raises(ValueError, match=r"data\.min_answer_count: 0 answers come 7 times"):
        few.build_model()


def test_questions_of_one_answer_are_refused_in_words_of_their_own(tmp_path, tokenizer_dir, monkeypatch):
    monkeypatch.setattr("soho_fast.tasks.question_answering.normalise_answer", lambda answer: "yes")
    task, _ = make_task("vqa", tmp_path, tokenizer_dir, min_answer_count=1)
    with pytest.raises(ValueError, match=r"^data\.train: all 18 questions have the answer 'yes'; expected at least"):
        task.build_model()


def test_vqa_trains_on_train_and_val_and_then_validates_on_nothing(tmp_path, tokenizer_dir):
    recipe = read_recipe(["--recipe", "vqa"])
    splits = {"train": recipe.data.train, "validate": recipe.data.validate}
    task, _ = make_task("vqa", tmp_path, tokenizer_dir, **splits)
    assert len(task.training_data().examples) == len(task.records("train")) + len(task.records("val")) == 33
    assert task.evaluate(task.build_model().eval()) == {}
    with pytest.raises(ValueError, match=r"split: data\.validate is empty; name one of train, val, test"):
        task.default_split  # noqa: B018
    assert next(line for line in task.next_commands(tmp_path) if "--split" in line).endswith("--split test")
    assert f'soho ask answer {tmp_path} IMAGE "A QUESTION?"' in task.next_commands(tmp_path)


def test_a_test_split_gives_a_submission_of_all_questions(tmp_path, tokenizer_dir):
    task, _ = make_task("vqa", tmp_path, tokenizer_dir)
    model = task.build_model().eval()
    evaluation = task.evaluate_split(model, "test", Sharing())
    assert evaluation.metrics == {}
    assert evaluation.write(tmp_path) == ["predictions.jsonl", "submission.json"]
    rows = json.loads((tmp_path / "submission.json").read_text())
    assert [row["question_id"] for row in rows] == [10 * n + place for n in (41, 42, 43) for place in range(3)]
    assert {row["answer"] for row in rows} <= {"yes", "no"}
    with pytest.raises(ValueError, match=r"^data\.train: a split of test has no answers to learn from"):
        make_task("vqa", tmp_path, tokenizer_dir, train=["test"])[0].training_data()
    with pytest.raises(ValueError, match="split: expected one of train, val, test, got 'vall'"):
        task.records("vall")
    with pytest.raises(ValueError, match=r"^data\.train: train comes twice; expected each split once"):
        make_task("vqa", tmp_path, tokenizer_dir, train=["train", "train"])[0].training_data()
    for field, value in (("train", ["tran"]), ("validate", "tran")):
        task, _ = make_task("vqa", tmp_path, tokenizer_dir, **{field: value})
        with pytest.raises(
            ValueError, match=f"^data.{field}: expected one of train, val, test, got 'tran'; did you mean"
        ):
            task.training_data()


def test_a_corrupt_image_is_skipped_in_training_and_stops_a_metric(tmp_path, tokenizer_dir):
    task, _ = make_task("snli_ve", tmp_path, tokenizer_dir)
    model = task.build_model().eval()
    (tmp_path / "flickr30k-images/1.jpg").write_bytes(b"corrupt 1")
    batch = batch_of(task)
    assert len(batch["pixel_values"]) == 4 and len(batch["skipped"]) == 3
    (said,) = set(batch["skipped"])
    assert said.startswith(str(tmp_path)) and "1.jpg: can't be decoded" in said, "one picture, one message"
    assert "0x" not in said
    (tmp_path / "flickr30k-images/6.jpg").write_bytes(b"corrupt 6")
    with pytest.raises(CorruptImageError, match=r"6\.jpg: .*every example must be answered"):
        task.evaluate(model)


def test_a_corrupt_image_to_validate_on_is_named_before_the_training(tmp_path, tokenizer_dir):
    image = tmp_path / "flickr30k-images/6.jpg"

    def prepared(change, **settings):
        task, said = make_task("snli_ve", tmp_path, tokenizer_dir, **settings)  # which draws the images again
        change()
        return task, said

    def truncate():
        image.write_bytes(image.read_bytes()[:-40])

    task, _ = prepared(truncate)
    task.training_data()  # which an evaluation of another split in int8 reads, too
    with pytest.raises(ValueError, match=r"data\.validate: 1 of 4 images of val can't .*6\.jpg.*missing_images skip"):
        task.contents()
    task, said = prepared(image.unlink, missing_images="skip")
    task.contents()
    assert "images left out: no file, as 6.jpg" in "".join(said)


@pytest.fixture
def pretrained(tmp_path, tokenizer_dir):
    """A folder as a pre-training run exports it."""
    from soho_fast.data.images import SohoImageProcessor
    from soho_fast.data.processor import SohoProcessor
    from soho_fast.data.text import load_tokenizer

    processor = SohoProcessor(SohoImageProcessor(), load_tokenizer(tokenizer_dir))
    model = SohoForPreTraining(SohoConfig.from_preset("paper", vocab_size=len(processor.tokenizer), **SMALL))
    model.save_pretrained(tmp_path / "pretrained")
    processor.save_pretrained(tmp_path / "pretrained")
    return tmp_path / "pretrained"


@pytest.mark.parametrize("name", TASKS)
def test_from_a_pretrained_model_and_its_words(name, tmp_path, tokenizer_dir, pretrained):
    start = QuestionAnsweringModel(pretrained=str(pretrained))
    task, said = make_task(name, tmp_path, tokenizer_dir, model=start, tokenizer=None)
    model = task.build_model()
    source = SohoForPreTraining.from_pretrained(pretrained).state_dict()
    for key, value in model.state_dict().items():
        assert key.startswith("head.") or torch.equal(value, source[key]), key
    assert model.config.use_dictionary_output is False
    report = "\n".join(said)
    assert "initial values kept: head." in report and "in the source, not used: mlm_head" in report
    given = QuestionAnsweringModel(pretrained=str(pretrained), use_dictionary_output=True)
    assert make_task(name, tmp_path, tokenizer_dir, model=given)[0].build_model().config.use_dictionary_output
    other_words = write_tokenizer(tmp_path / "other", size=40)
    with pytest.raises(ValueError, match=r"data\.tokenizer: .*other has other words \(40\) than the pre-trained model"):
        make_task(name, tmp_path, other_words, model=start)[0].build_model()
    wrong_size = QuestionAnsweringModel(pretrained=str(pretrained), config=ModelChanges(hidden_size=64))
    with pytest.raises(ValueError, match="tensors have another size"):
        make_task(name, tmp_path, tokenizer_dir, model=wrong_size)[0].build_model()
    with pytest.raises(FileNotFoundError, match="nowhere"):
        nowhere = QuestionAnsweringModel(pretrained=str(tmp_path / "nowhere"))
        make_task(name, tmp_path, tokenizer_dir, model=nowhere)[0].build_model()


def test_a_model_of_another_task_is_refused(tmp_path, tokenizer_dir, pretrained):
    task, _ = make_task("nlvr2", tmp_path / "n", tokenizer_dir)
    model = task.build_model()
    task.export(model, model.state_dict(), tmp_path / "model")
    again = task.load_model(tmp_path / "model")
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in again.state_dict().items())
    other, _ = make_task("vqa", tmp_path / "v", tokenizer_dir)
    for folder, held in ((tmp_path / "model", "SohoForVisualReasoning"), (pretrained, "SohoForPreTraining")):
        words = f"holds a {held}; expected a SohoForQuestionAnswering, trained by the task vqa"
        with pytest.raises(ValueError, match=words):
            other.load_model(folder)
    weights = load_file(tmp_path / "model/model.safetensors")
    del weights["head.3.bias"]
    (tmp_path / "model/SHA256SUMS").unlink()
    save_file(weights, tmp_path / "model/model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks 1 tensors of SohoForVisualReasoning \(head\.3\.bias\)"):
        task.load_model(tmp_path / "model")
    with pytest.raises(FileNotFoundError, match="checkpoint: no model could be loaded from"):
        other.load_model(tmp_path / "nowhere")


def test_measures_are_the_published_ones(tmp_path, tokenizer_dir):
    task, _ = make_task("nlvr2", tmp_path / "n", tokenizer_dir)
    records = task.records("dev")
    answers = [str(record.label) for record in records]
    assert task.metrics(answers, records) == {"accuracy": 1.0, "consistency": 1.0}
    answers[0] = str(not records[0].label)
    assert task.metrics(answers, records) == {"accuracy": pytest.approx(5 / 6), "consistency": 0.5}
    task, _ = make_task("snli_ve", tmp_path / "s", tokenizer_dir)
    records = task.records("val")
    metrics = task.metrics(["neutral"] * len(records), records)
    assert metrics == {"accuracy": pytest.approx(1 / 3), "contradiction": 0, "entailment": 0, "neutral": 1}
    assert task.baselines(records, task.label_names())["accuracy_chance"] == pytest.approx(1 / 3)
    task, _ = make_task("vqa", tmp_path / "v", tokenizer_dir)
    records = task.records("val")
    # Nine of ten said yes to a third of the questions and two of ten to the rest; eight in ten see both of those two.
    yes = task.metrics(["yes"] * len(records), records)
    assert yes["vqa_score"] == pytest.approx((1 + 2 * (2 * 1 / 3 + 8 * 2 / 3) / 10) / 3)
    metrics = task.baselines(records, ["no", "yes"])
    assert metrics["vqa_score_majority"] == pytest.approx(1 / 3)
    assert metrics["vqa_score_chance"] == pytest.approx((metrics["vqa_score_majority"] + yes["vqa_score"]) / 2)


@pytest.mark.parametrize("name", TASKS)
def test_images_that_are_trained_on_are_not_validated_on_and_otherwise_counted(name, tmp_path, tokenizer_dir):
    task, said = make_task(name, tmp_path, tokenizer_dir)
    task.training_data()
    validate = task.data.validate
    assert task.num_trained_on(validate, task.data, 3) == 0
    task.data.splits["more"] = task.data.splits[validate]
    leaky = type(task)(task.data, 3, task.model, say=said.append)
    task.data.train = ["train", "more"]
    count = len({ref for record in task.records(validate) for ref in map(str, task.images_of(record))})
    with pytest.raises(ValueError, match=f"{count} images are both in train, more and in {validate}, as "):
        leaky.training_data()
    assert leaky.num_trained_on(validate, task.data, 3) == count
    task.data.validate = ""
    assert type(task)(task.data, 3, task.model, say=said.append).training_data()
    Path(str(task.images_of(task.records("train")[0])[0])).unlink()
    task.data.missing_images = "skip"
    lacking = type(task)(task.data, 3, task.model, say=said.append)
    assert lacking.training_data() and lacking.num_missing() == {"train": 1}


def test_easy_vqa_as_its_package_has_it(tmp_path, tokenizer_dir):
    for number in (0, 1):
        draw(tmp_path / f"{number}.png", NAMES[number])
    rows = [["is there a red?", "yes", 0], ["what is the man?", "red", 0], ["is there a red?", "no", 1]]
    path = tmp_path / "questions.json"
    path.write_text(json.dumps(rows))
    split = VqaSplit(str(path), [str(tmp_path)], format="easy_vqa")
    options = {"splits": {"train": split, "test": split}, "validate": "test", "min_answer_count": 1}
    task, _ = make_task("vqa", tmp_path, tokenizer_dir, **options)
    assert task.answers == ["no", "red", "yes"]
    records = task.records("test")
    assert [record.image.name for record in records] == ["0.png", "0.png", "1.png"]
    assert task.metrics(["yes", "red", "yes"], records) == {
        "vqa_score": pytest.approx(2 / 3), "other": 1.0, "yes/no": 0.5,
    }  # fmt: skip
    assert np.array_equal(task.targets(records), np.repeat([[2], [1], [0]], 10, axis=1))


def test_the_baseline_of_a_question_is_its_most_frequent_answer_in_training(tmp_path, tokenizer_dir):
    task, said = make_task("vqa", tmp_path, tokenizer_dir)
    train, held_out = task.training_records, task.records("val")
    first, second = train[0], train[1]
    assert first.question != second.question

    def answered(record, question, answer, count=10):
        return replace(record, question=question, answers=replace(record.answers, answers=(answer,) * count))

    task.training_records = [
        answered(first, first.question, "No"), answered(first, first.question, "yes", 9),
        answered(second, second.question, "yes"),
    ]  # fmt: skip
    asked = [
        answered(held_out[0], first.question.upper(), "no"), answered(held_out[1], second.question, "yes"),
        answered(held_out[2], "never asked?", "yes"),
    ]  # fmt: skip
    metrics = task.baselines(asked, ["yes", "no"])
    assert metrics["vqa_score_majority_of_the_question"] == 1.0 and metrics["vqa_score_majority"] == 2 / 3
    found = {**metrics, "vqa_score": 0.9, "num_examples": 3.0}
    (row,) = [row for row in task.table(found).rows if row[0] == "vqa score"]
    assert row[1:] == ["90.0 %", "66.7 % majority, 100.0 % majority of the question, 50.0 % chance"]
    assert task.at_chance(found) == "vqa score 90.0% is no better than 100.0% without a model"
    assert task.at_chance({**found, "vqa_score_majority_of_the_question": 0.5, "num_examples": 3e4}) == ""
    assert task.at_chance({}) == ""
    other, said = make_task("vqa", tmp_path, tokenizer_dir, train=["gone"])
    assert "vqa_score_majority_of_the_question" not in other.baselines(asked, ["yes", "no"])
    assert said[-1].startswith("no baseline of the same question: ")
