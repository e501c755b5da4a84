"""The server says what the student says, refuses the rest in one line, and loses nothing that it accepted."""

import asyncio
import json
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from typing import Any, NamedTuple
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

import numpy as np
import pytest
import starlette.requests
import torch
from chromium import BROWSER, opened
from onnx import TensorProto, load, numpy_helper, save
from tiny import CLASSES, ROOT, Run
from transformers import AutoTokenizer

from stages.models.modeling_mblm import MBLMForSequenceClassification
from stages.student.serving.app import Limits, RefusedError, Service
from stages.student.serving.metrics import Metrics
from stages.student.serving.model import ServedModel, batches

TEXTS = ["Hund 1", "red", "drei " * 30, "bird 2", "<b>& ein Text</b>", "ελληνικά", "x" * 300, "no 7"]


class Server(NamedTuple):
    """A server that runs."""

    url: str
    process: subprocess.Popen[str]

    def ask(self, **asked: Any) -> tuple[int, Any]:
        return self.send(json.dumps(asked).encode())

    def send(self, body: bytes) -> tuple[int, Any]:
        """Give the status and what came, which is JSON."""
        try:
            with urlopen(Request(f"{self.url}/predict", body)) as answer:
                return answer.status, json.load(answer)
        except HTTPError as error:
            with error:
                return error.code, json.load(error) | {"retry": error.headers["Retry-After"]}

    def get(self, path: str) -> str:
        with urlopen(f"{self.url}{path}") as answer:
            text: str = answer.read().decode()
            return text


@contextmanager
def serving(
    folder: Path, *, stop: signal.Signals = signal.SIGTERM, complains: bool = False
) -> Iterator[Server]:
    """Run the command in a process of its own, which is to end with exit code 0."""
    command = [sys.executable, "-m", "pipeline", "student", "serve", "--port", "0", "--threads", "1"]
    with subprocess.Popen(
        [*command, "--model", str(folder)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        try:
            yield Server(process.stdout.readline().split()[-1], process)
        finally:
            process.send_signal(stop)
            _, complaints = process.communicate()
    assert (process.returncode, bool(complaints)) == (0, complains), complaints


@pytest.fixture(scope="module")
def student(exported_once: Path) -> Path:
    return exported_once


@pytest.fixture(scope="module")
def onnx(student: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("serve") / "onnx"
    return shutil.copytree(student / "served/onnx", folder, ignore=lambda *_: ["student.int8.onnx"])


@pytest.fixture(scope="module")
def server(onnx: Path) -> Iterator[Server]:
    with serving(onnx) as running:
        yield running


def probabilities(student: Path, texts: list[str], language_id: int) -> Any:
    """Ask the student itself, in PyTorch."""
    model = MBLMForSequenceClassification.from_pretrained(student / "student").eval()
    tokenizer = AutoTokenizer.from_pretrained(student / "student")
    given = tokenizer(texts, padding=True, truncation=True, max_length=48, return_tensors="pt")
    config = model.config
    temperature = config.own_temperature if language_id >= 0 else config.mixture_temperature
    with torch.inference_mode():
        logits = model(**given, language_ids=torch.full((len(texts),), language_id)).logits
    return (logits / temperature).softmax(dim=-1).numpy()


def found(answer: Any) -> Any:
    return np.array([list(one["probabilities"].values()) for one in answer["predictions"]])


def test_tokens_are_those_of_transformers(student: Path, onnx: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(student / "student")
    model = ServedModel(onnx)
    assert [one.ids for one in model.tokenize(TEXTS)] == tokenizer(
        TEXTS, truncation=True, max_length=48
    ).input_ids
    pairs = list(zip(TEXTS, reversed(TEXTS), strict=True))
    expected = tokenizer(*map(list, zip(*pairs, strict=True)), truncation=True, max_length=48).input_ids
    assert [one.ids for one in model.tokenize(pairs)] == expected


def test_batches_hold_each_text_once_and_little_padding() -> None:
    lengths = [3, 40, 3, 41, 5, 3, 90, 3, 3, 2000, 3, 3, 1100, *[7] * 40]
    cut = list(batches(lengths))
    assert sorted(position for batch in cut for position in batch) == list(range(len(lengths)))
    for batch in cut:
        longest = max(lengths[position] for position in batch)
        assert len(batch) == 1 or len(batch) * longest <= 2048
    tokens = sum(len(batch) * max(lengths[position] for position in batch) for batch in cut)
    assert tokens < 1.1 * sum(lengths)


@pytest.mark.parametrize(("language", "branch"), [("de", 0), ("DE-at", 0), ("en", 1), ("el", -1), (None, -1)])
def test_an_answer_is_the_students(student: Path, server: Server, language: str | None, branch: int) -> None:
    status, answer = server.ask(texts=TEXTS, language=language)
    assert status == 200
    expected = probabilities(student, TEXTS, branch)
    np.testing.assert_allclose(found(answer), expected, atol=1e-4)
    for prediction, row in zip(answer["predictions"], expected, strict=True):
        assert list(prediction["probabilities"]) == CLASSES
        assert prediction["label"] == CLASSES[row.argmax()]
        assert prediction["branch"] == {0: "de", 1: "en", -1: "mixture"}[branch]
        assert "branches" not in prediction


def test_each_text_has_its_language_and_each_branch_its_say(student: Path, server: Server) -> None:
    status, answer = server.ask(texts=TEXTS[:3], languages=["en", None, "de"], branches=True)
    assert status == 200
    assert [one["branch"] for one in answer["predictions"]] == ["en", "mixture", "de"]
    for branch, language in enumerate(["de", "en"]):
        said = [list(one["branches"][language].values()) for one in answer["predictions"]]
        np.testing.assert_allclose(said, probabilities(student, TEXTS[:3], branch), atol=1e-4)
    assert answer["predictions"][0]["branches"]["en"] == answer["predictions"][0]["probabilities"]


def test_many_clients_at_once_all_get_their_own_answers(student: Path, server: Server) -> None:
    texts = [f"{word} {index}" for index, word in enumerate(["Hund", "rot", "eins zwei drei vier"] * 32)]
    languages = [["de", "en", None][index % 5 % 3] for index in range(len(texts))]

    def ask(index: int) -> Any:
        status, answer = server.ask(texts=[texts[index]], language=languages[index])
        assert status == 200
        return found(answer)[0]

    with ThreadPoolExecutor(32) as pool:
        answers = list(pool.map(ask, range(len(texts))))
    for branch, language in enumerate(["de", "en", None]):
        mine = [index for index, one in enumerate(languages) if one == language]
        expected = probabilities(student, [texts[i] for i in mine], branch if language else -1)
        np.testing.assert_allclose([answers[i] for i in mine], expected, atol=1e-4)


BAD: dict[str, tuple[bytes, int, str]] = {
    "no JSON": (b"{", 400, "request: Invalid JSON"),
    "nothing": (b"", 400, "request: Invalid JSON"),
    "no UTF-8": (b'{"texts": ["\xff"]}', 400, "the request is no UTF-8, from byte 12 on"),
    "half a character": (b'{"texts": ["\\ud800"]}', 400, "request: Invalid JSON"),
    "another shape": (b'["a"]', 422, "request: Input should be an object"),
    "a string": (b'{"texts": "a"}', 422, "texts: "),
    "a pair": (b'{"texts": [["a", "b"]]}', 422, "texts.0: "),
    "no texts": (b'{"texts": []}', 422, "texts: "),
    "an empty text": (b'{"texts": ["a", ""]}', 422, "texts.1: "),
    "other keys": (b'{"texts": ["a"], "lang": "de"}', 422, "lang: "),
    "a name": (
        b'{"texts": ["a"], "language": "German"}',
        422,
        "language: 'German' is no language tag; did you",
    ),
    "another tag": (b'{"texts": ["a"], "languages": ["deu"]}', 422, "language: 'deu' has no branch; did you"),
    "both": (b'{"texts": ["a"], "language": "de", "languages": ["de"]}', 422, "give language or languages"),
    "too few languages": (b'{"texts": ["a", "b"], "languages": ["de"]}', 422, "languages: there are 1 of 2"),
    "a long text": (b'{"texts": ["%s"]}' % (b"x" * 30_000), 422, "texts.0: "),
    "a megabyte": (
        b'{"texts": ["%s"]}' % (b"x" * 1_000_000),
        413,
        "the request is longer than 1,000,000 bytes",
    ),
    "many texts": (json.dumps({"texts": ["x"] * 10_000}).encode(), 422, "texts: "),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_request_is_refused_in_one_line_and_the_server_goes_on(server: Server, case: str) -> None:
    body, expected, line = BAD[case]
    status, answer = server.send(body)
    assert status == expected
    assert answer["error"].startswith(line)
    assert "\n" not in answer["error"]
    assert len(answer["error"]) < 300
    assert server.ask(texts=["a"])[0] == 200


def test_other_addresses_are_refused_in_one_line_too(server: Server) -> None:
    for path, status, line in (("/nope", 404, "GET /nope: "), ("/predict", 405, "GET /predict: ")):
        with pytest.raises(HTTPError) as caught, urlopen(server.url + path):
            pass
        with caught.value as error:
            assert (error.code, json.load(error)["error"].startswith(line)) == (status, True)


def test_health_counters_and_the_description_of_the_interface(server: Server) -> None:
    assert json.loads(server.get("/healthz")) == {"status": "ok"}
    before = counters(server)
    assert server.ask(texts=["a", "b"], language="de")[0] == 200
    assert server.ask(texts=[])[0] == 422
    more = counters(server)
    more.subtract(before)
    assert more['mblm_requests_total{status="200"}'] == more['mblm_requests_total{status="422"}'] == 1
    assert more["mblm_request_seconds_count"] == more['mblm_examples_total{branch="de"}'] == 2
    assert more["mblm_batch_examples_sum"] == 2
    assert more["mblm_waiting_examples"] == 0
    asked = json.loads(server.get("/openapi.json"))["paths"]["/predict"]["post"]
    assert set(asked["responses"]) == {"200", "400", "413", "422", "500", "503"}
    schema = asked["requestBody"]["content"]["application/json"]["schema"]
    assert set(schema["properties"]) == {"texts", "language", "languages", "branches"}
    assert "swagger" in server.get("/docs")


def test_an_answer_that_fails_is_counted() -> None:
    async def broken(scope: Any, receive: Any, send: Any) -> None:
        raise RuntimeError("out of memory")

    metrics = Metrics(lambda: 0)
    with pytest.raises(RuntimeError, match="out of memory"):
        asyncio.run(metrics.around(broken)({"type": "http", "path": "/predict"}, None, None))
    assert 'mblm_requests_total{status="500"} 1.0' in metrics.text().decode()
    assert "mblm_request_seconds_count 1.0" in metrics.text().decode()


def counters(server: Server) -> Counter[str]:
    lines = [line for line in server.get("/metrics").splitlines() if not line.startswith("#")]
    return Counter({name: int(float(value)) for name, value in map(str.split, lines)})


def test_too_much_is_refused_at_once_and_all_that_was_accepted_is_answered(server: Server) -> None:
    body = json.dumps({"texts": ["eins zwei drei " * 20] * 256, "branches": True}).encode()
    statuses: Counter[int] = Counter()
    with ThreadPoolExecutor(16) as pool:
        while not statuses[503]:
            for status, answer in pool.map(server.send, [body] * 16):
                statuses[status] += 1
                if status == 503:
                    assert answer["error"].startswith("too many texts are waiting")
                    assert answer["retry"] == "1"
                else:
                    assert len(answer["predictions"]) == 256
    assert set(statuses) == {200, 503}
    assert server.ask(texts=["a"])[0] == 200


def test_a_server_that_is_stopped_answers_all_that_it_accepted(onnx: Path) -> None:
    body = json.dumps({"texts": ["eins zwei drei " * 20] * 16}).encode()

    def ask_until_it_is_gone(server: Server) -> int:
        n_answered = 0
        try:
            while server.send(body)[0] == 200:
                n_answered += 1
        except (URLError, HTTPException, OSError):
            pass
        return n_answered

    with serving(onnx) as server, ThreadPoolExecutor(8) as pool:
        clients = [pool.submit(ask_until_it_is_gone, server) for _ in range(8)]
        while counters(server)['mblm_requests_total{status="200"}'] < 8:
            pass
        server.process.send_signal(signal.SIGTERM)
        n_answered = sum(client.result() for client in clients)
        server.process.wait(timeout=60)  # a second signal would find Python's own end, which obeys it
        assert server.process.stdout is not None
        expected = f"stopped; {n_answered:,} requests answered, {16 * n_answered:,} examples\n"
        assert server.process.stdout.readline() == expected


def test_a_request_that_is_given_up_is_told_so_and_what_waits_of_it_is_not_computed(onnx: Path) -> None:
    begun, go_on = threading.Event(), threading.Event()
    sizes: list[int] = []

    class Slow(ServedModel):
        def probabilities(self, *args: Any) -> Any:
            begun.set()
            go_on.wait()
            return super().probabilities(*args)

    async def body() -> Any:
        return {"type": "http.request", "body": b'{"texts": ["b", "c"]}', "more_body": False}

    async def give_up() -> None:
        service = Service(Slow(onnx), Limits())
        async with service._running(service.app()):
            assert service._batcher is not None
            service._batcher._observe = sizes.append
            first = asyncio.create_task(service._batcher.classify(["a"], [0]))
            await asyncio.to_thread(begun.wait)
            asked = starlette.requests.Request({"type": "http", "headers": []}, body)
            second = asyncio.create_task(service.predict(asked))
            while not len(service._batcher):
                await asyncio.sleep(0.01)
            second.cancel()  # as uvicorn does where a server that stops has waited for long enough
            with pytest.raises(RefusedError, match="the server stops before it could answer"):
                await second
            go_on.set()
            await first

    asyncio.run(give_up())
    assert sizes == [1]


def test_pairs_are_served_and_ctrl_c_stops_the_server(student: Path, onnx: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pairs"
    shutil.copytree(onnx, folder)
    facts = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps(facts | {"text_fields": ["premise", "hypothesis"]}))
    with serving(folder, stop=signal.SIGINT) as server:
        status, answer = server.ask(texts=[["Hund 1", "rot"], ["a", "b"]], language="en")
        assert status == 200
        assert [one["branch"] for one in answer["predictions"]] == ["en", "en"]
        status, answer = server.ask(texts=["Hund 1"])
        assert (status, answer["error"]) == (422, "texts.0: Input should be a valid array")
        assert '"textFields": ["premise", "hypothesis"]' in server.get("/")


def test_nan_is_no_answer(onnx: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(onnx, tmp_path / "onnx")
    graph = load(folder / "student.onnx")
    [english] = [node for node in graph.graph.node if node.output[0] == "states_1"]
    [branch] = [part.g for part in english.attribute if part.name == "then_branch"]
    for weight in branch.initializer:
        if weight.data_type == TensorProto.FLOAT:
            broken = np.full(numpy_helper.to_array(weight).shape, np.nan, np.float32)
            weight.CopyFrom(numpy_helper.from_array(broken, weight.name))
    save(graph, folder / "student.onnx")
    with serving(folder) as server:
        assert server.ask(texts=TEXTS, language="de")[0] == 200
        for asked in ({"language": "en"}, {"language": "de", "branches": True}):
            status, said = server.ask(texts=TEXTS[:2], **asked)
            line = "texts[0]: the student gives NaN; train it again, and export it"
            assert (status, said["error"]) == (500, line)


def test_a_second_ctrl_c_ends_a_server_whose_client_never_ends_its_request(onnx: Path) -> None:
    with serving(onnx, stop=signal.SIGINT, complains=True) as server:
        address = urlsplit(server.url)
        with socket.create_connection((address.hostname, address.port)) as client:
            client.sendall(b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n{")
            time.sleep(0.5)  # until it has been taken
            server.process.send_signal(signal.SIGINT)
            with pytest.raises(subprocess.TimeoutExpired):
                server.process.wait(timeout=1)
            server.process.send_signal(signal.SIGINT)
            assert server.process.wait(timeout=30) == 0


@pytest.mark.skipif(BROWSER is None, reason="no Chromium")
def test_a_person_tries_a_text_on_the_page(server: Server, tmp_path: Path) -> None:
    text = "<img src=x onerror=\"document.title='run'\"> drei"
    _, answer = server.ask(texts=[text], language="en", branches=True)
    [expected] = answer["predictions"]
    with opened(f"{server.url}/", tmp_path / "profile") as page:

        def classify(language: str) -> None:
            page.run(f"document.getElementById('text-0').value = {json.dumps(text)}")
            page.run(f"document.getElementById('language').value = {json.dumps(language)}")
            page.run("document.querySelector('button').click()")
            until = time.monotonic() + 60
            while page.run("document.querySelector('button').disabled"):
                assert time.monotonic() < until

        classify("en")
        assert page.run("document.getElementById('label').textContent") == expected["label"]
        assert page.run("document.getElementById('branch').textContent") == "answered by the branch en"
        shown = page.run("[...document.querySelectorAll('#classes th')].map(one => one.textContent)")
        assert shown == sorted(CLASSES, key=lambda name: -expected["probabilities"][name])
        shown = page.run("[...document.querySelectorAll('#by-branch tbody th')].map(one => one.textContent)")
        assert shown == ["de", "en"]
        for width, dark in ((1200, False), (390, True)):
            page.look(width=width, dark=dark)
            assert page.run("document.documentElement.scrollWidth") <= width
        classify("")
        assert page.run("document.getElementById('branch').textContent").startswith("answered by the mixture")
        assert page.complaints == []
        assert {url.rpartition("/")[0] for url in page.requests} - {"data:,"} <= {server.url, ""}
        classify("German")
        assert "'German' is no language tag" in page.run("document.getElementById('problem').textContent")
        assert page.run("document.getElementById('result').hidden")
        assert page.run("document.title") == "Try the student"


def test_what_cannot_be_served_is_said_in_one_line(
    student: Path, onnx: Path, server: Server, run: Run, tmp_path: Path
) -> None:
    def refused(folder: Path, *more: str) -> str:
        done = run("student", "serve", "--model", str(folder), *more)
        assert (done.code, done.out) == (1, "")
        [line] = done.err.splitlines()
        return line

    port = server.url.rpartition(":")[2]
    assert refused(onnx, "--port", port) == (
        f"error: port {port} of 127.0.0.1 is taken; choose another one with --port"
    )
    assert refused(onnx, "--host", "203.0.113.1").startswith("error: cannot listen at 203.0.113.1, port 8000")
    assert refused(onnx, "--host", "exämple..de") == (
        "error: 'exämple..de' is no name of a host; name another one with --host"
    )
    assert refused(tmp_path / "nowhere").startswith(f"error: there is no folder {tmp_path}/nowhere; make an")
    assert refused(student / "student").startswith(f"error: {student}/student holds no ONNX export; make an")
    shutil.copytree(onnx, tmp_path / "broken")
    (tmp_path / "broken/student.onnx").write_bytes(b"x")
    assert "onnxruntime cannot load" in refused(tmp_path / "broken")
    (tmp_path / "broken/tokenizer.json").unlink()
    assert "cannot read" in refused(tmp_path / "broken")
    (tmp_path / "broken/model.json").write_text('{"classes": ["a"]}')
    assert refused(tmp_path / "broken").endswith("(text_fields); export the student again")


def test_a_server_imports_neither_torch_nor_transformers(onnx: Path) -> None:
    script = (
        "import sys; from pathlib import Path; import stages.student.serve; "
        "import stages.student.serving.app as app; "
        f"app.Service(app.ServedModel(Path({str(onnx)!r})), app.Limits()).app(); "
        "print({'torch', 'transformers', 'pyarrow'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "set()\n"
