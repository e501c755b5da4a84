"""What lies in a store: its producers, by their last use."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cache.errors import UnreadableError
from cache.folder import Folder
from cache.names import name_of
from cache.shards import ShardName
from cache.store import LAST_USE, NAME, LastUse, producer_ids

_NEVER = datetime.fromtimestamp(0, UTC)


@dataclass(frozen=True)
class Listed:
    """A producer in a store.

    Attributes:
        producer: Its id.
        name: What the store calls it; None: nothing.
        teacher: What the experiment that used it last calls the teacher; None where that is not known.
        language: Of that experiment's examples.
        examples: Soft labels in its shards; one that lies in two shards counts twice.
        shards: Number of them.
        size: Of the shards, in bytes.
        last_use: When stage one last asked for it, or a shard was last written, in UTC.
    """

    producer: str
    name: str | None
    teacher: str | None
    language: str | None
    examples: int
    shards: int
    size: int
    last_use: datetime


OnUnreadable = Callable[[UnreadableError], None]
"""Called with what cannot be read, for those who want to know the rest nevertheless."""


def refuse(error: UnreadableError) -> None:
    """Raise it: the answer of all who decide by what is listed."""
    raise error


def ls(root: str | Path, *, on_unreadable: OnUnreadable = refuse) -> list[Listed]:
    """List a store's producers, the last used first. No shard is read.

    Args:
        root: The store.
        on_unreadable: Unless it raises, a producer whose folder cannot be listed is left out.

    Raises:
        UnreadableError: A folder or a ``last_use.json`` or ``name.json`` is there, but cannot be read.
    """
    found = []
    for producer in producer_ids(root):
        try:
            found.append(describe(root, producer, on_unreadable=on_unreadable))
        except UnreadableError as error:
            on_unreadable(error)
    return sorted(found, key=lambda one: one.last_use)[::-1]


def describe(root: str | Path, producer: str, *, on_unreadable: OnUnreadable = refuse) -> Listed:
    """Tell what its files' names, ``name.json`` and ``last_use.json`` tell of a producer.

    Args:
        root: The store.
        producer: Its id.
        on_unreadable: Unless it raises, one of the two that cannot be read counts as absent.

    Raises:
        UnreadableError: The folder is there, but cannot be listed.
    """
    folder = Folder(root).folder(producer)
    entries = folder.list()
    shards = {
        name: parsed
        for name, entry in entries.items()
        if (parsed := ShardName.parse(name)) is not None and not entry.is_folder
    }
    use = name = None
    try:
        use = LastUse.read(folder) if LAST_USE in entries else None
    except UnreadableError as error:
        on_unreadable(error)
    try:
        name = name_of(root, producer) if NAME in entries else None
    except UnreadableError as error:
        on_unreadable(error)
    # Where nobody noted a use, a shard's time stands for it; it is a new one where shards were only merged.
    written = [entries[name].modified for name in shards] if use is None else [use.at]
    return Listed(
        producer=producer,
        name=name,
        teacher=use.teacher if use else None,
        language=use.language if use else None,
        examples=sum(shard.rows for shard in shards.values()),
        shards=len(shards),
        size=sum(entries[name].size for name in shards),
        last_use=max([_NEVER, *(time for time in written if time)]),
    )
