"""Set damaged files aside, so that what they held is labelled again."""

from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cache.errors import DamagedShardError, ProducerError
from cache.folder import Folder, is_temporary
from cache.shards import ShardName, read_bytes
from cache.store import FACTS, SET_ASIDE, Store

_ABANDONED = timedelta(days=1)


@dataclass(frozen=True)
class Repaired:
    """What was set aside of a producer.

    Attributes:
        producer: Its id.
        damaged: Reasons, by the file's name; the files are in ``damaged/`` now.
        examples: Soft labels that the damaged shards' names promised.
        lacks_facts: Whether it has no producer.json now, without which nothing reads its shards.
    """

    producer: str
    damaged: dict[str, str]
    examples: int
    lacks_facts: bool


def repair(root: str | Path, producer_id: str) -> Repaired:
    """Move a producer's damaged shards, and a producer.json that is not its own, to ``damaged/``.

    The good shards stay as they are; what killed writers left half-written is deleted after a day. Without
    a producer.json, shards are checked by their digests alone; the next run of stage one writes it again
    and checks the rest.

    Raises:
        UnreadableError: A file cannot be read, so that nobody knows whether it is damaged. Nothing was moved.
    """
    folder = Folder(root).folder(producer_id)
    before = folder.list()
    try:
        store = Store.open(root, producer_id)
    except ProducerError as error:
        damaged = {FACTS: str(error)} if FACTS in before else {}
        damaged |= _by_digest(folder)
    else:
        for _ in store.read(store.shards()):
            pass
        store.require_readable()
        damaged = {name: error.reason for name, error in store.damaged.items()}
    # Another process may have set aside and labelled again meanwhile, which gives good files of these names.
    damaged = {name: reason for name, reason in damaged.items() if name in before}
    for name in list(damaged):
        now = folder.list().get(name)
        if now == before[name]:
            with suppress(FileNotFoundError):  # another process repairs, too
                folder.move(name, SET_ASIDE)
        elif now:
            del damaged[name]
    for name, entry in folder.list().items():
        if is_temporary(name) and entry.modified and datetime.now(UTC) - entry.modified > _ABANDONED:
            folder.delete(name)
    rows = [parsed.rows for name in damaged if (parsed := ShardName.parse(name)) is not None]
    return Repaired(producer_id, damaged, sum(rows), lacks_facts=FACTS not in folder.list())


def _by_digest(folder: Folder) -> dict[str, str]:
    damaged = {}
    for name in folder.list():
        if ShardName.parse(name) is not None:
            try:
                read_bytes(folder, name)
            except DamagedShardError as error:
                damaged[name] = error.reason
            except FileNotFoundError:
                continue
    return damaged
