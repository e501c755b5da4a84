"""Language tags that people write, such as ``de`` or ``zh-Hant``, told from names that are none."""

from collections.abc import Sequence
from functools import cache

from babel import Locale, localedata
from babel.core import get_global

from stages.data.branches import branch_position


def language_id(name: str, languages: Sequence[str]) -> int:
    """Find the branch of a language that people name.

    Args:
        name: A tag; nothing stands for the mixture.
        languages: Tags of those that have a branch.

    Returns:
        A position in `languages`; -1, which stands for the mixture, where there is none.

    Raises:
        ValueError: The name is no language tag, or another tag of a language that has a branch.
    """
    position = branch_position(name, languages)
    if position < 0 and name.strip():
        # A whole language's branch, by another tag: zh-Hant is no zh-Hans, and goes through the mixture.
        branch = None if "-" in name or "_" in name else same_language(name, languages)
        if branch or not is_tag(name):
            meant = branch or meant_by(name)
            what = "has no branch" if is_tag(name) else "is no language tag"
            hint = f"did you mean {meant}?" if meant else "write one such as de or zh-Hant, or nothing"
            raise ValueError(f"{name!r} {what}; {hint}")
    return position


def is_tag(name: str) -> bool:
    """Tell whether a name begins as a tag of BCP 47: two letters that the CLDR knows, or any three."""
    primary = _primary(name)
    return primary in Locale("en").languages or (len(primary) == 3 and primary.isalpha())


def meant_by(name: str) -> str | None:
    """Give the tag for which a name or another tag stands, such as ``de`` for ``German`` or ``deu``."""
    alias: str | None = get_global("language_aliases").get(_primary(name))
    return alias or _by_name().get(name.strip().casefold())


def same_language(name: str, others: Sequence[str]) -> str | None:
    """Give the first of other tags that is of the same language, such as ``deu_Latn`` for ``de``."""
    aliases = get_global("language_aliases")
    wanted = aliases.get(_primary(name), _primary(name))
    return next((one for one in others if aliases.get(_primary(one), _primary(one)) == wanted), None)


def _primary(name: str) -> str:
    return name.strip().replace("_", "-").split("-")[0].casefold()


@cache
def _by_name() -> dict[str, str]:
    """Give the tags of languages by their names, in English and in themselves."""
    own = (
        (name, tag)
        for tag in localedata.locale_identifiers()
        if "_" not in tag and (name := Locale(tag).languages.get(tag))
    )
    in_english = ((name, tag) for tag, name in Locale("en").languages.items())
    return {name.casefold(): tag.replace("_", "-") for name, tag in [*own, *in_english]}
