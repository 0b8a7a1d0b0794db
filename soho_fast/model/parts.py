"""What a model is made of, by the fields of `SohoConfig` that choose it.

Here are the paper's parts, and ours. Those of `official/` are handed in by `add_parts`: nothing here knows them.
"""

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import nn

from soho_fast import ops
from soho_fast.common.import_path import is_import_path, load_imported

from .config import SohoConfig
from .heads import TokenHead
from .normalization import TokenBatchNorm
from .quantiser import Quantiser
from .visual_dictionary import VisualDictionary
from .visual_encoder import VisualEncoder


def _token_batch_norm(config: SohoConfig) -> TokenBatchNorm | None:
    return TokenBatchNorm(config.hidden_size) if config.dictionary_batch_norm else None


PARTS: dict[str, dict[str, Callable[..., Any]]] = {
    "visual_encoder": {"paper": VisualEncoder},
    "feature_norm": {"paper": _token_batch_norm},
    "dictionary": {"paper": VisualDictionary},
    "fusion": {},
    "mlm_head": {"bert": TokenHead},
    "code_logits": {},
    "mvm_masking": {"label": ops.sample_group},
}
"""By the name of a part and the value that chooses it, mostly of the config's field of this name: what makes the part
of a `SohoConfig`. "feature_norm" is chosen by `visual_encoder`. Two are functions of their own: "code_logits", chosen
by `mvm_head`, of hidden states and codes, and "mvm_masking", which draws a label of each image."""


def add_parts(parts: Mapping[str, Mapping[str, Callable[..., Any]]]) -> None:
    """Adds to `PARTS`."""
    for name, choices in parts.items():
        PARTS[name].update(choices)


def visual_dictionary(config: SohoConfig) -> Quantiser | None:
    """From features to codes (section 3.2), or none.

    Raises:
        ValueError: `config.dictionary` is an import path whose module is not imported yet, or names no `Quantiser`; its
            options are not those that it takes, or it has another number of codes than the config.
    """
    if not config.use_dictionary:
        return None
    name, options = config.dictionary, config.dictionary_options or {}
    # A model's file may name any class: only what is imported already is looked at.
    make = load_imported(name, "dictionary", nn.Module) if is_import_path(name) else PARTS["dictionary"][name]
    # Before anything is made: another class may do anything with its options.
    _refuse_lacking(name, make, [member for member in vars(Quantiser) if not member.startswith("_")])
    try:
        inspect.signature(make).bind(config, **options)
    except TypeError as error:
        raise ValueError(f"dictionary_options: {name!r} does not take {options} ({error})") from error
    made = make(config, **options)
    # The methods were looked for on the class; attributes are there once it is made.
    _refuse_lacking(name, made, Quantiser.__annotations__)
    if made.num_codes != config.num_codes:
        raise ValueError(f"num_codes: expected {made.num_codes:,}, as {name!r} has, got {config.num_codes:,}")
    return made


def _refuse_lacking(name: str, found: Any, members: Iterable[str]) -> None:
    if missing := ", ".join(member for member in members if not hasattr(found, member)):
        raise ValueError(
            f"dictionary: {name} has no {missing}; expected all that `Quantiser` lists (model/quantiser.py)"
        )


def fusion(config: SohoConfig) -> nn.Module | None:
    """What makes of codes and features what the Transformer reads, or none, as in the paper."""
    fuses = config.use_dictionary and config.use_dictionary_output and config.fusion in PARTS["fusion"]
    return PARTS["fusion"][config.fusion](config) if fuses else None
