"""Folders that stages replace as a whole."""

from pathlib import Path

from stages.artifacts import replaced_folder


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
