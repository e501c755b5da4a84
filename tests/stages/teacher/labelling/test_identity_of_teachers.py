"""What is not in a teacher's files and decides its answers all the same is in its id, or pinned."""

import hashlib
import importlib
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from asking import logits_of, one_by_one, params, texts
from safetensors.torch import load_file, save_file
from tiny import LABEL, Run
from transformers import AutoConfig, AutoModelForSequenceClassification, BertTokenizer, PreTrainedModel

from cache import Producer, ProducerError, canonical_json
from pipeline.params import load_params
from stages.artifacts import TEACHERS
from stages.errors import StageError
from stages.teacher.labelling.identity import PROBE, producer_of
from stages.teacher.labelling.inference import Teacher

FOLDER = TEACHERS / "de"
# PEFT's own use of what transformers has renamed.
PEFT_WARNS = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def identify(folder: Path) -> Producer:
    return producer_of(folder, load_params(Path("params.yaml")).task, params())


def plain(folder: Path) -> Producer:
    """As teachers were always identified."""
    label = params()
    return Producer.of_teacher(
        folder, text_fields=["text"], max_tokens=label.max_tokens, dtype=label.precision
    )


def bert(folder: Path, **tokenizer: Any) -> Path:
    """Write a tiny BERT with a vocabulary and no ``tokenizer.json``."""
    config = AutoConfig.for_model(
        *("bert",), vocab_size=60, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, num_labels=3
    )
    config.intermediate_size = 24
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *LETTERS, *(f"##{one}" for one in LETTERS)]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    return folder


def install_segmenter(path: Path, *, cut: int) -> None:
    """Install what BertJapaneseTokenizer asks how to cut words, with one dictionary or another."""
    (path / "fugashi.py").write_text(
        "class Word:\n    def __init__(self, surface): self.surface = surface\n"
        "class GenericTagger:\n    def __init__(self, options): pass\n"
        "    def __call__(self, text):\n"
        f"        return [Word(text[i:i + {cut}]) for i in range(0, len(text), {cut})]\n"
    )
    (path / "unidic_lite").mkdir(exist_ok=True)
    (path / "unidic_lite/__init__.py").write_text(f"DICDIR = {str(path)!r}\n")
    (path / "mecabrc").touch()
    for name in ("fugashi", "unidic_lite"):
        sys.modules.pop(name, None)
    shutil.rmtree(path / "__pycache__", ignore_errors=True)
    importlib.invalidate_caches()


@pytest.mark.parametrize("with_json", [False, True])
def test_a_segmenter_that_cuts_in_other_ways_gives_another_id(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, with_json: bool
) -> None:
    monkeypatch.syspath_prepend(workspace)
    folder = bert(
        workspace / "teacher",
        tokenizer_class="BertJapaneseTokenizer",
        word_tokenizer_type="mecab",
        mecab_kwargs={"mecab_dic": "unidic_lite"},
        subword_tokenizer_type="wordpiece",
    )
    if with_json:  # which this tokenizer does not read
        (folder / "tokenizer.json").write_text('{"added_tokens": []}')
    ids = []
    for cut in (2, 3, 2):
        install_segmenter(workspace, cut=cut)
        ids.append(identify(folder).id)
    assert ids[0] != ids[1]
    assert ids[0] == ids[2]


def test_a_tokenizer_that_is_converted_when_it_is_loaded_is_identified_by_what_it_makes_of_texts(
    workspace: Path,
) -> None:
    folder = bert(workspace / "teacher", tokenizer_class="BertTokenizer")
    tokenizer = BertTokenizer.from_pretrained(folder)
    made = [tokenizer(text)["input_ids"] for text in PROBE]
    digest = hashlib.sha256(canonical_json(made)).hexdigest()
    assert identify(folder) == plain(folder).with_facts({"probed_tokens": digest})
    tokenizer.save_pretrained(folder)
    assert (folder / "tokenizer.json").is_file()
    assert identify(folder) == plain(folder)


def test_ordinary_teachers_have_the_id_that_they_always_had(finished: Path) -> None:
    assert identify(FOLDER) == plain(FOLDER)
    config = FOLDER / "tokenizer_config.json"
    for name in ("RobertaTokenizer", "RobertaTokenizerFast", "PreTrainedTokenizerFast", None):
        config.write_text(json.dumps(json.loads(config.read_text()) | {"tokenizer_class": name}))
        assert identify(FOLDER) == plain(FOLDER)


def test_the_probe_is_what_it_was() -> None:
    digest = hashlib.sha256(canonical_json(list(PROBE))).hexdigest()
    assert digest == "f96a28df270182fbe87a537dc04fb9c2230d72f348f664c1a720e7639d7ae374"


def add_adapter(folder: Path, *, seed: int) -> None:
    """Write a LoRA adapter into a teacher's folder, as PEFT saves it."""
    peft = pytest.importorskip("peft", reason="PEFT is not installed: pip install -e '.[peft]'")
    for path in folder.glob("adapter_*"):
        path.unlink()
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    torch.manual_seed(seed)
    lora = peft.LoraConfig(
        task_type="SEQ_CLS", r=2, target_modules=["query", "value"], modules_to_save=["classifier"]
    )
    adapted = peft.get_peft_model(model, lora)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    adapted.save_pretrained(folder)


def invent_adapter(folder: Path, *, seed: int = 0, **config: Any) -> None:
    """Write files such as PEFT's, which nobody loads."""
    generator = torch.Generator().manual_seed(seed)
    save_file({"lora": torch.randn(2, 3, generator=generator)}, folder / "adapter_model.safetensors")
    values = {"peft_type": "LORA", "r": 2, "base_model_name_or_path": "somewhere", **config}
    (folder / "adapter_config.json").write_text(json.dumps(values))


def test_another_adapter_gives_another_id(finished: Path) -> None:
    found = [identify(FOLDER).id]
    for adapter in ({}, {"seed": 1}, {"r": 3}):
        invent_adapter(FOLDER, **adapter)
        found.append(identify(FOLDER).id)
    assert len(set(found)) == 4
    invent_adapter(FOLDER, base_model_name_or_path="elsewhere", peft_version="9", inference_mode=True)
    assert identify(FOLDER).id == found[1]  # nothing of that changes a logit
    (FOLDER / "adapter_model.safetensors").rename(FOLDER / "adapter_model.bin")
    with pytest.raises(ProducerError, match=r"an adapter, but its weights are not in adapter_model.safet"):
        identify(FOLDER)


def test_a_teacher_with_an_adapter_is_refused_where_peft_is_not_installed(
    finished: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    invent_adapter(FOLDER)
    monkeypatch.setattr("stages.teacher.labelling.inference.is_peft_available", lambda: False)
    done = run(*LABEL)
    assert done.code == 1
    assert "de has an adapter, which needs PEFT; install it with: pip install -c constraints.txt" in done.err


@PEFT_WARNS
def test_a_teachers_adapter_is_loaded(finished: Path) -> None:
    some = texts(9)
    before = one_by_one(some)
    add_adapter(FOLDER, seed=0)
    first = identify(FOLDER).id
    teacher = Teacher(FOLDER, params())
    found = logits_of(list(teacher.answer(teacher.tokenize([some]))))
    assert np.abs(found - before).max() > 1e-3
    np.testing.assert_allclose(found, one_by_one(some), atol=1e-5)
    add_adapter(FOLDER, seed=1)
    assert identify(FOLDER).id != first


@PEFT_WARNS
def test_an_adapter_beside_a_model_without_a_classifier_is_refused(finished: Path) -> None:
    add_adapter(FOLDER, seed=0)
    path = FOLDER / "model.safetensors"
    encoder = {name: value for name, value in load_file(path).items() if not name.startswith("classifier")}
    save_file(encoder, path, metadata={"format": "pt"})
    Teacher(FOLDER, params())  # the adapter holds a classifier
    path = FOLDER / "adapter_model.safetensors"
    lora = {name: value for name, value in load_file(path).items() if "classifier" not in name}
    save_file(lora, path, metadata={"format": "pt"})
    with pytest.raises(StageError, match=r"no weights for .*classifier"):
        Teacher(FOLDER, params())


@pytest.mark.parametrize("asked_for", [None, "eager", "sdpa"])
def test_attention_does_not_change_with_what_transformers_prefers(
    finished: Path, monkeypatch: pytest.MonkeyPatch, asked_for: str | None
) -> None:
    if asked_for:
        config = FOLDER / "config.json"
        before = identify(FOLDER).id
        config.write_text(json.dumps(json.loads(config.read_text()) | {"attn_implementation": asked_for}))
        assert identify(FOLDER).id != before
    prefer = PreTrainedModel.get_correct_attn_implementation

    def prefer_eager(self: Any, requested: str | None, *options: Any) -> str:
        return prefer(self, requested or "eager", *options)

    monkeypatch.setattr(PreTrainedModel, "get_correct_attn_implementation", prefer_eager)
    assert Teacher(FOLDER, params())._model.config._attn_implementation == (asked_for or "sdpa")


def test_a_model_that_knows_one_attention_only_has_it(workspace: Path) -> None:
    folder = workspace / "teacher"
    config = AutoConfig.for_model("fnet", vocab_size=60, hidden_size=16, num_hidden_layers=1, num_labels=3)
    config.intermediate_size, config.type_vocab_size = 24, 2
    bert(folder, tokenizer_class="BertTokenizer")
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    teacher = Teacher(folder, params())
    assert teacher._model.config._attn_implementation == "eager"
    assert list(teacher.answer(teacher.tokenize([["abc", "de"]])))
