"""A recipe's corpus has the scenes' options: the same names and defaults as the corpus itself."""

import dataclasses

from soho_fast.data.mini.options import SceneOptions
from soho_fast.tasks.recipe import DemoCorpus


def test_a_recipe_sets_every_option_of_the_scenes_and_begins_from_their_defaults():
    options = dataclasses.asdict(SceneOptions())
    settings = dataclasses.asdict(DemoCorpus())
    assert options.keys() <= settings.keys()
    assert {name: settings[name] for name in options} == {
        name: list(value) if isinstance(value, tuple) else value for name, value in options.items()
    }
