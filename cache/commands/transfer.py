"""Push and pull: copy what is missing from one store to another, by content name."""

from collections.abc import Callable, Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from cache.endpoint_notes import EndpointNotes
from cache.errors import DamagedShardError, ProducerError, StoreError, UnreadableError, UnwritableError
from cache.folder import Folder
from cache.identity.digests import canonical_json
from cache.names import name_of, names, require_name
from cache.shards import read_bytes
from cache.store import FACTS, LAST_USE, NAME, LastUse, Store, producer_ids
from cache.top_k import TopKChange

_AT_ONCE = 8  # hides an object store's latency


@dataclass(frozen=True)
class Plan:
    """What is to be copied.

    Attributes:
        missing: Names of shards with their sizes in bytes, by producer.
        present: Shards that the target has already.
        failed: Why producers are left out: a producer.json of the source is absent, or one here or there is
            no JSON, not that of the id, cannot be read now, or is of a newer version.
    """

    missing: dict[str, dict[str, int]]
    present: int
    failed: list[ProducerError | UnreadableError]

    @property
    def size(self) -> int:
        """Their bytes."""
        return sum(sum(sizes.values()) for sizes in self.missing.values())


def compare(source: str | Path, target: str | Path, producer_ids: Iterable[str]) -> Plan:
    """Find the shards that a target lacks, or has in another size, which is a copy that was cut off."""
    missing, present = {}, 0
    failed: list[ProducerError | UnreadableError] = []
    for producer_id in producer_ids:
        try:
            store = Store.open(source, producer_id)
            copied = Store(target, store.producer)
            copied.require_own()
        except (ProducerError, UnreadableError) as error:
            failed.append(error)
            continue
        here, there = store.shards(), copied.shards()
        missing[producer_id] = {
            name: size
            for name, size in here.items()
            if name not in there or (size and there[name] != size)  # some listings, of HTTP, tell no size
        }
        present += len(here) - len(missing[producer_id])
    return Plan(missing, present, failed)


@dataclass
class Copied:
    """What was copied.

    Attributes:
        shards: How many.
        failed: Why others were not: they are damaged in the source, or cannot be read there, as a
            ``last_use.json`` may be, here or there.
        refused: Why a producer was not copied, or not all of it: its folder may not be written to.
        vanished: Names of shards that were listed, and gone when they were to be read.
    """

    shards: int = 0
    failed: list[DamagedShardError | UnreadableError] = field(default_factory=list)
    refused: list[UnwritableError] = field(default_factory=list)
    vanished: list[str] = field(default_factory=list)


def copy(source: str | Path, target: str | Path, todo: Plan, *, on_bytes: Callable[[int], None]) -> Copied:
    """Copy shards and names. What is stopped goes on where it was: a shard that arrived is no longer missing.

    A shard that vanishes meanwhile, because another process merged it, is left out: what replaces it is
    missing in the next comparison. So is a name where the target has given the producer another one, or the
    name to another producer.

    Args:
        source: A store.
        target: Another.
        todo: What `compare` found.
        on_bytes: Called with the size of each shard that is done.
    """
    done = Copied()
    ids = {*producer_ids(target), *todo.missing}
    before = names(target)
    named = dict(before)
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for producer_id, sizes in todo.missing.items():
            store = Store.open(source, producer_id)
            there = Store(target, store.producer)
            try:
                if sizes or not there.folder.exists(FACTS):  # else a target that is read-only will do
                    there.create()
                _copy_shards(pool, store.folder, there.folder, sizes, done, on_bytes)
                _copy_last_use(store.folder, there.folder)
                _copy_top_k(store.folder, there.folder)
                _copy_endpoint_notes(store.folder, there.folder)
                _copy_name(source, there, ids, named)
            except UnreadableError as error:
                done.failed.append(error)
            except UnwritableError as error:
                done.refused.append(error)
    _take_names_back(target, {name: one for name, one in named.items() if name not in before})
    return done


def _copy_shards(
    pool: ThreadPoolExecutor,
    source: Folder,
    target: Folder,
    sizes: Mapping[str, int],
    done: Copied,
    on_bytes: Callable[[int], None],
) -> None:
    """Copy a producer's shards of these names and sizes, some at once, and count them."""

    def copy_one(name: str) -> None:
        target.write(name, read_bytes(source, name))

    to_copy = list(sizes)
    for start in range(0, len(to_copy), _AT_ONCE):
        some = to_copy[start : start + _AT_ONCE]
        for name, running in [(name, pool.submit(copy_one, name)) for name in some]:
            try:
                running.result()
                done.shards += 1
            except (DamagedShardError, UnreadableError) as error:
                done.failed.append(error)
            except FileNotFoundError:
                done.vanished.append(name)
            on_bytes(sizes[name])


def _copy_top_k(source: Folder, target: Folder) -> None:
    ours, theirs = TopKChange.read(source), TopKChange.read(target)
    if ours and (theirs is None or theirs.examples < ours.examples):
        ours.note(target)


def _copy_endpoint_notes(source: Folder, target: Folder) -> None:
    ours, theirs = EndpointNotes.read(source), EndpointNotes.read(target)
    more = ours if ours.answers > theirs.answers else theirs
    others = (one for one in ours.answered_as if one not in theirs.answered_as)
    bias = ours.letter_bias if theirs.letter_bias is None else theirs.letter_bias
    together = replace(
        more,
        answered_as=(*theirs.answered_as, *others),
        letter_bias=bias,
        accepted={**ours.accepted, **theirs.accepted},
    )
    if together != theirs:
        together.write(target)


def _copy_name(source: str | Path, store: Store, ids: Collection[str], named: dict[str, str]) -> None:
    """Give a producer of the target the name that it has in the source, if none has it there."""
    producer_id = store.producer.id
    name = name_of(source, producer_id)
    if name is not None and name_of(store.root, producer_id) is None:
        with suppress(StoreError):
            require_name(store.root, producer_id, name, ids=ids, named=named)
            store.folder.write(NAME, canonical_json({"name": name}))
            named[name] = producer_id


def _take_names_back(target: str | Path, given: Mapping[str, str]) -> None:
    """Take those names back that another process gave to another producer meanwhile."""
    for one in producer_ids(target) if given else ():
        with suppress(UnreadableError):
            owner = given.get(name_of(target, one) or "", one)
            if owner != one:
                Folder(target).folder(owner).delete(NAME)


def _copy_last_use(source: Folder, target: Folder) -> None:
    ours, theirs = LastUse.read(source), LastUse.read(target)
    if ours and (theirs is None or theirs.at < ours.at):
        with suppress(UnwritableError):  # one that is complete may be somebody's, who lets nobody write
            target.write(LAST_USE, ours.encode())
