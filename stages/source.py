"""Models that exist: a Hub id is pinned to its commit, a local folder to its weights' digests."""

import hashlib
import json
from pathlib import Path
from typing import Any

from cache import write_atomically
from stages.base import StageError

_PIN = "pin.json"
_FILES = ["*.json", "*.safetensors", "*.txt", "*.model", "*.codes"]


def resolve(base: str, revision: str | None, *, key: str) -> dict[str, Any]:
    """Find out what a name in params.yaml stands for today.

    Args:
        base: Hub id or local folder.
        revision: Branch, tag or commit of a Hub id.
        key: The parameter, for messages.

    Returns:
        JSON values that `fetch` takes: the folder and the digests of its weights, or the Hub id and a commit.

    Raises:
        StageError: There is no such folder, and the Hub knows no such model or cannot be reached.
    """
    if Path(base).is_dir():
        return {"folder": base, "weights": weight_digests(Path(base))}
    from huggingface_hub import HfApi  # slow import

    try:
        info = HfApi().model_info(base, revision=revision)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise StageError(f"{key} is {base}: no folder of that name, and the Hub says: {reason}") from error
    return {"hub": base, "commit": info.sha}


def fetch(source: dict[str, Any]) -> Path:
    """Give the folder with the files of a source; files from the Hub are downloaded at most once.

    Raises:
        StageError: The folder is gone or changed, or the download failed.
    """
    if "folder" in source:
        folder = Path(source["folder"])
        if not folder.is_dir() or weight_digests(folder) != source["weights"]:
            raise StageError(f"the weights in {folder} are not those that were pinned; pin it again")
        return folder
    from huggingface_hub import snapshot_download  # slow import

    try:
        return Path(
            snapshot_download(
                source["hub"],
                revision=source["commit"],
                allow_patterns=_FILES,
                ignore_patterns=["*/*"],
            )
        )
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise StageError(f"cannot download {source['hub']}: {reason}") from error


def pin(folder: Path, source: dict[str, Any]) -> None:
    """Let a stage's output folder stand for a model that lies elsewhere."""
    write_atomically(folder / _PIN, json.dumps(source, indent=2, sort_keys=True).encode())


def model_folder(output: Path, *, command: str) -> Path:
    """Give the folder with the model of a stage's output: itself, or the one pinned in it.

    Args:
        output: What a stage wrote.
        command: What writes it, for messages.

    Raises:
        StageError: The stage has not run, or the pinned model is gone or changed.
    """
    pinned = output / _PIN
    if pinned.is_file():
        return fetch(json.loads(pinned.read_text(encoding="utf-8")))
    if not (output / "config.json").is_file():
        raise StageError(f"{output} holds no model; make it with: python -m pipeline {command}")
    return output


def weight_digests(folder: Path) -> dict[str, str]:
    """Hash a model folder's safetensors files, by name."""
    digests = {}
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            digests[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return digests
