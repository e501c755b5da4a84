"""The model card: what the Hub, and whoever finds the folder, should know of a student. Text, and no file."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from huggingface_hub import ModelCardData
from tabulate import tabulate

from cache import file_digest
from stages.data.task import TaskParams
from stages.models.configuration_mblm import MBLMConfig
from stages.results.measures import interval
from stages.results.teachers import OneSays
from stages.student.calibration import Seen
from stages.student.params import DistillParams
from stages.student.variants import relevant

_TRAINED = {
    "linear": "with a frozen encoder, whose head was trained on the hard labels of all its languages",
    "finetune": "fine-tuned on the hard labels of all its languages",
    "pseudo": "trained on the classes that its languages' teachers find most probable",
    "distill": "trained to reach the soft labels of its languages' teachers",
    "branches": "trained to reach the soft labels of its languages' teachers",
    "mblm": "trained to reach the soft labels of its languages' teachers, through the language's own branch "
    "and through a mixture of branches",
}

_CHANCE = (
    "A language whose interval is not above the share of its most frequent class is near chance: the student "
    "is of no use there. Of languages that stand nowhere here, nothing is known."
)


@dataclass(frozen=True)
class TeacherFacts:
    """Where a language's soft labels come from.

    Attributes:
        name: What params.yaml calls the teacher.
        producer_ids: Of the soft labels: one, or one for each fold.
        soft_labels: Sha256 of the soft-label set's manifest.
        made_by: What was said of who made them, where they were imported or a server answered.
    """

    name: str
    producer_ids: list[str]
    soft_labels: str
    made_by: Mapping[str, str]

    @classmethod
    def of(cls, name: str, says: OneSays) -> Self:
        """Say where a teacher's soft labels come from."""
        producers = says.label_set.producers
        manifest = file_digest(says.folder / "manifest.json")
        return cls(
            name, [one.id for one in producers], manifest, producers[0].imported or says.label_set.terms
        )


def model_card(
    task: TaskParams,
    params: DistillParams,
    *,
    name: str,
    config: MBLMConfig,
    encoder: Mapping[str, Any],
    accuracy: Mapping[str, float],
    counts: Mapping[str, Sequence[int]],
    others: Mapping[str, Seen],
    teachers: Mapping[str, Sequence[TeacherFacts]],
    data: str,
    translations: Sequence[str] = (),
    went_on_over: Sequence[str] = (),
) -> str:
    """Write a student's card, the same for the same student.

    Args:
        task: Section `task`.
        params: Section `student.distill`.
        name: Of the model's folder.
        config: The student's.
        encoder: What `stages.models.encoders.note_encoder` noted of the encoder.
        accuracy: On the validation split, by language.
        counts: Validation examples by class, by language.
        others: Likewise, of zero-shot languages.
        teachers: By language; empty where the student has none.
        data: Where the examples come from, and in which revision.
        translations: Zero-shot languages into which training texts were translated for it.
        went_on_over: What of code and libraries changed while the training was interrupted.

    Returns:
        Markdown with a YAML header, as the Hub reads it.
    """
    header = ModelCardData(
        **_language_codes(task.supervised),
        library_name="transformers",
        pipeline_tag="text-classification",
        tags=["mblm", "multilingual", *(["knowledge-distillation"] if teachers else [])],
        base_model=(encoder["source"] or {}).get("hub"),
    )
    values = json.dumps(relevant(params), indent=2, ensure_ascii=False)
    return f"""---
{header.to_yaml()}
---

# {_plain(name)}

A text classifier, {_TRAINED[params.variant]} (variant `{params.variant}`).

- Made from: {_encoder(config, encoder)}
- Data: {_plain(data)}
- Languages: {_languages(config)}{_translations(translations)}{_silver(teachers, accuracy)}
- Classes: {", ".join(map(_plain, task.classes))}
- Length: the first {params.max_tokens} tokens of a text, as in training{_interrupted(went_on_over)}

{_usage(name, task)}

{_routing(config)}

## Languages

{_table(accuracy, counts, teachers)}
{_others(others, config)}
{_CHANCE}

## Probabilities

{_probabilities(config)}

## Parameters

Section `student.distill` of params.yaml:

```json
{values}
```
"""


def _usage(name: str, task: TaskParams) -> str:
    text = '{"text": "A text", "text_pair": "and another"}' if len(task.text_fields) == 2 else '"A text"'
    return f"""## How to use it

```python
from transformers import pipeline
classify = pipeline("text-classification", model="{name}", trust_remote_code=True, truncation=True)
print(classify({text}))
```

`trust_remote_code=True` runs the two Python files of this folder, the model and its configuration."""


def _encoder(config: MBLMConfig, encoder: Mapping[str, Any]) -> str:
    source = encoder["source"]
    if source is None:
        name = "an encoder that was pre-trained for it"
    elif "hub" in source:
        name = f"{_plain(source['hub'])} at {_plain(source['commit'])}"
    else:
        name = _plain(re.split(r"[\\/]", source["folder"])[-1])  # where it lay is nobody's business
    kind = config.mplm_config.model_type
    kept = f"the first {config.num_hidden_layers} of its" if encoder["layers"] else config.num_hidden_layers
    pooling = f", pooling: {config.pooling}" if config.pooling else ""
    return f"{name} ({kind}, {kept} layers, {config.hidden_size} wide{pooling})"


def _translations(languages: Sequence[str]) -> str:
    if not languages:
        return ""
    return f"\n- It has read translations of training texts, without other labels, in: {', '.join(languages)}"


def _silver(teachers: Mapping[str, Sequence[TeacherFacts]], accuracy: Mapping[str, float]) -> str:
    """Say what it learned in languages that have no branch, and of whom."""
    lines = [
        f"\n- It has read texts in {language}, with the soft labels of "
        + ", ".join(f"{_plain(_title(one))} (producer {' '.join(one.producer_ids)})" for one in its)
        for language, its in teachers.items()
        if language not in accuracy
    ]
    return "".join(lines)


def _interrupted(went_on_over: Sequence[str]) -> str:
    if not went_on_over:
        return ""
    return (
        "\n- Interrupted: the training went on from a checkpoint though these had changed: "
        f"{', '.join(map(_plain, went_on_over))}"
    )


def _language_codes(languages: Sequence[str]) -> dict[str, Any]:
    """Give languages as the Hub's header has them: it refuses codes such as ``zh-Hans`` but in one place."""
    tags = [language.replace("_", "-") for language in languages]
    codes = list(dict.fromkeys(tag.partition("-")[0].lower() for tag in tags))
    return {"language": codes, **({} if codes == tags else {"language_bcp47": tags})}


def _languages(config: MBLMConfig) -> str:
    names = ", ".join(map(_plain, config.languages))
    if config.n_branches == 1:
        return f"{names}; one branch serves all of them"
    return f"{names}; each with a branch of its own ({config.branch_layers} of the layers)"


def _routing(config: MBLMConfig) -> str:
    if config.n_branches == 1:
        return "All languages share one branch, so `language_ids` and `set_default_language` change nothing."
    return (
        "Texts go through the mixture of all branches, which is the way for those of any other language. "
        f'`classify.model.set_default_language("{config.languages[0]}")` chooses a branch for all texts. '
        "For each text, the model's forward takes `language_ids`: a language's position in "
        "`config.languages`, or -1 for the mixture."
    )


def _probabilities(config: MBLMConfig) -> str:
    own, others = f"{config.own_temperature:.3g}", f"{config.mixture_temperature:.3g}"
    several = config.n_branches > 1
    its = "that goes through its language's branch" if several else "in one of these languages"
    any_other = "one that goes through the mixture" if several else "any other"
    return (
        f"The logits are raw. Divide them by {own} for a text {its}, and by {others} for "
        f"{any_other} (`own_temperature` and `mixture_temperature` in `config.json`): probabilities are then "
        "about as high as answers are often right. Both were fitted on validation texts of these languages."
    )


def _table(
    accuracy: Mapping[str, float],
    counts: Mapping[str, Sequence[int]],
    teachers: Mapping[str, Sequence[TeacherFacts]],
) -> str:
    titles = ["language", "validation accuracy", "95 % interval", "most frequent class"]
    rows = []
    for language, value in accuracy.items():
        n = sum(counts[language])
        low, high = interval(round(value * n), n)
        shares = f"{low:.3f} to {high:.3f}", f"{max(counts[language]) / n:.3f}"
        rows.append([_plain(language), f"{value:.3f}", *shares])
    if teachers:
        titles += ["teacher", "producer id of the soft labels", "sha256 of their manifest.json"]
        for row, language in zip(rows, accuracy, strict=True):
            each = [
                (_plain(_title(one)), " ".join(one.producer_ids), one.soft_labels)
                for one in teachers[language]
            ]
            row += ["<br>".join(values) for values in zip(*each, strict=True)]
    return tabulate(rows, titles, tablefmt="pipe", disable_numparse=True)


def _others(others: Mapping[str, Seen], config: MBLMConfig) -> str:
    """Say how often the student is right in zero-shot languages."""
    if not others:
        return ""
    accuracy = {language: seen.accuracy for language, seen in others.items()}
    table = _table(accuracy, {language: seen.counts for language, seen in others.items()}, {})
    n_most = max(sum(seen.counts) for seen in others.values())
    varieties = [one for one in others if config.n_branches > 1 and config.language_id(one) >= 0]
    through = f"; those in {', '.join(varieties)} through their language's branch" if varieties else ""
    return (
        f"\nIn languages without training data, texts go through the mixture{through}. "
        f"Of up to {n_most} validation texts in each:\n\n{table}\n"
    )


def _title(teacher: TeacherFacts) -> str:
    """Name a teacher, and what was said of who made its soft labels, its licence among it."""
    said = ", ".join(f"{key}: {value}" for key, value in teacher.made_by.items())
    return f"{teacher.name} ({said})" if said else teacher.name


def _plain(text: str) -> str:
    """Write text on one line so that Markdown and HTML see nothing in it."""
    return re.sub(r"([!-&*+:-@\[-`{-~])", r"\\\1", " ".join(text.split()))
