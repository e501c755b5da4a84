"""Folders in which the pipeline runs on a small real task, without network."""

import gc
import os
import shutil
import signal
import ssl
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pyarrow as pa
import pytest
import torch
import typer
from clone import DVC_STAGES, NO_NETWORK, clone, commit_all, make
from ruamel.yaml import YAML
from tiny import COMMANDS, ROOT, VARIANTS, Ran, Run, may_unshare, tiny_params, write_input, write_params
from warm import make_once

from cache import SoftLabels, SoftLabelSet
from pipeline.params import load_params
from stages.artifacts import SOFT_LABELS
from stages.data.examples import SPLITS, read_examples
from stages.results.predictions import Predictions, write_predictions

# Tests compare with the CPU, and start several processes: those marked `gpu` alone see a card, in `make gpu`.
if torch.cuda.device_count() and "MBLM_TEST_GPU" not in os.environ:
    os.environ["CUDA_VISIBLE_DEVICES"] = ""

# Also where a shell runs the tests in the background, with Ctrl-C ignored: tests send it.
signal.signal(signal.SIGINT, signal.default_int_handler)

# The same inputs in every run; a machine that is busy fails no test.
hypothesis.settings.register_profile("fixed", derandomize=True, deadline=None, database=None)
hypothesis.settings.load_profile("fixed")


LONGEST = ("readme", "export", "on_ray", "gpu", "dvc_experiments", "dvc", "torchrun")
"""Files that take half a minute or more, those that wait for the same clone apart."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that take longest, so that no process waits for another at the end."""
    n_slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    place = {f"test_{name}": number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: (place.get(item.path.stem, len(place)), -n_slow[item.path]))


def pytest_collection_finish() -> None:
    """Leave what is imported by now out of garbage collections: torch and the Trainer ask for many."""
    gc.collect()
    gc.freeze()
    gc.unfreeze = lambda: None  # which each training ends with
    gc.set_threshold(100_000)


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    """Compute alike here and in the processes that tests start: sums depend on the number of threads."""
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("TRANSFORMERS_VERBOSITY", "error")
        yield


@pytest.fixture(autouse=True, scope="session")
def _made_once() -> Iterator[None]:
    """Make the command line and the certificates of clients once for all commands, as a process does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("typer.main.get_command", cache(typer.main.get_command))
        patch.setattr(ssl, "create_default_context", cache(ssl.create_default_context))
        yield


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command of the pipeline in this process, in the current folder."""

    def run_command(*arguments: str) -> Ran:
        from pipeline.__main__ import main

        monkeypatch.setattr(sys, "argv", ["pipeline", *arguments])
        capsys.readouterr()
        try:
            code = main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        captured = capsys.readouterr()
        return Ran(code, captured.out, captured.err)

    return run_command


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder with tiny parameters, input data and a store of its own."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("MBLM_TEACHER_CACHE", str(tmp_path / "store"))
    write_params(tiny_params())
    write_input(folder)
    return folder


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """Give a folder of all processes that run tests, which the first of them fills."""
    base = factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
    make_once(folder, make)
    return folder


@pytest.fixture(scope="session")
def finished_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which every command has run once; not to be changed."""
    return made_once(tmp_path_factory, "finished", run_every_command)


def run_every_command(folder: Path) -> None:
    from pipeline.__main__ import main

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_params(tiny_params())
        patch.setenv("MBLM_TEACHER_CACHE", str(folder / "store"))
        write_input(folder)
        for command in COMMANDS:
            patch.setattr(sys, "argv", ["pipeline", *command])
            with pytest.raises(SystemExit, match="0"):
                main()


@pytest.fixture
def finished(finished_once: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the folder in which every command has run once."""
    folder = tmp_path / "work"
    shutil.copytree(finished_once, folder)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("MBLM_TEACHER_CACHE", str(folder / "store"))
    return folder


@pytest.fixture(scope="session")
def compared_once(finished_once: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the ablation and its sweep have run; not to be changed."""

    def compare_all(folder: Path) -> None:
        from pipeline.__main__ import main

        shutil.copytree(finished_once, folder, dirs_exist_ok=True)
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            params = tiny_params()
            params["ablation"]["variants"] = VARIANTS
            write_params(params)
            runs = [(name, seed) for name in VARIANTS for seed in (0, 1)]
            for command in (
                ["plan"],
                *(["pretrain", "--seed", str(seed)] for seed in (0, 1)),
                *(
                    ["train", "--run", name, "--seed", str(seed)]
                    for name, seed in [*runs, ("as-it-is", 1), ("lambda-0.9", 1)]
                ),
                ["compare"],
                ["compare", "--sweep"],
            ):
                patch.setattr(sys, "argv", ["pipeline", "ablation", *command])
                with pytest.raises(SystemExit, match="0"):
                    main()

    return made_once(tmp_path_factory, "ablation", compare_all)


@pytest.fixture
def compared(compared_once: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the folder in which the ablation has run."""
    folder = tmp_path / "work"
    shutil.copytree(compared_once, folder)
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture(scope="session")
def exported_once(finished_once: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student whose branches differ, calibrated, in ``student``; its export, with ONNX, in ``served``."""

    def export_it(folder: Path) -> None:
        from families import perturbed  # these take seconds
        from transformers import AutoTokenizer

        from stages.models.modeling_mblm import MBLMForSequenceClassification
        from stages.student.export import export

        finished = finished_once / "artifacts/student"
        model = perturbed(MBLMForSequenceClassification.from_pretrained(finished))
        model.config.own_temperature, model.config.mixture_temperature = 0.5, 2.0
        model.save_pretrained(folder / "student")
        AutoTokenizer.from_pretrained(finished).save_pretrained(folder / "student")
        params = load_params(ROOT / "params.yaml")
        distill = params.student.distill.model_copy(update={"max_tokens": 48})
        pairs = params.task.model_copy(update={"text_fields": ["premise", "hypothesis"]})
        chosen = (distill, params.student.evaluate, pairs)
        done = export(folder / "served", *chosen, model=folder / "student", onnx=True, int8=True)
        assert done.largest_difference is not None
        assert done.largest_difference < 1e-4
        first, second = done.line().splitlines()
        assert first.startswith(f"{folder}/served: plain models of de, en; ONNX of all branches, within ")
        assert second.endswith("not measured: the student is of other classes than params.yaml names")

    return made_once(tmp_path_factory, "exported", export_it)


@pytest.fixture(scope="session")
def reproduced_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone with the small task in which `make demo` has run once; not to be changed."""
    return made_once(tmp_path_factory, "dvc", reproduce) / "clone"


def reproduce(home: Path) -> None:
    """Run `make demo` in a new clone, without a network where that can be had."""
    folder = home / "clone"
    clone(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_params(tiny_params())
        write_input(folder)
    commit_all(folder, "start", ["init", "-q"])
    output = make(folder, "demo", before=NO_NETWORK if may_unshare("-rn") else ())
    assert output.startswith("Four teachers, their soft labels, a student and its baseline: four to nine ")
    assert set(YAML(typ="safe").load(folder / "dvc.lock")["stages"]) == DVC_STAGES
    commit_all(folder, "reproduced")


@pytest.fixture(scope="module")
def reproduced(reproduced_once: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the clone, with its store and cache, for the tests of a file."""
    home = tmp_path_factory.mktemp("copy") / "home"
    shutil.copytree(reproduced_once.parent, home, symlinks=True)
    return home / reproduced_once.name


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """A real S3 server on loopback, which the environment names."""
    from moto.server import ThreadedMotoServer  # slow import

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        for key, value in {
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": f"http://{host}:{port}",
            "AWS_EC2_METADATA_DISABLED": "true",
        }.items():
            patch.setenv(key, value)
        yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def varied(finished: Path, run: Run) -> Path:
    """A finished run in which students and teachers of some skill say different things."""
    task = load_params(Path("params.yaml")).task
    numbers = np.random.default_rng(0)

    def logits(labels: Any, skill: float) -> Any:
        return (numbers.normal(size=(len(labels), 3)) + skill * np.eye(3)[labels]).astype("f4")

    for model in ("student", "baseline"):
        answers = [
            Predictions(language, split, branch, table, logits(table["label"].to_numpy(), 1.5))
            for language, branch in (("de", "de"), ("en", "en"), ("nl", "mixture"))
            for split in SPLITS[1:]
            for table in [read_examples(task, language, split)]
        ]
        write_predictions(task, model, answers)
    for language in task.supervised:
        table = pa.concat_tables([read_examples(task, language, split) for split in SPLITS])
        producer = SoftLabelSet.read(SOFT_LABELS / language, language=language).producers[0]
        ids = table["example_id"].combine_chunks()
        said = SoftLabels.pack(ids, logits(table["label"].to_numpy(), 3.0))
        SoftLabelSet.write(SOFT_LABELS / language, language=language, parts=[(producer, said)])
    assert run("report").code == 0
    return finished
