"""Teachers behind HTTP: real requests over loopback, to a server with tiny models behind it."""

import fcntl
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import numpy as np
import pytest
import torch
from behind_http import AGAIN, FINETUNE, LABEL, PROBE, PROMPT, N, said, set_chat, set_endpoint, texts
from endpoint_server import (
    ChatModel,
    Server,
    chat_answer,
    cut,
    page,
    says,
    sends,
    serving,
    stall,
    status,
    write_chat_model,
)
from ruamel.yaml import YAML
from scipy.special import logsumexp
from tiny import CLASSES, Run, tiny_params, write_jsonl, write_params
from unreadable import fail_to_read, needs_proc
from warm import warm_python

from cache import EndpointNotes, SoftLabelSet, Store, example_ids
from cache.endpoint_notes import ENDPOINT
from cache.folder import Folder
from cache.store import producer_ids, store_root
from stages.artifacts import SOFT_LABELS
from stages.teacher.endpoint import chat_logprobs
from stages.teacher.endpoint.journal import Journal, Line, left_behind
from stages.teacher.endpoint.kept import JOURNALS
from stages.teacher.endpoint.letter_bias import letter_bias
from stages.teacher.endpoint.transport import Transport, foreign_host
from stages.teacher.params import EndpointParams

PINNED = "5a3d15747b4028aff2eeac37bad224d4d2cc0dd45237a8a9dd977da1f1135105"
"""The id of the producer of these tests: another one would have every stored answer asked for again."""


@pytest.fixture(scope="module")
def chat_model(tmp_path_factory: pytest.TempPathFactory) -> ChatModel:
    folder = tmp_path_factory.mktemp("model")
    write_chat_model(folder)
    return ChatModel(folder)


@pytest.fixture
def server(chat_model: ChatModel) -> Iterator[Server]:
    with serving(v1_chat_completions=chat_answer(chat_model)) as server:
        yield server


@pytest.fixture
def german(workspace: Path, run: Run, server: Server) -> Server:
    """A server that is the German teacher, pinned; nothing was asked yet."""
    set_chat(server.url)
    assert run("prepare").code == run(*FINETUNE).code == 0
    return server


# What is asked and kept


def test_a_chat_teacher_says_the_log_probabilities_of_letters(
    german: Server, run: Run, chat_model: ChatModel
) -> None:
    done = run(*LABEL)
    assert done.code == 0, done.err
    assert done.out.startswith(f"de: {N} soft labels, {N} of them new")
    assert "outside the classes" in done.out
    assert len(german.asked) == PROBE + N
    body = german.asked[-1]
    assert {key: value for key, value in body.items() if key != "messages"} == {
        "model": "tiny",
        "temperature": 0,
        "max_tokens": 1,
        "logprobs": True,
        "top_logprobs": 20,
    }
    assert "A. animal\nB. colour\nC. number" in body["messages"][0]["content"]
    letters = chat_model.tokenizer.convert_tokens_to_ids(list("ABC"))
    expected = [
        chat_model.logprobs(
            [
                {
                    "role": "user",
                    "content": f"What is this? {text}\nA. animal\nB. colour\nC. number\nOne letter.",
                }
            ]
        )[letters]
        for text in texts()
    ]
    np.testing.assert_allclose(said(), torch.stack(expected).numpy(), atol=1e-5)
    assert logsumexp(said(), axis=1).max() < 0  # what other tokens got stays outside
    assert "texts leave this machine" not in done.err


def test_a_store_that_has_everything_needs_no_server(german: Server, run: Run) -> None:
    assert run(*LABEL).code == 0
    before, n_asked = said(), len(german.asked)
    set_chat("http://127.0.0.1:9", concurrency=3, retries=0)  # another address is no other teacher
    done = run(*LABEL)
    assert (done.code, done.out.startswith(f"de: {N} soft labels, 0 of them new")) == (0, True)
    assert len(german.asked) == n_asked
    np.testing.assert_array_equal(said(), before)
    assert run("plan").code == 0
    assert "none with other parameters" in run("plan").out


def test_new_texts_are_asked_about_and_eight_old_ones(german: Server, run: Run) -> None:
    assert run(*LABEL, "--limit", "20").code == 0
    before = len(german.asked)
    assert run(*LABEL).code == 0
    assert len(german.asked) - before == AGAIN + N - 20


def test_no_more_requests_are_open_than_allowed(german: Server, run: Run) -> None:
    set_chat(german.url, concurrency=3)
    assert run(*LABEL, "--limit", "20").code == run(*LABEL).code == 0
    assert german.most_at_once <= 3


def test_a_first_try_tells_what_all_texts_will_take(german: Server, run: Run) -> None:
    done = run(*LABEL, "--limit", "10")
    assert done.code == 0, done.err
    assert done.out.startswith(f"de: 10 of {N} missing answers are stored now: ")
    assert f"all of them take about {N * 21:,} tokens" in done.out
    assert not (SOFT_LABELS / "de").exists()
    assert run(*LABEL).code == 0
    assert "there is nothing to ask" in run(*LABEL, "--limit", "5").out
    set_endpoint({}, revision=None)
    params = tiny_params()
    write_params(params)
    assert "--limit is for teachers behind an endpoint" in run(*LABEL, "--limit", "5").err
    assert "--limit is a first try with one language" in run(*LABEL, "--limit", "5", "--part", "1/2").err


def test_a_first_try_takes_what_a_killed_run_left_behind(german: Server, run: Run) -> None:
    assert run(*LABEL, "--limit", "5").code == 0
    [producer] = producer_ids(store_root(None))
    with Journal(JOURNALS, producer) as journal:
        for one in example_ids([texts()]).to_pylist():
            journal.add(Line(one.hex(), [0.5, -1.0, 0.0], 0))
    done = run(*LABEL, "--limit", "5")
    assert done.code == 0, done.err
    assert done.out == "de: answers of a run that was stopped are stored now; nothing was asked\n"
    assert "there is nothing to ask" in run(*LABEL, "--limit", "5").out


def test_a_classifier_behind_tei_says_its_logits_by_name(finished: Path, run: Run) -> None:
    from asking import one_by_one

    all_texts = texts()
    expected = dict(zip(all_texts, one_by_one(all_texts).tolist(), strict=True))

    def predict(body: Any) -> Any:
        assert body["raw_scores"] is True
        logits = expected.get(body["inputs"], [0.0, 0.0, 0.0])
        return sorted(
            ({"label": name.upper(), "score": value} for name, value in zip(CLASSES, logits, strict=True)),
            key=lambda one: -one["score"],
        )

    info = {"model_id": "tiny", "model_sha": "abc", "version": "1.9"}
    with serving(predict=predict, info=lambda _: info) as server:
        set_endpoint({"url": server.url, "shape": "classify", "dialect": "tei"}, revision=None)
        assert run(*FINETUNE).code == 0
        done = run(*LABEL)
        assert done.code == 0, done.err
        np.testing.assert_allclose(said(), [expected[text] for text in all_texts], rtol=1e-6)
        producer = SoftLabelSet.read(SOFT_LABELS / "de", language="de").producers[0]
        assert producer.endpoint is not None
        assert producer.endpoint["answered"] == {"model_id": "tiny", "model_sha": "abc"}


def test_a_classifier_behind_vllm_is_read_in_its_order(workspace: Path, run: Run) -> None:
    def classify(body: Any) -> Any:
        assert body["use_activation"] is False
        logits = [float(len(body["input"])), 1.5, -2.0]
        label = ["number", "animal", "colour"][int(np.argmax(logits))]
        return {"model": "m", "data": [{"index": 0, "label": label, "probs": logits, "num_classes": 3}]}

    with serving(classify=classify) as server:
        endpoint = {"url": server.url, "shape": "classify", "dialect": "vllm", "model": "m"}
        set_endpoint(endpoint | {"classes": ["number", "animal", "colour"]})
        assert run("prepare").code == run(*FINETUNE).code == 0
        done = run(*LABEL)
        assert done.code == 0, done.err
        np.testing.assert_allclose(said(), [[len(text), 1.5, -2.0] for text in texts()])
        set_endpoint(endpoint | {"classes": ["animal", "number", "colour"]}, revision="2")
        assert run(*FINETUNE).code == 0
        assert "the server says 'number' where endpoint.classes has 'animal'" in run(*LABEL).err


def test_probabilities_of_a_server_that_ignores_what_it_is_asked_for_are_refused(
    workspace: Path, run: Run
) -> None:
    probs = [0.9975, 0.00125, 0.00125]

    def classify(body: Any) -> Any:
        return {"model": "m", "data": [{"index": 0, "label": "animal", "probs": probs, "num_classes": 3}]}

    with serving(classify=classify) as server:
        set_endpoint(
            {"url": server.url, "shape": "classify", "dialect": "vllm", "model": "m", "classes": CLASSES}
        )
        assert run("prepare").code == run(*FINETUNE).code == 0
        for sigmoids in (probs, [0.9, 0.8, 0.7]):
            probs = sigmoids
            for _ in range(2):  # nothing that was refused is left behind
                done = run(*LABEL)
                assert (done.code, "sends probabilities, not raw logits" in done.err) == (1, True)
                assert "activation: false" in done.err
        assert "0 cached" in done.err


class Tei:
    """A server of two models, of which one answers."""

    def __init__(self) -> None:
        self.sha, self.asked = "aaa", 0

    def info(self, _: Any) -> Any:
        return {"model_id": "tiny", "model_sha": self.sha, "version": "1.9"}

    def predict(self, body: Any) -> Any:
        self.asked += 1
        scores = [2.0, -1.0, 0.5] if self.sha == "aaa" else [-2.0, 1.0, 0.5]
        return [{"label": name, "score": score} for name, score in zip(CLASSES, scores, strict=True)]


def test_without_a_revision_the_version_that_answers_counts(workspace: Path, run: Run) -> None:
    first, second = Tei(), Tei()
    second.sha = "bbb"
    assert run("prepare").code == 0
    with serving(predict=first.predict, info=first.info) as one:
        tei = {"shape": "classify", "dialect": "tei", "retries": 0}
        set_endpoint(tei | {"url": one.url}, revision=None)
        assert run("plan").code == run(*FINETUNE).code == run(*LABEL).code == 0
        assert first.asked == PROBE + N
    done = run(*LABEL)  # the store has it all
    assert (done.code, "is the server running?; these are the soft labels of tiny, aaa" in done.err) == (
        0,
        True,
    )
    with serving(predict=second.predict, info=second.info) as other:
        set_endpoint(tei | {"url": other.url}, revision=None)
        assert "teacher-label@de" in run("plan").out
        done = run(*LABEL)
        assert done.out.startswith(f"de: {N} soft labels, {N} of them new")
        assert set(said()[:, 0].tolist()) == {-2.0}
        assert run(*LABEL).out.startswith(f"de: {N} soft labels, 0 of them new")
        del other.answer["/info"]
        assert run(*LABEL).code == 1  # which of the two is it?


def test_a_model_that_changes_under_a_run_leaves_nothing_of_the_new_one(workspace: Path, run: Run) -> None:
    tei = Tei()
    assert run("prepare").code == 0
    with serving(predict=tei.predict, info=tei.info) as server:
        set_endpoint({"url": server.url, "shape": "classify", "dialect": "tei", "retries": 0}, revision=None)
        assert run(*FINETUNE).code == run(*LABEL, "--limit", "20").code == 0

        def changes(body: Any) -> Any:
            tei.sha = "bbb" if tei.asked > PROBE + 20 + AGAIN + 10 else "aaa"
            return tei.predict(body)

        server.answer["/predict"] = changes
        done = run(*LABEL)
        assert done.code == 1
        assert "answers as model_sha bbb, and the soft labels in the store are those of aaa" in done.err
        tei.sha = "aaa"
        server.answer["/predict"] = tei.predict
        del server.answer["/info"]
        done = run(*LABEL)
        assert (done.code, "/info does not say which model answers now" in done.err) == (1, True)
        server.answer["/info"] = tei.info
        assert run(*LABEL).code == 0
        assert set(said()[:, 0].tolist()) == {2.0}


@pytest.mark.parametrize("least", [-3.4028234663852886e38, -3.4028235e38, -9999.0])
def test_the_least_number_that_a_server_writes_is_no_probability(
    least: float, german: Server, run: Run
) -> None:
    german.answer["/v1/chat/completions"] = lambda _: top(
        ("A", -0.01), ("Z", least), ("B", -5.0), ("C", -6.0)
    )
    assert run(*LABEL).code == 0
    np.testing.assert_allclose(said(), np.tile([-0.01, -5.0, -6.0], (N, 1)), rtol=1e-6)


@pytest.mark.parametrize("number", [None, signal.SIGINT, signal.SIGUSR1], ids=["a 404", "Ctrl-C", "a kill"])
def test_of_a_run_that_ends_before_tei_was_asked_nothing_is_kept(
    number: signal.Signals | None, workspace: Path, run: Run
) -> None:
    tei = Tei()
    assert run("prepare").code == 0
    with serving(predict=tei.predict, info=tei.info) as server:
        how = {"url": server.url, "shape": "classify", "dialect": "tei", "retries": 0, "concurrency": 1}
        set_endpoint(how, revision=None)
        assert run(*FINETUNE).code == run(*LABEL, "--limit", "20").code == 0
        process = subprocess.Popen([warm_python(), "-m", "pipeline", *LABEL], stderr=subprocess.DEVNULL)

        def change(handler: Any) -> None:
            tei.sha = "bbb"
            says(tei.predict(None))(handler)

        def end(handler: Any) -> None:
            if number is None:
                status(404)(handler)
            else:
                process.send_signal(number)
                process.wait()

        with server.counting:
            server.faults.extend([*[None] * (AGAIN + 2), change, *[None] * 5, end])
        assert process.wait() != 0
        assert not server.faults
        tei.sha = "aaa"
        assert run(*LABEL).code == 0
        assert set(said()[:, 0].tolist()) == {2.0}
        assert list(JOURNALS.iterdir()) == []


# What goes wrong


def test_what_may_pass_is_asked_again(german: Server, run: Run) -> None:
    german.faults.extend([status(429, **{"retry-after-ms": "1"}), None])
    german.faults.extend(
        [status(500, **{"retry-after-ms": "1"}), cut, status(408, **{"retry-after": "0.001"})]
    )
    set_chat(german.url, concurrency=1, retries=6)
    done = run(*LABEL)
    assert done.code == 0, done.err
    assert len(german.asked) == PROBE + N + 4
    assert "0.0% failed" in done.err


NO_LOGPROBS = {"model": "tiny-chat", "choices": [{"message": {"content": "A"}, "finish_reason": "stop"}]}
REFUSAL = {"model": "tiny-chat", "choices": [{"message": {"refusal": "I cannot help with that"}}]}


def top(*entries: tuple[str, float]) -> Any:
    told = [{"token": token, "logprob": value} for token, value in entries]
    content = [{"token": entries[0][0], "top_logprobs": told}]
    return {"model": "tiny-chat", "choices": [{"message": {}, "logprobs": {"content": content}}]}


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (status(400, "too long"), "answers 400: too long"),
        (page, "answered with text, not JSON: '<html><body>Please log in</body></html>'"),
        (sends(b'{"model": "\xff\xfe"}'), "the server sent broken JSON: 'utf-8' codec can't decode"),
        (sends(b"[" * 100_000), "the server sent broken JSON: "),
        (sends(b"[" + b"9" * 5000 + b"]"), "the server sent broken JSON: Exceeds the limit"),
        (says(NO_LOGPROBS), "without log-probabilities"),
        (says(REFUSAL), "refused: 'I cannot help with that'"),
        (says(top(("A", 3.2), ("B", 0.1))), "a log-probability is 3.2, above 0"),
        (says(top(("A", -0.1), ("B", -0.2))), "add up to 1.724"),
        (says(top(("Z", -0.1), ("Y", -3.0))), "none of the letters A to C came back, but 'Z' first"),
        (says({"model": "tiny-chat", "choices": []}), "no choices"),
        (says({"error": {"message": "Rate limit", "code": 429}}), "answered with an error: 'Rate limit'"),
        (says({"error": "over budget"}), "answered with an error: 'over budget'"),
        (says(top(("A", -1e39), ("B", -1.0))), "is -1e+39, which is no number"),
        (says({"model": "tiny-chat", "choices": [{"message": "A"}]}), "not laid out as chat-logprobs has it"),
    ],
)
def test_a_text_without_an_answer_costs_no_other(german: Server, run: Run, fault: Any, reason: str) -> None:
    set_chat(german.url, concurrency=2)
    assert run(*LABEL, "--limit", "1").code == 0
    german.faults.extend([None] * (AGAIN + 3 - 7))  # of one stored text, one is asked again
    german.faults.append(fault)
    done = run(*LABEL)
    assert done.code == 1
    assert f"error: 1 of {N - 1} texts of 'de' got no answer, first '" in done.err
    assert reason in done.err
    [(text, why)] = [json.loads(line) for line in (JOURNALS / "no-answer-de.jsonl").read_text().splitlines()]
    assert text in texts()
    assert reason in why
    assert not (SOFT_LABELS / "de").exists()
    before = len(german.asked)
    assert run(*LABEL).code == 0
    assert len(german.asked) - before == AGAIN + 1
    assert not (JOURNALS / "no-answer-de.jsonl").exists()


def test_a_server_that_stalls_is_given_up(german: Server, run: Run) -> None:
    assert run(*LABEL, "--limit", "9").code == 0
    set_chat(german.url, timeout=0.3, retries=0, concurrency=2)
    german.faults.extend([None] * AGAIN + [stall])
    done = run(*LABEL)
    assert (done.code, "did not answer in time" in done.err) == (1, True)


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (
            status(401, "Incorrect API key provided: sk-secret-1"),
            "answers 401: Incorrect API key provided: ***",
        ),
        (status(404, "no such model"), "check teachers.<language>.endpoint: url, model, key_variable"),
        (status(429, "daily limit", **{"retry-after": "2000"}), "daily limit; run this again in 2,000 s"),
        (status(429, "daily limit", **{"retry-after": "2000.4"}), "daily limit; run this again in 2,000 s"),
        (status(503, "down", **{"retry-after": "Fri, 31 Dec 2100 23:59:59 GMT"}), "down; run this again in "),
        (status(503, "down", **{"retry-after": "Fri, 31 Dec 2100 23:59:59"}), "down; run this again in "),
        (says("bad key Bearer sk-secret-1"), "answered with text, not JSON: 'bad key Bearer ***'"),
        (says("x" * 62 + " Bearer sk-secret-1"), "Bearer ***'"),
    ],
)
def test_what_no_request_can_pass_ends_the_run_at_once(
    german: Server, run: Run, monkeypatch: pytest.MonkeyPatch, fault: Any, reason: str
) -> None:
    monkeypatch.setenv("TINY_KEY", "sk-secret-1")
    set_chat(german.url, key_variable="TINY_KEY")
    german.faults.append(fault)
    done = run(*LABEL)
    assert (done.code, done.err.count("\n"), len(german.asked)) == (1, 1, 1)
    assert reason in done.err
    assert "sk-secret" not in done.err


def test_texts_without_an_answer_are_listed_for_all_parts(german: Server, run: Run) -> None:
    set_chat(german.url, concurrency=1)
    for part in ("1/2", "2/2"):
        german.faults.extend([None] * (AGAIN + 3))
        german.faults.append(says(REFUSAL))
        assert run(*LABEL, "--part", part).code == 1
    rows = [json.loads(line) for line in (JOURNALS / "no-answer-de.jsonl").read_text().splitlines()]
    assert len({text for text, _ in rows}) == 2


def test_a_text_with_a_line_separator_may_have_no_answer(german: Server, run: Run) -> None:
    set_chat(german.url)
    listed = JOURNALS / "no-answer-de.jsonl"
    listed.parent.mkdir(parents=True)
    lines = [["of other data: \u2028, \x85", "too long"], [next(iter(texts())), "timed out"]]
    listed.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    assert run(*LABEL).code == 0
    assert [json.loads(line) for line in listed.read_text().split("\n")[:-1]] == lines[:1]


def test_a_number_as_a_key_of_a_request_is_the_text_that_json_has(german: Server, run: Run) -> None:
    set_chat(german.url, extra={"logit_bias": {32: 5}})
    assert run(*LABEL).code == 0
    asked = len(german.asked)
    assert german.asked[-1]["logit_bias"] == {"32": 5}
    assert run(*LABEL).code == 0
    assert len(german.asked) == asked


def test_a_key_is_kept_from_messages_as_json_writes_it_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TINY_KEY", 'abcd/efgh"ijklmnop')
    how = EndpointParams(url="http://127.0.0.1:9", shape="classify", dialect="tei", key_variable="TINY_KEY")
    for said_of_it in ('abcd/efgh"ijklmnop', r"abcd/efgh\"ijklmnop", r"abcd\/efgh\"ijklmnop"):
        assert Transport(how).without_key(f"key {said_of_it}!") == "key ***!"


def test_a_server_that_is_not_there_is_named(workspace: Path, run: Run) -> None:
    set_chat("http://127.0.0.1:9", retries=0)
    assert run("prepare").code == run(*FINETUNE).code == 0
    done = run(*LABEL)
    assert (done.code, done.err.count("\n")) == (1, 1)
    assert "cannot reach http://127.0.0.1:9/v1" in done.err


def test_what_a_killed_run_left_behind_and_no_store_can_hold_stops_nobody(german: Server, run: Run) -> None:
    assert run(*LABEL, "--limit", "5").code == 0
    [producer] = producer_ids(store_root(None))
    with Journal(JOURNALS, producer) as journal:
        for one in example_ids([texts()]).to_pylist():
            journal.add(Line(one.hex(), [1e39, -1.0, 0.0], 0))
    assert run(*LABEL).code == 0
    assert np.abs(said()).max() < 100
    assert not list(JOURNALS.iterdir())


def test_a_run_in_which_nothing_is_answered_ends_early(german: Server, run: Run) -> None:
    set_chat(german.url, concurrency=1)
    german.faults.extend([None] + [status(400, "no")] * N)
    done = run(*LABEL)
    assert "50 texts in a row got no answer" in done.err
    assert len(german.asked) == PROBE + 50


def test_who_has_no_client_is_told_how_to_get_one(
    german: Server, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openai", None)
    done = run(*LABEL)
    assert (done.code, "pip install -c constraints.txt -e '.[endpoint]'" in done.err) == (1, True)


# Letters


def test_a_missing_letter_is_bounded_by_the_least_that_came(german: Server, run: Run) -> None:
    german.faults.extend([None, says(top(("A", -0.5), (" B", -2.0), ("x", -4.0), ("B", -3.0)))])
    set_chat(german.url, concurrency=1)
    done = run(*LABEL)
    assert done.code == 0, done.err
    [odd] = [row for row in said() if row[2] == np.float32(-4.0)]
    np.testing.assert_allclose(odd, [-0.5, np.logaddexp(-2.0, -3.0), -4.0], rtol=1e-6)
    notes = EndpointNotes.read(Folder(store_root(None)).folder(producer_ids(store_root(None))[0]))
    assert (notes.answers, notes.letters, notes.missing) == (N, 3 * N, 1)


def test_too_many_missing_letters_stop_the_run_now_and_later(german: Server, run: Run) -> None:
    set_chat(german.url, top_logprobs=3, max_missing=0.0, concurrency=1)
    german.faults.extend([None, *[says(top(("A", -0.5), ("x", -3.0)))] * 2 * N])
    done = run(*LABEL)
    assert (done.code, "66.7% of the letters are missing" in done.err) == (1, True)
    assert "66.7% of the letters are missing" in run(*LABEL).err
    assert len(german.asked) == PROBE + 50  # the second run asked nothing
    set_chat(german.url, top_logprobs=3, max_missing=0.7)
    assert run(*LABEL).code == 0


def test_too_much_outside_the_classes_stops_the_run(german: Server, run: Run) -> None:
    set_chat(german.url, max_outside=0.001, concurrency=1)
    done = run(*LABEL)
    assert (done.code, len(german.asked)) == (1, PROBE + 50)
    assert "of their probability to no letter, more than endpoint.max_outside, 0.001" in done.err


def test_a_server_that_was_good_and_is_no_more_is_noticed(
    german: Server, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stages.teacher.endpoint.kept._SHARD", 50)
    rows = [{"text": f"Hund {i}", "label": "animal"} for i in range(1000, 1300)]
    write_jsonl(Path("data/de/train.jsonl"), rows)
    assert run("prepare").code == 0
    set_chat(german.url, concurrency=1)
    german.faults.extend([None] * (PROBE + 200))
    german.faults.extend([says(top(("<think>", -0.01), ("A", -7.0), ("B", -7.5), ("C", -8.0)))] * 200)
    done = run(*LABEL)
    assert (done.code, "the last 50 answers give 99.8% of their probability" in done.err) == (1, True)
    assert len(german.asked) == PROBE + 250
    german.faults.clear()
    assert run(*LABEL).code == 0
    logits = SoftLabelSet.read(SOFT_LABELS / "de", language="de").join(
        example_ids([[row["text"] for row in rows]])
    )
    assert logsumexp(logits.logits, axis=1).min() > -1
    assert len(german.asked) == PROBE + 250 + AGAIN + 320 - 200


def test_letters_by_id_are_asked_for_as_extra_fields(german: Server, run: Run, chat_model: ChatModel) -> None:
    ids = chat_model.tokenizer.convert_tokens_to_ids(list("ABC"))
    set_chat(german.url, extra={"logprob_token_ids": ids, "max_tokens": None, "max_completion_tokens": 1})
    assert run(*LABEL).code == 0
    assert german.asked[-1]["logprob_token_ids"] == ids
    assert "max_tokens" not in german.asked[-1]


# Who it is


def facts() -> dict[str, Any]:
    return SoftLabelSet.read(SOFT_LABELS / "de", language="de").producers[0].facts


def test_the_facts_of_a_producer_are_these_and_no_others(german: Server, run: Run) -> None:
    set_chat(german.url, facts={"licence": "some terms"}, concurrency=2)
    assert run(*LABEL).code == 0
    assert facts() == {
        "schema": 1,
        "outputs": ["logits"],
        "endpoint": {
            "shape": "chat-logprobs",
            "model": "tiny",
            "revision": "1",
            "template": PROMPT,
            "classes": CLASSES,
            "letters": "ABC",
            "request": {
                "model": "tiny",
                "temperature": 0,
                "max_tokens": 1,
                "logprobs": True,
                "top_logprobs": 20,
            },
            "reading": chat_logprobs.READING,
            "answered": {"model": "tiny-chat"},
        },
        "config": {"id2label": {"0": "animal", "1": "colour", "2": "number"}},
        "text_fields": ["text"],
    }
    assert producer_ids(store_root(None)) == [PINNED]


@pytest.mark.parametrize(
    "change",
    [
        {"prompt": PROMPT + " Now!"},
        {"revision": "2"},
        {"model": "tiny-2"},
        {"top_logprobs": 10},
        {"extra": {"chat_template_kwargs": {"enable_thinking": False}}},
        {"descriptions": {"animal": "a living being"}},
    ],
)
def test_what_changes_an_answer_makes_another_producer(
    german: Server, run: Run, change: dict[str, Any]
) -> None:
    some = (*LABEL, "--limit", "2")
    assert run(*some).code == run("plan").code == 0
    set_chat(german.url, **change)
    assert "teacher-finetune@de" in run("plan").out
    assert run(*FINETUNE).code == run(*some).code == 0
    assert len(producer_ids(store_root(None))) == 2


def test_another_template_or_revision_is_pinned_again(german: Server, run: Run) -> None:
    assert run(*LABEL).code == run("plan").code == 0
    for change in ({"prompt": PROMPT + "!"}, {"revision": "2"}):
        set_chat(german.url, **change)
        assert "teacher-finetune@de" in run("plan").out
        assert "is not what was pinned; pin it again with" in run(*LABEL).err
        assert run(*FINETUNE).code == 0


def test_another_fingerprint_stops_the_run_until_somebody_agrees(
    german: Server, run: Run, chat_model: ChatModel
) -> None:
    assert run(*LABEL, "--limit", "9").code == 0
    german.answer["/v1/chat/completions"] = chat_answer(chat_model, fingerprint="fp-2")
    done = run(*LABEL)
    assert done.code == 1
    assert "it was system_fingerprint fp-1, and is system_fingerprint fp-2" in done.err
    assert run(*LABEL, "--accept-change").code == 0
    german.answer["/v1/chat/completions"] = chat_answer(chat_model, fingerprint="fp-1")
    assert run(*LABEL).code == 0


def test_silver_labels_of_a_changed_server_need_somebody_who_agrees_too(
    german: Server, run: Run, chat_model: ChatModel
) -> None:
    params = YAML(typ="safe").load(Path("params.yaml"))
    params["teachers"] = {
        "nl": params["teachers"]["de"],
        "de": {"base": "scratch"},
        "en": {"base": "scratch"},
    }
    params["task"] |= {"unlabelled": True, "zero_shot_texts": True}
    write_params(params)
    write_jsonl(Path("data/nl/unlabelled.jsonl"), [{"text": f"nieuw {i}"} for i in range(9)])
    assert run("prepare").code == run("teacher", "silver").code == 0
    write_jsonl(Path("data/nl/unlabelled.jsonl"), [{"text": f"nieuw {i}"} for i in range(10)])
    assert run("prepare").code == 0
    german.answer["/v1/chat/completions"] = chat_answer(chat_model, fingerprint="fp-2")
    done = run("teacher", "silver")
    assert (done.code, "is system_fingerprint fp-2" in done.err) == (1, True)
    assert "--accept-change" in done.err
    assert "soft labels, 1 of them new" in run("teacher", "silver", "--accept-change").out


def test_a_fingerprint_that_changes_during_a_run_stops_it(
    german: Server, run: Run, chat_model: ChatModel
) -> None:
    set_chat(german.url, concurrency=1)
    other = chat_answer(chat_model, fingerprint="fp-2")
    german.faults.extend([None] * 20)
    german.faults.append(lambda handler: says(other(german.asked[-1]))(handler))
    done = run(*LABEL)
    assert (done.code, f"stopped; 19 of {N} soft labels are kept" in done.err) == (1, True)
    assert "system_fingerprint fp-2" in done.err


def test_another_model_is_no_change_that_one_can_agree_to(
    german: Server, run: Run, chat_model: ChatModel
) -> None:
    assert run(*LABEL, "--limit", "9").code == 0
    german.answer["/v1/chat/completions"] = chat_answer(chat_model, name="tiny-chat-2")
    done = run(*LABEL, "--accept-change")
    assert (done.code, "give the teacher another revision" in done.err) == (1, True)


def test_other_answers_stop_the_run_until_somebody_agrees(
    german: Server, run: Run, chat_model: ChatModel
) -> None:
    assert run(*LABEL, "--limit", "9").code == 0
    honest = german.answer["/v1/chat/completions"]

    def other(body: Any) -> Any:
        answer = honest(body)
        entries = answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
        for entry in entries:
            entry["logprob"] -= 1.5 * (entry["token"] == "A")
        return answer

    german.answer["/v1/chat/completions"] = other
    done = run(*LABEL)
    assert (done.code, "answers otherwise than before: asked again about 8 texts" in done.err) == (1, True)
    for some in (("--part", "1/2"), ("--limit", "3")):  # of which the store may have no text yet
        assert "answers otherwise than before: asked again about 8 texts" in run(*LABEL, *some).err
    set_chat(german.url, tolerance=0.9)
    assert run(*LABEL, "--limit", "1").code == 0
    set_chat(german.url)
    assert run(*LABEL, "--limit", "1", "--accept-change").code == 0
    assert run(*LABEL).code == 0  # which is agreed by now
    german.answer["/v1/chat/completions"] = honest
    write_jsonl(Path("data/de/test.jsonl"), [{"text": "Katze 77", "label": "animal"}])
    assert run("prepare").code == 0
    assert "answers otherwise than before" in run(*LABEL).err


# Secrets


def test_a_key_is_sent_and_stands_nowhere(german: Server, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-not-for-you")
    monkeypatch.setenv("OPENAI_ORG_ID", "org-not-for-you")
    assert run(*LABEL, "--limit", "3").code == 0
    assert all("authorization" not in headers for headers in german.headers)
    assert not [value for headers in german.headers for value in headers.values() if "not-for-you" in value]
    monkeypatch.setenv("TINY_KEY", "sk-secret-1")
    set_chat(german.url, key_variable="TINY_KEY")
    done = run(*LABEL)
    assert german.headers[-1]["authorization"] == "Bearer sk-secret-1"
    assert run("plan").code == 0
    for path in [*Path().rglob("*"), *Path(store_root(None)).rglob("*")]:
        assert not path.is_file() or b"sk-secret" not in path.read_bytes(), path
    assert "sk-secret" not in done.out + done.err
    monkeypatch.delenv("TINY_KEY")
    set_chat(german.url, key_variable="TINY_KEY", revision="2")
    assert run(*FINETUNE).code == 0
    assert "variable TINY_KEY, which is to hold the API key, is not set" in run(*LABEL).err
    monkeypatch.setenv("TINY_KEY", "sk–1")  # with a dash that a word processor made
    assert "variable TINY_KEY holds characters that no API key has; set it again" in run(*LABEL).err


CHAT = {"url": "http://x/v1", "shape": "chat-logprobs", "model": "m", "template": "data/p.txt"}


@pytest.mark.parametrize(
    ("endpoint", "revision", "reason"),
    [
        (CHAT, None, "revision is missing; say which version of the model answers"),
        (CHAT | {"shape": "completions"}, "1", "teachers.de.endpoint.shape is 'completions'"),
        (CHAT | {"model": None}, "1", "model is missing"),
        (CHAT | {"template": None}, "1", "template is missing"),
        (CHAT | {"template": "prompt.txt"}, "1", "teachers.de.endpoint.template"),
        (CHAT | {"top_logprobs": 2}, "1", "tells 2 classes at most, the task has 3"),
        (CHAT | {"url": "http://me:sk-1@x/v1"}, "1", "it may hold no user, password or query"),
        (CHAT | {"key_variable": "sk-abc123"}, "1", "never the key itself"),
        (CHAT | {"extra": {"messages": []}}, "1", "extra may not hold messages"),
        (CHAT | {"dialect": "tei"}, "1", "the shape classify, and no other, has a dialect"),
        (
            {"url": "http://x", "shape": "classify", "dialect": "vllm", "model": "m"},
            "1",
            "classes is missing",
        ),
        (
            {"url": "http://x", "shape": "classify", "dialect": "tei", "letter_bias": "contextual"},
            "1",
            "means n",
        ),
        ({"url": "http://x", "shape": "decision"}, "1", "model is missing"),
    ],
)
def test_an_endpoint_that_cannot_work_is_refused_before_anything_runs(
    workspace: Path, run: Run, endpoint: dict[str, Any], revision: str | None, reason: str
) -> None:
    set_endpoint(endpoint, revision=revision)
    done = run("plan")
    assert (done.code, done.err.count("\n")) == (1, 1)
    assert reason in done.err
    assert "sk-" not in done.err


def test_a_template_without_its_placeholders_is_refused(german: Server, run: Run) -> None:
    for prompt, reason in (
        ("{classes}", "has no placeholder {text}"),
        ("Is it {text}?", "has no placeholder {classes}"),
    ):
        set_chat(german.url, prompt=prompt)
        assert run(*FINETUNE).code == 0
        done = run(*LABEL)
        assert (done.code, reason in done.err) == (1, True)
    set_chat(german.url, descriptions={"plant": "green"})
    assert run(*FINETUNE).code == 0
    assert "there is no class plant" in run(*LABEL).err
    Path("data/prompt.txt").unlink()
    assert "data/prompt.txt, which is not there" in run(*FINETUNE).err
    assert german.asked == []


def test_only_texts_for_other_machines_leave_this_one() -> None:
    def host(url: str) -> str | None:
        return foreign_host(EndpointParams.model_validate(CHAT | {"url": url}))

    assert host("https://api.example.com/v1") == "api.example.com"
    assert host("http://10.0.0.7:8000") == "10.0.0.7"
    for here in ("localhost", "127.0.0.1", "127.0.0.2", "[::1]"):
        assert host(f"http://{here}:8000/v1") is None
    assert host("http://127.example.com/v1") == "127.example.com"


def test_what_is_for_this_machine_goes_through_no_proxy(
    german: Server, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    with serving() as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        assert run(*LABEL, "--limit", "1").code == 0
        assert (len(german.asked), proxy.asked) == (PROBE + 1, [])


# Letter bias


def test_a_bias_takes_off_what_is_said_of_no_content() -> None:
    told = np.log([[0.7, 0.2, 0.1], [0.5, 0.3, 0.2]])
    corrected = np.log([0.6, 0.25, 0.15]) + letter_bias(told.tolist())
    np.testing.assert_allclose(corrected, corrected.mean())
    assert sum(letter_bias(told.tolist())) == pytest.approx(0)


def test_a_letter_bias_is_taken_off_where_answers_are_read(german: Server, run: Run) -> None:
    assert run(*LABEL).code == 0
    raw, n_asked = said(), len(german.asked)
    set_chat(german.url, letter_bias="contextual")
    assert run("plan").code == 0
    assert run(*LABEL).code == 0
    assert len(german.asked) - n_asked == AGAIN + 3  # texts without content
    root = store_root(None)
    notes = EndpointNotes.read(Folder(root).folder(producer_ids(root)[0]))
    assert notes.letter_bias is not None
    np.testing.assert_allclose(said(), raw + np.array(notes.letter_bias), atol=1e-5)
    [producer] = producer_ids(root)
    kept = Store.open(root, producer).look_up(example_ids([texts()])).soft_labels().logits
    np.testing.assert_array_equal(kept, raw)
    assert run(*LABEL).code == 0
    assert len(german.asked) - n_asked == AGAIN + 3
    set_chat(german.url)
    assert run(*LABEL).code == 0
    np.testing.assert_array_equal(said(), raw)


def test_what_is_known_of_a_server_travels_with_its_soft_labels(
    german: Server, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_chat(german.url)
    assert run(*LABEL).code == 0
    assert run("cache", "push", str(tmp_path / "other")).code == 0
    other = Folder(tmp_path / "other").folder(producer_ids(tmp_path / "other")[0])
    there = EndpointNotes.read(other)
    replace(there, answered_as=({"model": "another"},)).write(other)
    set_chat(german.url, letter_bias="contextual")  # which is estimated now, and no answer is new
    assert run("plan").code == 0
    assert run(*LABEL).code == 0
    before = said()
    assert run("cache", "push", str(tmp_path / "other")).code == 0
    assert EndpointNotes.read(other).answered_as == ({"model": "another"}, *there.answered_as)
    monkeypatch.setenv("MBLM_TEACHER_CACHE", str(tmp_path / "other"))
    set_chat("http://127.0.0.1:9", letter_bias="contextual")
    assert run(*LABEL).code == 0
    np.testing.assert_array_equal(said(), before)
    assert run("cache", "gc", "--unused-for", "0d", "--yes").code == 0
    assert len(producer_ids(tmp_path / "other")) == 1  # answers that were paid for are kept


@needs_proc
def test_what_is_known_of_a_server_and_cannot_be_read_now_is_not_begun_anew(german: Server, run: Run) -> None:
    set_chat(german.url)
    assert run(*LABEL).code == 0
    path = Path(store_root(None), producer_ids(store_root(None))[0], ENDPOINT)
    content = fail_to_read(path)
    n_asked = len(german.asked)
    done = run(*LABEL)
    assert (done.code, len(german.asked)) == (1, n_asked)
    assert f"{path} cannot be read: Input/output error" in done.err
    path.unlink()
    path.write_bytes(content)
    assert run(*LABEL).code == 0
    assert path.read_bytes() == content


def test_parts_of_the_texts_are_asked_about_by_themselves(german: Server, run: Run) -> None:
    for part in ("1/2", "2/2"):
        assert f"part {part}" in run(*LABEL, "--part", part).out
    n_asked = len(german.asked)
    assert run(*LABEL).code == 0
    assert len(german.asked) == n_asked


# The journal


def test_answers_that_a_killed_run_left_behind_are_found(tmp_path: Path) -> None:
    ours = Journal(tmp_path, "abc")
    with ours:
        ours.add(Line("00", [0.5, -1.25], 1))
        assert list(left_behind(tmp_path, "abc")) == []  # it is still being written
    [path] = tmp_path.iterdir()
    path.write_bytes(b"\0\0\0\n[1]\n" + path.read_bytes() + b'["01", [0.')  # as a power cut leaves it
    assert list(left_behind(tmp_path, "other")) == []
    assert list(left_behind(tmp_path, "abc")) == [[Line("00", [0.5, -1.25], 1)]]
    assert list(tmp_path.iterdir()) == []


def test_a_journal_is_not_taken_before_it_is_locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = fcntl.flock
    taken: list[list[Line]] = []

    def late(file: IO[bytes], operation: int) -> None:
        if file.name.endswith(".new"):  # of the journal that is being made
            taken.extend(left_behind(tmp_path, "abc"))
        lock(file, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    with Journal(tmp_path, "abc") as ours:
        ours.add(Line("00", [0.5], 0))
    assert taken == []
    assert list(left_behind(tmp_path, "abc")) == [[Line("00", [0.5], 0)]]


def test_journals_that_another_run_takes_meanwhile_are_left_to_it(tmp_path: Path) -> None:
    for number in range(4):
        with Journal(tmp_path, "abc") as one:
            one.add(Line(f"0{number}", [0.5], 0))
    ours, theirs = left_behind(tmp_path, "abc"), left_behind(tmp_path, "abc")
    taken = [next(ours), next(theirs), *ours, *theirs]
    assert sorted(line.id for lines in taken for line in lines) == ["00", "01", "02", "03"]
    assert list(tmp_path.iterdir()) == []


def test_terms_stand_in_the_card_and_in_the_report(finished: Path, run: Run, server: Server) -> None:
    set_chat(server.url, facts={"licence": "no competing models"})
    for command in (FINETUNE, LABEL, ("student", "distill"), ("student", "evaluate"), ("report",)):
        done = run(*command)
        assert done.code == 0, done.err
    assert "no competing models" in Path("artifacts/student/README.md").read_text()
    page_text = Path("artifacts/report/report.html").read_text()
    assert "licence: no competing models" in page_text
    shown = run("cache", "show", producer_ids(store_root(None))[0][:12])
    assert shown.code == 0
    manifest = json.loads((SOFT_LABELS / "de/manifest.json").read_text())
    assert manifest["producers"][0]["terms"] == {"licence": "no competing models"}
