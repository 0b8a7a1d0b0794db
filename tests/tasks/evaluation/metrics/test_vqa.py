import json

import pytest

from soho_fast.data.readers.questions import VqaAnswers, VqaRecord, normalise_answer
from soho_fast.data.readers.records import ImageRef
from soho_fast.tasks.evaluation.metrics.vqa import vqa_accuracy, vqa_score, write_vqa_submission


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("The Dog.", "dog"),
        ("A man, a plan", "man plan"),
        ("none", "0"),
        ("Ten", "10"),
        ("eleven", "eleven"),
        ("dont", "don't"),
        ("couldn'tve", "couldn't've"),
        ("somebody'd", "somebodyd"),  # a slip of the official table, kept
        ("im", "im"),  # the official "Im" is never reached, since words are lower case by then
        ("x-ray", "x ray"),
        ("red -blue", "red blue"),
        ("yes/no", "yes no"),
        ("1,000", "1000"),
        ("1,000-2", "10002"),  # a comma between digits takes all marks out instead of spacing them
        ("2.5", "2.5"),
        ("U.S.", "us"),
        ("5 p.m.", "5 pm"),
        ("what\nis\tthat?", "what is that"),
        ("it's 'here'", "it's 'here'"),
        ("", ""),
        (". " * 32 + ".a", ".a"),  # the official code hands a flag to `sub` where it takes the count: 32
    ],
)
def test_official_normalisation(answer, expected):
    assert normalise_answer(answer) == expected


def leave_one_out(answer, given):
    """The rule as the challenge's page words it, subset by subset."""
    subsets = [given[:n] + given[n + 1 :] for n in range(len(given))]
    return sum(min(1, sum(each == answer for each in subset) / 3) for subset in subsets) / len(subsets)


@pytest.mark.parametrize(("matches", "score"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)])
def test_leave_one_out_over_ten(matches, score):
    given = ["dog"] * matches + [f"cat {n}" for n in range(10 - matches)]
    assert vqa_score("dog", given) == pytest.approx(score) == pytest.approx(leave_one_out("dog", given))


def test_normalised_on_both_sides_where_people_differ():
    assert vqa_score("2", ["two"] * 5 + ["The two."] * 2 + ["three"] * 3) == 1.0
    assert vqa_score("A dog!", ["dog"] * 9 + ["cat"]) == 1.0


@pytest.mark.parametrize(
    ("answer", "given", "score"),
    [
        ("x-ray\n", "x-ray", 1.0), ("x-ray", " x-ray\t", 1.0), ("x ray", "x-ray", 0.0), ("Yes", "yes", 0.0),
        ("yes", "Yes", 0.0), ("two", "2", 0.0), ("a cat", "cat", 0.0),
    ],
)  # fmt: skip
def test_where_all_agree_words_are_compared_as_they_stand(answer, given, score):
    """The official script normalises neither side then, so that text read in a picture keeps its case and marks."""
    assert vqa_score(answer, [given] * 10) == score


def record(question_id, given, answer_type="other", question_type="what is"):
    answers = None if given is None else VqaAnswers(tuple(given), given[0], question_type, answer_type)
    return VqaRecord(ImageRef(None, "none.jpg"), "What?", question_id, answers)


RECORDS = [
    record(1, ["yes"] * 10, "yes/no", "is there"),
    record(2, ["no"] * 2 + ["yes"] * 8, "yes/no", "is there"),
    record(3, ["2"] * 3 + ["3"] * 7, "number", "how many"),
]


def test_accuracy_per_type():
    expected = {"vqa_score": (1.0 + 0.6 + 0.9) / 3, "yes/no": 0.8, "number": 0.9}
    assert vqa_accuracy({1: "yes", 2: "no", 3: "two"}, RECORDS) == pytest.approx(expected)


def test_a_missing_or_unknown_prediction_is_refused():
    with pytest.raises(ValueError, match=r"1 are missing, 0 are for unknown ones \(first: 3\)"):
        vqa_accuracy({1: "yes", 2: "no"}, RECORDS)
    with pytest.raises(ValueError, match=r"0 are missing, 1 are for unknown ones \(first: 9\)"):
        vqa_accuracy({1: "a", 2: "b", 3: "c", 9: "d"}, RECORDS)
    with pytest.raises(ValueError, match="question 4 has no answers; a test split is scored by the server"):
        vqa_accuracy({4: "yes"}, [record(4, None)])


def test_submission_holds_every_question(tmp_path):
    records = [record(number, None) for number in (30, 10, 20)]
    write_vqa_submission(tmp_path / "result.json", {10: "a", 20: "b", 30: "c"}, records)
    assert json.loads((tmp_path / "result.json").read_text()) == [
        {"question_id": 30, "answer": "c"},
        {"question_id": 10, "answer": "a"},
        {"question_id": 20, "answer": "b"},
    ]
    with pytest.raises(ValueError, match="2 are missing"):
        write_vqa_submission(tmp_path / "other.json", {10: "a"}, records)
    assert not (tmp_path / "other.json").exists()
