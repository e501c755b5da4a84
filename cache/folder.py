"""A folder of files on this machine, or anywhere that fsspec reaches."""

import errno
import itertools
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

import fsspec
from fsspec.implementations.local import LocalFileSystem

from cache.errors import CacheError, StoreError, UnreadableError, UnwritableError

_TEMPORARY = ".tmp"
_ABANDONED = timedelta(days=1)
_REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS)


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
        if "::" in self.url:  # which is a way to another place, to fsspec
            raise StoreError(f"{self.url} has a double colon, which no place for a store may have; rename it")
        protocol, _, path = self.url.partition(":/")
        is_remote = protocol in fsspec.available_protocols() and protocol not in ("file", "local")
        if is_remote and not path.startswith("/"):
            raise StoreError(f"{self.url} would be a folder on this machine; write {protocol}://{path}")
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
        except Exception as error:  # of a file system that connects at once; these have no common type
            raise StoreError(f"cannot reach the store {self.url}: {error}") from error
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
            UnreadableError: The folder is there, but cannot be listed.
        """
        try:
            with self._reading(self.url):
                found = self._fs.ls(self._path, detail=True)
        except FileNotFoundError:
            return {}
        entries = {}
        for info in found:
            name = info["name"].rstrip("/").rpartition("/")[2]
            if info["name"].rstrip("/") == self._path.rstrip("/"):
                # An object store may list the folder itself as an empty file of its own; a disk lists a file.
                if self.is_local:
                    raise UnreadableError(self.url, os.strerror(errno.ENOTDIR))
            else:
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
            UnreadableError: The file is there, but cannot be read.
        """
        with self._reading(f"{self.url}/{name}"):
            if self.is_local:
                data = _read_local(self._join(name), limit)
            else:
                data = self._read_remote(self._join(name), limit)
        if len(data) > limit:
            raise ValueError(_too_large(limit))
        return data

    def exists(self, name: str) -> bool:
        """Tell whether a file is there now.

        Raises:
            StoreError: The place cannot be reached.
            UnreadableError: Nobody may tell.
        """
        try:
            with self._reading(f"{self.url}/{name}"):
                self._fs.info(self._join(name))  # `exists` of fsspec takes any error for an answer
        except FileNotFoundError:
            return False
        return True

    def write(self, name: str, data: bytes | memoryview) -> None:
        """Write a file that is never seen half-written, and is kept when this returns.

        Raises:
            UnwritableError: The folder may not be written to.
            StoreError: The place cannot be reached.
        """
        if self.is_local:
            with _writing(f"write {self.url}/{name}"):
                write_atomically(Path(self._join(name)), data)
            return
        try:
            with self._reaching():
                self._fs.pipe_file(self._join(name), bytes(data))
        except FileNotFoundError as error:
            raise StoreError(f"cannot write to {self.url}: {error}") from error

    def delete(self, name: str) -> None:
        """Delete a file, if it is still there.

        Raises:
            UnwritableError: The folder may not be written to.
            StoreError: The place cannot be reached.
        """
        with self._reaching(), _writing(f"delete {self.url}/{name}"):
            try:
                self._fs.rm_file(self._join(name))
            except FileNotFoundError:
                return

    def move(self, name: str, into: str) -> str:
        """Move a file into a folder of this one. No moment, and no error, leaves its bytes without a name.

        On a disk it is renamed. An object store copies it, and it is deleted once the copy is complete, if it
        is still the file that was copied. Nothing that lies in the folder is replaced.

        Args:
            name: The file.
            into: The folder's name.

        Returns:
            The file's name there: its own, or with a number behind it where that is taken.

        Raises:
            FileNotFoundError: It is not there, or no longer: another process may have moved it.
            UnwritableError: It may not be moved, and is where it was.
            StoreError: It cannot be moved, and is where it was.
        """
        if self.is_local:
            return _move_local(Path(self._join(name)), Path(self._join(into)))
        there, source = self.folder(into), self._join(name)
        with self._reaching():
            before = self._fs.info(source)
            moved = next(one for one in _numbered(name) if not there.exists(one))
            self._fs.cp_file(source, there._join(moved))
            if self._fs.info(there._join(moved))["size"] != before["size"]:
                raise StoreError(f"the copy of {self.url}/{name} in {there} is not complete; run it again")
            if self._fs.info(source) == before:  # and not what another process has written anew
                self._fs.rm_file(source)
        return moved

    def delete_if_empty(self) -> None:
        """Delete the folder itself, where folders are things of their own and this one is empty."""
        if not self.list():
            # It is not there, or never was on an object store; no disk deletes what is no longer empty.
            with suppress(OSError):
                self._fs.rmdir(self._path)

    def _read_remote(self, path: str, limit: int) -> bytes:
        try:
            data: bytes = self._fs.cat_file(path, start=0, end=limit + 1)
        except (FileNotFoundError, PermissionError):
            raise
        except Exception:  # an object store has an error of its own for a range of an empty file
            if self._fs.info(path)["size"]:
                raise
            return b""
        return data

    def _join(self, name: str) -> str:
        return f"{self._path.rstrip('/')}/{name}"

    @contextmanager
    def _reaching(self) -> Iterator[None]:
        """Say in one line what a client of a remote place raises; its errors have no stable type."""
        try:
            yield
        except (CacheError, FileNotFoundError):
            raise
        except Exception as error:
            if self.is_local:
                raise
            raise StoreError(f"cannot use {self.url}: {_first_line(error)}") from error

    @contextmanager
    def _reading(self, path: str) -> Iterator[None]:
        """Tell what cannot be read from what is not there, and from a place that cannot be reached at all.

        Of a remote place, only what may not be read is a matter of one file: whoever goes on without a file
        because of a lost connection would go on without all of them.
        """
        with self._reaching():
            try:
                yield
            except FileNotFoundError:
                raise
            except OSError as error:
                if self.is_local or isinstance(error, PermissionError):
                    raise UnreadableError(path, error.strerror or _first_line(error)) from error
                raise


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__


def _too_large(limit: int) -> str:
    return f"it is larger than {limit:,} bytes"


def _read_local(path: str, limit: int) -> bytes:
    try:
        # Not blocking: opening a pipe that has a file's name would wait for a writer for ever.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        try:
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode):
                raise ValueError("it is no plain file")
            if found.st_size > limit:  # a terabyte of holes costs nothing to make
                raise ValueError(_too_large(limit))
            with open(descriptor, "rb", closefd=False) as file:
                return file.read(limit + 1)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno == errno.ESTALE:  # a network disk's word for: it was there when it was listed
            raise FileNotFoundError(errno.ENOENT, "gone", path) from error
        raise


@contextmanager
def _writing(what: str) -> Iterator[None]:
    """Tell a place that may not be written to from a disk that is full or broken, which ends the command."""
    try:
        yield
    except OSError as error:
        if error.errno in _REFUSED:
            raise UnwritableError(f"cannot {what}: {error.strerror}; ask its owner") from error
        raise


def _move_local(source: Path, folder: Path) -> str:
    try:
        with _writing(f"move {source} to {folder}"):
            folder.mkdir(exist_ok=True)
            target = _new_file(folder, source.name)  # a rename replaces whatever has the name
            taken = target.stat()
            try:
                source.replace(target)
            except BaseException:
                if os.path.samestat(taken, target.lstat()):  # it is not the source by now
                    target.unlink()
                raise
            _flush(folder)
            _flush(source.parent)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise StoreError(f"cannot move {source} to {folder}: {error.strerror}") from error
    return target.name


def _new_file(folder: Path, name: str) -> Path:
    """Make an empty file of this name, or the first numbered one that nobody has taken."""
    for one in _numbered(name):
        with suppress(FileExistsError):
            (folder / one).touch(exist_ok=False)
            break
    return folder / one


def _numbered(name: str) -> Iterator[str]:
    """Give a name, and then the same with a number behind it, from 1 on."""
    yield name
    yield from (f"{name}.{number}" for number in itertools.count(1))


def read_file(path: Path) -> bytes:
    """Read a file on this machine that is no part of a store.

    Raises:
        FileNotFoundError: It is not there.
        UnreadableError: It is there, but cannot be read.
    """
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise UnreadableError(str(path), error.strerror or str(error)) from error


def is_temporary(name: str) -> bool:
    """Tell whether a name is that of a file that is being written, or whose writer was killed."""
    return name.startswith(".") and name.endswith(_TEMPORARY)


def is_abandoned(name: str, entry: Entry) -> bool:
    """Tell whether a file is one whose writer was killed: nobody writes to one for a day."""
    return (
        is_temporary(name) and entry.modified is not None and datetime.now(UTC) - entry.modified > _ABANDONED
    )


def write_atomically(path: Path, data: bytes | memoryview) -> None:
    """Write a file on this machine that is never seen half-written, and is on disk when this returns."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        links = [parent for parent in path.parents if parent.is_symlink() and not parent.exists()]
        if not links:
            raise
        raise StoreError(f"{links[0]} is a link to a place that is not there; mount it") from error
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
    _flush(path.parent)


def _flush(folder: Path) -> None:
    """Let a folder's names be on disk when this returns."""
    directory = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(directory)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # as some network disks say of any folder
            raise
    finally:
        os.close(directory)
