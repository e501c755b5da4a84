"""What users of Hugging Face do with a classifier, they can do with the student, of whatever family it is."""

import json
import subprocess
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from families import FAMILIES, LANGUAGES, B, C, K, config_of, inputs, perturbed, save_plain, student_of
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from torch.nn import functional
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
    pipeline,
)
from warm import warm_python

from stages.models.configuration_mblm import MBLMConfig
from stages.models.modeling_mblm import MBLMForSequenceClassification, MBLMModel

MIXED = torch.tensor([2, -1, 0, 2, -1])


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def student(family: str, tmp_path: Path) -> MBLMForSequenceClassification:
    """A student of a family whose branches differ."""
    save_plain(family, tmp_path / "plain")
    return perturbed(student_of(tmp_path / "plain"))


@pytest.fixture
def roberta(tmp_path: Path) -> MBLMForSequenceClassification:
    save_plain("roberta", tmp_path / "plain")
    return perturbed(student_of(tmp_path / "plain"))


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer of 50 tokens: single characters, and what a family needs besides."""
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    vocabulary = {
        token: i for i, token in enumerate([*special, *"abcdefghijklmnopqrstuvwxyz 0123456789äöüß.,!"])
    }
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        unk_token="<unk>",
        model_max_length=30,
        model_input_names=["input_ids", "attention_mask"],
    )


def logits_of(model: Any, **changes: Any) -> Tensor:
    with torch.inference_mode():
        logits: Tensor = model(**{**inputs(), "language_ids": MIXED, **changes}).logits
    return logits


# Saving and loading


def test_a_sharded_checkpoint_keeps_every_bit(student: MBLMForSequenceClassification, tmp_path: Path) -> None:
    student.save_pretrained(tmp_path / "student", max_shard_size="10KB")
    assert len(list((tmp_path / "student").glob("*.safetensors"))) > 2
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "student").eval()
    assert torch.equal(logits_of(loaded), logits_of(student))


def test_the_base_model_loads_from_the_classifiers_folder(
    student: MBLMForSequenceClassification, tmp_path: Path
) -> None:
    student.save_pretrained(tmp_path / "student")
    base, loading = AutoModel.from_pretrained(tmp_path / "student", output_loading_info=True)
    assert isinstance(base, MBLMModel)
    assert loading["missing_keys"] == set()
    with torch.inference_mode():
        seen = base.eval()(**inputs(), language_ids=MIXED)
        assert torch.equal(student.head(seen.pooler_output), logits_of(student))
    assert seen.last_hidden_state.shape == (*inputs()["input_ids"].shape, 16)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_student_loads_in_half_precision(
    student: MBLMForSequenceClassification, dtype: torch.dtype, tmp_path: Path
) -> None:
    student.save_pretrained(tmp_path / "student")
    half = AutoModelForSequenceClassification.from_pretrained(tmp_path / "student", dtype=dtype).eval()
    assert {parameter.dtype for parameter in half.parameters()} == {dtype}
    logits = logits_of(half)
    assert logits.dtype == dtype
    torch.testing.assert_close(logits.float(), logits_of(student), atol=0.1, rtol=0.1)


def test_a_stranger_needs_the_folder_alone(tmp_path: Path) -> None:
    save_plain("xlm-roberta", tmp_path / "plain")
    student_of(tmp_path / "plain").save_pretrained(tmp_path / "student")
    script = """
        import torch
        from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification
        options = {"pretrained_model_name_or_path": "student", "trust_remote_code": True}
        config = AutoConfig.from_pretrained(**options)
        ids = torch.tensor([config.language_id("de-AT"), config.language_id("fr")])
        for kind in (AutoModel, AutoModelForSequenceClassification):
            model = kind.from_pretrained(**options)
            outputs = model(input_ids=torch.ones(2, 3).long(), language_ids=ids)
            print(type(model).__module__.split(".")[0], type(model).__name__, ids.tolist(), len(outputs[0]))
    """
    done = subprocess.run(
        [warm_python(), "-c", textwrap.dedent(script)],
        cwd=tmp_path,
        env={"PATH": "", "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.splitlines() == [
        "transformers_modules MBLMModel [0, -1] 2",
        "transformers_modules MBLMForSequenceClassification [0, -1] 2",
    ], done.stderr


# The forward pass


def test_hidden_states_and_attentions_are_those_of_the_plain_model(family: str, tmp_path: Path) -> None:
    plain = save_plain(family, tmp_path)
    plain.set_attn_implementation("eager")
    student = student_of(tmp_path, attn_implementation="eager")
    asked = {"output_hidden_states": True, "output_attentions": True}
    with torch.inference_mode():
        expected = plain(**inputs(), **asked)
        for language_ids in (torch.ones(B, dtype=torch.int64), MIXED, None):
            seen = student(**inputs(), language_ids=language_ids, **asked)
            assert len(seen.hidden_states) == len(expected.hidden_states) == 4
            assert len(seen.attentions) == len(expected.attentions) == 3
            for ours, theirs in zip(
                seen.hidden_states + seen.attentions,
                expected.hidden_states + expected.attentions,
                strict=True,
            ):
                torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
        for name in asked:  # as from_pretrained sets them
            setattr(student.config, name, True)
        assert len(student(**inputs()).hidden_states) == 4
        assert len(student(**inputs()).attentions) == 3


@pytest.mark.parametrize("branch_layers", [1, 3])
def test_hidden_states_of_a_mixed_batch_are_those_of_each_text_alone(
    family: str, branch_layers: int, tmp_path: Path
) -> None:
    save_plain(family, tmp_path)
    student = perturbed(student_of(tmp_path, branch_layers=branch_layers))
    with torch.inference_mode():
        together = student(**inputs(), language_ids=MIXED, output_hidden_states=True).hidden_states
        for i, language_id in enumerate(MIXED):
            n = int(inputs()["attention_mask"][i].sum())
            one = {name: value[i : i + 1, :n] for name, value in inputs().items()}
            alone = student(**one, language_ids=language_id.reshape(1), output_hidden_states=True)
            for ours, theirs in zip(together, alone.hidden_states, strict=True):
                torch.testing.assert_close(ours[i, :n], theirs[0], atol=1e-5, rtol=1e-5)


def test_embeddings_may_be_given_in_place_of_tokens(student: MBLMForSequenceClassification) -> None:
    embedded = student.get_input_embeddings()(inputs()["input_ids"])
    torch.testing.assert_close(
        logits_of(student, input_ids=None, inputs_embeds=embedded), logits_of(student), atol=1e-5, rtol=1e-5
    )


def test_sdpa_and_eager_attention_agree(student: MBLMForSequenceClassification, tmp_path: Path) -> None:
    student.save_pretrained(tmp_path / "student")
    eager = AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "student", attn_implementation="eager"
    ).eval()
    assert eager.mblm.encoder.config._attn_implementation == "eager"
    torch.testing.assert_close(logits_of(eager), logits_of(student), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("first", ["eager", "sdpa"])
def test_attention_can_be_changed_after_loading(
    student: MBLMForSequenceClassification, first: str, tmp_path: Path
) -> None:
    expected = logits_of(student)
    student.save_pretrained(tmp_path / "student")
    loaded = AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "student", attn_implementation="eager"
    ).eval()
    loaded.set_attn_implementation(first if loaded.mblm.encoder._supports_sdpa else "eager")
    torch.testing.assert_close(logits_of(loaded), expected, atol=1e-5, rtol=1e-5)
    loaded.set_attn_implementation("eager")
    with torch.inference_mode():
        seen = loaded(**inputs(), language_ids=MIXED, output_attentions=True)
    assert len(seen.attentions) == 3
    torch.testing.assert_close(seen.logits, expected, atol=1e-5, rtol=1e-5)


def test_a_mask_of_floats_is_a_mask(student: MBLMForSequenceClassification) -> None:
    mask = inputs()["attention_mask"].float()
    for language_ids in (MIXED, None, torch.tensor([0, 1, 2, 1, 0])):
        torch.testing.assert_close(
            logits_of(student, attention_mask=mask, language_ids=language_ids),
            logits_of(student, language_ids=language_ids),
            atol=1e-5,
            rtol=1e-5,
        )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"language_ids": torch.tensor([0, 0])}, r"language_ids has shape \(2,\) for 5 texts"),
        ({"language_ids": torch.tensor([0, 3, 0, 0, 0])}, "language_ids has 0 to 3; these are positions in"),
        ({"language_ids": torch.tensor([0, -2, 0, 0, 0])}, "or -1 for the mixture"),
        ({"input_ids": None}, "give input_ids or inputs_embeds"),
    ],
)
def test_inputs_that_make_no_sense_are_refused(
    roberta: MBLMForSequenceClassification, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        logits_of(roberta, **changes)


def test_language_ids_may_be_of_any_integer_type(roberta: MBLMForSequenceClassification) -> None:
    assert torch.equal(logits_of(roberta, language_ids=MIXED.int()), logits_of(roberta))


def test_a_student_may_run_inside_another_ones_forward_pass(
    roberta: MBLMForSequenceClassification, tmp_path: Path
) -> None:
    save_plain("bert", tmp_path / "bert")
    other = perturbed(student_of(tmp_path / "bert"))
    expected = logits_of(roberta)
    layer = roberta.mblm.encoder.encoder.layer[0]
    hook = layer.register_forward_hook(lambda *_: logits_of(other, language_ids=None) is None or None)
    assert torch.equal(logits_of(roberta), expected)
    hook.remove()


def test_a_convolution_beside_the_first_layer_is_no_part_of_a_branch(tmp_path: Path) -> None:
    values = FAMILIES["deberta-v2"][1] | {"conv_kernel_size": 3, "conv_act": "gelu"}
    config = AutoConfig.for_model("deberta-v2", num_labels=C, **values)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path)
    student = perturbed(student_of(tmp_path, branch_layers=2))
    own = logits_of(student, language_ids=torch.zeros(B, dtype=torch.int64))
    assert torch.isfinite(own).all()
    with pytest.raises(ValueError, match="branch_layers must be below 3"):
        student_of(tmp_path, branch_layers=3)


def test_the_vocabulary_can_grow(student: MBLMForSequenceClassification, tmp_path: Path) -> None:
    before = logits_of(student)
    student.resize_token_embeddings(57, mean_resizing=False)
    assert torch.equal(logits_of(student), before)
    student.save_pretrained(tmp_path / "grown")
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "grown").eval()
    assert loaded.config.vocab_size == loaded.get_input_embeddings().num_embeddings == 57
    assert torch.equal(logits_of(loaded), before)


def test_outputs_may_be_a_tuple(roberta: MBLMForSequenceClassification) -> None:
    with torch.inference_mode():
        logits, states = roberta(**inputs(), return_dict=False)
        roberta.config.return_dict = False
        again, _ = roberta(**inputs())
    assert (logits.shape, states.shape) == ((B, C), (B, K, 16))
    assert torch.equal(logits, again)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["deberta-v2", "modernbert", "xlm-roberta"])
def test_a_compiled_student_says_the_same(family: str, tmp_path: Path) -> None:
    save_plain(family, tmp_path / "plain", num_hidden_layers=2)
    student = perturbed(student_of(tmp_path / "plain", branch_layers=1, languages=["de", "en"], n_branches=2))
    torch.compiler.reset()
    compiled = torch.compile(student, backend="eager")
    mixed = torch.tensor([1, -1, 0, 1, -1])
    said, expected = (logits_of(model, language_ids=mixed) for model in (compiled, student))
    torch.testing.assert_close(said, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("language", [None, "en"])
def test_a_language_chosen_beforehand_and_the_mixture_compile_as_one_graph(
    roberta: MBLMForSequenceClassification, language: str | None
) -> None:
    torch.compiler.reset()
    expected = logits_of(roberta, language_ids=None if language is None else torch.full((B,), 1))
    roberta.set_default_language(language)
    compiled = torch.compile(roberta, backend="eager", fullgraph=True)
    torch.testing.assert_close(logits_of(compiled, language_ids=None), expected, atol=1e-5, rtol=1e-5)


# Routing by name


def test_a_default_language_serves_texts_without_one(
    roberta: MBLMForSequenceClassification, tmp_path: Path
) -> None:
    by_branch = {
        name: logits_of(roberta, language_ids=torch.full((B,), i)) for i, name in enumerate(LANGUAGES)
    }
    mixture = logits_of(roberta, language_ids=None)
    for language, expected in {
        "en-GB": by_branch["en"],
        "fr": mixture,
        "zh-Hant": by_branch["zh-Hant"],
    }.items():
        roberta.set_default_language(language)
        assert torch.equal(logits_of(roberta, language_ids=None), expected)
    roberta.save_pretrained(tmp_path / "student")
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "student").eval()
    assert torch.equal(logits_of(loaded, language_ids=None), by_branch["zh-Hant"])
    assert torch.equal(logits_of(loaded, language_ids=torch.zeros(B, dtype=torch.int64)), by_branch["de"])


def test_one_languages_part_is_a_plain_model_of_the_family(
    student: MBLMForSequenceClassification, family: str, tmp_path: Path
) -> None:
    for branch, language in enumerate(LANGUAGES):
        plain = student.to_plain(language)
        assert type(plain).__module__.startswith("transformers.models.")
        assert plain.config.id2label == student.config.id2label
        plain.save_pretrained(tmp_path / language)
        loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / language).eval()
        with torch.inference_mode():
            logits = loaded(**inputs()).logits
        torch.testing.assert_close(
            logits, logits_of(student, language_ids=torch.full((B,), branch)), atol=1e-6, rtol=1e-6
        )
    with pytest.raises(ValueError, match="'fr' has no branch; these have: de, en, zh-Hant"):
        student.to_plain("fr")


# Losses


def test_each_problem_type_has_its_loss(tmp_path: Path) -> None:
    save_plain("roberta", tmp_path)
    classes = torch.tensor([0, 1, 2, 3, 0])
    several = torch.eye(C)[classes]
    for problem_type, labels, loss in (
        ("single_label_classification", classes, functional.cross_entropy),
        ("multi_label_classification", several, functional.binary_cross_entropy_with_logits),
        ("regression", several, functional.mse_loss),
    ):
        student = student_of(tmp_path, problem_type=problem_type)
        outputs = student(**inputs(), labels=labels)
        torch.testing.assert_close(outputs.loss, loss(outputs.logits, labels))


class Rows(torch.utils.data.Dataset[dict[str, Any]]):
    """Texts as Hugging Face's Trainer wants them."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self.rows = [
            {**tokenizer("abcdefghij"[i:]), "labels": i % C, "language_ids": i % (K + 1) - 1}
            for i in range(8)
        ]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.rows[index]


def test_hugging_faces_trainer_trains_and_evaluates_it(
    student: MBLMForSequenceClassification, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    rows = Rows(tokenizer)
    before = {name: value.clone() for name, value in student.state_dict().items()}
    trainer = Trainer(
        student,
        TrainingArguments(
            str(tmp_path / "run"), max_steps=3, report_to="none", use_cpu=True, disable_tqdm=True, seed=0
        ),
        train_dataset=rows,
        eval_dataset=rows,
        processing_class=tokenizer,
    )
    trainer.train()
    prediction = trainer.predict(rows)
    assert np.asarray(prediction.predictions).shape == (8, C)
    assert "test_loss" in (prediction.metrics or {})
    changed = {name for name, value in student.state_dict().items() if not torch.equal(value, before[name])}
    for part in ("head", *(f"{layer}.{k}" for layer in (1, 2) for k in range(K))):
        assert any(part in name for name in changed), part


# Pipelines


def test_a_pipeline_classifies_texts_pairs_and_batches(
    student: MBLMForSequenceClassification, tokenizer: PreTrainedTokenizerFast
) -> None:
    classify = pipeline("text-classification", model=student, tokenizer=tokenizer, device="cpu")
    texts = ["hallo", "good morning", "x"]
    singles = [classify(text)[0] for text in texts]
    assert all(single["label"] in "abcd" for single in singles)
    batched = classify(texts, batch_size=3)
    for single, other in zip(singles, batched, strict=True):
        assert single["label"] == other["label"]
        assert single["score"] == pytest.approx(other["score"], abs=1e-5)
    every = classify({"text": "hallo", "text_pair": "welt"}, top_k=None)
    assert {one["label"] for one in every} == set("abcd")
    assert sum(one["score"] for one in every) == pytest.approx(1)


def test_a_pipeline_classifies_with_a_chosen_branch(
    roberta: MBLMForSequenceClassification, tokenizer: PreTrainedTokenizerFast
) -> None:
    roberta.set_default_language("en")
    classify = pipeline("text-classification", model=roberta, tokenizer=tokenizer, device="cpu")
    scores = {one["label"]: one["score"] for one in classify("hallo", top_k=None)}
    with torch.inference_mode():
        batch = tokenizer("hallo", return_tensors="pt")
        logits = roberta(**batch, language_ids=torch.tensor([1])).logits
    torch.testing.assert_close(torch.tensor([scores[c] for c in "abcd"]), logits.softmax(-1)[0])


def test_the_configuration_survives_json(roberta: MBLMForSequenceClassification, tmp_path: Path) -> None:
    roberta.config.save_pretrained(tmp_path / "config")
    loaded = AutoConfig.from_pretrained(tmp_path / "config")
    assert isinstance(loaded, MBLMConfig)
    assert loaded.to_dict() | {"_name_or_path": ""} == roberta.config.to_dict()
    assert json.loads((tmp_path / "config/config.json").read_text())["mplm_config"]["model_type"] == "roberta"
    assert (loaded.hidden_size, loaded.vocab_size, loaded.num_hidden_layers) == (16, 50, 3)
    assert config_of("roberta").num_hidden_layers == 3
