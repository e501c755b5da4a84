"""People are told where float32 is quicker than bfloat16, which recipes ask for."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tiny import Run

from stages.models import precision
from stages.models.precision import say_if_slower

SECONDS = precision._seconds


@pytest.fixture(autouse=True)
def on_a_cpu_of_some_speed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(precision, "_seconds", {torch.bfloat16: 37.0, torch.float32: 5.0}.__getitem__)
    say_if_slower.cache_clear()
    yield
    say_if_slower.cache_clear()


@pytest.mark.skipif(torch.accelerator.is_available(), reason="a card computes bfloat16 itself")
def test_it_is_said_once_where_float32_is_quicker(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    say_if_slower("float32", key="a.b")
    assert capsys.readouterr().err == ""
    for _ in range(2):
        say_if_slower("bfloat16", key="a.b")
    said = "a.b is bfloat16, for which this CPU takes 7 times as long as for float32; set it to float32\n"
    assert capsys.readouterr().err == said
    monkeypatch.setattr(precision, "_seconds", {torch.bfloat16: 2.0, torch.float32: 5.0}.__getitem__)
    say_if_slower("bfloat16", key="c.d")
    assert capsys.readouterr().err == ""


@pytest.mark.skipif(
    torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="this CPU has instructions for bfloat16"
)
def test_a_cpu_that_computes_it_in_software_is_told_from_others() -> None:
    assert SECONDS(torch.bfloat16) > 1.5 * SECONDS(torch.float32)


@pytest.mark.skipif(torch.accelerator.is_available(), reason="a card computes bfloat16 itself")
@pytest.mark.parametrize(
    ("section", "command"),
    [
        ("teacher.finetune", "teacher finetune --language de"),
        ("teacher.label", "teacher label --language de"),
        ("student.distill", "student baseline"),
        ("student.distill", "student evaluate"),
        ("student.distill", "student predict texts.txt"),
    ],
)
def test_every_command_that_computes_in_bfloat16_says_it(
    section: str, command: str, finished: Path, run: Run
) -> None:
    Path("texts.txt").write_text("Hund\n", encoding="utf-8")
    done = run(*command.split(), "--set", f"{section}.precision=bfloat16")
    assert done.code == 0, done.err
    assert done.err.count(f"{section}.precision is bfloat16, for which this CPU takes 7 times") == 1
