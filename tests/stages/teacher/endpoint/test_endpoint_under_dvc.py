"""Teachers behind HTTP under real DVC: what asks again after a change, and what does not."""

from pathlib import Path

import pytest
from behind_http import PROMPT, set_chat
from clone import clone, commit_all, dvc, stages_run
from endpoint_server import ChatModel, chat_answer, serving, write_chat_model
from tiny import SIZES, write_input

pytestmark = pytest.mark.slow

N = sum(SIZES.values())
PIN, ASK = "teacher-finetune@de", "teacher-label@de"


def test_another_template_asks_again_and_another_address_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "home/clone"
    write_chat_model(tmp_path / "model")
    answer = chat_answer(ChatModel(tmp_path / "model"))
    clone(folder)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("TINY_KEY", "sk-secret-1")
    write_input(folder)

    def repro() -> set[str]:
        return stages_run(dvc(folder, "repro", ASK)) - {"plan", "prepare"}

    with serving(v1_chat_completions=answer) as server, serving(v1_chat_completions=answer) as other:
        set_chat(server.url, key_variable="TINY_KEY")
        commit_all(folder, "start", ["init", "-q"])
        assert repro() == {PIN, ASK}
        assert len(server.asked) == 1 + N
        assert repro() == set()
        set_chat(other.url, key_variable="TINY_KEY", concurrency=2, retries=1)
        assert repro() == set()
        set_chat(other.url, prompt=PROMPT + " Now.")
        assert repro() == {PIN, ASK}
        assert len(other.asked) == 1 + N
        set_chat(other.url, prompt=PROMPT + " Now.", revision="2")
        assert repro() == {PIN, ASK}
        assert len(other.asked) == 2 * (1 + N)
        set_chat(other.url, prompt=PROMPT + " Now.", revision="2", letter_bias="contextual")
        assert ASK in repro()
    assert "sk-secret" not in Path("dvc.lock").read_text()
