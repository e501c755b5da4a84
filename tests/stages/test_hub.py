"""Models on the Hub: pinned to a commit, downloaded once; a server on loopback speaks its protocol."""

import base64
import hashlib
import json
import os
import shutil
import subprocess
import textwrap
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs

import pytest
from tiny import ROOT, tiny_params, write_params
from warm import warm_python

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REPOSITORY = "acme/teacher"
DATA = "acme/data"


class Hub(ThreadingHTTPServer):
    """Serves one model repository from a folder, and keeps what was asked for."""

    def __init__(self, folder: Path, handler: "type[Handler] | None" = None) -> None:
        super().__init__(("127.0.0.1", 0), handler or Handler)
        self.folder = folder
        self.requests: list[str] = []


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def do_POST(self) -> None:
        """Take a push: a repository is made, every file may be sent as it is, a commit brings them."""
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        path = self.path.partition("?")[0]
        self.server.requests.append(path)
        url = f"http://127.0.0.1:{self.server.server_address[1]}/{REPOSITORY}"
        if path.endswith("/preupload/main"):
            paths = [file["path"] for file in json.loads(body)["files"]]
            files = [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in paths]
            answer: dict[str, object] = {"files": files}
        elif path.endswith("/commit/main"):
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    content = base64.b64decode(line["value"]["content"])
                    (self.server.folder / line["value"]["path"]).write_bytes(content)
            answer = {"success": True, "commitOid": COMMIT, "commitUrl": f"{url}/commit/{COMMIT}"}
        else:
            answer = {"url": url, "name": REPOSITORY, "warnings": [], "errors": []}
        data = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def answer(self) -> None:
        path = self.path.partition("?")[0]
        self.server.requests.append(path)
        files = sorted(file.name for file in self.server.folder.iterdir())
        api, files_at = f"/api/models/{REPOSITORY}", f"/{REPOSITORY}/resolve/{COMMIT}/"
        if path in (api, f"{api}/revision/{COMMIT}"):
            siblings = [{"rfilename": name} for name in files]
            body = json.dumps({"id": REPOSITORY, "sha": COMMIT, "siblings": siblings}).encode()
        elif path == f"{api}/tree/{COMMIT}":
            tree = [{"type": "file", "path": name, "oid": COMMIT, "size": 1} for name in files]
            body = json.dumps(tree).encode()
        elif path.startswith(files_at) and path.removeprefix(files_at) in files:
            body = (self.server.folder / path.removeprefix(files_at)).read_bytes()
        else:
            self.send_error(404)
            return
        self.send(body)

    def send(self, body: bytes) -> None:
        """Send a file of the repository, or what HEAD says of it."""
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Print nothing."""


class DataHandler(Handler):
    """Serves the data set `DATA` from the server's folder."""

    def do_POST(self) -> None:
        self.answer()

    def answer(self) -> None:
        path = self.path.partition("?")[0]
        self.server.requests.append(path)
        files = {file.name: file.read_bytes() for file in sorted(self.server.folder.iterdir())}
        tree = [{"type": "file", "path": x, "oid": COMMIT, "size": len(y)} for x, y in files.items()]
        at = f"/api/datasets/{DATA}"
        if path in (at, f"{at}/revision/{COMMIT}", f"{at}/revision/main"):
            siblings = [{"rfilename": name} for name in files]
            self.send(json.dumps({"id": DATA, "sha": COMMIT, "siblings": siblings}).encode())
        elif path == f"{at}/tree/{COMMIT}":
            self.send(json.dumps(tree).encode())
        elif path == f"{at}/paths-info/{COMMIT}":
            asked = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())["paths"]
            self.send(json.dumps([file for file in tree if file["path"] in asked]).encode())
        elif path.startswith(f"/datasets/{DATA}/resolve/{COMMIT}/") and path.rpartition("/")[2] in files:
            self.send(files[path.rpartition("/")[2]])
        else:
            self.send_error(404)


@pytest.fixture
def hub(finished: Path) -> Iterator[Hub]:
    folder = finished.parent / "repository"
    shutil.copytree(finished / "artifacts/teachers/de", folder)
    (folder / "training_args.bin").write_bytes(b"not to be downloaded")
    server = Hub(folder)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    params = tiny_params()
    params["teachers"]["de"] |= {"base": REPOSITORY, "finetune": False}
    write_params(params)
    yield server
    server.shutdown()
    server.server_close()


def pipeline(hub: Hub, *command: str) -> subprocess.CompletedProcess[str]:
    # Other tests ran commands in this process, which go offline unless params.yaml names the Hub.
    inherited = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    environment = {
        **inherited,
        "PYTHONPATH": str(ROOT),
        "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_address[1]}",
        "HF_HOME": str(Path("huggingface").absolute()),
    }
    return subprocess.run(
        [warm_python(with_hub=True), "-m", "pipeline", *command],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_teacher_on_the_hub_is_pinned_to_its_commit_and_downloaded_once(hub: Hub) -> None:
    done = pipeline(hub, "teacher", "finetune", "--language", "de")
    assert done.returncode == 0, done.stderr
    pinned = json.loads(Path("artifacts/teachers/de/pin.json").read_text())
    assert pinned == {"hub": REPOSITORY, "commit": COMMIT}
    assert not any("/resolve/" in path for path in hub.requests)

    done = pipeline(hub, "teacher", "label", "--language", "de")
    assert done.returncode == 0, done.stderr
    # The same weights as those that labelled this data already: the store has it all.
    assert "57 cached, 0 to label" in done.stderr
    assert not any("training_args.bin" in path for path in hub.requests)

    hub.shutdown()
    hub.server_close()
    done = pipeline(hub, "teacher", "label", "--language", "de")
    assert done.returncode == 0, done.stderr
    assert "57 cached, 0 to label" in done.stderr


def test_a_model_that_the_hub_does_not_know_is_refused(hub: Hub) -> None:
    params = tiny_params()
    params["teachers"]["de"] |= {"base": "acme/absent", "finetune": False}
    write_params(params)
    done = pipeline(hub, "teacher", "finetune", "--language", "de")
    assert done.returncode == 1
    assert (
        "teachers.de.base is acme/absent: no folder of that name, and the Hub says: Client error '404"
        in done.stderr
    )
    assert "Traceback" not in done.stderr


def test_a_hub_that_cannot_be_reached_is_one_line(hub: Hub) -> None:
    hub.shutdown()
    hub.server_close()
    done = pipeline(hub, "teacher", "finetune", "--language", "de")
    assert done.returncode == 1
    assert "teachers.de.base is acme/teacher: no folder of that name, and the Hub says" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_student_that_is_pushed_to_the_hub_is_loaded_from_there_by_a_stranger(hub: Hub) -> None:
    hub.folder = Path("pushed")
    hub.folder.mkdir()
    push = f"""
        from transformers import AutoTokenizer
        from stages.models.modeling_mblm import MBLMForSequenceClassification
        student = MBLMForSequenceClassification.from_pretrained("artifacts/student")
        student.push_to_hub("{REPOSITORY}", token="t")
        AutoTokenizer.from_pretrained("artifacts/student").push_to_hub("{REPOSITORY}", token="t")
    """
    use = """
        import sys, torch
        from transformers import AutoModelForSequenceClassification, AutoTokenizer
        for name in sys.argv[1:]:
            model = AutoModelForSequenceClassification.from_pretrained(name, trust_remote_code=True).eval()
            tokenizer = AutoTokenizer.from_pretrained(name)
            with torch.inference_mode():
                print(model(**tokenizer("drei Hunde", return_tensors="pt")).logits.tolist())
    """

    def python(script: str, *arguments: str, path: str) -> str:
        inherited = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
        done = subprocess.run(
            [warm_python(with_hub=True), "-c", textwrap.dedent(script), *arguments],
            env={
                **inherited,
                "PYTHONPATH": path,
                "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_address[1]}",
                "HF_HOME": str(Path("huggingface").absolute()),
            },
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    python(push, path=str(ROOT))
    pushed = {path.name for path in hub.folder.iterdir()}
    assert {"model.safetensors", "modeling_mblm.py", "configuration_mblm.py", "tokenizer.json"} <= pushed
    here, there = python(use, "artifacts/student", REPOSITORY, path="").splitlines()
    assert here == there


def test_a_data_set_on_the_hub_is_read_at_one_commit_which_is_noted(finished: Path) -> None:
    folder = finished.parent / "data-set"
    folder.mkdir()
    card = ["---", "configs:"]
    for language in ("de", "en", "nl"):
        card += [f"- config_name: {language}", "  data_files:"]
        for split in ("train", "validation", "test"):
            shutil.copy(finished / f"data/{language}/{split}.jsonl", folder / f"{language}-{split}.jsonl")
            card += [f"  - split: {split}", f"    path: {language}-{split}.jsonl"]
    (folder / "README.md").write_text("\n".join([*card, "---"]), encoding="utf-8")
    params = tiny_params()
    params["task"]["source"] = {"kind": "hub", "dataset": DATA, "config": "{language}"}
    write_params(params)
    before = (finished / "artifacts/data/de/train.arrow").read_bytes()
    server = Hub(folder, DataHandler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    done = pipeline(server, "prepare")
    assert done.returncode == 0, done.stderr
    assert (finished / "artifacts/data/de/train.arrow").read_bytes() == before
    manifest = json.loads((finished / "artifacts/data/manifest.json").read_text(encoding="utf-8"))
    assert manifest["revision"] == COMMIT
    assert manifest["source"]["revision"] is None  # as params.yaml has it
    assert manifest["examples"]["de"] == {"train": 36, "validation": 9, "test": 12}
    digest = hashlib.sha256(before).hexdigest()
    assert manifest["files"]["de/train.arrow"] == digest
    assert not [path for path in server.requests if path.endswith("/resolve/main/")]
    for command in (("student", "distill"), ("student", "baseline"), ("student", "evaluate"), ("report",)):
        done = pipeline(server, *command)
        assert done.returncode == 0, done.stderr
    assert f"Data: acme/data at {COMMIT}" in Path("artifacts/student/README.md").read_text().replace("\\", "")
    assert f"acme/data at {COMMIT}" in Path("artifacts/report/report.html").read_text(encoding="utf-8")
    server.shutdown()
    server.server_close()
    done = pipeline(server, "prepare")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert done.stderr.startswith(
        "error: task.source.dataset is acme/data: no folder of that name, and the Hub"
    )
