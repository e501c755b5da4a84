"""Give a producer a name."""

from pathlib import Path

from cache.errors import CacheError
from cache.folder import Folder
from cache.identity.digests import canonical_json
from cache.names import name_of, require_name
from cache.store import NAME


def give_name(root: str | Path, producer_id: str, name: str) -> None:
    """Call a producer so, in the place of what it was called.

    Raises:
        StoreError: The name cannot be a producer's, or is another's, also of one that took it just now.
    """
    require_name(root, producer_id, name)
    folder = Folder(root).folder(producer_id)
    before = name_of(root, producer_id)
    folder.write(NAME, canonical_json({"name": name}))
    try:
        require_name(root, producer_id, name)
    except CacheError:
        if before is None:
            folder.delete(NAME)
        else:
            folder.write(NAME, canonical_json({"name": before}))
        raise
