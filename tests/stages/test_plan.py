"""The plan: what DVC compares changes with what decides a stage, and with nothing else."""

import json
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from tiny import Run, write_params

from cache import write_atomically
from pipeline.params import PipelineParams, load_params

FINETUNE, LABEL = ("teacher-finetune@de",), ("teacher-label@de",)
BOTH = ("teacher-finetune@en", "teacher-finetune@de")
LABELS = ("teacher-label@en", "teacher-label@de")
DISTILL, BASELINE, EVALUATE = ("student-distill",), ("student-baseline",), ("student-evaluate",)
PRETRAIN = ("student-pretrain",)
TASK = ("prepare", *BOTH, *LABELS, *PRETRAIN, *DISTILL, *BASELINE, *EVALUATE)
SCRATCH: dict[str, Any] = {"layers": 5, "hidden": 32, "heads": 8, "merges": 9, "dropout": 0.3, "mlm_steps": 9}
SCRATCH |= {"mlm_batch_size": 9, "mlm_learning_rate": 0.9, "mlm_share": 0.9, "architecture": "modernbert"}
TRAINING: dict[str, Any] = {"gradient_accumulation": 2, "gradient_checkpointing": True, "max_grad_norm": 9.0}
TRAINING |= {"freeze": "embeddings", "head_learning_rate": 0.9, "layer_decay": 0.9, "patience": 9}

CHANGES: dict[str, tuple[Any, tuple[str, ...]]] = {
    "task.source.text_fields": (["other"], ("prepare", *EVALUATE)),
    "task.source.label_field": ("other", ("prepare", *EVALUATE)),
    "task.source.entity_field": ("other", ("prepare", *EVALUATE)),
    "task.source.soft_label_field": ("other", ("prepare", *EVALUATE)),
    "task.source.teacher_field": ("other", ("prepare", *EVALUATE)),
    "task.source.language_field": ("other", ("prepare", *EVALUATE)),
    "task.source.splits": ({"test": "other"}, ("prepare", *EVALUATE)),
    "task.source.aligned": (True, ("prepare", *EVALUATE)),
    "task.source.first_class_number": (1, ("prepare", *EVALUATE)),
    "task.source.quoting": ("csv", ("prepare", *EVALUATE)),
    "task.source.delimiter": (";", ("prepare", *EVALUATE)),
    "task.source.columns": (["text", "label"], ("prepare", *EVALUATE)),
    "task.source.pattern": ("data/{language}-{split}.csv", ("prepare", *EVALUATE)),
    "task.text_fields": (["other"], TASK),
    "task.classes": (["animal", "number"], tuple(name for name in TASK if name != "student-pretrain")),
    "task.zero_shot": (["fr"], ("prepare", *PRETRAIN, *EVALUATE)),
    "task.validation_share": (0.1, ("prepare", *EVALUATE)),
    "task.unlabelled": (False, TASK),
    "task.zero_shot_texts": (True, ("prepare", *PRETRAIN, *DISTILL, *BASELINE, *EVALUATE)),
    "task.max_labels": (9, ("prepare", *EVALUATE)),
    "task.max_examples": (9, ("prepare", *EVALUATE)),
    "teachers.de.base": ("./other", (*FINETUNE, *DISTILL)),
    "teachers.de.revision": ("main", (*FINETUNE, *DISTILL)),
    "teachers.de.finetune": (False, (*FINETUNE, *DISTILL)),
    "teachers.de.name": ("de@2026", (*LABEL, *DISTILL)),
    "teachers.de.weight": (2.0, (*LABEL, *DISTILL)),
    "teachers.de.combine": ("confidence", (*LABEL, *DISTILL)),
    "teachers.de.labels": ({"tier": "animal"}, (*LABEL, *DISTILL)),
    "teachers.de.more": ([{"base": "./other"}], (*FINETUNE, *LABEL, *DISTILL)),
    "teachers.de.folds": (3, (*FINETUNE, *LABEL, *DISTILL)),
    **{
        f"teacher.finetune.{key}": (value, BOTH)
        for key, value in {
            "seed": 9,
            "batch_size": 9,
            "learning_rate": 0.9,
            "warmup_share": 0.9,
            "weight_decay": 0.9,
            "max_tokens": 9,
            "subword_dropout": 0.9,
            "precision": "bfloat16",
            "epochs": 9,
            "label_smoothing": 0.9,
            "pooling": "mean",
            "lora": {"rank": 2},
            "keep": "last",
            **TRAINING,
        }.items()
    },
    **{f"teacher.finetune.scratch.{key}": (value, BOTH) for key, value in SCRATCH.items()},
    **{
        f"teacher.label.{key}": (value, LABELS)
        for key, value in {
            "max_tokens": 9,
            "precision": "bfloat16",
            "format": "zarr",
            "logits": "float16",
            "top_k": 2,
            "hidden": True,
            "batch_tokens": 9,
            "compile": True,
            "shard_examples": 9,
        }.items()
    },
    "student.pretrain.base": ("./other", PRETRAIN),
    "student.pretrain.revision": ("main", PRETRAIN),
    "student.pretrain.seed": (9, PRETRAIN),
    "student.pretrain.max_tokens": (9, PRETRAIN),
    "student.pretrain.subword_dropout": (0.9, PRETRAIN),
    "student.pretrain.pair_share": (0.9, PRETRAIN),
    "student.pretrain.pooling": ("mean", PRETRAIN),
    "student.pretrain.layers": (2, PRETRAIN),
    "student.pretrain.vocabulary": ({"texts": "data/wiki/*.txt"}, PRETRAIN),
    **{f"student.pretrain.scratch.{key}": (value, PRETRAIN) for key, value in SCRATCH.items()},
    **{
        f"student.distill.{key}": (value, (*DISTILL, *BASELINE))
        for key, value in {
            "seed": 9,
            "batch_size": 9,
            "learning_rate": 0.9,
            "warmup_share": 0.9,
            "weight_decay": 0.9,
            "subword_dropout": 0.9,
            "epochs": 9,
            "sampling_temperature": 9.0,
            "keep": "best",
            "average": 3,
            "init_seed": 9,
            "runs": 3,
            "zero_shot_texts": "none",
            **TRAINING,
            "class_weights": "balanced",
        }.items()
    },
    "student.distill.max_tokens": (9, (*DISTILL, *BASELINE, *EVALUATE)),
    "student.distill.precision": ("bfloat16", (*DISTILL, *BASELINE, *EVALUATE)),
    **{
        f"student.distill.{key}": (value, DISTILL)
        for key, value in {
            "variant": "branches",
            "branch_layers": 3,
            "temperature": 9.0,
            "hard_label_weight": 0.9,
            "hidden_weight": 0.9,
            "trust": "right",
            "silver.least_confidence": 0.9,
            "silver.most_per_class": 9,
            "start": "baseline",
            "average_translations": True,
            "mixture.loss_weight": 0.9,
            "mixture.ramp_share": 0.9,
            "mixture.weights": "uniform",
            "mixture.own_branch": True,
            "mixture.of": "logits",
            "allow_top_k_error": True,
        }.items()
    },
    "student.distill.save_steps": (9, ()),
    "student.evaluate.batch_size": (9, EVALUATE),
    "launch": ("torchrun -m pipeline", ()),
    "ablation.seeds": ([9, 1], ()),
    "ablation.variants": (["mblm"], ()),
    "ablation.changes": ({"mblm": {"epochs": 9}}, ()),
    "ablation.kept": ("recipes/other", ()),
    "ablation.sweep.seeds": ([0], ()),
    "ablation.sweep.runs": ([{"name": "other"}], ()),
    "cache.root": ("/other", ()),
}
"""A change of each parameter, and the stages that it concerns beside the report, which prints them all."""

NOT_PRINTED = ("launch", "ablation", "cache")


def leaves(values: Any, place: str = "") -> Iterator[str]:
    """List the dotted keys of parameters; a mapping by name, and a list, is one parameter."""
    if isinstance(values, dict) and values and not place.endswith(".labels"):
        for key, value in values.items():
            yield from leaves(value, f"{place}.{key}" if place else key)
    else:
        yield place


@pytest.fixture
def complete(workspace: Path) -> dict[str, Any]:
    """The tiny parameters with every key written down."""
    params = load_params(workspace / "params.yaml").model_dump(mode="json")
    params["student"]["pretrain"]["base"] = "./encoder"  # of which layers can be kept
    params["task"]["unlabelled"] = True  # so that labels can be hidden
    return params


def planned(run: Run, params: dict[str, Any]) -> dict[str, str]:
    write_params(params)
    done = run("plan")
    assert done.code == 0, done.err
    return {path.stem: path.read_text(encoding="utf-8") for path in Path("artifacts/plan").glob("*.json")}


def put(params: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    changed = deepcopy(params)
    *sections, last = key.split(".")
    node = changed
    for section in sections:
        node = node[section]
    node[last] = value
    return changed


def test_a_key_that_is_absent_and_its_default_are_the_same(run: Run, complete: dict[str, Any]) -> None:
    before = planned(run, complete)
    defaults = PipelineParams.model_validate(complete).model_dump(mode="json", exclude_defaults=True)
    assert len(list(leaves(defaults))) < len(list(leaves(complete))) / 2
    assert planned(run, defaults) == before


def test_every_parameter_concerns_the_stages_that_it_decides_and_no_other(
    run: Run, complete: dict[str, Any]
) -> None:
    keys = set(leaves(complete)) - {"task.source.kind", "task.supervised"}
    # Those of what stands in the place of a base, and of a finished student.
    keys -= {f"teachers.de.{key}" for key in ("producer", "soft_labels", "endpoint", "branch")}
    keys = {key for key in keys if not key.startswith("teachers.en")}
    assert keys == set(CHANGES)
    before = planned(run, complete)
    for key, (value, stages) in CHANGES.items():
        after = planned(run, put(complete, key, value))
        changed = {name for name, text in after.items() if before[name] != text}
        report = () if key.startswith(NOT_PRINTED) else ("report",)
        assert changed == {*stages, *report}, key


@pytest.mark.parametrize(
    ("variant", "unused", "used"),
    [
        ("distill", ["mixture.of", "mixture.loss_weight", "branch_layers"], "temperature"),
        ("branches", ["mixture.loss_weight", "mixture.weights"], "mixture.of"),
    ],
)
def test_parameters_that_a_variant_does_not_use_concern_it_no_more(
    variant: str, unused: list[str], used: str, run: Run, complete: dict[str, Any]
) -> None:
    complete["student"]["distill"]["variant"] = variant
    before = planned(run, complete)["student-distill"]
    for key in (f"student.distill.{name}" for name in unused):
        assert planned(run, put(complete, key, CHANGES[key][0]))["student-distill"] == before
    key = f"student.distill.{used}"
    assert planned(run, put(complete, key, CHANGES[key][0]))["student-distill"] != before


def test_the_command_names_the_stages_whose_parameters_are_others(run: Run, complete: dict[str, Any]) -> None:
    assert run("plan").out == "11 stages\n"
    assert run("plan").out == "11 stages, none with other parameters than before\n"
    done = run("plan", "--set", "student.distill.temperature=7")
    assert done.out == "11 stages; with other parameters than before: student-distill, report\n"
    facts = json.loads(Path("artifacts/plan/student-distill.json").read_text(encoding="utf-8"))
    assert facts["distill"]["temperature"] == 7.0


def test_a_mixture_of_other_languages_needs_another_language(run: Run, complete: dict[str, Any]) -> None:
    alone = ("--set", "task.supervised=[de]")
    done = run("plan", *alone)
    assert done.code == 1
    assert "error: mblm mixes the branches of other languages, but" in done.err
    assert run("plan", *alone, "--set", "student.distill.mixture.own_branch=true").code == 0
    assert run("plan", *alone, "--set", "student.distill.variant=distill").code == 0


def test_nothing_is_left_of_languages_that_are_supervised_no_more(run: Run, complete: dict[str, Any]) -> None:
    for language in ("de", "xx"):
        Path("artifacts/soft_labels", language).mkdir(parents=True)
        write_atomically(Path(f"artifacts/metrics/teachers/{language}.json"), b"{}")
    assert run("plan").code == 0
    assert [path.name for path in Path("artifacts/soft_labels").iterdir()] == ["de"]
    assert [path.name for path in Path("artifacts/metrics/teachers").iterdir()] == ["de.json"]


def test_a_teacher_that_nobody_asks_is_named(run: Run, complete: dict[str, Any]) -> None:
    complete["teachers"] |= {"nl": {"base": "./other"}}
    write_params(complete)
    assert run("plan").out.splitlines()[1:] == [
        "teachers.nl is not used: 'nl' is not in task.supervised, nor in task.zero_shot with "
        "task.zero_shot_texts: true"
    ]


def test_the_baseline_depends_on_who_labels_texts_of_zero_shot_languages(
    run: Run, complete: dict[str, Any]
) -> None:
    """With a teacher of their own, they learn nothing from the hard labels of their originals."""
    complete["task"]["zero_shot_texts"] = True
    complete["student"]["distill"]["variant"] = "finetune"
    taught = put(complete, "teachers.nl", {"base": "./other", "finetune": False})
    none = put(taught, "student.distill.zero_shot_texts", "none")
    before, after = planned(run, complete), planned(run, taught)
    changed = {name for name, text in after.items() if before[name] != text}
    assert {"student-distill", "student-baseline"} <= changed
    assert '"silver"' not in planned(run, none)["student-distill"]
