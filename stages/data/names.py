"""The built-in task `names`: what kind of thing does a name from the Unicode CLDR denote?

Names of territories, languages, scripts, currencies, time zones and units, from the public properties of
``babel.Locale``; no download. Splits are drawn by CLDR id, so that no entity of the test
set is seen in any language, in pre-training either.
"""

import functools
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stages.data.task import Split
from stages.errors import StageError

if TYPE_CHECKING:
    from babel import Locale

CLASSES = ("currency", "language", "script", "territory", "time zone", "unit")


@dataclass(frozen=True)
class Name:
    """A name, the CLDR id of what it names, and what kind of thing that is."""

    text: str
    entity: str
    label: str


@functools.cache
def read_names(language: str) -> tuple[Name, ...]:
    """List the names of a language in an order that mixes classes; of equal names only one.

    Raises:
        StageError: CLDR has no such language.
    """
    from babel import Locale, UnknownLocaleError  # other tasks do without

    try:
        locale = Locale.parse(language.replace("-", "_"))
    except (UnknownLocaleError, ValueError) as error:
        raise StageError(f"task 'names' has no language '{language}': {error}") from error
    names = [name for name in _all_names(locale) if name.text.strip()]
    names.sort(key=lambda name: name.entity)
    first: dict[str, Name] = {}
    for name in names:
        first.setdefault(name.text, name)
    return tuple(sorted(first.values(), key=lambda name: _hash(name.entity)))


def split_of(entity: str) -> Split:
    """Assign a CLDR id to a split: about 70 % train, 10 % validation, 20 % test, in every language alike."""
    bucket = int.from_bytes(_hash(entity), "big") % 10
    return "train" if bucket < 7 else "validation" if bucket < 8 else "test"


def _hash(entity: str) -> bytes:
    return hashlib.blake2b(entity.encode(), digest_size=8).digest()


def _all_names(locale: "Locale") -> Iterator[Name]:
    plain = {
        "currency": locale.currencies,
        "language": locale.languages,
        "script": locale.scripts,
        "territory": locale.territories,
    }
    for label, names in plain.items():
        for key, text in names.items():
            yield Name(text, f"{label}:{key}", label)
    for key, zone in locale.meta_zones.items():
        long = zone.get("long", {})
        yield Name(long.get("generic") or long.get("standard") or "", f"time zone:{key}", "time zone")
    for key, widths in locale.unit_display_names.items():
        yield Name(widths.get("long", ""), f"unit:{key}", "unit")
