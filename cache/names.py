"""Names of producers, for people: one file beside producer.json, and nothing that decides an id."""

import json
import re
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path

from cache.errors import StoreError, UnreadableError
from cache.folder import Folder
from cache.store import MAX_JSON, NAME, producer_ids

_ID = re.compile("[0-9a-f]{64}")
_NAME = re.compile(r"[^\W_][\w@.:/+-]{0,99}")


def name_of(root: str | Path, producer_id: str) -> str | None:
    """Give what a store calls a producer; None where it has no name.

    Raises:
        UnreadableError: It has one that cannot be read.
    """
    try:
        name = json.loads(Folder(root).folder(producer_id).read(NAME, limit=MAX_JSON))["name"]
    except (FileNotFoundError, KeyError, RecursionError, TypeError, ValueError):
        return None
    return name if isinstance(name, str) and _NAME.fullmatch(name) else None


def names(root: str | Path) -> dict[str, str]:
    """Give the producers of a store that have a name, by it; one that cannot be read here is left out."""
    found = {}
    for one in producer_ids(root):
        with suppress(UnreadableError):
            if (name := name_of(root, one)) is not None:
                found[name] = one
    return found


def find_producer(root: str | Path, called: str) -> str:
    """Find a producer by its id, its name, or the beginning of its id, in this order.

    Raises:
        StoreError: None has the name, and none or several begin like this.
    """
    ids = producer_ids(root)
    if called in ids:
        return called
    named = names(root).get(called)
    found = [named] if named is not None else [one for one in ids if one.startswith(called)]
    if len(found) != 1:
        what = "no producer" if not found else f"{len(found)} producers"
        raise StoreError(
            f"{what} in {root} with the name '{called}', or an id that begins so; "
            f"list them with: python -m pipeline cache ls --store {root}"
        )
    return found[0]


def require_name(
    root: str | Path,
    producer_id: str,
    name: str,
    *,
    ids: Collection[str] | None = None,
    named: Mapping[str, str] | None = None,
) -> None:
    """Refuse a name that cannot be a producer's, or is another's.

    Args:
        root: The store.
        producer_id: Whose name it is to be.
        name: The name.
        ids: Of the producers in the store; None: they are listed.
        named: Those that have a name, by it; None: all are read.

    Raises:
        StoreError: It is.
    """
    if not _NAME.fullmatch(name):
        raise StoreError(
            f"'{name}' is no name for a producer; name it with at most 100 letters, digits and _@.:/+-"
        )
    ids = producer_ids(root) if ids is None else ids
    hidden = [one for one in ids if one != producer_id and one.startswith(name)]
    if hidden or _ID.fullmatch(name):
        whose = f"the beginning of producer {hidden[0][:12]}'s id" if hidden else "what an id looks like"
        raise StoreError(f"'{name}' is {whose} in {root}; choose another name")
    owner = (names(root) if named is None else named).get(name, producer_id)
    if owner != producer_id:
        raise StoreError(
            f"'{name}' is producer {owner[:12]} in {root}; choose another name, or give that one another: "
            f"python -m pipeline cache name {owner[:12]} NAME"
        )
