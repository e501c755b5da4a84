"""Folders in which the pipeline runs on a small real task, without network."""

import shutil
import signal
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
import torch
from tiny import COMMANDS, Ran, Run, tiny_params, write_input, write_params

# Also where a shell runs the tests in the background, with Ctrl-C ignored: tests send it.
signal.signal(signal.SIGINT, signal.default_int_handler)

# The same inputs in every run; a machine that is busy fails no test.
hypothesis.settings.register_profile("fixed", derandomize=True, deadline=None, database=None)
hypothesis.settings.load_profile("fixed")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that take longest, so that no process waits for another at the end."""
    n_slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -n_slow[item.path])


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    """Compute alike here and in the processes that tests start: sums depend on the number of threads."""
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("TRANSFORMERS_VERBOSITY", "error")
        yield


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command of the pipeline in this process, in the current folder."""

    def run_command(*arguments: str) -> Ran:
        from pipeline.__main__ import main

        monkeypatch.setattr(sys, "argv", ["pipeline", *arguments])
        capsys.readouterr()
        try:
            code = main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        captured = capsys.readouterr()
        return Ran(code, captured.out, captured.err)

    return run_command


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder with tiny parameters, input data and a store of its own."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("MBLM_TEACHER_CACHE", str(tmp_path / "store"))
    write_params(tiny_params())
    write_input(folder)
    return folder


@pytest.fixture(scope="session")
def finished_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which every command has run once; not to be changed."""
    from pipeline.__main__ import main

    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_params(tiny_params())
        patch.setenv("MBLM_TEACHER_CACHE", str(folder / "store"))
        write_input(folder)
        for command in COMMANDS:
            patch.setattr(sys, "argv", ["pipeline", *command])
            with pytest.raises(SystemExit, match="0"):
                main()
    return folder


@pytest.fixture
def finished(finished_once: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the folder in which every command has run once."""
    folder = tmp_path / "work"
    shutil.copytree(finished_once, folder)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("MBLM_TEACHER_CACHE", str(folder / "store"))
    return folder
