"""What the branches of a student are called."""

from collections.abc import Sequence

MIXTURE = "mixture"
"""What the mixture of all branches is called among their names."""


def branch_of(language_id: int, languages: Sequence[str], n_branches: int) -> str:
    """Name the branch of a language; -1 has none, and where all languages share one, it is the mixture."""
    return languages[language_id] if language_id >= 0 and n_branches > 1 else MIXTURE
