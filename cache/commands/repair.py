"""Set damaged files aside, so that what they held is labelled again."""

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from cache.errors import DamagedShardError, ProducerError
from cache.folder import Folder, is_abandoned
from cache.shards import ShardName, read_bytes
from cache.store import FACTS, SET_ASIDE, Store


@dataclass(frozen=True)
class Repaired:
    """What was set aside of a producer.

    Attributes:
        producer: Its id.
        damaged: Reasons, by the file's name in ``damaged/``, where it is now.
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
    rows, moved = 0, {}
    for name, reason in damaged.items():
        now = folder.list().get(name)
        if now not in (None, before[name]):
            continue
        with suppress(FileNotFoundError):  # another process repairs, too
            moved[folder.move(name, SET_ASIDE)] = reason
            parsed = ShardName.parse(name)
            rows += parsed.rows if parsed is not None else 0
    for name, entry in folder.list().items():
        if is_abandoned(name, entry):
            folder.delete(name)
    return Repaired(producer_id, moved, rows, lacks_facts=FACTS not in folder.list())


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
