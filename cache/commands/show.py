"""One producer of a store: its facts and its shards."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cache.identity.columns import Column
from cache.shards import ShardName
from cache.store import Store


@dataclass(frozen=True)
class Shown:
    """A producer, as far as names and ``producer.json`` tell.

    Attributes:
        producer: Its id.
        facts: What decides its soft labels besides the text.
        classes: In the order of its logits.
        columns: Besides ``example_id``: dtype and width by name; None is a width that only the shards tell.
        shards: Rows, format and bytes by name.
        foreign: Names in the folder that are nobody's.
    """

    producer: str
    facts: dict[str, Any]
    classes: list[str]
    columns: dict[str, Column]
    shards: dict[str, tuple[int, str, int]]
    foreign: list[str]


def show(root: str | Path, producer_id: str) -> Shown:
    """Describe a producer.

    Raises:
        ProducerError: Its producer.json is absent, no JSON or not that of the id.
        UnreadableError: It cannot be read now, or a newer version wrote it.
    """
    store = Store.open(root, producer_id)
    shards = {}
    for name, size in store.shards().items():
        parsed = ShardName.parse(name)
        assert parsed is not None
        shards[name] = (parsed.rows, parsed.extension.partition(".")[0], size)
    return Shown(
        producer_id,
        store.producer.facts,
        store.producer.classes,
        store.producer.columns,
        shards,
        store.foreign(),
    )
