"""Rows: whole or absent, whoever writes at the same time; what was cut off is mended, what is wrong is refused."""

import multiprocessing

import pytest

from soho_fast.common.errors import UserError
from soho_fast.studies.results import append_row, by_digest, read_rows


def row(number, **more):
    fields = dict.fromkeys(("study", "condition", "stage"), "x")
    return {**fields, "seed": number, "digest": f"d{number}", "metrics": {"text": "y" * 5000}, **more}


def write_many(path, first):
    for number in range(first, first + 20):
        append_row(path, row(number))


def test_processes_that_write_together_lose_nothing(tmp_path):
    path = tmp_path / "results.jsonl"
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=write_many, args=(path, 20 * place)) for place in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert sorted(each["seed"] for each in read_rows([path])) == list(range(80))


def test_a_line_that_was_cut_off_is_not_read_and_the_next_one_takes_its_place(tmp_path):
    path = tmp_path / "results.jsonl"
    append_row(path, row(1))
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:100])
    assert [each["seed"] for each in read_rows([], optional=path)] == [1]
    with pytest.raises(UserError, match="line 2: not JSON"):
        read_rows([path])  # a file that was given, not the study's own: nobody writes to it
    append_row(path, row(2))
    assert [each["seed"] for each in read_rows([path])] == [1, 2]


def test_what_is_no_row_is_refused_with_its_line(tmp_path):
    path = tmp_path / "results.jsonl"
    append_row(path, row(1))
    path.write_text(path.read_text() + "{]\n")
    with pytest.raises(UserError, match=r"results .*results.jsonl, line 2: not JSON"):
        read_rows([path])
    path.write_text('{"study": "x"}\n')
    with pytest.raises(UserError, match=r"line 1: expected a study's row, this lacks condition, seed"):
        read_rows([path])
    with pytest.raises(UserError, match=r"nothing.jsonl: No such file"):
        read_rows([tmp_path / "nothing.jsonl"])


def test_a_figure_that_was_altered_is_refused(tmp_path):
    path = tmp_path / "results.jsonl"
    append_row(path, row(1, metrics={"score": 0.25}))
    append_row(path, row(2))
    assert read_rows([path])[0]["metrics"] == {"score": 0.25}
    path.write_text(path.read_text().replace("0.25", "0.35"))
    with pytest.raises(UserError, match="line 1: was altered since it was written"):
        read_rows([path])


def test_the_newest_row_of_a_digest_counts():
    rows = [row(1, metrics={"a": 1}), row(2), row(1, metrics={"a": 2})]
    assert by_digest(rows)["d1"]["metrics"] == {"a": 2}
