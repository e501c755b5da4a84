"""Stage one on more than one process: parts for a job array, languages side by side, engines."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from pkgutil import resolve_name
from threading import Timer
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from numpy.typing import NDArray
from processes import Alone, let_teacher_speak
from tiny import (
    LABEL,
    ROOT,
    Run,
    examples,
    set_bias,
    tiny_params,
    use_ready_teacher,
    write_jsonl,
    write_params,
)
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from warm import warm_python

from cache import SoftLabels, SoftLabelSet, Store, StoreError
from cache.store import producer_ids
from pipeline.params import load_params
from stages.artifacts import SOFT_LABELS
from stages.data.examples import SPLITS, data_file, read_examples
from stages.errors import StageError
from stages.models.pins import pin
from stages.teacher.folds import Fold
from stages.teacher.label import _may_be
from stages.teacher.labelling.examples import Examples, Part
from stages.teacher.labelling.inference import Teacher
from stages.teacher.labelling.loop import _no_interruption as no_interruption
from stages.teacher.labelling.loop import shards_to_label
from stages.teacher.params import OneTeacher


def test_parts_have_nothing_in_common_and_are_everything_together(
    finished: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    let_teacher_speak()
    alone = Alone.run(tmp_path / "alone")
    (SOFT_LABELS / "de/manifest.json").unlink()
    root = tmp_path / "parts"
    monkeypatch.setenv("MBLM_TEACHER_CACHE", str(root))
    done = [run(*LABEL, "--part", f"{i}/3") for i in (1, 2)]
    labelled = alone.ids_in(root)
    assert 0 < len(labelled) == len(set(labelled)) < len(alone)
    assert "part 2/3: " in done[1].out
    assert "write the set with: python -m pipeline teacher label --language de" in done[1].out
    assert not (SOFT_LABELS / "de/manifest.json").exists()
    again = [run(*LABEL, "--part", f"{i}/5") for i in range(1, 6)]  # another count: only what is missing
    assert sum(int(one.out.split()[9]) for one in again) == len(alone) - len(labelled)
    assert sorted(alone.ids_in(root)) == sorted(alone.ids.to_pylist())
    assert "57 cached, 0 to label" in run(*LABEL).err
    alone.require_same_set(finished)


def test_a_part_counts_what_the_store_has_and_not_what_was_asked_for(
    finished: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    let_teacher_speak()
    monkeypatch.setenv("MBLM_TEACHER_CACHE", str(finished / "new"))
    answer = Teacher.answer
    monkeypatch.setattr(Teacher, "answer", lambda *asked: islice(answer(*asked), 3))
    monkeypatch.setattr("stages.teacher.labelling.loop._FEW", 57)
    in_one_shard = ("--set", "teacher.label.shard_examples=57")
    done = run(*LABEL, "--part", "1/1", *in_one_shard)
    assert done.code == 1
    assert "of 57 examples in 'de' are not in " in done.err
    assert "after they were labelled; run the same command again" in done.err
    assert "soft labels in the store" not in done.out


def test_the_old_name_of_a_part_works_with_a_warning(finished: Path, run: Run) -> None:
    done = run(*LABEL, "--shard", "1/2")
    assert done.code == 0
    assert done.out.startswith("de: part 1/2: ")
    assert done.err.startswith(
        "warning: --shard is called --part now; the old name goes with the next release"
    )


@pytest.mark.parametrize("text", ["0/3", "4/3", "3", "a/b", "1/0", "-1/3", "1/3/5"])
def test_parts_that_there_are_not(text: str) -> None:
    with pytest.raises(StageError, match=rf"--part {text}: write it as 3/16"):
        Part.parse(text)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--jobs", "2"), "--jobs is for several languages at once: give --language all with it"),
        (("--actors", "2"), "--address and --actors are for Ray: give --engine ray with them"),
        (("--engine", "ray", "--part", "1/2"), "--engine ray shares the work itself"),
        (("--part", ""), "write it as 3/16"),
    ],
)
def test_options_that_do_not_go_together(
    finished: Path, run: Run, options: tuple[str, ...], message: str
) -> None:
    done = run(*LABEL, *options)
    assert done.code == 1
    assert message in done.err


@pytest.mark.slow
def test_all_languages_are_labelled_side_by_side(
    finished: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setattr(sys, "executable", warm_python())
    monkeypatch.setenv("MBLM_TEACHER_CACHE", str(finished / "new"))
    config = finished / "artifacts/teachers/en/config.json"
    intact = config.read_bytes()
    config.write_bytes(intact[:100])
    done = run("teacher", "label", "--language", "all", "--jobs", "2")
    assert done.code == 1
    assert "de: 57 soft labels, 57 of them new" in done.out
    assert "not labelled: en; the reason stands above" in done.err
    config.write_bytes(intact)
    done = run("teacher", "label", "--language", "all", "--jobs", "5", "--part", "1/1")
    assert done.code == 0
    assert "de: part 1/1: 57 soft labels in the store, 0 of them new" in done.out
    assert "en: part 1/1: 57 soft labels in the store, 57 of them new" in done.out


@pytest.mark.slow
def test_a_stop_reaches_every_language_once_and_keeps_what_is_computed(finished: Path) -> None:
    # One example at a time, and teachers that stop for good after some of them.
    (finished / "sitecustomize.py").write_text(
        "import sys, time\n"
        "if 'teacher' in sys.orig_argv and '--language=de' in sys.orig_argv:\n"
        "    from transformers import RobertaForSequenceClassification as Model\n"
        "    forward, calls = Model.forward, []\n"
        "    def slow(*args, **kwargs):\n"
        "        calls.append(1)\n"
        "        if len(calls) == 11:\n"
        "            open('here', 'w').close(); time.sleep(60)\n"
        "        return forward(*args, **kwargs)\n"
        "    Model.forward = slow\n"
    )
    params = tiny_params()
    params["teacher"]["label"] |= {"batch_tokens": 8}
    write_params(params)
    process = subprocess.Popen(
        [warm_python(), "-m", "pipeline", "teacher", "label", "--language", "all", "--jobs", "2"],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(finished), str(ROOT)]),
            "MBLM_TEACHER_CACHE": str(finished / "new"),
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline().startswith("en: 57 soft labels")
    while not Path("here").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=180)
    assert process.returncode == 130
    assert "stopped; 10 of 57 soft labels are kept" in err
    assert "Traceback" not in err


def test_texts_are_read_where_they_stand(finished: Path) -> None:
    params = load_params(Path("params.yaml"))
    all_texts = [
        text for split in SPLITS for text in read_examples(params.task, "de", split)["text"].to_pylist()
    ]
    known = Examples.read(params.task, "de")
    rng = np.random.default_rng(0)
    for n in (0, 1, 5, len(known)):
        positions = np.sort(rng.permutation(len(known))[:n])
        assert known.texts(positions) == [[all_texts[known.rows[i]] for i in positions]]
    assert known.sizes().tolist() == [len(all_texts[row].encode()) for row in known.rows]


def test_a_shard_is_bounded_in_examples_and_in_text(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    params = load_params(Path("params.yaml"))
    known = Examples.read(params.task, "de")
    misses = np.arange(3, len(known))
    sizes = known.sizes()
    for n_examples, n_bytes in ((7, 1 << 24), (65536, 40), (65536, 1), (65536, 1 << 24)):
        monkeypatch.setattr("stages.teacher.labelling.loop._SHARD_TEXT", n_bytes)
        shards = shards_to_label(known, misses, at_most=n_examples)
        assert np.concatenate([shard.positions for shard in shards]).tolist() == misses.tolist()
        for shard in shards:
            assert len(shard.positions) <= n_examples
            assert shard.n_bytes == sizes[shard.positions].sum()
            assert shard.n_bytes <= n_bytes or len(shard.positions) == 1


@pytest.mark.slow
def test_each_fold_is_labelled_by_the_model_that_was_not_trained_on_it(finished: Path, run: Run) -> None:
    params = tiny_params()
    params["teachers"]["de"]["folds"] = 3
    params["teacher"]["finetune"] |= {"epochs": 1, "learning_rate": 0.02}  # so that the models differ
    write_params(params)
    done = run("teacher", "finetune", "--language", "de")
    assert [line.partition(":")[0] for line in done.out.splitlines()] == [
        f"teacher 'de', fold {index} of 3" for index in (1, 2, 3)
    ]
    models = [f"artifacts/teachers/de/fold-{index}" for index in range(3)]
    assert not Path("artifacts/teachers/de/config.json").exists()
    assert "57 soft labels, 57 of them new" in run(*LABEL).out
    label_set = SoftLabelSet.read(SOFT_LABELS / "de", language="de")
    task = load_params(Path("params.yaml")).task
    known = Examples.read(task, "de")
    parts = [known.of_fold(Fold(index, 3)) for index in range(3)]
    assert sorted(row for part in parts for row in part.rows) == known.rows.tolist()
    for part, other, model in zip(parts, parts[1:] + parts[:1], models, strict=True):
        (texts,) = part.texts(np.arange(len(part)))
        said = AutoModelForSequenceClassification.from_pretrained(model).eval()
        tokens = AutoTokenizer.from_pretrained(model)(texts, padding=True, return_tensors="pt")
        with torch.inference_mode():
            wanted = said(**tokens).logits.numpy()
        np.testing.assert_allclose(label_set.join(part.ids).logits, wanted, atol=1e-5)
        assert not np.allclose(label_set.join(other.ids).logits[:5], wanted[:5])
    again = run(*LABEL)
    assert again.err.count(" cached, 0 to label") == 3
    assert run("student", "distill").code == 0
    assert run("cache", "verify", "--sample", "5").code == 0


def test_folds_need_a_teacher_that_is_made_here(finished: Path, run: Run) -> None:
    ready = use_ready_teacher(finished / "artifacts/teachers/de")
    params = tiny_params()
    params["teachers"]["de"] |= {"base": str(ready), "finetune": False, "folds": 2}
    write_params(params)
    done = run(*LABEL)
    assert done.code == 1
    assert (
        "teachers.de: folds is 2, but nobody knows what a teacher has seen that is not fine-tuned" in done.err
    )


def test_data_that_changes_while_it_is_labelled_is_noticed(
    finished: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    let_teacher_speak()
    monkeypatch.setenv("MBLM_TEACHER_CACHE", str(finished / "new"))
    texts_of, n_read = Examples.texts, 0

    def change_and_read(self: Examples, positions: NDArray[np.int64]) -> list[list[str]]:
        nonlocal n_read
        n_read += 1
        if n_read == 3:
            path = data_file("de", "train")
            table = pa.ipc.open_file(path.read_bytes()).read_all()
            with pa.ipc.new_file(path, table.schema) as writer:
                writer.write_table(table.take(pa.array(range(len(table))[::-1])))
        return texts_of(self, positions)

    monkeypatch.setattr(Examples, "texts", change_and_read)
    monkeypatch.setattr("stages.teacher.labelling.loop._FEW", 2)
    done = run(*LABEL)
    assert done.code == 1
    assert "error: the examples of 'de' in artifacts/data changed while they were labelled; run" in done.err
    monkeypatch.undo()
    monkeypatch.chdir(finished)
    monkeypatch.setenv("MBLM_TEACHER_CACHE", str(finished / "new"))
    assert run("cache", "verify", "--sample", "57").code == 0
    assert "de: 0 cached" not in run(*LABEL).err  # what was labelled before is kept


@pytest.fixture
def two_ready(finished: Path, run: Run) -> list[dict[str, Any]]:
    """Two teachers that are ready and pinned, of which both have labelled."""
    for language in ("de", "en"):
        shutil.copytree(f"artifacts/teachers/{language}", language)
    set_bias(Path("en"), [0.0, 0.0, 0.1])
    teachers = [{"base": base, "finetune": False} for base in ("de", "en")]
    set_german(*teachers)
    assert run("teacher", "finetune", "--language", "de").code == run(*LABEL).code == 0
    return teachers


def set_german(first: dict[str, Any], *more: dict[str, Any]) -> None:
    params = tiny_params()
    params["teachers"]["de"] = {**first, "more": list(more)}
    write_params(params)


def test_another_teacher_than_the_pinned_one_is_refused_and_gets_no_name(
    two_ready: list[dict[str, Any]], run: Run
) -> None:
    first, second = two_ready
    manifest = (SOFT_LABELS / "de/manifest.json").read_bytes()
    for number, teachers in enumerate(
        (
            (second, first),
            ({**second, "name": "second"}, second),
            ({**first, "branch": "mixture"}, second),
            (tiny_params()["teachers"]["de"], second),  # which is to be made here
            (first, {"base": "org/hub", "finetune": False}),
        )
    ):
        set_german(*teachers)
        done = run(*LABEL)
        assert done.code == 1
        place = "artifacts/teachers/de/more-1" if number == 4 else "artifacts/teachers/de"
        named = ("en", "second", "de", "scratch", "org/hub")[number]
        assert (
            f"error: {place} is not the teacher {named} that params.yaml names; make or pin it again with: "
            "python -m pipeline teacher finetune --language de\n"
        ) in done.err
    assert (SOFT_LABELS / "de/manifest.json").read_bytes() == manifest
    assert "second" not in run("cache", "ls").out
    set_german({**first, "base": "./de"}, second)  # the same folder
    assert run(*LABEL).code == 0


@pytest.mark.parametrize(
    ("pinned", "named", "may_be"),
    [
        ({"hub": "a/b", "commit": "1" * 40}, {"base": "a/b", "finetune": False, "revision": "main"}, True),
        ({"hub": "a/b", "commit": "1" * 40}, {"base": "a/b", "finetune": False, "revision": "2" * 40}, False),
        ({"hub": "a/b", "commit": "1" * 40}, {"base": "a/c", "finetune": False}, False),
        ({"hub": "a/b", "commit": "1" * 40}, {"base": "a/b"}, False),
        ("de", {"base": "a/b", "finetune": False, "branch": "de"}, True),
        ("de", {"base": "a/b", "finetune": False, "branch": "mixture"}, False),
        ("de", {"base": "a/b", "finetune": False}, False),
        (None, {"base": "a/b", "finetune": False, "branch": "mixture"}, True),
    ],
)
def test_a_teachers_folder_tells_whose_it_is(
    tmp_path: Path, pinned: Any, named: dict[str, Any], may_be: bool
) -> None:
    if isinstance(pinned, dict):
        pin(tmp_path, pinned)
    else:
        config = {"model_type": "mblm", "default_language": pinned}
        (tmp_path / "config.json").write_text(json.dumps(config))
    assert _may_be(OneTeacher(**named), tmp_path) is may_be


def test_a_second_teacher_is_made_with_the_largest_seed_too(finished: Path, run: Run) -> None:
    scratch = {"base": "scratch"}
    set_german({**scratch, "name": "a"}, {**scratch, "name": "b"})
    done = run("teacher", "finetune", "--language", "de", "--set", f"teacher.finetune.seed={2**32 - 1}")
    assert done.code == 0, done.err


@pytest.mark.parametrize("stopped", ["at the second teacher", "between two sets"])
def test_a_stop_leaves_no_sets_of_two_runs(
    two_ready: list[dict[str, Any]], run: Run, monkeypatch: pytest.MonkeyPatch, stopped: str
) -> None:
    def found() -> list[str]:
        places = [SOFT_LABELS / "de", SOFT_LABELS / "de/more-1"]
        return [SoftLabelSet.read(place, language="de").producers[0].id for place in places]

    before = found()
    for teacher in two_ready:  # both are other producers then
        set_bias(Path(teacher["base"]), [0.2, 0.1, 0.0])
    assert run("teacher", "finetune", "--language", "de").code == 0
    with monkeypatch.context() as patch:
        what = "_require_class_order" if stopped == "at the second teacher" else "SoftLabelSet.write"
        interrupt_second_call(patch, f"stages.teacher.label.{what}")
        assert run(*LABEL).code == 130
    if stopped == "at the second teacher":
        assert found() == before
    else:
        assert "artifacts/soft_labels/de/more-1" in run("student", "distill").err
    assert run(*LABEL).code == 0
    assert not set(found()) & set(before)


def interrupt_second_call(patch: pytest.MonkeyPatch, name: str) -> None:
    module, _, attribute = name.rpartition(".")
    owner: Any = resolve_name(module)
    wrapped, calls = getattr(owner, attribute), list[None]()

    def call(*args: Any, **kwargs: Any) -> Any:
        calls.append(None)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return wrapped(*args, **kwargs)

    patch.setattr(owner, attribute, call)


@pytest.mark.parametrize(("made", "asked"), [(3, 2), (1, 2), (3, 1)])
def test_a_teacher_of_another_number_of_folds_is_refused(
    finished: Path, run: Run, made: int, asked: int
) -> None:
    if made > 1:
        for index in range(made):
            shutil.copytree("artifacts/teachers/en", f"artifacts/teachers/de/fold-{index}")
    done = run(*LABEL, "--set", f"teachers.de.folds={asked}")
    assert done.code == 1
    assert f"teachers.de.folds is {asked}, but artifacts/teachers/de was made with {made}" in done.err


def test_more_folds_than_examples_are_refused_before_anything_is_trained(finished: Path, run: Run) -> None:
    done = run("teacher", "finetune", "--language", "de", "--set", "teachers.de.folds=60")
    assert done.code == 1
    assert "teachers.de.folds is 60, but fold " in done.err
    assert "has none of the 36 training examples; lower it" in done.err


@pytest.mark.parametrize(
    "ends", ["a failed write", "Ctrl-C while a shard is waited for", "Ctrl-C at the end"]
)
def test_what_is_computed_is_written_however_a_run_ends(
    finished: Path, run: Run, monkeypatch: pytest.MonkeyPatch, ends: str
) -> None:
    let_teacher_speak()
    monkeypatch.setattr("stages.teacher.labelling.loop._FEW", 2)
    root = finished / "new"
    monkeypatch.setenv("MBLM_TEACHER_CACHE", str(root))
    append, given = Store.append, list[int]()  # lengths: one of the shards, wherever it comes, is shorter

    def slow_or_failing(self: Store, soft_labels: SoftLabels, **options: Any) -> str:
        given.append(len(soft_labels))
        if len(given) == 3:
            if ends == "a failed write":
                raise StoreError("the store is gone for a moment")
            if ends == "Ctrl-C while a shard is waited for":
                time.sleep(0.5)  # the next one is computed meanwhile
                os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.5)
        return append(self, soft_labels, **options)

    monkeypatch.setattr(Store, "append", slow_or_failing)
    if ends == "Ctrl-C at the end":
        monkeypatch.setattr("stages.teacher.labelling.loop._FEW", 20)  # the third shard is the last one
        exit_, timers = ThreadPoolExecutor.__exit__, list[Timer]()

        def interrupt(self: ThreadPoolExecutor, *reason: Any) -> bool | None:
            if given and not timers:  # once, and not where the store is looked at: a second Ctrl-C is obeyed
                timers.append(Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)))
                timers[0].start()
            return exit_(self, *reason)

        monkeypatch.setattr(ThreadPoolExecutor, "__exit__", interrupt)
        monkeypatch.setattr("stages.teacher.labelling.loop._SHARDS", 1)
    let_shards_be = 2 if ends != "Ctrl-C at the end" else 20
    done = run(*LABEL, "--set", f"teacher.label.shard_examples={let_shards_be}")
    monkeypatch.undo()
    monkeypatch.chdir(finished)
    store = Store.open(root, *producer_ids(root))
    kept = sum(len(found) for _, found in store.read(store.shards()))
    if ends == "a failed write":
        assert done.code == 1
        assert "error: the store is gone for a moment" in done.err
        assert kept == sum(given[:2]) + sum(given[3:])
    else:
        assert done.code == 130
        assert kept == sum(given)
        assert len(given) in (3, 4)
    assert f"stopped; {kept} of 57 soft labels are kept" in done.err or kept == 57


def test_a_signal_that_is_ignored_stays_so_while_a_shard_is_written() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup has it
    try:
        with no_interruption():
            os.kill(os.getpid(), signal.SIGHUP)
        with pytest.raises(KeyboardInterrupt), no_interruption():
            os.kill(os.getpid(), signal.SIGINT)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_text_without_any_token_is_named(finished: Path, run: Run) -> None:
    path = Path("artifacts/teachers/de/tokenizer.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"post_processor": None}))
    rows = [*examples("de", "train"), {"text": "", "label": "animal"}]
    write_jsonl(finished / "data/de/train.jsonl", rows)
    assert run("prepare").code == 0
    done = run(*LABEL)
    assert done.code == 1
    assert "makes no token of the text ''; take it out of the data" in done.err
