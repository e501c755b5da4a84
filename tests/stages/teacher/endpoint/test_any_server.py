"""Any server that somebody names: MBLM_TEST_ENDPOINT is its URL, MBLM_TEST_MODEL its model.

MBLM_TEST_SHAPE is ``chat-logprobs``, which is the default, or ``decision``; MBLM_TEST_KEY_VARIABLE names the
variable that holds a key. Twenty texts are sent.
"""

import os
from pathlib import Path
from typing import Any

import pytest
from behind_http import FINETUNE, LABEL, PROMPT, set_endpoint
from tiny import Run


@pytest.mark.skipif("MBLM_TEST_ENDPOINT" not in os.environ, reason="MBLM_TEST_ENDPOINT names no server")
def test_a_server_that_somebody_named_answers(workspace: Path, run: Run) -> None:
    shape = os.environ.get("MBLM_TEST_SHAPE", "chat-logprobs")
    endpoint: dict[str, Any] = {
        "url": os.environ["MBLM_TEST_ENDPOINT"],
        "model": os.environ["MBLM_TEST_MODEL"],
        "shape": shape,
        "key_variable": os.environ.get("MBLM_TEST_KEY_VARIABLE"),
        "max_missing": 1.0,
        "max_outside": 1.0,
    }
    if shape == "chat-logprobs":
        Path("data/prompt.txt").write_text(PROMPT)
        endpoint["template"] = "data/prompt.txt"
    set_endpoint(endpoint)
    assert run("prepare").code == run(*FINETUNE).code == 0
    done = run(*LABEL, "--limit", "20")
    assert done.code == 0, done.err
    assert done.out.startswith("de: 20 of ")
