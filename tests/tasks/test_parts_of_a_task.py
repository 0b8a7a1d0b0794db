"""A task in three parts, and what is loaded where one is made."""

import subprocess
import sys

import pytest

from soho_fast.tasks.base import BaseTask
from soho_fast.tasks.learning import LearningTask
from soho_fast.tasks.weighing import WeighingTask


@pytest.mark.parametrize("part", [LearningTask, WeighingTask, BaseTask])
def test_a_part_has_at_most_fifteen_methods(part):
    own = [name for name, value in vars(part).items() if callable(value) or isinstance(value, property)]
    assert 0 < len(own) <= 15, own


def test_making_the_pre_training_task_loads_no_part_of_others():
    code = "from soho_fast.tasks.recipe import read_recipe; read_recipe([]).make_task(print)"
    code += "; import sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = done.stdout.split()
    assert "soho_fast.model.soho" in loaded
    others = ("two_stage", ".int8", "model.fast.prepared", "model.official", "model.downstream")
    assert not [name for name in loaded if name.startswith("soho_fast.") and any(part in name for part in others)]
