"""What our dictionary counts and the released code does not."""

import torch

from soho_fast.model import SohoConfig, VisualDictionary
from soho_fast.model.official.keys import dictionary_counters


def counted(cluster_size: list[float]) -> VisualDictionary:
    """A dictionary of four codes with what is made of these running members."""
    dictionary = VisualDictionary(SohoConfig(num_codes=4, hidden_size=8, num_attention_heads=2))
    made = dictionary_counters(torch.tensor(cluster_size))
    state = {name.removeprefix("soho.visual_dictionary."): value for name, value in made.items()}
    missing, unexpected = dictionary.load_state_dict(state, strict=False)
    assert missing == ["codebook"] and not unexpected
    return dictionary


def test_usage_is_the_share_of_members_and_a_dead_code_is_not_live():
    dictionary = counted([6.0, 2.0, 0.0, 0.0])
    perplexity, live, usage = dictionary.statistics()
    torch.testing.assert_close(usage, torch.tensor([3.0, 1.0, 0.0, 0.0]))
    assert int(live) == 2 and 1 < float(perplexity) < 2
    assert bool(dictionary.initialised) and int(dictionary.step) > 1000


def test_where_nothing_was_learnt_nothing_is_told():
    dictionary = counted([0.0] * 4)
    _, live, usage = dictionary.statistics()
    assert not usage.any() and int(live) == 0 and not bool(dictionary.initialised) and int(dictionary.step) == 0
