"""A real server: `transformers serve` with a tiny chat model, on loopback."""

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from behind_http import FINETUNE, LABEL, said, set_endpoint, texts
from endpoint_server import write_chat_model
from tiny import CLASSES, Run
from transformers import pipeline
from transformers.cli.serve import Serve

from cache import SoftLabelSet
from stages.artifacts import SOFT_LABELS

QUESTION = "What kind of thing is it?"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """The model's folder, and the server's address."""
    folder = tmp_path_factory.mktemp("served")
    write_chat_model(folder)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = Serve(
        str(folder), host="127.0.0.1", port=port, device="cpu", non_blocking=True, log_level="error"
    )
    yield folder, f"http://127.0.0.1:{port}/v1"
    server.kill_server()


@pytest.fixture
def prepared(workspace: Path, run: Run) -> None:
    assert run("prepare").code == 0
    Path("data/question.txt").write_text(QUESTION)
    Path("data/prompt.txt").write_text("{text}\n{classes}\n")


def teach(served: tuple[Path, str], run: Run, **endpoint: Any) -> None:
    values = {"url": served[1], "model": str(served[0]), "retries": 0, "timeout": 30.0, **endpoint}
    set_endpoint(values, revision="tiny, transformers 5.23")
    assert run(*FINETUNE).code == 0


@pytest.mark.usefixtures("prepared")
def test_decisions_are_those_of_the_local_pipeline(served: tuple[Path, str], run: Run) -> None:
    question = {"type": "choice", "instructions": QUESTION, "criteria": dict.fromkeys(CLASSES)}
    local: Any = pipeline("decision", model=str(served[0]), device="cpu")
    expected = [
        [
            local({"state": text, "questions": {"class": question}})["class"]["probabilities"][name]
            for name in CLASSES
        ]
        for text in texts()
    ]
    teach(served, run, shape="decision", template="data/question.txt", letter_bias="contextual")
    done = run(*LABEL)
    assert done.code == 0, done.err
    label_set = SoftLabelSet.read(SOFT_LABELS / "de", language="de")
    assert label_set.letter_bias is not None
    np.testing.assert_allclose(np.exp(said() - label_set.letter_bias), expected, atol=1e-6)


@pytest.mark.usefixtures("prepared")
def test_a_server_that_gives_no_log_probabilities_is_told_from_one_that_does(
    served: tuple[Path, str], run: Run
) -> None:
    teach(served, run, shape="chat-logprobs", template="data/prompt.txt")
    done = run(*LABEL)
    assert (done.code, done.err.count("\n")) == (1, 1)
    assert "the server answered without log-probabilities" in done.err
