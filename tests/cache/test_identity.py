"""Identity: what decides a soft label is in an id, what does not is not."""

import contextlib
import hashlib
import json
import shutil
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from cache import MODEL_FILES, Outputs, Producer, ProducerError, example_id, example_ids
from cache.identity.model_files import TOKENIZER_FILES


def test_an_example_id_is_blake2b_of_the_length_prefixed_fields() -> None:
    data = b"\x05\0\0\0\0\0\0\0gr\xc3\xbcn" + b"\x01\0\0\0\0\0\0\0x"
    assert example_id("grün", "x") == hashlib.blake2b(data, digest_size=16).digest()
    assert example_id("grün", "x").hex() == "c9685dcd3f05d7d6883337c057dc5102"


def test_example_ids_tell_fields_apart_and_do_not_normalise() -> None:
    composed, decomposed = "\u00fc", "u\u0308"
    fields = [("ab", "c"), ("a", "bc"), ("abc",), ("abc", ""), ("", "abc"), ("abc ",)]
    assert len({example_id(*f) for f in [*fields, (composed,), (decomposed,)]}) == len(fields) + 2


def test_many_ids_are_those_of_each() -> None:
    ids = example_ids([["a", "b"], ["x", "y"]])
    assert ids.to_pylist() == [example_id("a", "x"), example_id("b", "y")]


@pytest.fixture
def teacher(tmp_path: Path) -> Path:
    folder = tmp_path / "teacher"
    folder.mkdir()
    (folder / "config.json").write_text('{"hidden_size": 8, "id2label": {"0": "no", "1": "yes"}}')
    weights = {"a.weight": torch.arange(6.0).reshape(2, 3), "b.weight": torch.ones(2)}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "tokenizer.json").write_text('{"model": {}}')
    (folder / "tokenizer_config.json").write_text('{"truncation_side": "right"}')
    return folder


def identify(folder: Path, **facts: Any) -> str:
    options: dict[str, Any] = {"text_fields": ["text"], "max_tokens": 32, "dtype": "float32", **facts}
    return Producer.of_teacher(folder, **options).id


def change_a_weight(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["a.weight"][1, 2] = 5.0000005
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def rename_a_weight(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["c.weight"] = weights.pop("b.weight")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def change_the_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text('{"model": {"dropout": 0.1}}')


def change_the_truncation_side(folder: Path) -> None:
    (folder / "tokenizer_config.json").write_text('{"truncation_side": "left"}')


def add_a_tokenizer_file(folder: Path) -> None:
    (folder / "added_tokens.json").write_text('{"<x>": 7}')


def swap_two_classes(folder: Path) -> None:
    (folder / "config.json").write_text('{"hidden_size": 8, "id2label": {"0": "yes", "1": "no"}}')


def add_a_class(folder: Path) -> None:
    names = {"0": "no", "1": "yes", "2": "maybe"}
    (folder / "config.json").write_text(json.dumps({"hidden_size": 8, "id2label": names}))


def change_an_activation(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"hidden_act": "relu"}))


@pytest.mark.parametrize(
    "change",
    [
        *(change_a_weight, rename_a_weight, change_the_tokenizer, change_the_truncation_side),
        *(add_a_tokenizer_file, swap_two_classes, add_a_class, change_an_activation),
    ],
)
def test_a_file_that_can_change_a_logit_changes_the_producer_id(teacher: Path, change: Any) -> None:
    before = identify(teacher)
    change(teacher)
    assert identify(teacher) != before


@pytest.mark.parametrize(
    "facts",
    [
        {"max_tokens": 31},
        {"dtype": "bfloat16"},
        {"text_fields": ["a", "b"]},
        {"text_fields": ["b", "a"]},
        {"outputs": Outputs(dtype="float16")},
        {"outputs": Outputs(top_k=1)},
        {"outputs": Outputs(hidden=True)},
    ],
    ids=str,
)
def test_how_a_teacher_is_asked_changes_the_producer_id(teacher: Path, facts: dict[str, Any]) -> None:
    others: list[dict[str, Any]] = [
        {},
        {"max_tokens": 30},
        {"text_fields": ["a", "c"]},
        {"outputs": Outputs(top_k=1, hidden=True)},
    ]
    assert identify(teacher, **facts) not in {identify(teacher, **other) for other in others}


def test_what_cannot_change_a_logit_does_not_change_the_producer_id(teacher: Path, tmp_path: Path) -> None:
    before = identify(teacher)
    moved = tmp_path / "elsewhere" / "other name"
    shutil.copytree(teacher, moved)
    config = {"id2label": {"0": "no", "1": "yes"}, "hidden_size": 8, "transformers_version": "9"}
    (moved / "config.json").write_text(json.dumps({**config, "_name_or_path": "x", "dtype": "float16"}))
    (moved / "README.md").write_text("notes")
    (moved / "optimizer.bin").write_bytes(b"1")
    (moved / "training_args.json").write_text('{"batch_size": 8, "device": "cuda"}')
    assert identify(moved) == before


def shard(folder: Path, names: tuple[str, str]) -> None:
    """Put the weights into two files, with the index that transformers reads."""
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    for weight, name in zip(weights, names, strict=True):
        save_file({weight: weights[weight]}, folder / name, metadata={"format": "pt"})
    index = {"weight_map": dict(zip(weights, names, strict=True))}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def test_the_names_and_order_of_the_files_of_a_sharded_model_do_not_change_the_producer_id(
    teacher: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(teacher, other)
    shard(teacher, ("model-1.safetensors", "model-2.safetensors"))
    shard(other, ("z.safetensors", "a.safetensors"))
    assert identify(other) == identify(teacher)


def test_only_the_weights_that_are_loaded_count(teacher: Path) -> None:
    before = identify(teacher)
    shutil.copy(teacher / "model.safetensors", teacher / "before.safetensors")
    change_a_weight(teacher)
    changed = identify(teacher)
    assert changed != before
    (teacher / "model.safetensors").rename(teacher / "kept")
    (teacher / "before.safetensors").rename(teacher / "model.safetensors")
    (teacher / "kept").rename(teacher / "before.safetensors")
    assert identify(teacher) == before


def test_where_the_index_of_a_sharded_model_puts_a_weight_matters(teacher: Path) -> None:
    shard(teacher, ("model-1.safetensors", "model-2.safetensors"))
    before = identify(teacher)
    path = teacher / "model.safetensors.index.json"
    swapped = {"a.weight": "model-2.safetensors", "b.weight": "model-1.safetensors"}
    path.write_text(json.dumps({"weight_map": swapped}))
    assert identify(teacher) != before
    for broken, message in (("{}", "names no weights"), ("[]", "no JSON object"), ("{", "is not JSON")):
        path.write_text(broken)
        with pytest.raises(ProducerError, match=message):
            identify(teacher)
    (teacher / "model-2.safetensors").unlink()
    path.write_text(json.dumps({"weight_map": swapped}))
    with pytest.raises(ProducerError, match=r"it has no .*model-2.safetensors"):
        identify(teacher)


@pytest.mark.parametrize("name", ["sentencepiece.model", "word_shape.json", "tokenizer.4.0.0.json"])
def test_every_file_that_a_tokenizer_reads_changes_the_producer_id(teacher: Path, name: str) -> None:
    config = {"truncation_side": "right", "fast_tokenizer_files": ["tokenizer.json", "tokenizer.4.0.0.json"]}
    (teacher / "tokenizer_config.json").write_text(json.dumps(config))
    before = identify(teacher)
    (teacher / name).write_text("{}")
    assert identify(teacher) != before


def test_the_producer_id_of_a_known_teacher_never_changes(teacher: Path) -> None:
    # Changing this digest makes every shared store label everything again.
    (teacher / "model.safetensors").write_bytes(b"weights")
    assert identify(teacher) == "39fdad583b892a9b69c856f868b28d0271586cd4408e99181ed53767bdf667d5"


@pytest.mark.parametrize("absent", ["config.json", "model.safetensors", "tokenizer"])
def test_a_folder_that_is_no_teacher_is_refused(teacher: Path, absent: str) -> None:
    for path in teacher.glob(f"{absent}*"):
        path.unlink()
    with pytest.raises(ProducerError, match="is not a teacher: it has no"):
        identify(teacher)


def test_a_configuration_that_is_no_json_is_refused(teacher: Path) -> None:
    (teacher / "config.json").write_text("{")
    with pytest.raises(ProducerError, match="is not JSON"):
        identify(teacher)


def test_a_configuration_without_class_names_has_the_two_default_ones(teacher: Path) -> None:
    (teacher / "config.json").write_text("{}")
    found = Producer.of_teacher(teacher, text_fields=["text"], max_tokens=8, dtype="float32")
    assert found.classes == ["LABEL_0", "LABEL_1"]


@pytest.mark.parametrize("top_k", [2, 3])
def test_keeping_as_many_logits_as_there_are_classes_or_more_is_refused(teacher: Path, top_k: int) -> None:
    with pytest.raises(ProducerError, match=f"top_k is {top_k}; 2 classes allow 1 to 1"):
        identify(teacher, outputs=Outputs(top_k=top_k))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
)
GOOD = {"outputs": ["logits"], "config": {"id2label": {"0": "a", "1": "b"}, "hidden_size": 5}}


@given(
    st.dictionaries(
        st.sampled_from(["outputs", "config", "logits_dtype", "top_k"]),
        JSON | st.just({"id2label": {"0": "a", "1": "b"}, "hidden_size": -1}) | st.just(["logits", "hidden"]),
    )
    | JSON
)
def test_facts_that_make_no_sense_are_refused_and_never_more(facts: Any) -> None:
    with contextlib.suppress(ProducerError):
        _ = Producer({**GOOD, **facts} if isinstance(facts, dict) else facts).columns


@pytest.mark.parametrize("facts", [{}, {"config": 1}, {"config": {"id2label": {"x": "y"}}}], ids=str)
def test_facts_without_class_names_are_refused(facts: dict[str, Any]) -> None:
    with pytest.raises(ProducerError, match="no class names"):
        _ = Producer(facts).classes


def test_whatever_decides_a_tokenizer_is_a_file_that_is_fetched() -> None:
    for name in TOKENIZER_FILES:
        assert any(fnmatch(name, pattern) for pattern in MODEL_FILES), name
