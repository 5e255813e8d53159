"""Paths as people type them: a home folder by "~", and names that no file system takes."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs

from forward_influence.errors import UsageError

#: The environment variable that moves the cache.
CACHE_VARIABLE = "FORWARD_INFLUENCE_CACHE"


def typed_path(text: str) -> Path:
    """The path that was typed, "~" and "~user" put in full.

    Raises:
        UsageError: there is no such user.
    """
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise UsageError(
            f"{text!r} begins with the home folder of a user who is not here; write the path out"
        ) from error


def path_text(path: str) -> str:
    """A path as text: names are UTF-8 also where the locale thinks that they are not (LC_ALL=C)."""
    try:
        return os.fsencode(path).decode("utf-8")
    except (UnicodeEncodeError, UnicodeDecodeError):
        return path


def is_there(path: Path) -> bool:
    """Whether there is something at a path; False too for names that no file system takes (too long, a NUL)."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def cache_folder() -> Path:
    """The cache: $FORWARD_INFLUENCE_CACHE, or the user's cache folder of the platform."""
    chosen = os.environ.get(CACHE_VARIABLE)
    return typed_path(chosen).absolute() if chosen else Path(platformdirs.user_cache_dir("forward-influence"))
