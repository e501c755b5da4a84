"""What can go wrong with soft labels on disk, each with its facts as attributes."""


class CacheError(Exception):
    """An expected failure: its message is one line that says what, where and what to type next."""


class DamagedShardError(CacheError):
    """A file that has a shard's name but not the content that the name promises.

    Attributes:
        path: The file.
        reason: What does not fit.
    """

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"{path} is damaged: {reason}")
        self.path = path
        self.reason = reason


class UnreadableError(CacheError):
    """A file or folder that is there, but cannot be read here and now.

    Nobody knows what it holds: another user's file, a disk that fails for a moment, or what a newer version
    wrote. So it is neither damaged nor missing, and nothing may be moved or deleted because of it.

    Attributes:
        path: The file or folder.
        reason: Why it cannot be read.
    """

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"{path} cannot be read: {reason}")
        self.path = path
        self.reason = reason


class NotFiniteError(CacheError):
    """Numbers that hold NaN or infinity; they are never written and never read.

    Attributes:
        count: Number of examples with such numbers.
    """

    def __init__(self, where: str, count: int) -> None:
        super().__init__(f"{where}: the logits or hidden states of {count} examples are NaN or infinite")
        self.count = count


def _writer(folder: str, language: str) -> str:
    """Name the command that writes the soft labels of a folder."""
    return "teacher silver" if "artifacts/silver" in folder else f"teacher label --language {language}"


class MissingSoftLabelsError(CacheError):
    """Examples without a soft label.

    Attributes:
        language: The language of the examples.
        missing: Number of examples without a soft label.
        total: Number of examples asked for.
    """

    def __init__(self, *, language: str, missing: int, total: int, folder: str) -> None:
        super().__init__(
            f"{missing} of {total} examples in '{language}' have no soft label in {folder}; "
            f"write them with: python -m pipeline {_writer(folder, language)}"
        )
        self.language = language
        self.missing = missing
        self.total = total


class ManifestError(CacheError):
    """A soft-label set whose manifest is absent, unreadable or does not match its shards."""

    def __init__(self, *, folder: str, language: str, reason: str) -> None:
        super().__init__(
            f"{folder}: {reason}; write the soft labels with: python -m pipeline {_writer(folder, language)}"
        )
        self.folder = folder


class ProducerError(CacheError):
    """A teacher folder that cannot be identified, or a producer.json that is not its folder's."""


class StoreError(CacheError):
    """A store that cannot be reached, or that has not what was asked of it."""


class UnwritableError(StoreError):
    """A place of a store that is there, and that may not be written to, such as another user's folder."""
