"""Delete producers that nobody needs: unused for long, above a size, or referred to by no experiment."""

import json
import os
import re
import subprocess
from collections.abc import Iterator, Set
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from cache.commands.ls import Listed, describe, ls
from cache.endpoint_notes import ENDPOINT
from cache.errors import ProducerError, StoreError, UnreadableError
from cache.folder import Folder, is_abandoned, read_file
from cache.schema import require_known_schema
from cache.shards import ShardName
from cache.soft_label_set import MANIFEST
from cache.store import FACTS, LAST_USE, NAME, SET_ASIDE, Store
from cache.top_k import TOP_K

GRACE = timedelta(days=1)
"""What was used more recently is kept where references decide: its experiment may still be running."""

_SOFT_LABELS = "artifacts/soft_labels/"
_SILVER = "artifacts/silver"
"""Of all zero-shot languages; there may be none."""


@dataclass(frozen=True)
class Victim:
    """A producer that may go, and why."""

    listed: Listed
    reason: str


def plan(
    root: str | Path,
    *,
    unused_for: timedelta | None,
    max_size: int | None,
    referenced: Set[str] | None,
    imported: bool = False,
) -> list[Victim]:
    """Choose the producers to delete.

    Args:
        root: The store.
        unused_for: Choose among those whose last use is at least as long ago.
        max_size: Then also choose the longest unused ones until the store has at most so many bytes.
        referenced: Never choose these producers; without `unused_for` and `max_size`, choose all others that
            nobody used within ``GRACE``.
        imported: Choose among producers, too, that were imported or are behind HTTP: nobody can compute their
            soft labels again, or not for nothing.

    Raises:
        UnreadableError: It is not known when a producer was used last, or one of those that would go has
            files that cannot be read: they may be somebody's who keeps them, or a newer version's.
    """
    now = datetime.now(UTC)
    listed = ls(root)
    candidates = [one for one in reversed(listed) if referenced is None or one.producer not in referenced]
    candidates = [one for one in candidates if imported or not _is_imported(root, one.producer)]
    victims = {}
    for one in candidates:
        age = now - one.last_use
        if unused_for is not None and age >= unused_for:
            victims[one.producer] = Victim(one, f"unused for {age.days} days")
        elif referenced is not None and unused_for is None and max_size is None and age >= GRACE:
            victims[one.producer] = Victim(one, "no experiment refers to it")
    if max_size is not None:
        size = sum(one.size for one in listed) - sum(victim.listed.size for victim in victims.values())
        for one in candidates:
            if size > max_size and one.producer not in victims:
                victims[one.producer] = Victim(one, "longest unused, and the store is too large")
                size -= one.size
    for producer in victims:
        _require_readable(root, producer)
    return list(victims.values())


def _is_imported(root: str | Path, producer: str) -> bool:
    try:
        found = Store.open(root, producer).producer
    except UnreadableError:  # who would delete it looks again, and says so
        return False
    except ProducerError:  # whose soft labels these are is not known, nor whether anybody can make them again
        return True
    return found.imported is not None or found.endpoint is not None


def _require_readable(root: str | Path, producer: str) -> None:
    """Look at the producer.json and the first byte of each shard."""
    folder = Folder(root).folder(producer)
    with suppress(ProducerError):
        Store.open(root, producer)
    for name in folder.list():
        if ShardName.parse(name) is not None:
            with suppress(FileNotFoundError, ValueError):  # it is gone, or has more bytes
                folder.read(name, limit=1)


def delete(root: str | Path, victim: Victim) -> bool:
    """Delete a producer, but for foreign files, and unless it was used since it was chosen.

    What is interrupted leaves fewer shards, and none that is wrong; producer.json goes last.

    Returns:
        Whether it was deleted.
    """
    if describe(root, victim.listed.producer) != victim.listed:
        return False
    folder = Folder(root).folder(victim.listed.producer)
    entries = folder.list()
    if SET_ASIDE in entries and entries[SET_ASIDE].is_folder:
        aside = folder.folder(SET_ASIDE)
        for name, entry in aside.list().items():
            moved = re.sub(r"\.[0-9]+$", "", name)  # the number is put behind a name that was taken
            is_ours = ShardName.parse(moved) or moved == FACTS or is_abandoned(name, entry)
            if is_ours and not entry.is_folder:
                aside.delete(name)
        aside.delete_if_empty()
    for name, entry in folder.list().items():
        is_ours = ShardName.parse(name) or is_abandoned(name, entry)
        if (is_ours or name in (LAST_USE, NAME, TOP_K, ENDPOINT)) and not entry.is_folder:
            folder.delete(name)
    folder.delete(FACTS)
    folder.delete_if_empty()
    return True


def referenced_by(clone: Path, *, ignore_missing: bool = False) -> set[str]:
    """Find the producers that a clone's experiments refer to.

    These are the producers of every soft-label set in the working folder, in other worktrees and in those of
    experiments that DVC is running, and in every version of ``dvc.lock`` that Git knows: of branches, tags,
    stashes and experiments, and what was there before.

    Args:
        clone: The top folder of a Git repository of this project, with DVC and with its whole history.
        ignore_missing: Let go of experiments whose soft labels are not in the clone's DVC cache.

    Raises:
        StoreError: It is none, or the soft labels of an experiment are not in its DVC cache, so that nobody
            can tell whose they are.
        UnreadableError: Something of it is there, but cannot be read, which is not the same.
    """
    places = [top / name for top in _folders(clone) for name in (_SOFT_LABELS, _SILVER)]
    here = [path for place in places for path in _files(place) if path.name == MANIFEST]
    found = set().union(*map(_producers_of, here))
    digests = set()
    for lock in _locks(clone):
        try:
            outs = [out for stage in (lock.get("stages") or {}).values() for out in stage.get("outs") or []]
            digests |= {out["md5"] for out in outs if out["path"].startswith((_SOFT_LABELS, _SILVER))}
        except (AttributeError, KeyError, TypeError) as error:
            raise StoreError(f"{clone}: a version of dvc.lock makes no sense ({error!r})") from error
    missing = []
    for digest in sorted(digests):
        inside = _manifests(clone, digest)
        if inside is None:
            missing.append(digest)
        found = found.union(*map(_producers_of, inside or []))
    if missing and not ignore_missing:
        raise StoreError(
            f"{clone}: {len(missing)} soft-label sets of its experiments are not in its DVC cache, so it is "
            "not known whose they are; get them with: dvc fetch --all-commits, or let go of "
            "these experiments with: --ignore-missing"
        )
    return found


def _git(clone: Path, *arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(clone), *arguments], capture_output=True, check=False)
    if done.returncode:
        message = done.stderr.decode(errors="replace").strip().partition("\n")[0]
        raise StoreError(f"{clone} is not a clone whose experiments can be read: {message}")
    return done.stdout.decode().strip()


def _folders(clone: Path) -> list[Path]:
    """List the working folders of a clone: its own, other worktrees, those of experiments that DVC runs."""
    listed = _git(clone, "worktree", "list", "--porcelain").splitlines()
    others = [Path(line.removeprefix("worktree ")) for line in listed if line.startswith("worktree ")]
    tops = [clone, *(other for other in others if other != clone.resolve())]
    return [*tops, *(path for top in tops for path in sorted((top / ".dvc/tmp/exps").glob("*/")))]


def _locks(clone: Path) -> list[Any]:
    """Read every version of dvc.lock: those of the working folders and all that Git knows."""
    git = partial(_git, clone)
    if Path(git("rev-parse", "--show-toplevel")) != clone.resolve():
        raise StoreError(f"{clone} is not the top folder of a clone")
    if git("rev-parse", "--is-shallow-repository") == "true":
        raise StoreError(f"{clone} has not its whole history; get it with: git fetch --unshallow")
    # Git takes references and their logs for absent where it may not read them, and says nothing.
    common = clone / git("rev-parse", "--git-common-dir")
    for path in (path for part in ("logs", "refs", "worktrees") for path in _files(common / part)):
        with suppress(FileNotFoundError):  # Git has just deleted it
            read_file(path)
    commits = git("log", "--all", "--reflog", "--full-history", "-m", "--format=%H", "--", "dvc.lock").split()
    trees = [line for commit in set(commits) for line in git("ls-tree", commit, "dvc.lock").splitlines()]
    texts = [git("cat-file", "blob", blob) for blob in sorted({line.split()[2] for line in trees})]
    for top in _folders(clone):
        with suppress(FileNotFoundError):
            texts.append(read_file(top / "dvc.lock").decode())
    if not texts:
        raise StoreError(f"{clone} has no dvc.lock in any commit, so nothing tells what it refers to")
    try:
        return [YAML(typ="safe").load(text) or {} for text in texts]
    except YAMLError as error:
        line = " ".join(str(error).split())
        raise StoreError(f"{clone}: a version of dvc.lock is not YAML: {line}") from error


def _files(top: Path) -> Iterator[Path]:
    """Find all files in a folder, if it is there; `Path.glob` takes what it may not list for empty."""

    def refuse(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):
            raise UnreadableError(str(error.filename), error.strerror or str(error)) from error

    for folder, _, names in os.walk(top, onerror=refuse):
        yield from (Path(folder, name) for name in names)


def _manifests(clone: Path, digest: str) -> list[Path] | None:
    """Find the manifests of soft-label sets in the clone's DVC cache; None: some are not there."""
    from dvc.exceptions import DvcException  # slow imports
    from dvc.repo import Repo

    try:
        with Repo(str(clone)) as repo:
            path = repo.cache.local.oid_to_path
    except DvcException as error:
        raise StoreError(f"{clone} is not a clone with DVC: {error}") from error
    listed = Path(path(digest))
    try:
        files = json.loads(read_file(listed))
        inside = [Path(path(file["md5"])) for file in files if Path(file["relpath"]).name == MANIFEST]
    except FileNotFoundError:
        return None
    except (KeyError, TypeError, ValueError) as error:
        raise StoreError(
            f"{listed} in the DVC cache of {clone} is no list of files ({error!r}); delete it, and get "
            "it again with: dvc fetch --all-commits"
        ) from error
    return inside if all(map(_is_there, inside)) else None


def _is_there(path: Path) -> bool:
    try:
        read_file(path)
    except FileNotFoundError:
        return False
    return True


def _producers_of(manifest: Path) -> set[str]:
    try:
        values = json.loads(read_file(manifest))
        require_known_schema(str(manifest), values)
        return {str(producer["id"]) for producer in values["producers"]}
    except (KeyError, TypeError, ValueError) as error:
        raise StoreError(f"{manifest}, a manifest of soft labels, is not readable ({error!r})") from error
