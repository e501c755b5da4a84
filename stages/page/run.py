"""Section `run`: data, producers of soft labels, digests and parameters."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from cache import Producer, canonical_json
from stages.artifacts import DATA, SOFT_LABELS
from stages.data.examples import SPLITS, UNLABELLED
from stages.page.findings import Findings
from stages.page.tables import Table, clip
from stages.page.taught import LabelSet


class Tables(NamedTuple):
    """What the section shows.

    Attributes:
        data: Examples by language and split.
        producers: Who wrote each soft-label set.
        digests: Of data, soft labels and weights.
        params: All of params.yaml.
    """

    data: Table
    producers: Table
    digests: Table
    params: Table


def run(found: Findings, params: Mapping[str, Any]) -> Tables:
    """Say what was run.

    Args:
        found: What came of it.
        params: All sections of params.yaml, as plain values.
    """
    sets = [one for language in found.task.supervised for one in found.teachers[language].sets]
    shown = [
        *SPLITS,
        *([UNLABELLED] if any(UNLABELLED in splits for splits in found.counts.values()) else []),
    ]
    counts = [
        [
            name,
            *(f"{splits[split]:,}" if split in splits else "–" for split in shown),
            *([f"{found.cut[name]:,}"] if name in found.cut else []),
        ]
        for name, splits in found.counts.items()
    ]
    cut = ["test, cut to max_tokens"] if found.cut else []
    digests = {
        **{f"{DATA / name}, ids and labels": digest for name, digest in found.data.items()},
        **{f"producer of {name}": producer.id for one in sets for name, producer in _named(one)},
        **{f"{SOFT_LABELS / one.name}/manifest.json": one.manifest for one in sets},
        **found.weights,
    }
    values = [[clip(key, 100), clip(_value(value), 200)] for key, value in _flat(params)]
    return Tables(
        Table("Examples by language and split", ["language", *shown, *cut], counts),
        Table(
            "Who wrote the soft labels",
            ["soft labels", "teacher", "model", "reads", "class order"],
            [_producer(one) for one in sets],
        ),
        Table("Digests", ["what", "sha256"], [[name, digest] for name, digest in digests.items()]),
        Table("Parameters", ["params.yaml", "value"], values),
    )


def _producer(one: LabelSet) -> list[str]:
    producer = one.producers[0]
    facts = producer.facts
    kind = clip(str(facts["config"].get("model_type", "–")), 60)
    if producer.endpoint is not None:  # its terms among it
        endpoint = producer.endpoint
        told = {key: endpoint[key] for key in ("shape", "revision") if key in endpoint} | dict(one.terms)
        kind = clip(str(endpoint.get("model", "–")), 60)
        reads = clip(", ".join(f"{key}: {value}" for key, value in told.items()), 200)
    elif producer.imported is None:
        reads = f"{facts['max_tokens']} tokens, {facts['dtype']}"
    else:  # what was said of who made them, their licence among it
        said = ", ".join(f"{key}: {value}" for key, value in producer.imported.items())
        kind, reads = "imported", clip(said or "–", 200)
    return [one.name, clip(one.title, 100), kind, reads, clip(", ".join(producer.classes), 200)]


def _named(one: LabelSet) -> Iterable[tuple[str, Producer]]:
    """Name the producers of a set by what they labelled."""
    place = str(SOFT_LABELS / one.name)
    if len(one.producers) == 1:
        return [(place, one.producers[0])]
    return [(f"{place}, fold {index}", producer) for index, producer in enumerate(one.producers)]


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for name, value in values.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{key}.")
        else:
            yield key, value


def _value(value: Any) -> str:
    return value if isinstance(value, str) else canonical_json(value).decode()
