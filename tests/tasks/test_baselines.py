"""What answering needs no model for, and a run that is no better than it."""

from dataclasses import replace

from tiny_tasks import make_task


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
