"""What a run tells of its codebook: from logs, damaged ones too, and from the dictionary."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from explore_made import described

from soho_fast.common.versions import write_run_of
from soho_fast.explore.timeline import timeline
from soho_fast.model import SohoConfig
from soho_fast.model.visual_dictionary import VisualDictionary
from soho_fast.tasks.pretraining import PretrainingTask

K, C = 8, 4


def _dictionary(**config) -> VisualDictionary:
    sizes = {"num_codes": K, "hidden_size": C, "num_attention_heads": 1, "ema_decay": 0.9}
    made = VisualDictionary(SohoConfig.from_preset("paper", **{**sizes, **config}))
    made.codebook.copy_(torch.eye(K, C) * 10 + torch.arange(K)[:, None] * 100.0)
    return made


def _snapshot(dictionary: VisualDictionary) -> dict:
    model = SimpleNamespace(base=lambda: SimpleNamespace(visual_dictionary=dictionary))
    return json.loads(json.dumps(PretrainingTask.snapshot(None, model)))


def _write(folder: Path, *records: dict) -> Path:
    with (folder / "log.jsonl").open("a") as file:
        file.writelines(json.dumps(record) + "\n" for record in records)
    return folder


def _train(step: int, **values) -> dict:
    return {"kind": "train", "step": step, "lr": {}} | values


def _run(folder: Path, dictionary: VisualDictionary, steps: int, members, every: int = 5, first: int = 0) -> None:
    """Steps in which the codes `members(step)` have one member each, and a snapshot of each fifth."""
    for step in range(first + 1, steps + 1):
        feat_BLC = dictionary.codebook[members(step)].unsqueeze(0) + 0.5
        dictionary.begin_step()
        dictionary(feat_BLC, torch.ones(feat_BLC.shape[:2], dtype=torch.bool))
        dictionary.end_step(applied=True)
        _, live, _ = dictionary.statistics()
        _write(folder, _train(step, active_codes=float(live)))
        if step % every == 0:
            _write(folder, {"kind": "snapshot", "step": step, "values": _snapshot(dictionary)})


def test_codes_that_die_are_told_with_the_snapshot_since_which_they_had_no_member(tmp_path):
    """Code 3 has its last member at step 12, code 5 at step 15, a snapshot's, code 6 never had one; code 7 has one at
    every eighth step, code 4 at the last alone."""
    made = _dictionary()

    def members(step: int) -> list[int]:
        some = [0, 1, 2, *[3] * (step <= 12), *[5] * (step <= 15), *[7] * (step % 8 == 0), *[4] * (step == 600)]
        return some

    _run(tmp_path, made, 600, members)
    found = timeline(tmp_path, made)
    assert set(found) == described("timeline.js")
    assert found["unused_since"] == [None, None, None, 15, None, 15, 0, None]
    assert found["reset"] == [0] * K and found["last_step"] == 600
    assert timeline(tmp_path / "model", made)["unused_since"] == found["unused_since"], "its model's folder will do"


def test_reseeded_codes_are_counted_between_snapshots(tmp_path):
    made = _dictionary(
        code_reset_threshold=0.1, code_reset_patience=3, code_reset_interval=4, code_reset_limit=2, usage_decay=0.5
    )
    _run(tmp_path, made, 20, lambda step: list(range(K)) if step <= 10 else list(range(K - 1)))
    found = timeline(tmp_path, made)
    (points,) = [line["points"] for line in found["series"] if line["name"] == "reset codes"]
    seeded = found["reset"]
    assert [step for step, _ in points] == [5, 10, 15, 20] and sum(count for _, count in points) >= 1
    assert points[0][1] == points[1][1] == 0, "none was dead before"
    for (earlier, _), (step, count) in zip([[0, 0], *points], points, strict=False):
        if step == 20:
            assert count == sum(at is not None and at > earlier for at in seeded)
    assert max(seeded) in (16, 20) and seeded[0] == 0


def test_a_code_that_was_reseeded_and_then_used_is_not_unused(tmp_path):
    """Code 0 was used much up to step 10, died, was seeded again at step 30 and had a member at once."""
    made = _dictionary(usage_decay=0.9)
    made.step.fill_(50)
    made.age.fill_(50.0)[0] = 20.0
    made.usage.fill_(1.0)[0] = 0.2 * 0.9**19
    usage = [5.0] + [1.0] * (K - 1)
    _write(tmp_path, {"kind": "snapshot", "step": 10, "values": {"usage": usage, "age": [10] * K, "drift": 0.0}})
    _write(tmp_path, _train(50))
    found = timeline(tmp_path, made)
    assert found["unused_since"][0] is None and found["reset"][:2] == [30, 0]


def test_a_dictionary_that_begins_later_than_the_run_was_seeded_then(tmp_path):
    made = _dictionary()
    for step in range(1, 8):
        _write(tmp_path, _train(step))
    _run(tmp_path, made, 20, lambda _: [0, 1], first=7)
    assert timeline(tmp_path, made)["reset"] == [7] * K
    made.age.add_(1000)  # It was trained before this run.
    assert timeline(tmp_path, made)["reset"] == [0] * K


def test_one_state_does_not_tell_that_every_code_had_members(tmp_path):
    """Code 3 had its last member at step 10 of 500: of the model alone that cannot be seen."""
    made = _dictionary()
    _run(tmp_path, made, 500, lambda step: list(range(K)) if step <= 10 else [0, 1, 2])
    told = timeline(tmp_path, made)
    assert told["num_snapshots"] == 100 and told["unused_since"][3] == 10
    alone = timeline(None, made)
    assert alone["num_snapshots"] == 1 and alone["unused_since"] == [None] * K
    logged = timeline(tmp_path / "used", _all_used(tmp_path / "used"))
    assert logged["num_snapshots"] > 1 and logged["unused_since"] == [None] * K


def _all_used(folder: Path) -> VisualDictionary:
    folder.mkdir()
    made = _dictionary()
    _run(folder, made, 500, lambda _: list(range(K)))
    return made


def test_a_damaged_log_gives_what_it_holds(tmp_path):
    odd = [
        _train(1, perplexity="many", active_codes=3.0),
        _train(2, perplexity=True),
        {"kind": "snapshot", "step": 2, "values": {"usage": [1.0], "age": [1], "drift": None}},
        {"kind": "snapshot", "step": 3, "values": {"usage": 7, "age": {}, "drift": 0.5}},
        {"kind": "snapshot", "step": 3},
        {"kind": "event", "step": 4, "event": "<b>resumed</b>"},
    ]
    _write(tmp_path, *odd)
    with (tmp_path / "log.jsonl").open("ab") as file:
        file.write(b'\xff\xfe junk\n{"kind": "train", "step": 9, "perplexity": 4.0, "lr": {}}\n{"kind": "tra')
    found = timeline(tmp_path, _dictionary())
    named = {line["name"]: line["points"] for line in found["series"]}
    assert named == {"active codes": [[1, 3.0]], "perplexity": [[9, 4.0]], "codebook drift": [[3, 0.5]]}
    assert found["events"] == [[4, "<b>resumed</b>"]] and found["last_step"] == 9
    assert found["reset"] == found["unused_since"] == [None] * K, "it has never moved"


def test_the_best_model_is_of_its_own_step(tmp_path):
    made = _dictionary()
    _run(tmp_path, made, 10, lambda step: [0, 1] if step <= 5 else [0])
    best = {name: tensor.clone() for name, tensor in made.state_dict().items()}
    _run(tmp_path, made, 20, lambda _: [1, 2], first=10)
    made.load_state_dict(best)
    (tmp_path / "best").mkdir()
    write_run_of(tmp_path / "best", 10, "of that run")
    found = timeline(tmp_path / "best", made)
    assert found["unused_since"][:3] == [None, 5, 0] and found["last_step"] == 20


def test_a_curve_is_told_by_its_end_and_its_extremes_what_matters_most_first(tmp_path):
    values = [(1, 0.5, 9000.0), (2, 1.6, 12.0), (3, 0.7, 40.0)]
    steps = [_train(step, code_error=error, active_codes=live, perplexity=9.0) for step, error, live in values]
    _write(tmp_path, *steps)
    told = timeline(tmp_path, _dictionary())["sentences"]
    assert told == [
        "Code error: 0.7 at step 3; highest 1.6 at step 2, lowest 0.5 at step 1.",
        "Active codes: 40 at step 3; highest 9,000 at step 1, lowest 12 at step 2.",
        "Perplexity: 9 at step 3.",
    ]


@pytest.mark.parametrize("run", [None, Path("nowhere")])
def test_where_nothing_is_known_nothing_is_told(run):
    found = timeline(run, _dictionary())
    assert found["series"] == [] and found["events"] == [] and found["reset"] == [None] * K
