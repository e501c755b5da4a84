"""What the branches of a student are called."""

from collections.abc import Sequence

MIXTURE = "mixture"
"""What the mixture of all branches is called among their names."""


def branch_position(name: str, languages: Sequence[str]) -> int:
    """Find the branch of a language, or of what it is a variety of (``de`` for ``de-AT``).

    Tags are compared without case, as BCP 47 says; this is what `MBLMConfig.language_id` does.

    Args:
        name: A tag.
        languages: Tags of those that have a branch.

    Returns:
        A position in `languages`; -1, which stands for the mixture, where there is none.
    """
    known = [one.replace("_", "-").casefold() for one in languages]
    parts = name.strip().replace("_", "-").casefold().split("-")
    for end in range(len(parts), 0, -1):
        if "-".join(parts[:end]) in known:
            return known.index("-".join(parts[:end]))
    return -1


def branch_of(language_id: int, languages: Sequence[str], n_branches: int) -> str:
    """Name the branch of a language; -1 has none, and where all languages share one, it is the mixture."""
    return languages[language_id] if language_id >= 0 and n_branches > 1 else MIXTURE
