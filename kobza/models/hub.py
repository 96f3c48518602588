"""Models from the Hugging Face hub: from its cache on this machine, else downloaded; never anything that runs code."""

from __future__ import annotations

import os
from pathlib import Path

from kobza.core.errors import MissingExtra, Offline, UnknownName

# weights, configuration, vocabulary and licence: no Python, no pickles
FILES = ("*.safetensors", "*.safetensors.index.json", "*.json", "*.jinja", "*.model", "*.txt", "LICENSE*", "README.md")
PICKLES = ("*.bin",)
CODE = ("*.py",)


def is_offline() -> bool:
    """Say whether the network is switched off by the conventions of the hub."""
    return any(os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE") for name in _SWITCHES)


_SWITCHES = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")


def cached(repository: str, revision: str | None = None, file: str | None = None) -> Path | None:
    """Return the folder (or file) of a repository in the hub's cache, or None if it is not there whole."""
    hub = _hub()
    try:
        if file:
            return Path(hub.hf_hub_download(repository, file, revision=revision, local_files_only=True))
        folder = Path(hub.snapshot_download(repository, revision=revision, local_files_only=True))
    except (OSError, ValueError, hub.errors.HfHubHTTPError, hub.errors.LocalEntryNotFoundError):
        return None
    return folder if _is_whole(folder) else None


def fetch(repository: str, revision: str | None = None, file: str | None = None, *, more: tuple[str, ...] = ()) -> Path:
    """Return the folder (or file) of a repository, downloading what is not there.

    Args:
        repository: its id, org/name.
        revision: branch, tag or commit; None is the main branch.
        file: one file of it; None is the whole model.
        more: patterns of files to download beside `FILES`, such as `PICKLES`, `CODE`.

    Raises:
        UnknownName: the hub has no such repository, revision or file.
        Offline: the network is off or does not answer.
    """
    found = cached(repository, revision, file)
    if found:
        return found
    what = f"'{repository}'" + (f" at {revision!r}" if revision else "")
    command = f"hf download {repository}" + (f" --revision {revision}" if revision else "")
    if is_offline():
        raise Offline(f"{what} is not on this machine, and the network is switched off.", f"With network: {command}")
    hub = _hub()
    try:
        if file:
            return Path(hub.hf_hub_download(repository, file, revision=revision))
        return Path(hub.snapshot_download(repository, revision=revision, allow_patterns=[*FILES, *more]))
    except (hub.errors.RepositoryNotFoundError, hub.errors.RevisionNotFoundError, hub.errors.EntryNotFoundError) as e:
        if isinstance(e, hub.errors.LocalEntryNotFoundError):
            raise _unreachable(what, command) from None
        raise UnknownName(
            f"the hub has no {what}{f' with {file}' if file else ''}, or it is private.",
            "Search on https://huggingface.co/models; for a private one set HF_TOKEN.",
        ) from None
    except (OSError, ValueError) as error:
        if isinstance(error, hub.errors.HFValidationError):
            raise UnknownName(f"{what} is not a hub id: {error}.", "A hub id is org/name[@revision].") from None
        raise _unreachable(what, command) from None


def _unreachable(what: str, command: str) -> Offline:
    return Offline(f"{what} is not on this machine, and the hub cannot be reached.", f"With network: {command}")


def _is_whole(folder: Path) -> bool:
    """Say whether a snapshot has what opening needs; a broken-off download leaves the rest out."""
    if not (folder / "config.json").is_file():
        return False
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        from kobza.models import preflight

        names = preflight.json_object(index, preflight.LONGEST_INDEX).get("weight_map", {}).values()
        return all((folder / Path(str(name)).name).is_file() for name in names)
    return any(folder.glob("*.safetensors")) or any(folder.glob("*.bin"))


def _hub():  # type: ignore[no-untyped-def]
    try:
        import huggingface_hub
        import huggingface_hub.errors
    except ImportError:
        raise MissingExtra("models from the hub need 'huggingface_hub'.", "pip install huggingface_hub") from None
    return huggingface_hub
