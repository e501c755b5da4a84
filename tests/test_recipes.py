"""Recipes: complete, true to their data sets, and run as a whole with small models of the same names."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from datasets import ClassLabel, Features, Value
from families import FAMILIES
from ruamel.yaml import YAML
from tiny import ROOT, Run, write_params
from transformers import (
    AutoConfig,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    CamembertTokenizer,
    PreTrainedTokenizerBase,
    RobertaTokenizer,
    XLMRobertaTokenizer,
)
from warm import warm_python

from pipeline.params import load_params
from stages.data.examples import SPLITS, pretraining_texts, read_entities, read_examples
from stages.data.task import HubSource, Split, TaskParams
from stages.prepare import prepare

SHARED = ROOT.parent / "shared" / "data"
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
DVC = (ROOT / "dvc.yaml", ROOT / "ablation" / "dvc.yaml")

# As on the Hub: columns, and the names of the classes in the order of their numbers.
TEXT = Value("string")
NLI = ClassLabel(names=["entailment", "neutral", "contradiction"])
FEATURES = {
    "xnli": Features({"premise": TEXT, "hypothesis": TEXT, "label": NLI}),
    "pawsx": Features(
        {"id": Value("int32"), "sentence1": TEXT, "sentence2": TEXT, "label": ClassLabel(names=["0", "1"])}
    ),
}

# Those with few labels: data set in ../shared/data, and columns of text and class.
FEW = {"sib200-150": ("sib200", "text", "category"), "injongo-400": ("injongo_intent", "text", "intent")}

# The models that the recipes name: architecture, and the classes in their order where it is a classifier.
MODELS: dict[str, tuple[str, list[str]]] = {
    "FacebookAI/roberta-large": ("roberta", []),
    "FacebookAI/roberta-large-mnli": ("roberta", ["CONTRADICTION", "NEUTRAL", "ENTAILMENT"]),
    "FacebookAI/xlm-roberta-base": ("xlm-roberta", []),
    "PlanTL-GOB-ES/roberta-large-bne": ("roberta", []),
    "almanach/camembert-base": ("camembert", []),
    "aubmindlab/bert-large-arabertv02": ("bert", []),
    "deepset/gbert-large": ("bert", []),
    "intfloat/multilingual-e5-small": ("bert", []),
    "genggui001/chinese_roberta_wwm_large_ext_fix_mlm": ("bert", []),
}


def recipe(name: str) -> dict[str, Any]:
    values: dict[str, Any] = YAML(typ="safe").load(ROOT / "recipes" / f"{name}.yaml")
    return values


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_has_a_teacher_for_each_language_that_teaches_and_no_other(path: Path) -> None:
    params = load_params(path)
    of_variants = {
        params.ablation.changes.get(variant, {}).get("zero_shot_texts", "all")
        for variant in params.ablation.variants
    }
    need_teachers = params.task.zero_shot_texts and "all" in of_variants  # translations need none
    assert list(params.teachers) == (params.task.languages if need_teachers else params.task.supervised)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_has_every_key_that_dvc_reads_and_knows_no_default_of(path: Path) -> None:
    keys = {key for dvc in DVC for key in re.findall(r"\$\{(?!item\.)([a-z_.]+)\}", dvc.read_text())}
    assert "ablation.sweep.runs" in keys
    for key in keys:
        value = recipe(path.stem)
        for name in key.split("."):
            assert name in value, f"make ablation needs {key}"
            value = value[name]


# The data


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder; a folder in it that is called like a repository on the Hub is taken for it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "hf"))
    monkeypatch.setenv("MBLM_TEACHER_CACHE", str(tmp_path / "store"))
    return tmp_path


def lay_out(dataset: str, tables: dict[tuple[str, Split], pa.Table]) -> None:
    """Write tables by language and split as data sets lie on the Hub: a configuration per language."""
    card = ["---", "configs:"]
    for language in dict.fromkeys(language for language, _ in tables):
        card += [f"- config_name: {language}", "  data_files:"]
        for split in (split for name, split in tables if name == language):
            path = Path(dataset, language, f"{split}-00000-of-00001.parquet")
            path.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(tables[language, split], path)
            card += [f"  - split: {split}", f"    path: {language}/{split}-*"]
    Path(dataset, "README.md").write_text("\n".join([*card, "---"]))


def task_of(name: str, **changes: Any) -> tuple[TaskParams, str]:
    task = load_params(ROOT / "recipes" / f"{name}.yaml").task
    assert isinstance(task.source, HubSource)
    dataset = f"data/{task.source.dataset}"  # a copy of what the Hub has
    source = task.source.model_copy(update={"dataset": dataset})
    return task.model_copy(update={"source": source} | changes), dataset


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the data sets in ../shared/data")
@pytest.mark.parametrize("name", FEATURES)
def test_a_recipe_reads_every_language_of_its_data_set(here: Path, name: str) -> None:
    task, dataset = task_of(name, max_examples=30)
    tables = {}
    for language in task.languages:
        for split in SPLITS:
            path = SHARED / name / language / f"{split}.parquet"
            if name == "pawsx" and split == "train":  # has no training text there
                path = path.with_name("validation.parquet")
            if path.is_file():
                tables[language, split] = pq.read_table(path).slice(0, 40)
                assert Features.from_arrow_schema(tables[language, split].schema) == FEATURES[name]
    lay_out(dataset, tables)
    prepared = prepare(task).examples
    for language in task.languages:
        splits = SPLITS if language in task.supervised else SPLITS[1:]
        assert prepared[language] == dict.fromkeys(splits, 30)
        for split in splits:
            source, examples = tables[language, split], read_examples(task, language, split)
            # The recipe's classes are in the order of the data set's numbers.
            columns = [*task.text_fields, "label"]
            of_source = source.select(columns).to_pylist()
            assert all(example in of_source for example in examples.select(columns).to_pylist())


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the data sets in ../shared/data")
@pytest.mark.parametrize("name", FEW)
def test_a_recipe_of_few_labels_reads_every_language_of_its_data_set(here: Path, name: str) -> None:
    task, dataset = task_of(name)
    folder, text, label = FEW[name]
    paths = {
        (language, split): SHARED / folder / language / f"{split}.parquet"
        for language in task.languages
        for split in SPLITS
    }
    lay_out(dataset, {by: pq.read_table(path) for by, path in paths.items()})
    prepared = prepare(task).examples
    for language in task.languages:
        if language in task.supervised:
            train = pq.read_table(paths[language, "train"])
            assert prepared[language]["train"] == task.max_labels
            n_texts = len(set(train[text].to_pylist()))
            n_without = read_examples(task, language, "unlabelled").num_rows
            assert n_without == n_texts - (task.max_labels or 0)
        source = pq.read_table(paths[language, "test"])
        examples = read_examples(task, language, "test")
        assert examples["text"].to_pylist() == source[text].to_pylist()
        assert [task.classes[label] for label in examples["label"].to_pylist()] == source[label].to_pylist()


@pytest.mark.parametrize(("name", "folder"), [("panx-type", "panx_type"), ("xnli-15k", "xnli")])
def test_the_small_data_sets_become_files_for_their_recipes(here: Path, name: str, folder: str) -> None:
    shutil.copy(ROOT / "recipes" / f"{name}.yaml", "params.yaml")
    task = load_params(Path("params.yaml")).task
    names = ["PER", "ORG", "LOC"] if name == "panx-type" else task.classes
    noted = Features({"label": ClassLabel(names=names)}).arrow_schema.metadata
    texts = {"train": "Nein , ( wohl ) nicht !", "validation": "Nein , so !", "test": "getestet"}
    for language in task.languages:
        for split in SPLITS:
            labelled: dict[str, list[Any]] = {"label": [0]} | {
                field: [texts[split]] for field in task.text_fields
            }
            write_table(f"all/{folder}/{language}/{split}.parquet", labelled, noted)
        write_table(
            f"all/parallel/ntrex/{language}/text.parquet", {"id": [7], "text": [f"news in {language}"]}
        )
    write_table("all/parallel/tatoeba/tr/text.parquet", {"en": ["I am."], "text": ["Varım."]})
    write_table("all/mono/wiki/tr/text.parquet", {"text": ["ein Artikel", "getestet"]})
    script = [warm_python(), str(ROOT / "docs/small_data.py"), name, "all"]
    said = subprocess.run(script, check=True, capture_output=True, text=True).stdout
    prepare(task)
    turkish = read_examples(task, "tr", "train")[task.text_fields[-1]].to_pylist()
    assert turkish == ["Nein, (wohl) nicht!" if name == "xnli-15k" else texts["train"]]
    for split in SPLITS:  # a row of XNLI is the same pair in every language, in every split
        assert read_entities("tr", split) == [f"{split} 0" if name == "xnli-15k" else None]
    assert read_examples(task, "tr", "validation")[task.text_fields[0]].to_pylist() == ["Nein , so !"]
    wiki = {"ein Artikel"} if name == "panx-type" else {"ein Artikel", "getestet"}  # not what is tested
    assert {*pretraining_texts(task, "tr").values()} == {"news in tr", "Varım."} | wiki
    english = pretraining_texts(task, "en")
    shared = {entity for entity in pretraining_texts(task, "tr") if entity in english}
    assert {english[entity] for entity in shared} == {"news in en", "I am."}
    assert f"tr: train 1, validation 1, test 1, unlabelled {2 + len(wiki)}" in said


@pytest.mark.parametrize(("recipe", "max_labels"), [("xnli-1200", 1), ("xnli-3000", None)])
def test_pairs_of_xnli_have_no_label_where_labels_are_few(
    here: Path, recipe: str, max_labels: int | None
) -> None:
    shutil.copy(ROOT / f"recipes/{recipe}.yaml", "params.yaml")
    task = load_params(Path("params.yaml")).task
    pairs: dict[str, list[Any]] = {
        "premise": ["eins", "zwei", "drei"],
        "hypothesis": ["uno", "dos", "tres"],
        "label": [0, 1, 2],
    }
    for language in task.languages:
        for split in SPLITS:
            write_table(f"all/xnli/{language}/{split}.parquet", pairs)
    script = [warm_python(), str(ROOT / "docs/small_data.py"), recipe, "all"]
    subprocess.run(script, check=True, capture_output=True)
    prepare(task.model_copy(update={"max_labels": max_labels}))
    for language in task.supervised:
        assert read_examples(task, language, "train").num_rows == (max_labels or 3)
        if max_labels is not None:
            assert read_examples(task, language, "unlabelled").num_rows == 2
    assert max_labels is not None or not list(Path().glob("data/*/unlabelled*"))
    assert not any(Path("data", language, "train.parquet").exists() for language in task.zero_shot)


def write_table(path: str, columns: dict[str, list[Any]], metadata: Any = None) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns).replace_schema_metadata(metadata), path)


def made_up(name: str, language: str, split: str) -> pa.Table:
    """Make a dozen pairs: half of them of class 0, a third of class 1 and, in XNLI, the others of class 2."""
    fields = list(FEATURES[name])[-3:-1]
    rows = []
    for i in range(12):
        label = min((0, 0, 0, 1, 1, 2)[i % 6], FEATURES[name]["label"].num_classes - 1)
        first, second = f"{language} {split} {i}", "" if i == 5 else f"{i} {'abc'[label]}"
        rows.append({"id": i, fields[0]: first, fields[1]: second, "label": label})
    return pa.Table.from_pylist(rows, schema=FEATURES[name].arrow_schema)


# The models


def save_tokenizer(family: str, folder: Path) -> PreTrainedTokenizerBase:
    """Save a tokenizer of single characters in the files that the family's repositories have, and load it."""
    letters = [*"abcdefghijklmnopqrstuvwxyz0123456789"]
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    if family == "bert":
        special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
        vocabulary = [*special, *letters, *(f"##{letter}" for letter in letters)]
        (folder / "vocab.txt").write_text("\n".join(vocabulary))
        (folder / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    elif family == "roberta":
        pieces = {piece: index for index, piece in enumerate([*special, "Ġ", *letters])}
        RobertaTokenizer(vocab=pieces, merges=[]).save_pretrained(folder)
        (folder / "tokenizer_config.json").write_text('{"model_max_length": 512}')
    else:
        unigram = CamembertTokenizer if family == "camembert" else XLMRobertaTokenizer
        unigram(vocab=[(piece, -1.0) for piece in [*special, "▁", *letters]]).save_pretrained(folder)
        (folder / "tokenizer_config.json").write_text('{"model_max_length": 512}')
        # What only the package sentencepiece could read; tokenizer.json makes it needless.
        (folder / "sentencepiece.bpe.model").write_bytes(b"not to be read")
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder)
    return tokenizer


def save_model(name: str) -> None:
    """Save a small model to a folder called like a repository: a classifier if it is ready, or an encoder."""
    family, classes = MODELS[name]
    folder = Path(name)
    folder.mkdir(parents=True)
    AutoConfig.for_model(family).save_pretrained(folder)  # by which the tokenizer is found
    tokenizer = save_tokenizer(family, folder)
    vocabulary = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
    sizes = FAMILIES[family][1] | vocabulary | {"max_position_embeddings": 140}
    config = AutoConfig.for_model(family, **sizes)
    torch.manual_seed(0)
    if not classes:
        AutoModelForMaskedLM.from_config(config).save_pretrained(folder)
        return
    config.id2label = dict(enumerate(classes))
    config.label2id = {label: index for index, label in enumerate(classes)}
    model = AutoModelForSequenceClassification.from_config(config)
    model.classifier.out_proj.bias.data[classes.index("ENTAILMENT")] = 50.0  # whatever it is asked
    model.save_pretrained(folder)


@pytest.mark.slow
@pytest.mark.parametrize("name", FEATURES)
def test_a_recipe_runs_from_its_data_to_its_report(here: Path, run: Run, name: str) -> None:
    task, dataset = task_of(name)
    lay_out(dataset, {(x, split): made_up(name, x, split) for x in task.languages for split in SPLITS})
    params = recipe(name)
    params["task"]["source"]["dataset"] = dataset
    for base in {params["student"]["pretrain"]["base"], *(t["base"] for t in params["teachers"].values())}:
        save_model(base)
    for section in (params["teacher"]["finetune"], params["student"]["distill"]):
        section |= {"epochs": 1, "batch_size": 6}
    write_params(params)
    commands = [
        ["prepare"],
        *(["teacher", "finetune", "--language", language] for language in task.supervised),
        *(["teacher", "label", "--language", language] for language in task.supervised),
        *(["student", step] for step in ("pretrain", "distill", "baseline", "evaluate")),
        ["report"],
    ]
    for command in commands:
        done = run(*command)
        assert done.code == 0, f"{' '.join(command)}: {done.err}"
    config = json.loads(Path("artifacts/student/config.json").read_text())
    assert (list(config["id2label"].values()), config["languages"]) == (task.classes, task.supervised)
    table = Path("artifacts/report/accuracy.md").read_text()
    assert all(f"| {language} " in table for language in task.languages)
    if name == "xnli":  # the ready teacher always says entailment, which half of the examples are
        metrics = json.loads(Path("artifacts/metrics/teachers/en.json").read_text())
        assert {split: one["accuracy"] for split, one in metrics.items()} == dict.fromkeys(SPLITS, 0.5)
