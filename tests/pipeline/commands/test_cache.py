"""The commands ``cache …``: what they print, what they refuse, what they leave behind."""

import io
import json
import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from labels import only_shard, producer, shard_files, soft_labels, texts
from tiny import LABEL, ROOT, Run, examples, set_bias, use_ready_teacher, write_jsonl
from unreadable import fail_to_read, needs_proc, pipeline_where_modes_hold
from warm import warm_python

from cache import Outputs, SoftLabels, SoftLabelSet, Store, UnreadableError, example_id, example_ids
from cache.commands.gc import delete, plan
from cache.commands.verify import Verified, differing, verify
from cache.store import LAST_USE, LastUse


def read_json(run: Run, *command: str, code: int = 0) -> Any:
    done = run("cache", *command, "--json")
    assert done.code == code
    return json.loads(done.out)


def producer_of(language: str) -> str:
    manifest = Path(f"artifacts/soft_labels/{language}/manifest.json").read_text()
    found: str = json.loads(manifest)["producers"][0]["id"]
    return found


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def age(store: Path, producer_id: str, **since: float) -> None:
    """Make a producer look as if nobody had used it for some time."""
    then = datetime.now(UTC) - timedelta(**since)
    for path in (store / producer_id).iterdir():
        os.utime(path, (then.timestamp(), then.timestamp()))
    (store / producer_id / LAST_USE).write_bytes(LastUse(then, "old/teacher", "fr").encode())


@pytest.fixture
def strangers(finished: Path) -> list[str]:
    """Two producers more, which no experiment of this clone refers to; used 100 and 10 days ago."""
    ids = []
    for days in (100, 10):
        store = Store(finished / "store", producer(weights=str(days)))
        store.append(soft_labels(texts(500)))
        age(finished / "store", store.producer.id, days=days)
        ids.append(store.producer.id)
    return ids


# Looking


def test_ls_lists_producers_by_their_last_use(finished: Path, run: Run, strangers: list[str]) -> None:
    found = read_json(run, "ls")
    assert [one["producer"] for one in found[2:]] == [strangers[1], strangers[0]]
    assert {one["producer"]: one["language"] for one in found[:2]} == {
        producer_of("de"): "de",
        producer_of("en"): "en",
    }
    assert found[2] | {"last_use": ""} == {
        "producer": strangers[1],
        "name": None,
        "teacher": "old/teacher",
        "language": "fr",
        "examples": 500,
        "shards": 1,
        "size": only_shard(finished / "store" / strangers[1]).stat().st_size,
        "last_use": "",
    }
    table = run("cache", "ls").out.splitlines()
    assert table[0].split()[:4] == ["producer", "name", "teacher", "language"]
    assert table[3].split()[:5] == [strangers[1][:12], "–", "old/teacher", "fr", "500"]
    assert table[-1].startswith("4 producers, ")


def test_an_empty_or_absent_store_has_no_producers(workspace: Path, run: Run) -> None:
    assert read_json(run, "ls") == []
    done = run("cache", "verify")
    assert (done.code, "there are no producers in" in done.err) == (1, True)


def test_names_that_would_command_a_terminal_are_escaped(
    finished: Path, run: Run, strangers: list[str]
) -> None:
    use = LastUse(datetime.now(UTC), "\x1b]0;owned\x07\x1b[2J grün", "de")
    (finished / "store" / strangers[0] / LAST_USE).write_bytes(use.encode())
    (finished / "store" / strangers[0] / "\x1b[2J").write_text("mine")
    for command in ("ls", "verify"):
        assert "\x1b" not in run("cache", command).out
    assert "\\x1b[2J grün" in run("cache", "ls").out


def test_a_store_elsewhere_is_looked_at_without_params(
    finished: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, one = str(finished / "store"), producer_of("de")
    folder = tmp_path / "empty"
    folder.mkdir()
    monkeypatch.chdir(folder)
    assert len(read_json(run, "ls", "--store", store)) == 2
    assert run("cache", "ls", "--store", "").code == 1
    shown = read_json(run, "show", one, "--store", store)
    assert (shown["producer"], shown["coverage"]) == (one, [])
    assert "current data" not in run("cache", "show", one, "--store", store).out
    assert [found["examples"] for found in read_json(run, "verify", "--store", store)["producers"]] == [
        57,
        57,
    ]
    assert read_json(run, "compact", "--store", store)[0]["before"] == 1
    assert read_json(run, "export", one, "de.parquet", "--store", store)["examples"] == 57
    assert "text" not in pq.read_schema("de.parquet").names
    flip_a_bit(only_shard(finished / "store" / one))
    repaired = read_json(run, "repair", "--store", store)
    assert [found["producer"] for found in repaired["set_aside"] if found["damaged"]] == [one]
    assert repaired["labelled"] == {}
    needs = run("cache", "verify", "--sample", "1", "--store", store)
    assert (needs.code, "params.yaml" in needs.err) == (1, True)


def test_show_tells_facts_shards_and_coverage(finished: Path, run: Run) -> None:
    rows = [*examples("de", "train"), {"text": "neu", "label": "animal"}]
    write_jsonl(finished / "data/de/train.jsonl", rows)
    run("prepare")
    found = read_json(run, "show", producer_of("de")[:8])
    assert found["facts"]["max_tokens"] == 48
    assert found["classes"] == ["animal", "colour", "number"]
    assert [shard[:2] for shard in found["shards"].values()] == [[57, "arrow"]]
    covered = {(row["language"], row["split"]): row for row in found["coverage"]}
    assert (covered["de", "train"]["labelled"], covered["de", "train"]["examples"]) == (36, 37)
    out = run("cache", "show", producer_of("de")[:8]).out
    assert "classes  animal, colour, number" in out
    assert ["de", "train", "36", "37"] in [line.split() for line in out.splitlines()]


def test_show_tells_what_is_damaged(finished: Path, run: Run) -> None:
    flip_a_bit(only_shard(finished / "store" / producer_of("de")))
    assert "damaged: 57-" in run("cache", "show", producer_of("de")).out
    assert len(read_json(run, "show", producer_of("de"))["damaged"]) == 1


def test_a_producer_that_is_not_there_is_refused(finished: Path, run: Run) -> None:
    done = run("cache", "show", "nothing")
    assert done.code == 1
    assert done.err.startswith("error: no producer in ")
    assert "python -m pipeline cache ls" in done.err


def test_the_documented_lines_for_other_projects_find_soft_labels(finished: Path) -> None:
    page = (ROOT / "docs/store.md").read_text(encoding="utf-8")
    (snippet,) = (block for block in page.split("```python\n") if block.startswith("from pathlib"))
    snippet = snippet.partition("```")[0].replace("Südafrikanischer Rand", examples("de", "train")[0]["text"])
    done = subprocess.run(
        [warm_python(), "-c", snippet],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith("['animal', 'colour', 'number'] [[")


# Checking


def test_verify_finds_nothing_wrong_with_what_stage_one_wrote(finished: Path, run: Run) -> None:
    found = read_json(run, "verify", "--sample", "20")
    assert [(one["examples"], one["damaged"]) for one in found["producers"]] == [(57, {}), (57, {})]
    assert {one["language"]: one["examples"] for one in found["asked_again"]} == {"de": 20, "en": 20}
    assert all(one["differing"] == 0 and one["largest"] < 1e-4 for one in found["asked_again"])


def test_verify_names_what_is_damaged_foreign_and_repeated(finished: Path, run: Run) -> None:
    folder = finished / "store" / producer_of("de")
    shard = only_shard(folder)
    flip_a_bit(shard)
    (folder / "notes.txt").write_text("mine")
    done = run("cache", "verify")
    assert done.code == 1
    assert f"damaged: {shard}: its content does not match the digest in its name" in done.out
    assert f"foreign, never read: {folder}/notes.txt" in done.out
    assert "error: 1 damaged file; mend with: python -m pipeline cache repair --store " in done.err
    assert read_json(run, "verify", producer_of("en")[:9])["producers"][0]["damaged"] == {}


def test_verify_notices_soft_labels_that_contradict_each_other(finished: Path, run: Run) -> None:
    store = Store.open(finished / "store", producer_of("de"))
    (shard,) = [found for _, found in store.read(store.shards())]
    nearly = {"logits": shard.columns["logits"] + np.float32(1e-6)}
    store.append(type(shard)(shard.ids, nearly, 3))
    (found,) = read_json(run, "verify", producer_of("de"))["producers"]
    assert (found["examples"], found["repeated"], found["contradicting"]) == (57, 57, 0)
    other = {"logits": shard.columns["logits"] + np.float32(1e-3)}
    store.append(type(shard)(shard.ids, other, 3))
    (found,) = read_json(run, "verify", producer_of("de"), code=1)["producers"]
    assert found["contradicting"] > 0


def test_verify_notices_that_a_teacher_no_longer_says_what_the_store_says(finished: Path, run: Run) -> None:
    # Well-made shards with wrong numbers, which no digest can tell.
    store = Store.open(finished / "store", producer_of("de"))
    ((name, shard),) = store.read(store.shards())
    wrong = replace(shard, columns={"logits": shard.columns["logits"][:, ::-1]})
    store.append(wrong)
    store.folder.delete(name)
    done = run("cache", "verify", "--sample", "10")
    assert done.code == 1
    assert "the teacher of de no longer gives the logits in the store" in done.err
    assert "de: those that differ were computed with the same libraries and device as here" in done.out
    ((name, _),) = store.read(store.shards())
    (record,) = map(json.loads, shard.made_with)
    store.append(replace(wrong, made_with=(json.dumps(record | {"torch": "1.0", "device": "an abacus"}),)))
    store.folder.delete(name)
    done = run("cache", "verify", "--sample", "10")
    assert "device an abacus (here cpu), torch 1.0 (here " in done.out


def test_what_computed_a_shard_is_noted_in_the_store_alone(finished: Path) -> None:
    store = Store.open(finished / "store", producer_of("de"))
    ((_, shard),) = store.read(store.shards())
    (record,) = map(json.loads, shard.made_with)
    assert set(record) == {"torch", "transformers", "tokenizers", "device", "precision"}
    copied = SoftLabelSet.read(Path("artifacts/soft_labels/de"), language="de")
    for name in copied.shards:  # which must not depend on the machine
        assert b"made_with" not in Path("artifacts/soft_labels/de", name).read_bytes()
    other = replace(soft_labels(texts(3)), made_with=('{"torch":"1"}',))
    together = SoftLabels.concatenate([other, replace(other, made_with=('{"torch":"2"}',)), other])
    mixed = Store(finished / "store", producer())
    mixed.append(together)
    ((_, read),) = mixed.read(mixed.shards())
    assert read.made_with == ('{"torch":"1"}', '{"torch":"2"}')


def test_a_broken_producer_json_is_reported_and_the_others_are_checked(finished: Path, run: Run) -> None:
    (finished / "store" / producer_of("de") / "producer.json").write_text("[]")
    found = {one["producer"]: one for one in read_json(run, "verify", code=1)["producers"]}
    assert found[producer_of("de")]["damaged"].keys() == {"producer.json"}
    assert found[producer_of("en")]["examples"] == 57


@pytest.mark.parametrize("content", ["[]", '{"schema":99}', None])
def test_one_broken_producer_keeps_no_other_from_being_copied_and_merged(
    content: str | None, finished: Path, tmp_path: Path, run: Run
) -> None:
    broken, whole = sorted((producer_of("de"), producer_of("en")))
    path = finished / "store" / broken / "producer.json"
    path.write_text(content) if content else path.unlink()
    there = tmp_path / "there"
    done = run("cache", "push", str(there))
    assert (done.code, done.out) == (1, f"1 shard of 1 producer copied to {there}; 0 there already\n")
    assert "producer.json" in done.err
    assert [one.name for one in there.iterdir()] == [whole]
    said = run("cache", "push", str(there), "--json")
    assert (said.code, len(json.loads(said.out)["left_out"])) == (1, 1)
    done = run("cache", "compact")
    assert (done.code, whole[:12] in done.out, broken[:12] in done.out) == (1, True, False)
    assert "producer.json" in done.err


def test_classes_that_change_places_among_the_largest_are_no_difference(finished: Path, run: Run) -> None:
    change = ("--set", "teacher.label.top_k=2")
    run(*LABEL, *change)
    store = Store.open(finished / "store", producer_of("de"))
    ((name, shard),) = store.read(store.shards())
    swapped = {
        column: values[:, ::-1] if values.ndim == 2 else values for column, values in shard.columns.items()
    }
    store.append(type(shard)(shard.ids, swapped, 3))
    store.folder.delete(name)
    (asked, _) = read_json(run, "verify", "--sample", "57", *change)["asked_again"] + [None]
    assert asked["differing"] == 0


@pytest.mark.parametrize("format_", ["arrow", "zarr"])
def test_contradictions_among_the_largest_logits_are_noticed(tmp_path: Path, format_: str) -> None:
    store = Store(tmp_path, producer(top_k=2))
    outputs = store.producer.outputs

    def append(logits: list[float]) -> Verified:
        packed = SoftLabels.pack(example_ids([["a"]]), np.array([logits], np.float32), outputs=outputs)
        store.append(packed, format_=format_, unique=True)
        return verify(tmp_path, store.producer.id, on_bytes=lambda _: None)

    append([3, 2, 1.99999])
    found = append([3, 1.99999, 2])  # two that are nearly the same change places
    assert (found.repeated, found.contradicting) == (1, 0)
    assert append([2, 3, 1.99999]).contradicting > 0


def test_bfloat16_may_move_a_logit_by_some_of_its_last_bits() -> None:
    labels = soft_labels(texts(5))
    moved = type(labels)(labels.ids, {"logits": labels.logits * (1 + 2**-7)}, 3)
    assert differing(labels, moved, precision="float32").any()
    assert not differing(labels, moved, precision="bfloat16").any()
    other = type(labels)(labels.ids, {"logits": labels.logits[:, ::-1].copy()}, 3)
    assert differing(labels, other, precision="bfloat16").any()


@pytest.mark.parametrize("kept", ["logits=float16", "top_k=2", "hidden=true", "precision=bfloat16"])
@pytest.mark.parametrize("format_", ["arrow", "zarr"])
def test_every_kind_of_soft_label_is_verified_against_the_teacher_and_trains_a_student(
    finished: Path, run: Run, kept: str, format_: str
) -> None:
    change = ("--set", f"teacher.label.{kept}", "--set", f"teacher.label.format={format_}")
    for language in ("de", "en"):
        assert run("teacher", "label", "--language", language, *change).code == 0
        assert len(shard_files(Path(f"artifacts/soft_labels/{language}"))) == 1
    found = read_json(run, "verify", "--sample", "57", *change)
    assert [(one["examples"], one["differing"]) for one in found["asked_again"]] == [(57, 0), (57, 0)]
    soft = SoftLabelSet.read(Path("artifacts/soft_labels/de"), language="de")
    joined = soft.join(example_ids([[row["text"] for row in examples("de", "train")]]))
    assert joined.logits.shape == (36, 3)
    if kept == "hidden=true":
        assert joined.hidden is not None
        assert joined.hidden.shape == (36, 16)
    assert run("student", "distill").code == 0


def test_hidden_states_are_those_of_the_first_token(finished: Path, run: Run) -> None:
    import torch
    from transformers import AutoModel, AutoTokenizer

    run(*LABEL, "--set", "teacher.label.hidden=true")
    words = [row["text"] for row in examples("de", "train")]
    soft = SoftLabelSet.read(Path("artifacts/soft_labels/de"), language="de").join(example_ids([words]))
    tokenizer = AutoTokenizer.from_pretrained("artifacts/teachers/de")
    model = AutoModel.from_pretrained("artifacts/teachers/de", add_pooling_layer=False).eval()
    with torch.inference_mode():
        states = [model(**tokenizer(w, return_tensors="pt")).last_hidden_state[0, 0].numpy() for w in words]
    assert soft.hidden is not None
    np.testing.assert_allclose(soft.hidden, states, atol=2e-3)


def test_more_logits_than_the_teacher_has_cannot_be_kept(finished: Path, run: Run) -> None:
    done = run(*LABEL, "--set", "teacher.label.top_k=3")
    assert done.code == 1
    assert "top_k is 3; 3 classes allow 1 to 2" in done.err


# Mending


def test_repair_sets_damaged_shards_aside_and_labels_their_examples_again(finished: Path, run: Run) -> None:
    folder = finished / "store" / producer_of("de")
    before = SoftLabelSet.read(Path("artifacts/soft_labels/de"), language="de")
    ids = example_ids([[row["text"] for row in examples("de", "train")]])
    logits = before.join(ids).logits
    shard = only_shard(folder)
    flip_a_bit(shard)
    done = run("cache", "repair")
    assert done.code == 0
    assert f"set aside: {folder}/damaged/{shard.name}" in done.out
    assert f"{producer_of('de')[:12]}: 57 examples of the current data labelled" in done.out
    assert (folder / "damaged" / shard.name).is_file()
    assert run("cache", "verify").code == 0
    assert "57 cached, 0 to label" in run(*LABEL).err
    after = SoftLabelSet.read(Path("artifacts/soft_labels/de"), language="de")
    np.testing.assert_allclose(after.join(ids).logits, logits, atol=1e-4)
    assert "0 files set aside" in run("cache", "repair").out


def test_repair_writes_a_broken_producer_json_again(finished: Path, run: Run) -> None:
    path = finished / "store" / producer_of("de") / "producer.json"
    content = path.read_bytes()
    path.write_text("{")
    assert run(*LABEL).code == 1
    assert "producer.json" in run("cache", "repair").out
    assert path.read_bytes() == content
    assert "57 cached, 0 to label" in run(*LABEL).err


def test_repair_leaves_what_other_experiments_miss_to_them(
    finished: Path, run: Run, strangers: list[str]
) -> None:
    flip_a_bit(only_shard(finished / "store" / strangers[0]))
    found = read_json(run, "repair")
    assert [(one["producer"], one["examples"]) for one in found["set_aside"]] == [(strangers[0], 500)]
    assert found["labelled"] == {}


def test_repair_deletes_what_killed_writers_left_a_day_ago(finished: Path, run: Run) -> None:
    folder = finished / "store" / producer_of("de")
    old, new = folder / ".00.tmp", folder / ".01.tmp"
    for path in (old, new):
        path.write_bytes(b"torn")
    then = datetime.now(UTC).timestamp() - 2 * 86400
    os.utime(old, (then, then))
    run("cache", "repair")
    assert (old.exists(), new.exists()) == (False, True)


# What cannot be read


@pytest.mark.parametrize("command", ["repair", "compact", "push there", "export ID out.parquet", "gc"])
def test_a_colleagues_closed_shard_stops_a_command_and_stays(finished: Path, command: str) -> None:
    folder = finished / "store" / producer_of("de")
    closed = only_shard(folder)
    Store.open(finished / "store", producer_of("de")).append(soft_labels(texts(3)))
    closed.chmod(0)
    command = {"gc": "gc --max-size 0B --yes"}.get(command, command).replace("ID", producer_of("de"))
    done = pipeline_where_modes_hold("cache", *command.split())
    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error")]
    assert line.startswith(f"error: {closed} cannot be read: Permission denied")
    assert "Traceback" not in done.stderr
    closed.chmod(0o644)
    assert len(shard_files(folder)) == 2
    assert not (folder / "damaged").exists()
    assert len(Store.open(finished / "store", producer_of("en")).shards()) == 1
    assert not Path("out.parquet").exists()


def test_a_colleagues_folder_that_may_not_be_written_to_keeps_no_other_from_being_mended(
    finished: Path, tmp_path: Path
) -> None:
    first, second = sorted((producer_of("de"), producer_of("en")))
    there = tmp_path / "there"
    pipeline_where_modes_hold("cache", "push", str(there), first)
    only_shard(there / first).unlink()
    (there / first).chmod(0o555)
    done = pipeline_where_modes_hold("cache", "push", str(there))
    (there / first).chmod(0o755)
    assert (done.returncode, "1 shard of 1 producer copied" in done.stdout) == (1, True)
    assert f"error: cannot write {there}/{first}/producer.json: Permission denied" in done.stderr
    assert only_shard(there / second)

    for one in (first, second):
        Store.open(finished / "store", one).append(soft_labels(texts(3)), unique=True)
    closed = finished / "store" / first
    closed.chmod(0o555)
    done = pipeline_where_modes_hold("cache", "compact")
    closed.chmod(0o755)
    assert (done.returncode, second[:12] in done.stdout, first[:12] in done.stdout) == (1, True, False)
    assert f"error: cannot write {closed}/" in done.stderr

    for one in (first, second):
        flip_a_bit(shard_files(finished / "store" / one)[0])
    closed.chmod(0o555)
    done = pipeline_where_modes_hold("cache", "repair", "--json")
    closed.chmod(0o755)
    assert done.returncode == 1
    assert [one["producer"] for one in json.loads(done.stdout)["set_aside"]] == [second]
    assert (
        f"error: cannot move {shard_files(closed)[0]} to {closed}/damaged: Permission denied" in done.stderr
    )


def test_a_target_that_is_complete_and_read_only_needs_no_name(
    finished: Path, run: Run, tmp_path: Path
) -> None:
    there, named = tmp_path / "there", producer_of("de")
    run("cache", "push", str(there))
    run("cache", "name", named, "de@2026.11")
    (there / named).chmod(0o555)
    done = pipeline_where_modes_hold("cache", "push", str(there))
    (there / named).chmod(0o755)
    assert (done.returncode, done.stdout) == (
        0,
        f"0 shards of 2 producers copied to {there}; 2 there already\n",
    )


def test_verify_lists_what_cannot_be_read_apart_from_what_is_damaged(finished: Path) -> None:
    closed = only_shard(finished / "store" / producer_of("de"))
    damaged = only_shard(finished / "store" / producer_of("en"))
    flip_a_bit(damaged)
    closed.chmod(0)
    done = pipeline_where_modes_hold("cache", "verify")
    assert done.returncode == 1
    assert f"unreadable: {closed}: Permission denied" in done.stdout
    assert f"damaged: {damaged}: its content" in done.stdout
    assert f"damaged: {closed}" not in done.stdout
    assert f"error: 1 file cannot be read, first {closed}: Permission denied" in done.stderr


def test_stage_one_tells_once_what_it_cannot_read_and_labels_it_again(finished: Path) -> None:
    closed = only_shard(finished / "store" / producer_of("de"))
    closed.chmod(0)
    done = pipeline_where_modes_hold(*LABEL)
    assert done.returncode == 0
    told = f"{closed} cannot be read: Permission denied; its examples are labelled again"
    assert done.stderr.count(str(closed)) == done.stderr.count(told) == 1
    assert "0 cached, 57 to label" in done.stderr


def test_ls_names_what_it_cannot_look_at_and_lists_the_others(
    finished: Path, run: Run, strangers: list[str]
) -> None:
    folder, note = finished / "store" / strangers[0], finished / "store" / strangers[1] / LAST_USE
    folder.chmod(0)
    note.chmod(0)
    done = pipeline_where_modes_hold("cache", "ls")
    checked = pipeline_where_modes_hold("cache", "verify")
    cleaned = pipeline_where_modes_hold("cache", "gc", "--unused-for", "1d", "--yes")
    folder.chmod(0o755)
    assert done.returncode == checked.returncode == cleaned.returncode == 1
    listed = {line.split()[0] for line in done.stdout.splitlines()[1:-1]}
    assert listed == {one[:12] for one in (producer_of("de"), producer_of("en"), strangers[1])}
    assert "(and 1 more)" in done.stderr
    assert f"unreadable: {folder}" in checked.stdout
    assert "cannot be read: Permission denied" in cleaned.stderr
    assert len(left(run)) == 4


def test_a_shard_that_is_listed_and_cannot_be_found_is_not_passed_over(finished: Path, run: Run) -> None:
    shard = only_shard(finished / "store" / producer_of("de"))
    Store.open(finished / "store", producer_of("de")).append(soft_labels(texts(3)))
    shard.unlink()
    shard.symlink_to(finished / "a disk that is not mounted")
    (found,) = read_json(run, "verify", producer_of("de"), code=1)["producers"]
    assert (found["shards"], found["damaged"], found["unreadable"].keys()) == (1, {}, {shard.name})
    done = run("cache", "export", producer_of("de"), "de.parquet")
    assert (done.code, "changed while it was read; run it again" in done.err) == (1, True)
    assert not Path("de.parquet").exists()


@needs_proc
def test_repair_mends_the_producers_that_it_can_read(finished: Path, run: Run) -> None:
    failing = only_shard(finished / "store" / producer_of("de"))
    fail_to_read(failing)
    flip_a_bit(only_shard(finished / "store" / producer_of("en")))
    done = run("cache", "repair")
    assert done.code == 1
    assert f"{producer_of('en')[:12]}: 57 examples of the current data labelled" in done.out
    assert f"error: {failing} cannot be read: Input/output error; nothing of its producer" in done.err
    assert failing.is_symlink()


def test_a_store_of_a_newer_version_is_told_and_kept(finished: Path, run: Run) -> None:
    folder = finished / "store" / producer_of("de")
    facts = json.loads((folder / "producer.json").read_text())
    (folder / "producer.json").write_text(json.dumps(facts | {"schema": 2}))
    before = sorted(folder.iterdir())
    newer = f"{folder}/producer.json cannot be read: written by a newer version (schema 2; this one reads up"
    for command in ("repair", "compact", "push there", "gc --max-size 0B --yes", "verify"):
        done = run("cache", *command.split())
        assert (done.code, newer in done.err or "first" in done.err) == (1, True), command
        assert sorted(folder.iterdir()) == before
    found = {one["producer"]: one for one in read_json(run, "verify", code=1)["producers"]}
    assert found[producer_of("de")]["damaged"] == {}
    assert found[producer_of("de")]["unreadable"].keys() == {"producer.json"}


# Cleaning


def left(run: Run) -> set[str]:
    return {one["producer"] for one in read_json(run, "ls")}


def test_gc_deletes_what_nobody_used_for_long_and_asks_first(
    finished: Path, run: Run, strangers: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = left(run)
    done = run("cache", "gc", "--unused-for", "90d", "--dry-run")
    assert strangers[0][:12] in done.out
    assert "nothing is deleted; it would be 1 producer," in done.out
    assert left(run) == before
    with monkeypatch.context() as patch:
        patch.setattr("sys.stdin", io.StringIO())  # nobody answers
        assert run("cache", "gc", "--unused-for", "90d").code == 1
    assert left(run) == before
    assert run("cache", "gc", "--unused-for", "90d", "--yes").code == 0
    assert left(run) == before - {strangers[0]}
    assert not (finished / "store" / strangers[0]).exists()
    assert "nothing to delete" in run("cache", "gc", "--unused-for", "2400h", "--yes").out


def test_gc_deletes_the_longest_unused_until_the_store_is_small(
    finished: Path, run: Run, strangers: list[str]
) -> None:
    sizes = {one["producer"]: one["size"] for one in read_json(run, "ls")}
    limit = sum(sizes.values()) - sizes[strangers[0]]
    found = read_json(run, "gc", "--max-size", str(limit), "--yes")
    assert [victim["listed"]["producer"] for victim in found] == [strangers[0]]
    assert read_json(run, "gc", "--max-size", "20GB", "--dry-run") == []
    assert len(read_json(run, "gc", "--max-size", "0B", "--dry-run")) == 3


def test_gc_leaves_foreign_files_where_they_are(finished: Path, run: Run, strangers: list[str]) -> None:
    (finished / "store" / strangers[0] / "notes.txt").write_text("mine")
    run("cache", "gc", "--unused-for", "90d", "--yes")
    assert [path.name for path in (finished / "store" / strangers[0]).iterdir()] == ["notes.txt"]


def test_gc_without_a_reason_or_with_a_bad_one_is_refused(finished: Path, run: Run) -> None:
    assert "say what may go" in run("cache", "gc").err
    assert "write days or hours, such as 90d" in run("cache", "gc", "--unused-for", "soon").err
    assert "write bytes, kB, MB, GB or TB" in run("cache", "gc", "--max-size", "much").err
    assert "add --dry-run or --yes" in run("cache", "gc", "--max-size", "1GB", "--json").err
    for option in ("--unused-for", "--max-size"):  # as of a variable that is not set
        done = run("cache", "gc", option, "", "--clone", ".", "--yes")
        assert (done.code, "write " in done.err) == (2, True)


def git_in(folder: Path) -> Callable[..., str]:
    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=folder, check=True, capture_output=True, text=True)
        return done.stdout

    return git


@pytest.fixture(scope="module")
def clone_once(finished_once: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone with DVC whose history knows two experiments, with different teachers of German."""
    folder = tmp_path_factory.mktemp("clone") / "work"
    shutil.copytree(finished_once, folder)
    for name in ("dvc.yaml", ".dvcignore", ".gitignore"):
        shutil.copy(ROOT / name, folder)
    for name in ("cache", "stages"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "MBLM_TEACHER_CACHE": str(folder / "store")}

    def call(*command: str) -> str:
        done = subprocess.run(
            command, cwd=folder, env=environment, check=True, capture_output=True, text=True
        )
        return done.stderr

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        set_bias(use_ready_teacher(folder / "artifacts/teachers/de"), [0.5, 0.0, 0.0])
    call("git", "init", "-q")
    call("git", "config", "user.email", "someone@example.org")
    call("git", "config", "user.name", "Someone")
    dvc, pipeline = (warm_python(), "-m", "dvc"), (warm_python(), "-m", "pipeline")
    call(*dvc, "init")
    call(*pipeline, "plan")
    call(*pipeline, "teacher", "silver")  # there are none
    call(*dvc, "commit", "--force", "teacher-label@de", "teacher-label@en", "teacher-silver")
    call("git", "add", "dvc.lock", "dvc.yaml")
    call("git", "commit", "-qm", "first")
    call(*pipeline, "teacher", "finetune", "--language", "de")
    assert "0 cached, 57 to label" in call(*pipeline, *LABEL)
    call(*dvc, "commit", "--force", "teacher-label@de")
    call("git", "commit", "-qam", "second")
    return folder


@pytest.fixture
def clone(clone_once: Path, finished: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that clone."""
    shutil.rmtree(finished)
    shutil.copytree(clone_once, finished)
    monkeypatch.chdir(finished)
    return finished


def test_gc_keeps_what_any_experiment_of_a_clone_refers_to(
    clone: Path, run: Run, strangers: list[str]
) -> None:
    for one in left(run):
        if one not in strangers:
            age(clone / "store", one, days=1000)
    before = left(run)
    assert len(before) == 5
    found = read_json(run, "gc", "--clone", str(clone), "--yes")
    assert {victim["listed"]["producer"] for victim in found} == set(strangers)
    assert left(run) == before - set(strangers)
    assert read_json(run, "gc", "--clone", str(clone), "--unused-for", "90d", "--dry-run") == []


def test_gc_keeps_what_silver_labels_refer_to(clone: Path) -> None:
    from cache.commands.gc import referenced_by

    known, silver = referenced_by(clone), clone / "artifacts/silver/soft_labels/nl"
    shutil.copytree(clone / "artifacts/soft_labels/en", silver)
    manifest = silver / "manifest.json"
    values = json.loads(manifest.read_text())
    values["producers"][0]["id"] = "f" * 64
    manifest.write_text(json.dumps(values))
    assert referenced_by(clone) == known | {"f" * 64}
    done = [warm_python(), "-m", "dvc", "commit", "--force", "teacher-silver"]
    subprocess.run(done, cwd=clone, check=True, capture_output=True)
    shutil.rmtree(clone / "artifacts/silver")
    assert referenced_by(clone) == known | {"f" * 64}


@pytest.mark.parametrize(
    "where", ["branch", "merged and deleted branch", "stash", "older stash", "no branch"]
)
def test_gc_finds_references_wherever_git_keeps_them(clone: Path, where: str) -> None:
    from cache.commands.gc import referenced_by

    lock = clone / "dvc.lock"
    git = git_in(clone)
    both = referenced_by(clone)
    assert len(both) == 3
    first = git("show", "HEAD~1:dvc.lock")
    newest = lock.read_text()
    # History is made such that only one odd place still knows the first version.
    git("checkout", "-q", "--orphan", "new")
    git("add", "dvc.lock", "dvc.yaml")
    git("commit", "-qm", "fresh start")
    git("branch", "-D", git("for-each-ref", "--format=%(refname:short)", "refs/heads").split()[0])
    git("reflog", "expire", "--expire=now", "--all")
    assert len(referenced_by(clone)) == 2
    lock.write_text(first)
    if where == "branch":
        git("checkout", "-qb", "side")
        git("commit", "-qam", "side")
        git("checkout", "-q", "new")
    elif where == "merged and deleted branch":
        git("checkout", "-qb", "side")
        git("commit", "-qam", "side")
        git("checkout", "-q", "new")
        git("merge", "-q", "-s", "ours", "-m", "merge", "side")
        git("branch", "-D", "side")
        git("reflog", "expire", "--expire=now", "--all")
    elif where == "no branch":
        git("commit", "-qam", "soon gone")
        git("reset", "-q", "--hard", "HEAD~1")
    else:
        git("stash")
        if where == "older stash":
            lock.write_text(newest + "# changed\n")
            git("stash")
    assert lock.read_text() == newest
    assert referenced_by(clone) == both


@pytest.mark.parametrize("where", ["worktree", "running experiment"])
def test_gc_finds_references_in_other_working_folders(clone: Path, tmp_path: Path, where: str) -> None:
    from cache.commands.gc import referenced_by

    known, other = referenced_by(clone), clone / ".dvc/tmp/exps/tmp1234"
    if where == "worktree":
        other = tmp_path / "worktree"
        git_in(clone)("worktree", "add", "-q", "--detach", str(other))
    folder = other / "artifacts/soft_labels/en"
    shutil.copytree(clone / "artifacts/soft_labels/en", folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["producers"][0]["id"] = "f" * 64
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert referenced_by(clone) == known | {"f" * 64}


def test_gc_refuses_to_guess_what_an_experiment_refers_to(
    clone: Path, run: Run, strangers: list[str], tmp_path: Path
) -> None:
    before = left(run)
    subprocess.run(["git", "init", "-q", tmp_path / "other"], check=True)
    git_in(clone)("clone", "-q", "--depth", "1", f"file://{clone}", str(tmp_path / "shallow"))
    for place, message in (
        (tmp_path, "is not a clone whose experiments can be read"),
        (clone / "data", "is not the top folder of a clone"),
        (tmp_path / "shallow", "has not its whole history"),
        (tmp_path / "other", "has no dvc.lock in any commit"),
    ):
        done = run("cache", "gc", "--clone", str(place), "--yes")
        assert (done.code, message in done.err) == (1, True), place
    shutil.rmtree(clone / ".dvc/cache")
    done = run("cache", "gc", "--clone", str(clone), "--yes")
    assert done.code == 1
    assert "get them with: dvc fetch --all-commits" in done.err
    assert left(run) == before
    found = read_json(run, "gc", "--clone", str(clone), "--ignore-missing", "--dry-run")
    assert {victim["listed"]["producer"] for victim in found} == set(strangers)
    (clone / "dvc.lock").write_text("<<<<<<< ours\n: [")
    assert "a version of dvc.lock is not YAML" in run("cache", "gc", "--clone", str(clone)).err


@needs_proc
def test_gc_takes_nothing_of_a_clone_for_missing_that_it_cannot_read(
    clone: Path, run: Run, strangers: list[str]
) -> None:
    from cache.commands.gc import referenced_by

    known = referenced_by(clone)
    for path in clone.glob(".dvc/cache/files/md5/*/*.dir"):
        content = fail_to_read(path)
        with pytest.raises(UnreadableError, match=f"{path} cannot be read: Input/output error"):
            referenced_by(clone, ignore_missing=True)
        path.unlink()
        path.write_bytes(content)
    manifests = [
        path for path in clone.glob(".dvc/cache/files/md5/*/*") if b'"producers"' in path.read_bytes()
    ]
    logs = [path for path in clone.glob(".git/logs/**/*") if path.is_file()]
    for path in (*manifests, *logs, clone / "artifacts/soft_labels/de/manifest.json", clone / "dvc.lock"):
        content = fail_to_read(path)
        with pytest.raises(UnreadableError, match=f"{path} cannot be read: Input/output error"):
            referenced_by(clone, ignore_missing=True)
        path.unlink()
        path.write_bytes(content)
    assert manifests
    assert logs
    assert referenced_by(clone) == known
    (clone / "artifacts/soft_labels/de").chmod(0)
    done = pipeline_where_modes_hold("cache", "gc", "--clone", str(clone), "--ignore-missing", "--yes")
    (clone / "artifacts/soft_labels/de").chmod(0o755)
    assert done.returncode == 1
    assert "artifacts/soft_labels/de cannot be read: Permission denied" in done.stderr


def test_gc_leaves_what_is_used_while_its_question_is_open(
    finished: Path, strangers: list[str], run: Run
) -> None:
    (victim,) = plan(finished / "store", unused_for=timedelta(days=90), max_size=None, referenced=None)
    Store(finished / "store", producer(weights="100")).note_use(teacher="x", language="de")
    assert delete(finished / "store", victim) is False
    assert strangers[0] in left(run)


def test_gc_follows_no_link_out_of_the_store(finished: Path, strangers: list[str], tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/.notes.tmp").write_text("mine")
    (finished / "store" / strangers[0] / "damaged").symlink_to(tmp_path / "mine")
    (victim,) = plan(finished / "store", unused_for=timedelta(days=90), max_size=None, referenced=None)
    assert delete(finished / "store", victim)
    assert (tmp_path / "mine/.notes.tmp").exists()


def test_gc_keeps_what_was_used_today_where_references_decide(tmp_path: Path) -> None:
    store = Store(tmp_path, producer())
    store.append(soft_labels(texts(3)))
    assert plan(tmp_path, unused_for=None, max_size=None, referenced=set()) == []
    age(tmp_path, store.producer.id, days=2)
    assert len(plan(tmp_path, unused_for=None, max_size=None, referenced=set())) == 1
    assert plan(tmp_path, unused_for=None, max_size=None, referenced={store.producer.id}) == []


# Sharing


def test_two_clones_share_what_is_pushed_and_pulled(finished: Path, run: Run, tmp_path: Path) -> None:
    remote = str(tmp_path / "remote")
    done = run("cache", "pull", remote)
    assert (done.code, f"there are no producers in {remote}" in done.err) == (1, True)
    done = run("cache", "push", "s3:/bucket/soft")
    assert (done.code, "would be a folder on this machine; write s3://bucket/soft" in done.err) == (1, True)
    assert not Path("s3:").exists()
    assert "2 shards of 2 producers copied" in run("cache", "push", remote).out
    assert "0 shards of 2 producers copied" in run("cache", "push", remote).out
    shutil.rmtree(finished / "store")
    assert read_json(run, "pull", remote, producer_of("de")[:10]) == {
        "copied": 1,
        "present": 0,
        "damaged": [],
        "unreadable": [],
        "left_out": [],
    }
    assert "57 cached, 0 to label" in run(*LABEL).err
    assert left(run) == {producer_of("de")}


def test_damaged_shards_are_not_pushed(finished: Path, run: Run, tmp_path: Path) -> None:
    flip_a_bit(only_shard(finished / "store" / producer_of("de")))
    done = run("cache", "push", str(tmp_path / "remote"))
    assert done.code == 1
    assert "1 shard of 2 producers copied" in done.out
    assert "error: 1 damaged shard not copied" in done.err


def test_export_replaces_what_a_link_names(finished: Path, run: Run) -> None:
    Path("there.parquet").write_bytes(b"old")
    Path("soft.parquet").symlink_to("there.parquet")
    assert run("cache", "export", producer_of("de"), "soft.parquet", "--overwrite").code == 0
    assert Path("soft.parquet").is_symlink()
    assert pq.read_metadata("there.parquet").num_rows == 57


def test_export_writes_every_soft_label_once_with_its_text(finished: Path, run: Run) -> None:
    store = Store.open(finished / "store", producer_of("de"))
    ((_, shard),) = store.read(store.shards())
    store.append(shard.take(np.arange(5)))  # repeated
    done = run("cache", "export", producer_of("de"), "out/de.parquet")
    assert "57 soft labels in out/de.parquet" in done.out
    table = pq.read_table("out/de.parquet")
    assert table.num_rows == 57
    assert table.column_names == ["example_id", "logits", "language", "split", "text", "class"]
    rows = {row["text"]: row for row in table.to_pylist()}
    first = examples("de", "train")[0]
    assert rows[first["text"]]["example_id"] == example_id(first["text"])
    assert (rows[first["text"]]["class"], rows[first["text"]]["split"]) == (first["label"], "train")
    expected = shard.logits[shard.ids.to_pylist().index(example_id(first["text"]))]
    np.testing.assert_array_equal(np.array(rows[first["text"]]["logits"], np.float32), expected)
    assert json.loads(table.schema.metadata[b"classes"]) == ["animal", "colour", "number"]


def test_export_says_of_a_text_that_two_languages_have_what_its_own_language_says(
    finished: Path, run: Run
) -> None:
    for language, label in (("de", "animal"), ("en", "colour")):
        write_jsonl(Path(f"data/{language}/train.jsonl"), [{"text": "Gift", "label": label}])
    assert run("prepare").code == 0
    for language, label in (("de", "animal"), ("en", "colour")):
        assert run("teacher", "label", "--language", language).code == 0
        assert run("cache", "export", producer_of(language), f"{language}.parquet").code == 0
        rows = {row["text"]: row for row in pq.read_table(f"{language}.parquet").to_pylist()}
        assert (rows["Gift"]["language"], rows["Gift"]["class"]) == (language, label)


def test_texts_that_the_current_data_does_not_have_are_null(
    finished: Path, run: Run, strangers: list[str]
) -> None:
    done = run("cache", "export", strangers[0], "params.yaml/x.parquet")
    assert (done.code, "cannot make the folder params.yaml: File exists" in done.err) == (1, True)
    assert run("cache", "export", strangers[0], "x.parquet").code == 0
    table = pq.read_table("x.parquet")
    assert table.num_rows == table["text"].null_count == 500
    shutil.rmtree("artifacts/data")
    done = run("cache", "export", strangers[0], "x.parquet")
    assert (done.code, "x.parquet is there already; replace it with --overwrite" in done.err) == (1, True)
    assert run("cache", "export", strangers[0], "x.parquet", "--overwrite").code == 0
    assert pq.read_table("x.parquet").column_names == ["example_id", "logits"]


def test_a_store_with_damaged_shards_is_not_exported_in_part(finished: Path, run: Run) -> None:
    flip_a_bit(only_shard(finished / "store" / producer_of("de")))
    done = run("cache", "export", producer_of("de"), "de.parquet")
    assert done.code == 1
    assert f"set them aside with: python -m pipeline cache repair --store {finished / 'store'}\n" in done.err
    assert not Path("de.parquet").exists()


@pytest.mark.parametrize("format_", ["arrow", "zarr"])
def test_compact_merges_shards_and_loses_nothing(finished: Path, run: Run, format_: str) -> None:
    outputs = Outputs(hidden=True)
    store = Store(finished / "store", producer(outputs=outputs))
    for i in range(9):
        some = soft_labels([*texts(2, first=2 * i), "repeated"], outputs=outputs)
        store.append(some, format_=["arrow", "zarr"][i % 2])
    damaged = shard_files(finished / "store" / store.producer.id)[0].name
    flip_a_bit(finished / "store" / store.producer.id / damaged)
    found = read_json(run, "compact", store.producer.id, "--set", f"teacher.label.format={format_}")
    assert (found[0]["before"], found[0]["after"], found[0]["repeated"]) == (9, 2, 7)
    names = list(store.shards())
    assert damaged in names
    (merged,) = set(names) - {damaged}
    assert merged.endswith({"arrow": ".arrow", "zarr": ".zarr.zip"}[format_])
    assert store.look_up(example_ids([[*texts(18), "repeated"]])).found.sum() == 17
    again = read_json(run, "compact", store.producer.id)
    assert (again[0]["before"], again[0]["after"]) == (2, 2)


def test_compact_is_no_use_of_a_producer(finished: Path, run: Run, strangers: list[str]) -> None:
    store = Store.open(finished / "store", strangers[0])
    store.append(soft_labels(texts(40, first=500)))
    age(finished / "store", strangers[0], days=100)
    before = read_json(run, "ls")
    assert read_json(run, "compact", strangers[0])[0]["after"] == 1
    after = read_json(run, "ls")
    assert [one["last_use"] for one in after] == [one["last_use"] for one in before]
    store.append(soft_labels(texts(40, first=600)))  # which is one
    assert read_json(run, "ls")[0]["producer"] == strangers[0]


def test_gc_leaves_what_another_process_is_writing(finished: Path, run: Run, strangers: list[str]) -> None:
    folder = finished / "store" / strangers[0]
    for name, days in ((".new.tmp", 0), (".old.tmp", 3)):
        (folder / name).touch()
        then = (datetime.now(UTC) - timedelta(days=days)).timestamp()
        os.utime(folder / name, (then, then))
    assert run("cache", "gc", "--unused-for", "90d", "--yes").code == 0
    assert [path.name for path in folder.iterdir()] == [".new.tmp"]


def test_a_place_that_is_none_is_named(finished: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    done = run("cache", "ls", "--store", "a::b")
    assert (done.code, "has a double colon, which no place for a store may have" in done.err) == (1, True)
    Path("link").symlink_to("disk/that/is/not/mounted")
    monkeypatch.setenv("MBLM_TEACHER_CACHE", "link")
    done = run(*LABEL)
    assert (done.code, "link is a link to a place that is not there" in done.err) == (1, True)


def test_what_was_damaged_twice_is_listed_by_its_name(finished: Path, run: Run) -> None:
    folder = finished / "store" / producer_of("de")
    for number in ("", ".1"):
        [shard] = folder.glob("*.arrow")
        flip_a_bit(shard)
        assert f"set aside: {folder}/damaged/{shard.name}{number} (" in run("cache", "repair").out
        assert (folder / "damaged" / f"{shard.name}{number}").is_file()


def test_compact_respects_the_size_of_a_large_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from cache.commands.compact import compact

    store = Store(tmp_path, producer())
    for i in range(6):
        store.append(soft_labels(texts(50, first=50 * i)))
    size = next(iter(store.shards().values()))
    monkeypatch.setattr("cache.commands.compact._TARGET_BYTES", 2 * size)
    found = compact(tmp_path, producer().id, format_="arrow", on_bytes=lambda _: None)
    assert (found.before, found.after) == (6, 3)
    assert store.look_up(example_ids([texts(300)])).found.all()
