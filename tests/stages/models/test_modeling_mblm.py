"""The student as a model: every encoder family, routing, saving and loading."""

import json
import subprocess
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
from families import FAMILIES, LANGUAGES, B, C, K, config_of, inputs, perturbed, save_plain, student_of
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
)
from warm import warm_python

from stages.models import modeling_mblm
from stages.models.configuration_mblm import MBLMConfig
from stages.models.modeling_mblm import MBLMForSequenceClassification, _Routing


def test_every_family_is_tested() -> None:
    assert {model_type for model_type, _ in FAMILIES.values()} == set(modeling_mblm.FAMILIES)


@pytest.fixture(params=FAMILIES)
def plain(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Tensor]:
    """A tiny random classifier of a family, saved, and its logits."""
    model = save_plain(request.param, tmp_path)
    with torch.inference_mode():
        return tmp_path, model(**inputs()).logits


def test_one_branch_gives_exactly_the_logits_of_the_plain_classifier(plain: tuple[Path, Tensor]) -> None:
    folder, expected = plain
    with torch.inference_mode():
        logits = student_of(folder, n_branches=1)(**inputs()).logits
    assert torch.equal(logits, expected)


def test_every_branch_starts_as_the_plain_model(plain: tuple[Path, Tensor]) -> None:
    folder, expected = plain
    student = student_of(folder)
    with torch.inference_mode():
        for branch in range(K):
            own = student(**inputs(), language_ids=torch.full((B,), branch))
            assert torch.equal(own.logits, expected)
        mixed = student(**inputs())
    torch.testing.assert_close(mixed.logits, expected)
    assert mixed.branch_states.shape[:2] == (B, K)


def test_a_mixed_batch_gives_each_text_what_it_gets_alone(plain: tuple[Path, Tensor]) -> None:
    folder, _ = plain
    student = perturbed(student_of(folder))
    language_ids = torch.tensor([2, -1, 0, 2, -1])
    with torch.inference_mode():
        together = student(**inputs(), language_ids=language_ids).logits
        for i, language_id in enumerate(language_ids):
            n = int(inputs()["attention_mask"][i].sum())
            one = {name: value[i : i + 1, :n] for name, value in inputs().items()}
            alone = student(**one, language_ids=language_id.reshape(1)).logits
            torch.testing.assert_close(together[i], alone[0], atol=1e-5, rtol=1e-5)
    assert together.shape == (B, C)


def test_a_mixture_is_the_classifier_of_the_weighted_representations(tmp_path: Path) -> None:
    AutoModelForSequenceClassification.from_config(config_of("xlm-roberta")).save_pretrained(tmp_path)
    weights = torch.tensor([[0.2, 0.8, 0.0]] * B)
    for mixing in ("representations", "logits"):
        student = perturbed(student_of(tmp_path, mixing=mixing))
        with torch.inference_mode():
            each = student(**inputs()).branch_states
            mixed = student(
                **inputs(), language_ids=torch.full((B,), 2), mixture_weights=weights
            ).mixture_logits
            if mixing == "representations":
                expected = student.head(0.2 * each[:, 0] + 0.8 * each[:, 1])
            else:
                expected = 0.2 * student.head(each[:, 0]) + 0.8 * student.head(each[:, 1])
        torch.testing.assert_close(mixed, expected)


def test_branches_that_nobody_asked_for_are_not_computed(tmp_path: Path) -> None:
    AutoModelForSequenceClassification.from_config(config_of("bert")).save_pretrained(tmp_path)
    student = student_of(tmp_path)
    rows: dict[int, int] = {}
    layers = student.mblm.encoder.encoder.layer[-1]
    for branch, layer in enumerate(layers):
        layer.register_forward_hook(lambda _, args, __, branch=branch: rows.__setitem__(branch, len(args[0])))
    with torch.inference_mode():
        student(**inputs(), language_ids=torch.tensor([1, 1, 1, 1, 1]))
        assert rows == {1: 5}
        rows.clear()
        student(**inputs(), language_ids=torch.tensor([0, -1, 0, 2, 0]))
        assert rows == {0: 4, 1: 1, 2: 2}


def test_gradients_reach_the_trunk_and_only_the_branches_in_use(tmp_path: Path) -> None:
    AutoModelForSequenceClassification.from_config(config_of("roberta")).save_pretrained(tmp_path)
    student = student_of(tmp_path)
    labels = torch.tensor([0, 1, 2, 3, 0])
    student(**inputs(), language_ids=torch.zeros(B, dtype=torch.int64), labels=labels).loss.backward()
    trunk, branched = student.mblm.encoder.encoder.layer[0], student.mblm.encoder.encoder.layer[-1]
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in trunk.output.parameters())
    assert all(p.grad is not None for p in branched[0].parameters())
    assert all(p.grad is None for branch in (1, 2) for p in branched[branch].parameters())


def test_gradients_of_a_mixture_do_not_depend_on_how_threads_meet(tmp_path: Path) -> None:
    values = FAMILIES["roberta"][1] | {"hidden_size": 96, "num_hidden_layers": 2}
    config = AutoConfig.for_model("roberta", num_labels=C, **values)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path)
    # Many different branches, so that there are many orders in which threads may add up their gradients.
    n_branches = 8
    student = student_of(tmp_path, branch_layers=1, languages=list("abcdefgh"), n_branches=n_branches)
    perturbed(student)
    batch = {
        "input_ids": torch.randint(5, 50, (64, 16), generator=torch.Generator().manual_seed(0)),
        "mixture_weights": torch.full((64, n_branches), 1 / n_branches),
    }
    embeddings = next(student.get_input_embeddings().parameters())
    gradients = []
    torch.set_num_threads(2)
    try:
        for _ in range(10):
            logits = student(**batch).mixture_logits
            gradients.append(torch.autograd.grad(logits.square().sum(), embeddings)[0])
    finally:
        torch.set_num_threads(1)
    assert all(torch.equal(gradients[0], other) for other in gradients)


def test_gradient_checkpointing_changes_no_gradient(tmp_path: Path) -> None:
    AutoModelForSequenceClassification.from_config(config_of("xlm-roberta")).save_pretrained(tmp_path)
    gradients = []
    for checkpointing in (False, True):
        student = student_of(tmp_path).train()
        for module in student.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        if checkpointing:
            # transformers 5.23 renames it.
            enable = getattr(student, "activation_checkpointing_enable", None)
            (enable or student.gradient_checkpointing_enable)()
        student(**inputs(), labels=torch.tensor([0, 1, 2, 3, 0])).loss.backward()
        gradients.append([p.grad for p in student.parameters() if p.grad is not None])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)


def test_saving_and_loading_keeps_every_bit(plain: tuple[Path, Tensor], tmp_path: Path) -> None:
    folder, _ = plain
    student = perturbed(student_of(folder))
    student.save_pretrained(tmp_path / "student")
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "student").eval()
    language_ids = torch.tensor([0, 1, 2, -1, 0])
    with torch.inference_mode():
        before = student(**inputs(), language_ids=language_ids).logits
        assert torch.equal(loaded(**inputs(), language_ids=language_ids).logits, before)
    assert loaded.config.languages == LANGUAGES
    assert loaded.config.id2label == {0: "a", 1: "b", 2: "c", 3: "d"}


def test_a_stranger_loads_the_model_from_its_folder_alone(tmp_path: Path) -> None:
    AutoModelForSequenceClassification.from_config(config_of("xlm-roberta")).save_pretrained(
        tmp_path / "mplm"
    )
    student_of(tmp_path / "mplm").save_pretrained(tmp_path / "student")
    script = """
        from transformers import AutoModelForSequenceClassification
        from torch import ones
        model = AutoModelForSequenceClassification.from_pretrained("student", trust_remote_code=True)
        print(type(model).__module__.split(".")[0], model(input_ids=ones(2, 3).long()).logits.shape)
    """
    environment = {"PATH": "", "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf")}
    done = subprocess.run(
        [warm_python(), "-c", textwrap.dedent(script)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip() == "transformers_modules torch.Size([2, 4])", done.stderr


def test_a_family_that_does_not_fit_is_refused_with_those_that_do(tmp_path: Path) -> None:
    GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=8, n_layer=1, n_head=1)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="gpt2 model; of these: bert, camembert, deberta-v2"):
        student_of(tmp_path)


def test_a_variety_of_a_language_takes_the_languages_branch() -> None:
    config = MBLMConfig(languages=LANGUAGES, n_branches=K)
    names = ["de", "de-AT", "de_CH", "DE", " de ", "zh-Hant", "zh-hant-hk", "zh", "fr"]
    assert [config.language_id(name) for name in names] == [0, 0, 0, 0, 0, 2, 2, -1, -1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_branches": 2}, "n_branches is 2"),
        ({"branch_layers": 13}, "branch_layers is 13, but xlm-roberta has 12 layers"),
        ({"mixing": "votes"}, "mixing is 'votes'"),
    ],
)
def test_a_configuration_that_makes_no_sense_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MBLMConfig(**{"languages": LANGUAGES, "n_branches": K, **change})


def test_masks_that_layers_make_anew_are_not_taken_for_those_of_layers_before() -> None:
    """A mask that only one layer holds is freed, and the next one may stand at the same address."""
    routing = _Routing.of(torch.tensor([[True, True], [False, True], [True, False]]))
    for number in range(100):
        mask = torch.full((3, 2), number)
        expanded = routing.expand(mask)
        del mask
        assert expanded.unique().tolist() == [number]


def test_a_student_of_a_newer_version_is_refused_by_its_number(tmp_path: Path) -> None:
    config = MBLMConfig(languages=LANGUAGES, n_branches=K)
    config.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    saved = json.loads(path.read_text(encoding="utf-8"))
    assert saved["schema_version"] == 1
    path.write_text(json.dumps(saved | {"schema_version": 2, "n_branches": 99}), encoding="utf-8")
    with pytest.raises(
        ValueError, match="it is of schema version 2, and this version reads up to 1; upgrade"
    ):
        AutoConfig.from_pretrained(tmp_path)
    del saved["schema_version"]  # as version 0.1 wrote it
    path.write_text(json.dumps(saved), encoding="utf-8")
    assert AutoConfig.from_pretrained(tmp_path).schema_version == 1


@pytest.mark.parametrize("family", FAMILIES)
def test_a_student_of_a_student_with_one_branch_begins_as_it(family: str, tmp_path: Path) -> None:
    save_plain(family, tmp_path / "plain")
    one = perturbed(student_of(tmp_path / "plain", n_branches=1))
    many = MBLMForSequenceClassification.from_one_branch(
        one, languages=LANGUAGES, n_branches=K, branch_layers=2, id2label=dict(enumerate("abcd"))
    ).eval()
    with torch.inference_mode():
        expected = one(**inputs()).logits
        for language_ids in (torch.zeros(B, dtype=torch.int64), torch.full((B,), -1)):
            found = many(**inputs(), language_ids=language_ids).logits
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert many.config.id2label == dict(enumerate("abcd"))
