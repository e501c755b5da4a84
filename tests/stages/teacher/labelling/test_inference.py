"""The teacher's loop: batches, padding, memory that runs out, and the same logits whatever the batches."""

import json
import resource
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from asking import FOLDER, logits_of, one_by_one, params, texts
from processes import fork
from transformers import AutoTokenizer

from stages.errors import StageError
from stages.teacher.labelling.inference import Answers, Teacher


@pytest.mark.parametrize("budget", [1, 64, 100_000])
def test_every_text_is_answered_once_with_the_logits_it_has_alone(finished: Path, budget: int) -> None:
    some = texts(50)
    teacher = Teacher(FOLDER, params(batch_tokens=budget))
    answers = list(teacher.answer(teacher.tokenize([some])))
    assert sorted(np.concatenate([batch.positions for batch in answers]).tolist()) == list(range(50))
    np.testing.assert_allclose(logits_of(answers), one_by_one(some), atol=1e-5)
    for batch in answers:
        assert batch.cells <= budget or len(batch.positions) == 1
        assert batch.cells >= batch.tokens > 0


def test_pairs(finished: Path) -> None:
    some = texts(20)
    teacher = Teacher(FOLDER, params(hidden=True))
    answers = list(teacher.answer(teacher.tokenize([some, some[::-1]])))
    np.testing.assert_allclose(logits_of(answers), one_by_one(some, some[::-1]), atol=1e-5)
    for batch in answers:
        assert batch.hidden is not None
        assert batch.hidden.shape == (len(batch.positions), 16)


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_batch_is_what_the_tokenizer_makes_of_it(finished: Path, side: str) -> None:
    config = FOLDER / "tokenizer_config.json"
    names = ["input_ids", "token_type_ids", "attention_mask"]
    changes = {"padding_side": side, "model_input_names": names, "pad_token_type_id": 3}
    config.write_text(json.dumps(json.loads(config.read_text()) | changes))
    some = texts(20)
    teacher = Teacher(FOLDER, params(batch_tokens=256))
    seen: list[dict[str, torch.Tensor]] = []
    teacher._forward = lambda batch: seen.append(batch) or (torch.zeros(len(batch["input_ids"]), 3), None)  # type: ignore[method-assign, func-returns-value]
    answers = list(teacher.answer(teacher.tokenize([some, some[::-1]])))
    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    for batch, answer in zip(seen, answers, strict=True):
        pairs = [(some[i], some[::-1][i]) for i in answer.positions]
        wanted = tokenizer(pairs, padding=True, truncation=True, max_length=48, return_tensors="pt")
        assert set(batch) == set(wanted) == set(names)
        assert all(torch.equal(batch[name], wanted[name]) for name in names)


def test_a_tokenizer_of_another_model_is_refused(finished: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    tokenizer.add_tokens(["Hund"])
    tokenizer.save_pretrained(FOLDER)
    with pytest.raises(StageError, match=r"de has a tokenizer of .* take weights and tokenizer"):
        Teacher(FOLDER, params())


def test_little_of_a_batch_is_padding(finished: Path) -> None:
    teacher = Teacher(FOLDER, params(batch_tokens=8192))
    lengths = np.random.default_rng(0).lognormal(3, 0.7, 2000).clip(5, 120).astype(int)
    answers = list(teacher.answer(teacher.tokenize([["Hund " * int(n) for n in lengths]])))
    cells, tokens = (sum(getattr(batch, what) for batch in answers) for what in ("cells", "tokens"))
    assert 1 <= cells / tokens <= 1.03


def test_texts_can_be_left_out_after_they_are_tokens(finished: Path) -> None:
    some = texts(30)
    kept = np.arange(30) % 3 == 1
    teacher = Teacher(FOLDER, params(batch_tokens=128))
    answers = list(teacher.answer(teacher.tokenize([some]).keep(kept)))
    assert sorted(np.concatenate([batch.positions for batch in answers])) == np.flatnonzero(kept).tolist()
    np.testing.assert_allclose(logits_of(answers), one_by_one(some)[kept], atol=1e-5)


def label_in_little_memory(folder: Path, out: Path, n_tokens: int) -> None:
    """Answer texts of the same length with memory for some of them only, and write down what was said."""
    sys.stderr = (out / "said").open("w", buffering=1)  # what processes are forked from has its own
    some = ["Hund " * 45] * 4096
    teacher = Teacher(folder, params(batch_tokens=n_tokens))
    tokens = teacher.tokenize([some])
    list(teacher.answer(teacher.tokenize([some[:8]])))  # what is loaded at first use
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (64 << 20),) * 2)
    answers = list(teacher.answer(tokens))
    np.save(out / "sizes.npy", np.array([len(batch.positions) for batch in answers]))


def test_memory_that_runs_out_makes_batches_smaller_and_is_told(finished: Path) -> None:
    run = fork(label_in_little_memory, finished / FOLDER, finished, 4096 * 48)
    run.join()
    err = (finished / "said").read_text()
    assert run.exitcode == 0, err
    sizes = np.load(finished / "sizes.npy")
    assert sizes.sum() == 4096
    assert sizes.max() <= 2048
    assert "out of memory with 4096 texts of 48 tokens at once; going on with 98304 tokens at once" in err
    assert "(teacher.label.batch_tokens is 196608)" in err


def test_a_single_text_without_memory_ends_with_what_to_change(finished: Path) -> None:
    teacher = Teacher(FOLDER, params(batch_tokens=1))
    message = "no memory for a single text of 48 tokens; lower teacher.label.max_tokens"

    def no_memory(*_: Any, **__: Any) -> None:
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate")

    teacher._model.forward = no_memory  # the machine has too much for a real one
    with pytest.raises(StageError, match=message):
        list(teacher.answer(teacher.tokenize([["Hund " * 60]])))


OUT_OF_MEMORY = {
    "the device": RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    "its driver": RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be reported later"),
    "its library": RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    "NumPy": MemoryError("Unable to allocate 2.00 GiB"),
}


@pytest.mark.parametrize("n_ahead", [0, 1])
@pytest.mark.parametrize("what", OUT_OF_MEMORY)
@pytest.mark.parametrize("failing", [{0}, {2}, {1, 2, 4}, {10**6}], ids=str)
def test_memory_that_runs_out_when_results_are_fetched_loses_no_text(
    finished: Path, monkeypatch: pytest.MonkeyPatch, failing: set[int], what: str, n_ahead: int
) -> None:
    some = ["Hund " * 8] * 40
    teacher = Teacher(FOLDER, params(batch_tokens=240))
    monkeypatch.setattr(teacher, "_n_ahead", n_ahead, raising=False)
    tokens = teacher.tokenize([some])
    fetch, n_fetched = teacher._answers, 0
    n_batches = len(list(teacher.answer(tokens)))
    failing = {min(call, n_batches - 1) for call in failing}  # the last one, too

    def fetch_or_fail(*batch: Any) -> Answers:
        nonlocal n_fetched
        n_fetched += 1
        if n_fetched - 1 in failing:
            raise OUT_OF_MEMORY[what]
        return fetch(*batch)

    monkeypatch.setattr(teacher, "_answers", fetch_or_fail)
    answers = list(teacher.answer(tokens))
    told = [batch.positions.tolist() for batch in answers]
    assert [position for batch in told for position in batch] == tokens.positions.tolist()  # in order
    assert max(map(len, told[max(failing) :])) < len(told[0]) or failing == {0}
    np.testing.assert_allclose(logits_of(answers), one_by_one(some), atol=1e-5)


def test_a_single_text_is_not_given_up_while_another_has_the_memory(
    finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    some = texts(6)
    teacher = Teacher(FOLDER, params(batch_tokens=1))
    monkeypatch.setattr(teacher, "_n_ahead", 1, raising=False)
    forward, fetch, n_there = teacher._forward, teacher._answers, 0

    def forward_one(batch: dict[str, torch.Tensor]) -> Any:
        nonlocal n_there
        if n_there:
            raise OUT_OF_MEMORY["the device"]
        n_there += 1
        return forward(batch)

    def fetch_one(*batch: Any) -> Answers:
        nonlocal n_there
        n_there -= 1
        return fetch(*batch)

    monkeypatch.setattr(teacher, "_forward", forward_one)
    monkeypatch.setattr(teacher, "_answers", fetch_one)
    answers = list(teacher.answer(teacher.tokenize([some])))
    np.testing.assert_allclose(logits_of(answers), one_by_one(some), atol=1e-5)


def test_what_is_computed_is_given_before_another_error_ends_it(
    finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = Teacher(FOLDER, params(batch_tokens=1))
    monkeypatch.setattr(teacher, "_n_ahead", 1, raising=False)
    forward, n_begun, answers = teacher._forward, 0, list[Answers]()

    def broken(batch: dict[str, torch.Tensor]) -> Any:
        nonlocal n_begun
        n_begun += 1
        if n_begun == 4:
            raise RuntimeError("the device has fallen off the bus")
        return forward(batch)

    monkeypatch.setattr(teacher, "_forward", broken)
    with pytest.raises(RuntimeError, match="fallen off the bus"):
        answers.extend(teacher.answer(teacher.tokenize([texts(9)])))
    assert len(answers) == 3


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-4), ("bfloat16", 0.05)])
def test_a_gpu_says_the_same(finished: Path, precision: str, tolerance: float) -> None:
    some = texts(500)
    teacher = Teacher(FOLDER, params(batch_tokens=256, precision=precision))
    found = logits_of(list(teacher.answer(teacher.tokenize([some]))))
    np.testing.assert_allclose(found, one_by_one(some), atol=tolerance)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated")  # in torch's own modules
def test_a_compiled_teacher_says_the_same(finished: Path) -> None:
    some = texts(30)
    plain, compiled = (Teacher(FOLDER, params(compile=on, hidden=True)) for on in (False, True))
    one, other = (list(t.answer(t.tokenize([some]))) for t in (plain, compiled))
    np.testing.assert_allclose(logits_of(one), logits_of(other), atol=1e-5)
    for a, b in zip(one, other, strict=True):
        assert a.hidden is not None
        assert b.hidden is not None
        np.testing.assert_allclose(a.hidden, b.hidden, atol=1e-5)
