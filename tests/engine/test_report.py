"""The curves: what is drawn of a log, and where it is marked."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from soho_fast.common.processes import Processes
from soho_fast.common.versions import write_run_of
from soho_fast.engine.report import draw_curves, older_evaluations, say_start


def train(step, **values):
    record = {"kind": "train", "step": step, "epoch": step / 100, "loss": 2.0 / step, "mlm_loss": None}
    record |= {"lr": {"backbone": 0.0 if step > 50 else 1e-2, "rest": 1e-4}, "grad_norm": 3.0, "loss_scale": None}
    return record | {"milliseconds": {"wait": 1.0}, "seconds": step} | values


@pytest.fixture
def drawn(tmp_path, monkeypatch):
    """Draws records; the figure."""
    from matplotlib.figure import Figure

    figures = []
    save = Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda figure, *args, **kwargs: figures.append(figure) or save(figure, *args, **kwargs)
    )

    def draw(records):
        log = tmp_path / "log.jsonl"
        log.write_text("".join(json.dumps(record) + "\n" for record in records))
        draw_curves(log, tmp_path / "curves.png")
        return figures[-1] if figures else None

    return draw


def panels(figure):
    return {panel.get_title(): panel for panel in figure.axes if panel.get_visible()}


RECORDS = [
    train(10, bag_of_words_loss=0.5),
    train(20, bag_of_words_loss=0.4, grad_norm=None),
    {"kind": "event", "step": 50, "event": "the backbone is frozen"},
    {"kind": "evaluation", "step": 60, "metrics": {"itm": 0.6, "itm_majority": 0.5, "num_images": 1.0, "mvm": 0.1}},
    train(70, mlm_loss=3.0),
    {"kind": "event", "step": 70, "event": "resumed"},
    {"kind": "event", "step": 70, "event": "learning rates x 0.1"},
    {"kind": "evaluation", "step": 80, "metrics": {"itm": 0.7, "itm_majority": 0.5, "perplexity": 9.0}},
    train(80, mlm_loss=2.0),
]


def test_losses_gradient_norm_held_out_metrics_and_rates_have_panels(drawn, tmp_path):
    figure = drawn(RECORDS)
    assert list(panels(figure)) == [
        "loss", "bag_of_words_loss", "mlm_loss", "gradient norm", "held-out data (dotted: baseline)", "learning rate",
    ]  # fmt: skip
    smooth = panels(figure)["mlm_loss"].lines[1]
    assert smooth.get_xdata().tolist() == [70, 80] and smooth.get_ydata().tolist() == [3.0, 2.0]
    assert panels(figure)["gradient norm"].lines[0].get_xdata().tolist() == [10, 70, 80], "where it was measured"
    heldout = panels(figure)["held-out data (dotted: baseline)"]
    assert heldout.get_legend_handles_labels()[1] == ["itm", "mvm"], "shares, neither baselines nor counts"
    assert list(heldout.lines[0].get_ydata()) == [0.6, 0.7] and list(heldout.lines[1].get_ydata()) == [0.5, 0.5]
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_events_are_marked_in_every_panel_and_told(drawn):
    figure = drawn(RECORDS)
    assert figure.get_supxlabel() == "a  step 50: the backbone is frozen\nb  step 70: resumed; learning rates x 0.1"
    for panel in panels(figure).values():
        assert [text.get_text() for text in panel.texts] == [" a", " b"]
        assert [text.get_position()[0] for text in panel.texts] == [50, 70]


def test_a_log_without_metrics_or_events(drawn):
    figure = drawn([train(10), train(20)])
    assert list(panels(figure)) == ["loss", "gradient norm", "learning rate"]
    assert figure.get_supxlabel() == ""


def test_a_log_without_training_draws_nothing(drawn, tmp_path):
    assert drawn([{"kind": "evaluation", "step": 0, "metrics": {"itm": 0.5}}]) is None
    assert not (tmp_path / "curves.png").exists()


def test_an_evaluation_that_is_older_than_its_model_is_told(tmp_path):
    (tmp_path / "best").mkdir()
    about = {"model": "runs/elsewhere/best", "checkpoint": "best", "step": 4, "identity": "a"}
    for name, content in (
        ("val-best", json.dumps(about)),
        ("test-best", json.dumps({**about, "step": 6})),
        ("of-another", json.dumps({"model": "owner/name"})),
        ("val-model", json.dumps({**about, "checkpoint": "model"})),
        ("damaged", "{"),
    ):
        (tmp_path / "evaluation" / name).mkdir(parents=True)
        (tmp_path / "evaluation" / name / "metrics.json").write_text(content)
    assert older_evaluations(tmp_path) == [], "nothing says what the model is"
    write_run_of(tmp_path / "best", 6, "a")
    old, best = tmp_path / "evaluation/val-best", tmp_path / "best"
    assert older_evaluations(tmp_path) == [f"{old} is of step 4; {best} is of step 6 by now: evaluate again"]
    write_run_of(best, 6, "b")
    assert len(older_evaluations(tmp_path)) == 2, "another run of as many steps"


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
