"""Which version of the format is written, and how a newer one is met."""

from typing import Any

from cache.errors import UnreadableError

SCHEMA_VERSION = 1
"""The schema of the shards and manifests that are written; all up to it are read."""


def require_known_schema(path: str, values: Any) -> None:
    """Refuse what a newer version wrote. What names no schema is left to those who know what it must hold.

    Args:
        path: The file, for the message.
        values: JSON values: metadata of a shard, a manifest, or the facts of a producer.

    Raises:
        UnreadableError: Their ``schema`` is above ``SCHEMA_VERSION``.
    """
    schema = values.get("schema") if isinstance(values, dict) else None
    if isinstance(schema, int) and schema > SCHEMA_VERSION:
        found = schema if schema < 10**6 else "above a million"  # a number in a file can have any length
        raise UnreadableError(
            path,
            f"written by a newer version (schema {found}; this one reads up to {SCHEMA_VERSION}); upgrade",
        )
