"""Delete producers that nobody needs: unused for long, above a size, or referred to by no experiment."""

import json
import subprocess
from collections.abc import Set
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from cache.errors import StoreError
from cache.files import Folder, is_temporary
from cache.label_set import MANIFEST
from cache.ls import Listed, ls
from cache.shards import ShardName
from cache.store import FACTS, LAST_USE, SET_ASIDE

GRACE = timedelta(days=1)
"""What was used more recently is kept where references decide: its experiment may still be running."""

_SOFT_LABELS = "artifacts/soft_labels/"


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
) -> list[Victim]:
    """Choose the producers to delete.

    Args:
        root: The store.
        unused_for: Choose among those whose last use is at least as long ago.
        max_size: Then also choose the longest unused ones until the store has at most so many bytes.
        referenced: Never choose these producers; without `unused_for` and `max_size`, choose all others that
            nobody used within ``GRACE``.
    """
    now = datetime.now(UTC)
    candidates = [one for one in reversed(ls(root)) if referenced is None or one.producer not in referenced]
    victims = {}
    for one in candidates:
        age = now - one.last_use
        if unused_for is not None and age >= unused_for:
            victims[one.producer] = Victim(one, f"unused for {age.days} days")
        elif unused_for is None and max_size is None and age >= GRACE:
            victims[one.producer] = Victim(one, "no experiment refers to it")
    if max_size is not None:
        size = sum(one.size for one in ls(root)) - sum(victim.listed.size for victim in victims.values())
        for one in candidates:
            if size > max_size and one.producer not in victims:
                victims[one.producer] = Victim(one, "longest unused, and the store is too large")
                size -= one.size
    return list(victims.values())


def delete(root: str | Path, producer_id: str) -> None:
    """Delete a producer, but for foreign files. What is interrupted leaves fewer shards, and none wrong."""
    folder = Folder(root).folder(producer_id)
    aside = folder.folder(SET_ASIDE)
    for name in aside.list():
        aside.delete(name)
    aside.delete_if_empty()
    for name, entry in folder.list().items():
        if not entry.is_folder and (ShardName.parse(name) or is_temporary(name) or name == LAST_USE):
            folder.delete(name)
    folder.delete(FACTS)
    folder.delete_if_empty()


def referenced_by(clone: Path) -> set[str]:
    """Find the producers that a clone's experiments refer to.

    These are the producers of every soft-label set in the working folder, and in every version of
    ``dvc.lock`` that Git keeps in any branch, tag, stash or experiment.

    Args:
        clone: A Git repository of this project, with DVC.

    Raises:
        StoreError: It is none, or the soft labels of an experiment are not in its DVC cache, so that nobody
            can tell whose they are.
    """
    manifests = [path.read_bytes() for path in clone.glob(f"{_SOFT_LABELS}*/{MANIFEST}")]
    found = set().union(*map(_producers_of, manifests))
    digests = {
        out["md5"]
        for lock in _locks(clone)
        for stage in (lock.get("stages") or {}).values()
        for out in stage.get("outs") or []
        if out["path"].startswith(_SOFT_LABELS)
    }
    for digest in sorted(digests):
        found |= _producers_of(_manifest(clone, digest))
    return found


def _locks(clone: Path) -> list[dict[str, Any]]:
    """Read every version of dvc.lock: that of the working folder and all that Git has."""

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", "-C", str(clone), *arguments], capture_output=True, check=False)
        if done.returncode:
            message = done.stderr.decode(errors="replace").strip().partition("\n")[0]
            raise StoreError(f"{clone} is not a clone whose experiments can be read: {message}")
        return done.stdout.decode()

    commits = git("log", "--all", "--format=%H", "--", "dvc.lock").split()
    blobs = {
        line.split()[2] for commit in commits for line in git("ls-tree", commit, "dvc.lock").splitlines()
    }
    texts = [git("cat-file", "blob", blob) for blob in sorted(blobs)]
    if (clone / "dvc.lock").is_file():
        texts.append((clone / "dvc.lock").read_text(encoding="utf-8"))
    return [YAML(typ="safe").load(text) or {} for text in texts]


def _manifest(clone: Path, digest: str) -> bytes:
    """Read the manifest of a soft-label set from the clone's DVC cache, by the set's digest."""
    from dvc.repo import Repo  # slow import

    with Repo(str(clone)) as repo:
        path = repo.cache.local.oid_to_path
        try:
            files = json.loads(Path(path(digest)).read_bytes())
            (manifest,) = [file["md5"] for file in files if file["relpath"] == MANIFEST]
            return Path(path(manifest)).read_bytes()
        except (OSError, ValueError) as error:
            raise StoreError(
                f"{clone}: soft labels of an experiment ({digest}) are not in its DVC cache ({error}), so it "
                "is not known whose they are; get them with: dvc fetch --all-commits, or let go of the "
                "experiment with: dvc exp remove"
            ) from error


def _producers_of(manifest: bytes) -> set[str]:
    try:
        return {str(producer["id"]) for producer in json.loads(manifest)["producers"]}
    except (KeyError, TypeError, ValueError) as error:
        raise StoreError(f"a manifest of soft labels is not readable ({error!r})") from error
