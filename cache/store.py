"""The store: a memo of soft labels shared by every experiment, clone and user that points at it."""

import json
import os
from pathlib import Path
from typing import Any

import platformdirs

from cache.errors import DamagedShardError, ProducerError
from cache.identity import Producer, canonical_json
from cache.shards import SoftLabels, is_shard, read_shard, write_atomically, write_shard

ENVIRONMENT_VARIABLE = "MBLM_TEACHER_CACHE"


def store_root(configured: str | None) -> Path:
    """Find the store: the environment variable, else the configured folder, else the user's cache."""
    chosen = os.environ.get(ENVIRONMENT_VARIABLE) or configured
    return Path(chosen).expanduser() if chosen else platformdirs.user_cache_path("mblm") / "teachers"


class Store:
    """The soft labels of one producer in a store.

    A folder of shards under the producer's id. There is no index: a shard exists once it has its name, so
    several processes may append at once, and a killed one loses no more than what it had not appended.

    Attributes:
        folder: ``<root>/<producer id>``.
        damaged: The damaged shards that the last `read` left out.
    """

    def __init__(self, root: Path, producer: Producer) -> None:
        self.folder = root / producer.id
        self.damaged: list[DamagedShardError] = []
        self._producer = producer

    def read(self) -> SoftLabels:
        """Read all soft labels of the producer.

        A damaged shard counts as absent: its examples are labelled again. It is listed in `damaged`.

        Raises:
            ProducerError: The folder's producer.json belongs to another producer.
        """
        self.damaged = []
        parts = []
        if self.folder.is_dir():
            self._check_producer()
        for path in sorted(self.folder.glob("*")):
            if is_shard(path):
                try:
                    parts.append(read_shard(path, producer_id=self._producer.id))
                except DamagedShardError as error:
                    self.damaged.append(error)
        return SoftLabels.concatenate(parts, n_classes=len(self._producer.classes))

    def create(self) -> None:
        """Make the producer's folder: a store that cannot be written to is noticed before the work."""
        if not (self.folder / "producer.json").exists():
            write_atomically(self.folder / "producer.json", canonical_json(self._producer.facts))

    def append(self, soft_labels: SoftLabels) -> None:
        """Add soft labels as one new shard. They are on disk when this returns."""
        self.create()
        write_shard(self.folder, soft_labels, producer=self._producer)

    def _check_producer(self) -> None:
        path = self.folder / "producer.json"
        try:
            facts: Any = json.loads(path.read_bytes())
        except FileNotFoundError:
            return  # a first writer was killed before it wrote a shard
        except ValueError as error:
            raise ProducerError(f"{path} is not JSON ({error}); delete it and run again") from error
        if Producer(facts).id != self._producer.id:
            raise ProducerError(f"{path} describes another producer; delete it and run again")
