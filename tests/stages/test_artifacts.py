"""Folders that stages replace as a whole."""

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
