"""Adapters on the Hugging Face hub: `hf-hub:USER/NAME` is read, and a folder is pushed."""

import re
from pathlib import Path
from typing import Any

from cache.errors import UserError, printable
from cache.models.offline import stay_offline_if_cut_off

PREFIX = "hf-hub:"
FILE = "adapter.safetensors"


def adapter_file(name: Path | str) -> Path:
    """The file of an adapter; one on the hub is fetched, and kept where the hub's client keeps it.

    Args:
        name: A file, or `hf-hub:USER/NAME`, with `@REVISION` behind for another than the newest.

    Raises:
        UserError: It is on the hub and cannot be had.
    """
    if not str(name).startswith(PREFIX):
        return Path(name)
    from huggingface_hub import constants, hf_hub_download

    repository, _, revision = str(name).removeprefix(PREFIX).partition("@")
    _require_repository(repository)
    stay_offline_if_cut_off()
    try:
        return Path(hf_hub_download(repository, FILE, revision=revision or None))
    except Exception as error:  # the client's own, and those of the libraries below it
        reason = _reason(error)
        if constants.HF_HUB_OFFLINE:
            reason = "the hub is out of reach, and its cache here does not hold it"
        raise UserError(
            f"cannot get {FILE} of {name} ({reason}); connect once, log in with `hf auth login` "
            "where it is private, or set HF_HOME to a filled hub cache"
        ) from error


def push(folder: Path, repository: str) -> str:
    """Upload a folder, to a private repository if it is new; its address.

    Args:
        folder: As `export --to hub` writes it.
        repository: `USER/NAME`.

    Raises:
        UserError: No such name, no token at hand, or the hub refuses or is out of reach.
    """
    require_token(repository)
    from huggingface_hub import HfApi

    api: Any = HfApi()
    try:
        address = api.create_repo(repository, private=True, exist_ok=True)
        api.upload_folder(repo_id=repository, folder_path=str(folder))
    except Exception as error:  # the client's own, and those of the libraries below it
        raise UserError(
            f"cannot push to {repository} ({_reason(error)}); {folder} is written: push it with "
            f"`hf upload {repository} {folder}`"
        ) from error
    return str(address)


def require_token(repository: str) -> None:
    """Raise unless a repository can be pushed to, as far as is known here.

    Raises:
        UserError: It is no name of one, or there is no token.
    """
    from huggingface_hub import get_token

    _require_repository(repository)
    if get_token() is None:
        raise UserError(
            f"no token of the Hugging Face hub to push to {repository} with; log in with "
            "`hf auth login`, or set HF_TOKEN"
        )


def _require_repository(name: str) -> None:
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise UserError("a repository of the hub is named USER/NAME, such as ada/red-pandas")


def _reason(error: Exception) -> str:
    return printable((str(error).strip() or repr(error)).splitlines()[0])
