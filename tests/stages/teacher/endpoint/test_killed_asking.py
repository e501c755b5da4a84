"""A run that is killed while it asks: what was answered is asked no more, and nothing is lost."""

import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from behind_http import AGAIN, FINETUNE, LABEL, PROBE, N, said, set_chat
from endpoint_server import ChatModel, Server, chat_answer, serving, write_chat_model
from tiny import Run
from warm import warm_python

AT_ONCE = 4


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    write_chat_model(tmp_path / "model")
    with serving(v1_chat_completions=chat_answer(ChatModel(tmp_path / "model"))) as server:
        yield server


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_run_repeats_what_was_in_flight_at_most(
    number: signal.Signals, workspace: Path, run: Run, server: Server
) -> None:
    set_chat(server.url, concurrency=AT_ONCE, retries=0)
    assert run("prepare").code == run(*FINETUNE).code == 0
    script = [warm_python(), "-m", "pipeline", *LABEL]
    n_starts = 2
    for start in range(n_starts):
        stop = len(server.asked) + PROBE + 12 + start
        process = subprocess.Popen(script, stderr=subprocess.DEVNULL)

        def kill(handler: object, process: "subprocess.Popen[bytes]" = process) -> None:
            process.send_signal(signal.SIGUSR1 if number == signal.SIGKILL else number)
            process.wait()

        with server.counting:
            server.faults.extend([None] * (stop - len(server.asked)))
            server.faults.append(kill)
        assert process.wait() != 0
        server.faults.clear()
    assert run(*LABEL).code == 0
    # Each start but the first asks eight texts again; the kills cost what was in flight, and no more.
    again = PROBE + n_starts * AGAIN
    assert len(server.asked) - N - again <= n_starts * AT_ONCE
    assert np.isfinite(said()).all()
    assert list(Path("artifacts/asked").iterdir()) == []
