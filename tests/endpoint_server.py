"""A small HTTP server with tiny models behind it, in the wire formats of vLLM, llama.cpp, TEI and OpenAI.

Its numbers are real: log-softmax over a vocabulary, or a classifier's logits. It counts requests, and
misbehaves where a test says so.
"""

import json
import string
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from tokenizers.decoders import ByteLevel
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

CHAT = "{% for m in messages %}{{ m.content }}\n{% endfor %}Answer:"

Fault = Callable[[BaseHTTPRequestHandler], None]
"""What a server does to one request in the place of answering it."""


def write_chat_model(folder: Path, *, hidden: int = 32) -> None:
    """Write a random Llama that reads bytes: letters are single tokens, as in any chat model."""
    vocabulary = {
        character: index for index, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))
    }
    vocabulary |= {"<s>": 256, "</s>": 257}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>", chat_template=CHAT
    )
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=258,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=1024,
        initializer_range=0.3,
        bos_token_id=256,
        eos_token_id=257,
        pad_token_id=257,
    )
    LlamaForCausalLM(config).eval().save_pretrained(folder)
    fast.save_pretrained(folder)


class ChatModel:
    """A chat model whose next token is likely a letter: their logits are `lift` more than it gives."""

    def __init__(self, folder: Path, *, lift: float = 12.0) -> None:
        self.tokenizer: Any = PreTrainedTokenizerFast.from_pretrained(folder)
        self.model = LlamaForCausalLM.from_pretrained(folder).eval()
        letters = self.tokenizer.convert_tokens_to_ids(list(string.ascii_uppercase[:3]))
        self.lift = torch.zeros(258).index_fill(0, torch.tensor(letters), lift)
        self.lock = threading.Lock()

    def logprobs(self, messages: list[dict[str, str]]) -> torch.Tensor:
        """Log-probabilities of the next token, ``(V,)``."""
        with self.lock, torch.inference_mode():
            return torch.log_softmax(self.model(self.ids(messages)).logits[0, -1] + self.lift, dim=-1)

    def ids(self, messages: list[dict[str, str]]) -> Any:
        """Token ids of a chat up to where the model answers, ``(1, T)``."""
        return self.tokenizer.apply_chat_template(messages, return_tensors="pt", return_dict=False)


class Server(ThreadingHTTPServer):
    """The server.

    Attributes:
        answer: By path, what is answered to a body.
        faults: What is done to the next requests in the place of answering; None: it is answered.
        asked: The bodies of all requests so far, in their order.
        headers: Of all requests so far.
        most_at_once: Requests that were there at the same time.
    """

    daemon_threads = True
    request_queue_size = 256

    def __init__(self, answer: dict[str, Callable[[Any], Any]]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answer = answer
        self.faults: deque[Fault | None] = deque()
        self.asked: list[Any] = []
        self.headers: list[Any] = []
        self.at_once = self.most_at_once = 0
        self.seconds = 0.0
        self.counting = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: a client that goes away is none of the server's business."""


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    wbufsize = 1 << 16  # one packet for an answer: head and body apart wait for each other
    server: Server

    def log_message(self, *args: Any) -> None:
        """Say nothing."""

    def send(self, status: int, body: bytes, kind: str = "application/json", **headers: str) -> None:
        self.send_response(status)
        for name, value in {"content-type": kind, "content-length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        self.reply(None)

    def do_POST(self) -> None:
        self.reply(json.loads(self.rfile.read(int(self.headers["content-length"]))))

    def reply(self, body: Any) -> None:
        server = self.server
        with server.counting:
            fault = server.faults.popleft() if server.faults and body is not None else None
            if body is not None:
                server.asked.append(body)
                server.headers.append(self.headers)
            server.at_once += 1
            server.most_at_once = max(server.most_at_once, server.at_once)
        try:
            time.sleep(server.seconds)
            if fault is not None:
                fault(self)
            elif self.path not in server.answer:
                self.send(404, b'{"error": "no such path"}')
            else:
                self.send(200, json.dumps(server.answer[self.path](body)).encode())
        finally:
            with server.counting:
                server.at_once -= 1


def status(code: int, text: str = "busy", **headers: str) -> Fault:
    return lambda handler: handler.send(code, text.encode(), "text/plain", **headers)  # type: ignore[attr-defined]


def says(answer: Any) -> Fault:
    return lambda handler: handler.send(200, json.dumps(answer).encode())  # type: ignore[attr-defined]


def sends(body: bytes) -> Fault:
    return lambda handler: handler.send(200, body)  # type: ignore[attr-defined]


def cut(handler: BaseHTTPRequestHandler) -> None:
    """Promise more than comes, and close the connection."""
    handler.send_response(200)
    handler.send_header("content-type", "application/json")
    handler.send_header("content-length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"model": ')
    handler.close_connection = True


def stall(handler: BaseHTTPRequestHandler) -> None:
    """Say nothing for longer than any test's time-out, or until the client goes away."""
    handler.connection.settimeout(30)
    handler.connection.recv(1)
    handler.close_connection = True


def page(handler: BaseHTTPRequestHandler) -> None:
    """Answer as a proxy does that wants a login."""
    handler.send(200, b"<html><body>Please log in</body></html>", "text/html")  # type: ignore[attr-defined]


def chat_answer(
    model: ChatModel, *, fingerprint: str = "fp-1", name: str = "tiny-chat"
) -> Callable[[Any], Any]:
    """Answer as vLLM and OpenAI do."""

    def answer(body: Any) -> Any:
        logprobs = model.logprobs(body["messages"])
        wanted = body.get("logprob_token_ids")
        top = torch.tensor(wanted) if wanted else logprobs.topk(body["top_logprobs"]).indices
        entries = [
            {"token": model.tokenizer.decode([index]), "logprob": float(logprobs[index]), "bytes": None}
            for index in top.tolist()
        ]
        first = {**entries[0], "top_logprobs": entries}
        return {
            "model": name,
            "system_fingerprint": fingerprint,
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": first["token"], "refusal": None},
                    "logprobs": {"content": [first]},
                    "finish_reason": "length",
                }
            ],
            "usage": {"prompt_tokens": 20, "completion_tokens": 1, "total_tokens": 21},
        }

    return answer


@contextmanager
def serving(**answer: Callable[[Any], Any]) -> Iterator[Server]:
    """Run a server on loopback; underscores in the names stand for slashes."""
    server = Server({"/" + path.replace("_", "/"): one for path, one in answer.items()})
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
