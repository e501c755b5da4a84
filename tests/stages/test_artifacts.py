"""Folders that stages replace as a whole."""

import errno
import fcntl
from pathlib import Path

import pytest

from stages.artifacts import replaced_folder
from stages.errors import StageError


def test_a_file_that_is_the_users_too_keeps_its_mode(tmp_path: Path) -> None:
    """A base that lies beside the artifacts is linked into them, and may be private."""
    private = tmp_path / "weights"
    private.touch(0o400)
    with replaced_folder(tmp_path / "teacher") as folder:
        (folder / "weights").hardlink_to(private)
        (folder / "own").touch(0o600)
    assert private.stat().st_mode & 0o777 == 0o400
    of_folder = (tmp_path / "teacher").stat().st_mode
    assert (tmp_path / "teacher/own").stat().st_mode & 0o777 == of_folder & 0o666


def test_two_runs_do_not_write_a_folder_at_once(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "student"
    with replaced_folder(folder) as ours:
        (ours / "weights").touch()
        with (
            pytest.raises(StageError, match="another run is writing"),
            replaced_folder(folder),
        ):
            pass
        with replaced_folder(folder.with_name("other")):
            pass
    with replaced_folder(folder) as again:  # the first has ended
        assert (folder / "weights").is_file()
        assert not any(again.iterdir())
    assert sorted(path.name for path in folder.parent.iterdir()) == ["other", "student"]


def test_what_a_killed_run_left_behind_is_in_nobodys_way(tmp_path: Path) -> None:
    (tmp_path / ".student.lock").touch()
    (tmp_path / ".student.new" / "half").mkdir(parents=True)
    with replaced_folder(tmp_path / "student") as folder:
        assert not any(folder.iterdir())
    assert [path.name for path in tmp_path.iterdir()] == ["student"]


def test_a_linked_folder_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "scratch/student").mkdir(parents=True)
    (tmp_path / "student").symlink_to("scratch/student")
    for name in ("one", "two"):
        with replaced_folder(tmp_path / "student") as folder:
            (folder / name).touch()
    assert (tmp_path / "student").is_symlink()
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["two"]


def test_a_run_that_ends_between_its_two_renames_has_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "student").mkdir()
    rename = Path.rename

    def stop_once(path: Path, target: Path) -> Path:
        if path.name == ".student.new":
            monkeypatch.setattr(Path, "rename", rename)
            raise KeyboardInterrupt
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", stop_once)
    with pytest.raises(KeyboardInterrupt), replaced_folder(tmp_path / "student") as folder:
        (folder / "weights").touch()
    assert [path.name for path in tmp_path.rglob("*")] == ["student", "weights"]
    # As kill -9 leaves it at that moment; what comes next may fail.
    (tmp_path / "student").rename(tmp_path / ".student.new")
    (tmp_path / ".student.old").mkdir()
    with pytest.raises(ZeroDivisionError), replaced_folder(tmp_path / "student") as folder:
        raise ZeroDivisionError
    assert [path.name for path in tmp_path.rglob("*")] == ["student", "weights"]


def test_a_file_system_without_locks_is_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with replaced_folder(tmp_path / "student") as folder:
        (folder / "weights").touch()
    assert (tmp_path / "student/weights").is_file()
