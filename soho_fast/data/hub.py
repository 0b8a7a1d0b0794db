"""Names on the model hub: one quick try, then what was downloaded before."""

from __future__ import annotations

import os
from typing import Any

from huggingface_hub import get_hf_file_metadata, hf_hub_url
from huggingface_hub.errors import HfHubHTTPError

HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "revision", "subfolder", "token")
"""Keywords of every `from_pretrained` that say where a file comes from."""

# Seconds. A hub that can be reached answers a request for a file's size in a fraction of one.
_TIMEOUT = 5.0


def hub_failure(name: str | os.PathLike[str], token: str | bool | None = None) -> str:
    """Why nothing can be loaded from the hub under this name: one request, not repeated. Empty when the hub answers.

    The hub's own library tries each of a model's files again for half a minute.
    """
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
    """
    if os.path.exists(name_or_path) or options.get("local_files_only"):
        return options, ""
    failure = hub_failure(name_or_path, options.get("token"))
    return ({**options, "local_files_only": True} if failure else options), failure
