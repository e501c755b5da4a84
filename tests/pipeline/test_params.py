"""params.yaml: what is wrong in it is named with its key, its value and what is allowed."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML
from tiny import ROOT

from pipeline.params import ParamsError, load_params

PARAMS = ROOT / "params.yaml"


def message_of(*changes: str) -> str:
    with pytest.raises(ParamsError) as caught:
        load_params(PARAMS, changes)
    text = str(caught.value)
    assert "\n" not in text
    return text.removeprefix(f"{PARAMS}: ")


def test_a_change_leaves_alone_what_an_alias_shares(workspace: Path) -> None:
    text = Path("params.yaml").read_text()
    Path("params.yaml").write_text(text.replace("de: {base: scratch", "de: &one {base: scratch", 1))
    values = YAML(typ="safe").load(Path("params.yaml"))
    values["teachers"]["en"] = values["teachers"]["de"]  # which is written as an alias
    YAML(typ="safe").dump(values, Path("params.yaml"))
    assert "*" in Path("params.yaml").read_text()
    loaded = load_params(Path("params.yaml"), ["teachers.de.base=org/german"])
    assert (loaded.teachers["de"].base, loaded.teachers["en"].base) == ("org/german", "scratch")


@pytest.mark.parametrize("path", [PARAMS, *(ROOT / "recipes").glob("*.yaml")], ids=lambda path: path.name)
def test_every_committed_params_file_is_valid(path: Path) -> None:
    assert load_params(path).task.supervised


def test_an_unknown_key_gets_the_nearest_known_one() -> None:
    expected = "student.distill.temperatur is not a parameter; did you mean temperature?"
    assert message_of("student.distill.temperatur=3") == expected
    assert "did you mean merges?" in message_of("teacher.finetune.scratch.merge=3")
    assert "did you mean base?" in message_of("teachers.de.bas=x")
    assert "did you mean student?" in message_of("studnt.x=1")
    assert "did you mean max_examples?" in message_of("task.max_exampels=1")
    assert "there are: aligned" in (said := message_of("task.source={kind: hub, dataset: d, pattern: p}"))
    assert "did you mean" not in said


def test_an_unknown_key_that_resembles_nothing_gets_the_list() -> None:
    assert message_of("cache.zzz=3") == "cache.zzz is not a parameter; there are: root"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("student.distill.temperature=-1", "temperature is -1: input should be greater than 0"),
        ("student.distill.temperature=hot", "temperature is 'hot': input should be a valid number"),
        ("student.pretrain.revision=2026-09-31", "2026-09-31 is not a YAML value"),
        ("launch=' '", "launch is ' ': string should match pattern"),
        (
            'launch="torchrun \'x"',
            "torchrun 'x is no command (No closing quotation); quote its words as in a shell",
        ),
        ("student.distill.freeze=all", "freeze is 'all': input should be a valid integer, or 'embeddings'"),
        ("teacher.finetune.lora=3", "lora is 3: input should be a section or mapping"),
        ("student.distill.variant=best", "'finetune', 'pseudo', 'distill', 'branches' or 'mblm'"),
        ("student.distill.mixture.loss_weight=1.5", "loss_weight is 1.5: input should be less than or equal"),
        (
            "student.distill.hidden_weight=-1",
            "hidden_weight is -1: input should be greater than or equal to 0",
        ),
        (
            "student.distill.sampling_temperature=0.5",
            "sampling_temperature is 0.5: input should be greater than",
        ),
        (
            "student.distill.mixture.weights=best",
            "student.distill.mixture.weights: 'best' is none of uniform, dirichlet, or a mapping from lang",
        ),
        ("student.distill.mixture.weights={de: -1}", "weights: {'de': -1} is none of uniform"),
        ("student.distill.mixture.weights={de: true}", "weights: {'de': True} is none of uniform"),
        ("student.distill.mixture.weights={}", "weights: {} is none of uniform"),
        (
            "student.distill.mixture.weights={de: 1, en: 2, fr: 3}",
            "'fr': 3.0}; it needs one weight for each of task.supervised: de, en, ru, zh",
        ),
        (
            "student.distill.mixture.weights={de: 1, en: 0, ru: 0, zh: 0}",
            "at least 2 of them must be above 0 where own_branch is false",
        ),
        (
            "student.distill.class_weights=even",
            "student.distill.class_weights: 'even' is none of null, balanced, or a mapping from classes",
        ),
        ("student.distill.class_weights={a: 0}", "class_weights: {'a': 0} is none of null"),
        ("student.distill.class_weights={a: .inf}", "class_weights: {'a': inf} is none of null"),
        (
            "student.distill.class_weights={unit: 2}",
            "class_weights is {'unit': 2.0}; it needs one weight for each of task.classes: currency, ",
        ),
        ("teacher.finetune.batch_size=3.5", "batch_size is 3.5: input should be a valid integer"),
        ("task.max_examples='9'", "max_examples is '9': input should be a valid integer"),
        ("task.source={kind: sql}", "task.source.kind is 'sql'; there are: names, hub, files"),
        ("task.source={pattern: a}", "task.source.kind is missing"),
        ("task.source={kind: files, path: a}", "text_fields (and 1 other error)"),
        ("task.source={kind: files, pattern: data/a, label_field: b}", "pattern needs {split} in it"),
        (
            "task.source={kind: files, pattern: 'data/{split}'}",
            "pattern needs {language} in it; or name the",
        ),
        ("task.classes=[1, 2]", "task.classes.0 is 1: input should be a valid string; put quotes around it"),
        (
            "task.classes=[no, true]",
            "task.classes.1 is True: input should be a valid string; put quotes around it",
        ),
        ("task.classes=[2024-01-05, b]", "a valid string; put quotes around it as it stands in the file"),
        (
            "task.source={kind: files, pattern: 'data/{language}/{split}.csv', splits: {test: ../test}}",
            "splits.test is ../test, which leaves its folder",
        ),
        (
            "task.source={kind: files, pattern: 'data/{language}/{split}.csv', text_fields: [label]}",
            "source.text_fields has label, the column with the label",
        ),
        ("task.source={kind: files, pattern: '{language}{split}', label_field: b}", "must begin with data/"),
        ("task.source={kind: files, pattern: 'data/../{language}/{split}.csv'}", "and stay in it; link"),
        ("teachers.de={soft_labels: {file: data/../soft.jsonl}}", "and stay in it; link"),
        ("student.pretrain.vocabulary={texts: /texts/*.txt}", "must begin with data/"),
        ("task.text_fields=[label]", "no text field may be called label"),
        ("task.text_fields=[language]", "no text field may be called language"),
        ("task.text_fields=[top_logits]", "no text field may be called top_logits"),
        ("teacher.finetune.scratch.heads=3", "hidden is 128, which is no multiple of heads, 3"),
        ("student.distill.temperature=.inf", "temperature is inf: input should be a finite number"),
        ("task.zero_shot=[de]", "language 'de' is named twice"),
        ("task.supervised=[de, sv]", "'sv', which has no teacher; add teachers.sv with a base"),
        (
            "teacher.finetune.scratch=null",
            "teachers.de.base is scratch, which needs teacher.finetune.scratch",
        ),
        ("cache=1", "cache is 1"),
    ],
)
def test_a_wrong_value_is_named_with_what_is_allowed(change: str, message: str) -> None:
    assert message in message_of(change)


ENDPOINT = "{url: 'http://a/v1', shape: chat-logprobs, model: m, template: data/p.txt}"


@pytest.mark.parametrize(
    ("endpoint", "message"),
    [
        (ENDPOINT.replace("//a/", "//a:b/"), "url: Port could not be cast to integer"),
        (ENDPOINT.replace("//a/", "//a:99999/"), "url: Port out of range 0-65535"),
        (ENDPOINT.replace("//a/", "//a..b/"), "url: "),
        (ENDPOINT.replace("}", ", extra: {seed: 2026-01-01}}"), "extra: it holds what JSON has not (Object"),
        (ENDPOINT.replace("}", ", extra: {seed: .nan}}"), "extra: it holds what JSON has not (Out of range"),
    ],
)
def test_an_endpoint_that_cannot_be_asked_is_refused(endpoint: str, message: str) -> None:
    changes = [f"teachers.de={{endpoint: {endpoint}}}"]
    with pytest.raises(ParamsError) as refusal:
        load_params(PARAMS, changes)
    assert f"teachers.de.endpoint.{message}" in str(refusal.value)


def test_a_text_field_that_a_prompt_cannot_name_is_refused() -> None:
    changes = [f"teachers.de={{endpoint: {ENDPOINT}, revision: a}}", "task.text_fields=[classes]"]
    with pytest.raises(ParamsError, match="give the text field classes another name"):
        load_params(PARAMS, changes)


def test_a_section_whose_lines_are_all_comments_has_defaults(tmp_path: Path) -> None:
    path = written({**MINIMAL, "cache": None}, tmp_path)
    assert load_params(path).cache.root is None
    assert load_params(path, ["cache.root=x"]).cache.root == "x"
    assert load_params(path, ["launch=null"]).launch is None  # a value, and no section


MINIMAL: dict[str, Any] = {
    "task": {"source": {"kind": "names"}, "classes": ["a", "b"], "supervised": ["de"]},
    "teachers": {"de": {"base": "./teacher"}},
    "student": {"pretrain": {"base": "./encoder"}},
}


def written(values: dict[str, Any], tmp_path: Path) -> Path:
    path = tmp_path / "params.yaml"
    with path.open("w", encoding="utf-8") as file:
        YAML(typ="safe").dump(values, file)
    return path


def test_what_is_trained_on_what_must_be_said_and_all_else_has_a_default(tmp_path: Path) -> None:
    params = load_params(written(MINIMAL, tmp_path))
    assert (params.student.distill.variant, params.teachers["de"].folds) == ("mblm", 1)
    for section, keys in {"task": ("source", "classes", "supervised"), "student": ("pretrain",)}.items():
        for key in keys:
            lacking = deepcopy(MINIMAL)
            del lacking[section][key]
            with pytest.raises(ParamsError, match=rf"{section}.{key} is missing$"):
                load_params(written(lacking, tmp_path))


def test_a_renamed_key_works_with_one_line_of_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = deepcopy(MINIMAL) | {"ablation": {"softness": 4.0}}
    path = written(values, tmp_path)
    renamed = {"ablation.softness": "student.distill.temperature"}
    assert load_params(path, renamed=renamed).student.distill.temperature == 4.0
    warning = f"warning: {path}: ablation.softness is called student.distill.temperature now; the old name "
    assert capsys.readouterr().err.startswith(warning)
    assert load_params(path, ["ablation.softness=5.0"], renamed=renamed).student.distill.temperature == 5.0
    with pytest.raises(ParamsError, match=r"and both are there; delete ablation\.softness"):
        load_params(path, ["student.distill.temperature=3"], renamed=renamed)
    with pytest.raises(ParamsError, match=r"ablation\.softness is not a parameter"):
        load_params(path)


def test_changes_are_yaml_values_at_dotted_keys() -> None:
    params = load_params(PARAMS, ["student.distill.temperature=4", "task.supervised=[en, de]"])
    assert params.student.distill.temperature == 4.0
    assert params.task.supervised == ["en", "de"]


def test_weights_may_be_given_by_name() -> None:
    weights = "{de: 0, en: 0.5, ru: 1, zh: 2}"
    distill = load_params(PARAMS, [f"student.distill.mixture.weights={weights}"]).student.distill
    assert distill.mixture.weights == {"de": 0.0, "en": 0.5, "ru": 1.0, "zh": 2.0}
    classes = load_params(PARAMS).task.classes
    change = f"student.distill.class_weights={{{', '.join(f'{name}: 2' for name in classes)}}}"
    assert load_params(PARAMS, [change]).student.distill.class_weights == dict.fromkeys(classes, 2.0)


def test_a_single_weight_is_enough_where_the_own_branch_is_mixed_too() -> None:
    changes = ["student.distill.mixture.weights={de: 1, en: 0, ru: 0, zh: 0}"]
    assert load_params(PARAMS, [*changes, "student.distill.mixture.own_branch=true"])


def test_numbers_in_scientific_notation_are_numbers() -> None:
    assert load_params(PARAMS, ["student.distill.learning_rate=2e-5"]).student.distill.learning_rate == 2e-5


def test_changes_that_cannot_be_made_are_refused() -> None:
    assert message_of("student.distill.temperature") == (
        "--set student.distill.temperature: write it as key=value"
    )
    assert "temperature is a value" in message_of("student.distill.temperature.x=3")
    assert "is not a YAML value" in message_of("cache.root={")


def test_files_that_are_no_params_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ParamsError, match="name another file with --params"):
        load_params(tmp_path / "absent.yaml")
    with pytest.raises(ParamsError, match="name another file with --params"):
        load_params(tmp_path)
    for text, message in (("a: [", "is not YAML"), ("hello", "holds no sections"), ("", "holds no sections")):
        path = tmp_path / "params.yaml"
        path.write_text(text)
        with pytest.raises(ParamsError, match=message):
            load_params(path)


def test_only_params_that_name_the_hub_use_it(tmp_path: Path) -> None:
    assert not load_params(PARAMS).uses_hub()
    assert not load_params(PARAMS, [f"teachers.de.base={tmp_path}"]).uses_hub()
    assert load_params(PARAMS, ["teachers.de.base=deepset/gbert-base"]).uses_hub()
