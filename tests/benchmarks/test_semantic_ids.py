"""The table of semantic ids: what it refuses. tests/rules/test_docs.py runs it."""

import pytest

from benchmarks import semantic_ids


@pytest.mark.parametrize("number", ["-3", "0", "255"])
def test_fewer_items_than_codes_are_refused(monkeypatch, capsys, number):
    monkeypatch.setattr("sys.argv", ["semantic_ids", "--items", number])
    with pytest.raises(SystemExit):
        semantic_ids.main()
    assert f"--items: expected at least 256, one for each code of a level, got {number}" in capsys.readouterr().err
