"""Progress: a bar on a terminal, a line now and then in a log, and no bar that no stage started."""

import os
import pty
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest
from tiny import ROOT, Run
from transformers import BertConfig, BertModel

import stages.models.quiet  # noqa: F401 - what is tested
from stages.progress import Bar


def test_a_log_gets_whole_lines_and_few_of_them(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stages.progress._SECONDS", 0.1)
    began = time.monotonic()
    for _ in Bar(range(50), desc="work", unit="piece"):
        time.sleep(0.01)
    written = capsys.readouterr().err
    assert "\r" not in written
    assert written.endswith("\n")
    assert 1 <= written.count("\n") <= (time.monotonic() - began) / 0.1
    assert all(line.startswith("work: ") and "piece/s" in line for line in written.splitlines())


def test_what_takes_no_half_minute_leaves_a_log_empty(capsys: pytest.CaptureFixture[str]) -> None:
    for _ in Bar(range(1000), desc="work"):
        pass
    assert capsys.readouterr().err == ""


def test_a_terminal_gets_a_bar() -> None:
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 80))
    script = "import sys\nfrom stages.progress import Bar\nfor _ in Bar(range(3), desc='work'): pass\n"
    script += "sys.stderr.write('done')"
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, stderr=theirs, check=True)
    written = os.read(ours, 10_000)
    os.close(ours)
    os.close(theirs)
    assert b"\rwork:   0%" in written
    assert b"0/3" in written
    assert written.endswith(b" \rdone")  # what follows begins a line


def test_transformers_shows_no_bars_of_its_own(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    config = BertConfig(
        vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8
    )
    BertModel(config).save_pretrained(tmp_path)
    BertModel.from_pretrained(tmp_path)
    assert capfd.readouterr().err == ""


def test_a_training_leaves_a_log_short(finished: Path, run: Run) -> None:
    done = run("student", "distill")
    assert done.code == 0
    assert done.err == ""
