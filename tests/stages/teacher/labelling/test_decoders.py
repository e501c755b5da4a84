"""Teachers that read from left to right: any batch gives the class and the state that a text has alone."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from asking import logits_of, params
from numpy.typing import NDArray
from tiny import CLASSES, Run, examples, tiny_params, write_params
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedTokenizerFast,
)

from cache import Outputs, Producer
from pipeline.params import load_params
from stages.artifacts import TEACHERS
from stages.teacher.labelling.identity import producer_of
from stages.teacher.labelling.inference import Answers, Teacher

END, PAD = "</s>", "<pad>"
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {**SIZES, "num_key_value_heads": 1},
    "qwen3": {**SIZES, "num_key_value_heads": 1, "head_dim": 8},
    "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64},  # positions are learned
}
TEXTS = [
    *("Hund", "der Hund ist rot", "eins zwei drei vier", "rot" * 9, "Katze eins und Vogel zwei"),
    *(f"Hund {END}", f"eins{END}", f"Katze rot {END}{END}", f"{END} Vogel"),
    *(f"Hund {PAD}", f"{PAD} rot {PAD}{PAD}", f"zwei {PAD} drei", END, f"{PAD}{PAD}", f"eins {PAD}{END}"),
]


def save_teacher(
    folder: Path, family: str, *, side: str = "right", spare_ids: int = 7, **config: Any
) -> Path:
    """Write a random decoder, with a tokenizer that is trained here and names a padding token."""
    bpe = Tokenizer(models.BPE(byte_fallback=False))
    bpe.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(vocab_size=60, special_tokens=[END, PAD], show_progress=False)
    bpe.train_from_iterator([text.replace(END, "").replace(PAD, "") for text in TEXTS], trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token=END, pad_token=PAD, padding_side=side, model_max_length=64
    )
    torch.manual_seed(0)
    made = AutoConfig.for_model(
        family,
        vocab_size=len(tokenizer) + spare_ids,
        num_labels=4,
        initializer_range=0.5,
        bos_token_id=0,
        eos_token_id=0,
        **FAMILIES[family],
        **config,
    )
    AutoModelForSequenceClassification.from_config(made).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def one_by_one(folder: Path, some: list[str]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """What transformers alone makes of each text: the logits, and the states of the last tokens."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    logits, states = [], []
    with torch.inference_mode():
        for text in some:
            tokens = tokenizer(text, truncation=True, max_length=64, return_tensors="pt")
            logits.append(model(**tokens).logits[0])
            ids = tokens["input_ids"][0]
            pad = model.config.pad_token_id
            last = max((at for at, index in enumerate(ids.tolist()) if index != pad), default=0)
            states.append(model.base_model(**tokens).last_hidden_state[0, last])
    return torch.stack(logits).numpy(), torch.stack(states).numpy()


def require_as_alone(folder: Path, some: list[str], **changes: Any) -> list[Answers]:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    teacher = Teacher(folder, params(hidden=True, max_tokens=64, **changes))
    answers = list(teacher.answer(teacher.tokenize([some])))
    logits, states = one_by_one(folder, some)
    order = np.argsort(np.concatenate([batch.positions for batch in answers]))
    found = np.concatenate([batch.hidden for batch in answers if batch.hidden is not None])[order]
    np.testing.assert_allclose(logits_of(answers), logits, atol=1e-5)
    np.testing.assert_allclose(found, states, atol=1e-5)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    return answers


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("pad", [None, 0, 1, -1], ids=["none", "the end's", "its own", "no id"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_decoder_gives_each_text_what_it_has_alone(
    workspace: Path, family: str, pad: int | None, side: str
) -> None:
    config = {} if pad is None else {"pad_token_id": max(pad, 0)}
    folder = save_teacher(workspace / "teacher", family, side=side, **config)
    if pad == -1:  # as the first Llama's
        values = json.loads((folder / "config.json").read_text()) | {"pad_token_id": -1}
        (folder / "config.json").write_text(json.dumps(values))
    answers = require_as_alone(folder, TEXTS, batch_tokens=1000)
    assert max(len(batch.positions) for batch in answers) > 1


def test_a_decoder_whose_every_id_is_in_use_pads_with_one_that_a_batch_lacks_or_not_at_all(
    workspace: Path,
) -> None:
    folder = save_teacher(workspace / "teacher", "llama", spare_ids=0)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    pieces = [str(tokenizer.decode([index])) for index in range(len(tokenizer))]
    everything, but_one, but_two = (" ".join(pieces[n:]) for n in range(3))
    assert set(tokenizer(everything)["input_ids"]) == set(range(len(tokenizer)))
    answers = require_as_alone(folder, [everything, but_two, *TEXTS, but_one, everything], batch_tokens=512)
    n_texts = [len(batch.positions) for batch in answers]
    assert n_texts[:2] == [2, 2]  # of one length, and then with an id to spare
    assert n_texts[2] > 1


def test_one_id_pads_all_shards_of_a_decoder_that_has_one_to_spare(workspace: Path) -> None:
    teacher = Teacher(save_teacher(workspace / "teacher", "qwen3"), params(batch_tokens=40))
    seen = set()
    forward = teacher._forward

    def watch(batch: dict[str, torch.Tensor]) -> Any:
        seen.add(teacher._model.config.pad_token_id)
        return forward(batch)

    teacher._forward = watch  # type: ignore[method-assign]
    for some in (TEXTS, TEXTS[:4], TEXTS[::-1]):
        assert list(teacher.answer(teacher.tokenize([some])))
    assert len(seen) == 1  # a compiled model is compiled once


def test_a_decoders_state_is_of_the_last_token_and_no_constant(workspace: Path) -> None:
    teacher = Teacher(save_teacher(workspace / "teacher", "llama"), params(hidden=True))
    some = ["Hund rot", "Hund drei", "Hund eins zwei"]
    (answers,) = teacher.answer(teacher.tokenize([some]))
    assert answers.hidden is not None
    assert np.abs(answers.hidden[0] - answers.hidden[1]).max() > 0.1


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated")  # in torch's own modules
def test_a_compiled_decoder_says_the_same(workspace: Path) -> None:
    require_as_alone(save_teacher(workspace / "teacher", "qwen3"), TEXTS, compile=True)


def test_what_hidden_is_of_is_in_the_id_of_a_decoder_and_of_no_other(finished: Path) -> None:
    task = load_params(Path("params.yaml")).task
    folder = save_teacher(finished / "teacher", "llama")
    as_before: dict[str, Any] = {"text_fields": ["text"], "max_tokens": 48, "dtype": "float32"}
    for hidden in (False, True):
        for teacher, is_decoder in ((folder, True), (TEACHERS / "de", False)):
            found = producer_of(teacher, task, params(hidden=hidden))
            plain = Producer.of_teacher(teacher, **as_before, outputs=Outputs(hidden=hidden))
            assert (found.id == plain.id) == (not (hidden and is_decoder))
            assert found.facts.get("hidden_token") == ("last" if hidden and is_decoder else None)
            assert found.columns == plain.columns


@pytest.mark.parametrize("pad", [None, 0], ids=["none", "the end's"])
def test_a_decoder_learns_from_the_token_that_it_is_read_off(
    workspace: Path, run: Run, pad: int | None
) -> None:
    config = {} if pad is None else {"pad_token_id": pad}
    save_teacher(Path("base"), "llama", side="left", **config)
    sections = tiny_params()
    sections["teachers"]["de"]["base"] = "./base"
    sections["teacher"]["finetune"] |= {"max_tokens": 64, "subword_dropout": 0.0}
    write_params(sections)
    assert run("prepare").code == 0
    done = run("teacher", "finetune", "--language", "de")
    assert done.code == 0, done.err
    folder = TEACHERS / "de"
    assert json.loads((folder / "config.json").read_text())["pad_token_id"] == 1
    require_as_alone(folder, TEXTS, batch_tokens=1000)
    rows = examples("de", "validation")
    logits, _ = one_by_one(folder, [row["text"] for row in rows])
    right = [CLASSES[one.argmax()] == row["label"] for one, row in zip(logits, rows, strict=True)]
    assert done.out == f"teacher 'de': {np.mean(right):.1%} of 9 validation examples\n"
