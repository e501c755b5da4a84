"""A folder of files on this machine, or anywhere that fsspec reaches."""

import errno
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import fsspec
from fsspec.implementations.local import LocalFileSystem

from cache.errors import StoreError

_TEMPORARY = ".tmp"


class Entry(NamedTuple):
    """What a listing says of one name. A link to a folder is no folder: nothing follows it."""

    size: int
    is_folder: bool
    modified: datetime | None


class Folder:
    """A folder by its path or URL, such as ``/data/soft`` or ``s3://bucket/soft``; it need not exist.

    Nothing of a listing is kept: another process may have written since. Files appear whole or not at all
    here and on object stores.

    Attributes:
        url: As given.
        is_local: Whether it is on a disk, or a network disk, of this machine.
    """

    def __init__(self, place: str | Path) -> None:
        self.url = str(place)
        if not self.url:
            raise StoreError("an empty name is no place for a store")
        try:
            self._fs, self._path = fsspec.url_to_fs(self.url, use_listings_cache=False)
        except ImportError as error:
            protocol = self.url.partition("://")[0]
            raise StoreError(
                f"{self.url}: {error}; for s3: pip install --constraint constraints.txt --editable '.[s3]', "
                f"for others the fsspec package of {protocol}"
            ) from error
        except ValueError as error:
            raise StoreError(f"{self.url} is no place for a store: {error}") from error
        self.is_local = isinstance(self._fs, LocalFileSystem)

    def __str__(self) -> str:
        return self.url

    def folder(self, name: str) -> "Folder":
        """Give the folder of this name in this one."""
        return Folder(f"{self.url.rstrip('/')}/{name}")

    def list(self) -> dict[str, Entry]:
        """List what is there now, in the order of names; nothing where the folder does not exist.

        Raises:
            StoreError: The place cannot be reached.
        """
        with self._reaching():
            try:
                found = self._fs.ls(self._path, detail=True)
            except FileNotFoundError:
                return {}
        entries = {}
        for info in found:
            name = info["name"].rstrip("/").rpartition("/")[2]
            # An object store may list the folder itself as an empty file of its own.
            if info["name"].rstrip("/") != self._path.rstrip("/"):
                modified = info.get("LastModified", info.get("mtime"))  # of object stores, and of disks
                if isinstance(modified, float):
                    modified = datetime.fromtimestamp(modified, UTC)
                is_folder = info["type"] == "directory" and not info.get("islink")
                entries[name] = Entry(int(info["size"] or 0), is_folder, modified)
        return dict(sorted(entries.items()))

    def read(self, name: str, *, limit: int) -> bytes:
        """Read a file as a whole: what is checked is what is used, whatever happens to the file then.

        Args:
            name: The file.
            limit: Bytes; a larger file is not read, whatever size a listing gives for it.

        Raises:
            FileNotFoundError: It is not there, or no longer.
            ValueError: It is larger than `limit`, or no plain file.
            StoreError: The place cannot be reached.
        """
        with self._reaching():
            if self.is_local:
                data = _read_local(self._join(name), limit)
            else:
                data = self._fs.cat_file(self._join(name), start=0, end=limit + 1)
        if len(data) > limit:
            raise ValueError(f"it is larger than {limit:,} bytes")
        return data

    def exists(self, name: str) -> bool:
        """Tell whether a file is there now."""
        with self._reaching():
            return bool(self._fs.exists(self._join(name)))

    def write(self, name: str, data: bytes | memoryview) -> None:
        """Write a file that is never seen half-written, and is kept when this returns.

        Raises:
            StoreError: The place cannot be reached or written to.
        """
        if self.is_local:
            write_atomically(Path(self._join(name)), data)
            return
        try:
            with self._reaching():
                self._fs.pipe_file(self._join(name), bytes(data))
        except FileNotFoundError as error:
            raise StoreError(f"cannot write to {self.url}: {error}") from error

    def delete(self, name: str) -> None:
        """Delete a file, if it is still there."""
        with self._reaching():
            try:
                self._fs.rm_file(self._join(name))
            except FileNotFoundError:
                return

    def delete_if_empty(self) -> None:
        """Delete the folder itself, where folders are things of their own and this one is empty."""
        if not self.list():
            with suppress(OSError):  # it is not there, or never was on an object store
                self._fs.rmdir(self._path)

    def _join(self, name: str) -> str:
        return f"{self._path.rstrip('/')}/{name}"

    @contextmanager
    def _reaching(self) -> Iterator[None]:
        """Say in one line what a client of a remote place raises; its errors have no stable type."""
        try:
            yield
        except FileNotFoundError:
            raise
        except Exception as error:
            if isinstance(error, OSError) and error.errno == errno.ESTALE:
                # A network disk's word for: it was there when it was listed.
                raise FileNotFoundError(errno.ENOENT, "gone", self.url) from error
            if self.is_local:
                raise
            first_line = str(error).strip().partition("\n")[0] or type(error).__name__
            raise StoreError(f"cannot use {self.url}: {first_line}") from error


def _read_local(path: str, limit: int) -> bytes:
    # Not blocking: opening a pipe that has a file's name would wait for a writer for ever.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    with open(descriptor, "rb") as file:  # noqa: PTH123 - a descriptor has no path
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ValueError("it is no plain file")
        return file.read(limit + 1)


def is_temporary(name: str) -> bool:
    """Tell whether a name is that of a file that is being written, or whose writer was killed."""
    return name.startswith(".") and name.endswith(_TEMPORARY)


def write_atomically(path: Path, data: bytes | memoryview) -> None:
    """Write a file on this machine that is never seen half-written, and is on disk when this returns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{secrets.token_hex(8)}{_TEMPORARY}")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        error.filename = error.filename or str(path)  # a write that fails, on a full disk, names no file
        raise
    finally:
        temporary.unlink(missing_ok=True)
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # as some network disks say of any folder
            raise
    finally:
        os.close(directory)
