"""Names of models: a folder, or a name on the hub. A folder is looked for first; the hub is asked once and briefly."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from soho_fast.common.spelling import did_you_mean

HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "revision", "subfolder", "token")
"""Keywords of every `from_pretrained` that say where a file comes from."""

RUN_MODELS = {"best": "best", "last": "model"}
"""The folders of a run's models, by what they are called on the command line."""

# Seconds. A hub that can be reached answers a request for a file's size in a fraction of one.
_TIMEOUT = 5.0


def no_such_path(path: str | os.PathLike[str]) -> str:
    """That a path is not there, from where on, and which neighbour of that may have been meant."""
    path = missing = Path(path)
    # Up to the last part that is there: its neighbours are what may have been meant.
    while not missing.parent.is_dir():
        missing = missing.parent
    similar = did_you_mean(missing.name, sorted(entry.name for entry in missing.parent.iterdir()), whole=True)
    return f"there is no such file or folder{'' if missing == path else f', nor {missing}'}{similar}"


def run_model(run: str | os.PathLike[str], wanted: str | None = None) -> tuple[str, str]:
    """(folder, name) of a model of a run: `best` or `last`; None takes the best where there is one.

    Raises:
        FileNotFoundError: the run has no such model.
    """
    present = {name: Path(run) / folder for name, folder in RUN_MODELS.items() if (Path(run) / folder).is_dir()}
    if not present:
        raise FileNotFoundError(f"{run} is a run without a model yet: best/ and model/ come at its end")
    name = wanted or next(iter(present))
    if name not in present:
        raise FileNotFoundError(f"{run} has no {name} model; there is: {', '.join(present)}")
    return str(present[name]), name


def model_folder(folder: str | os.PathLike[str]) -> str | os.PathLike[str]:
    """Where the best model of a run is, or its last, or what was given. FileNotFoundError: it is a run without any."""
    has_model = any((Path(folder) / name).is_dir() for name in RUN_MODELS.values())
    return run_model(folder)[0] if has_model or (Path(folder) / "recipe.yaml").is_file() else folder


def check_name(name_or_path: str | os.PathLike[str], *, needs_owner: bool = False) -> None:
    """Raise FileNotFoundError where a name can be no name of the hub, and no such folder or file is here.

    Names of the hub are NAME or OWNER/NAME. What begins with `/`, `.` or `~`, has more parts, an empty one, or begins
    with a folder that is here or with `runs` is a path. Of SOHO models, which have an owner there (`needs_owner`), a
    bare name is one.
    """
    name = os.fspath(name_or_path)
    if os.path.exists(name):
        return
    parts = name.split("/")
    begins_here = len(parts) > 1 and (parts[0] == "runs" or os.path.isdir(parts[0]))
    is_path = isinstance(name_or_path, Path) or name[:1] in ("/", ".", "~") or "" in parts or len(parts) > 2
    if is_path or begins_here or (needs_owner and len(parts) == 1):
        wanted = "; expected the folder of a run or a model, or OWNER/NAME on the hub" if needs_owner else ""
        raise FileNotFoundError(
            f"{name}: {no_such_path(name)}{wanted}" if name else "expected a folder, got an empty name"
        )


def hub_failure(name: str | os.PathLike[str], token: str | bool | None = None) -> str:
    """Why nothing can be loaded from the hub under this name: one request, not repeated. Empty when the hub answers.

    The hub's own library tries each of a model's files again for half a minute.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import HfHubHTTPError

    try:
        get_hf_file_metadata(hf_hub_url(str(name), "config.json"), token=token, timeout=_TIMEOUT)
    except HfHubHTTPError:
        return ""  # An answer, if only that this file is not there.
    except ValueError:
        return "this is no name of the hub"
    except Exception as error:  # The transport's own; which library that is differs between releases.
        return f"the hub can't be reached ({error})"
    return ""


def loading_options(name_or_path: str | os.PathLike[str], **options: Any) -> tuple[dict[str, Any], str]:
    """`options` for a `from_pretrained`, and why the hub is left out of it ("" when it is not).

    A folder is taken as it is. Of a name, only what was downloaded before is used when the hub does not answer.

    Raises:
        FileNotFoundError: it looks like a path, and is not there.
        ValueError: it is a folder with an adapter.
    """
    check_name(name_or_path)
    if (adapter := Path(name_or_path, "adapter_config.json")).exists():
        # peft, where it is installed, would load it, and import what it names.
        raise ValueError(f"{adapter}: expected a model of its own weights; merge the adapter, and save that")
    if os.path.exists(name_or_path) or options.get("local_files_only"):
        return options, ""
    failure = hub_failure(name_or_path, options.get("token"))
    return ({**options, "local_files_only": True} if failure else options), failure
