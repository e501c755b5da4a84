"""Models that exist: a Hub id is pinned to its commit, a local folder to its files' digests."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

from cache import MODEL_FILES, file_digest, write_atomically
from stages.errors import StageError
from stages.hub import first_line, resolve_commit

_PIN = "pin.json"


def resolve(base: str, revision: str | None, *, key: str) -> dict[str, Any]:
    """Find out what a name in params.yaml stands for today.

    Args:
        base: Hub id or local folder.
        revision: Branch, tag or commit of a Hub id; a full commit asks no network.
        key: The parameter, for messages.

    Returns:
        JSON values that `fetch` takes: a folder and the digests of its files, or a Hub id and a commit.

    Raises:
        StageError: There is no such folder, and the Hub knows no such model or cannot be reached.
    """
    if Path(base).is_dir():
        folder = Path(base).resolve()
        if (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file():
            raise StageError(
                f"{key} is {base}, an adapter without its base; "
                "put the base's config.json and weights beside it"
            )
        if not list(folder.glob("*.safetensors")):
            raise StageError(f"{key} is {base}, which has no weights in *.safetensors")
        # As it is named, so that a pin is the same in every clone, and where a clone is moved.
        return {"folder": base, "files": model_digests(folder)}
    return {"hub": base, "commit": resolve_commit(base, revision, key=key, kind="model")}


def fetch(source: dict[str, Any], *, command: str) -> Path:
    """Give the folder with the files of a source; files from the Hub are downloaded at most once.

    Args:
        source: What `resolve` gave.
        command: What pins it, for messages.

    Raises:
        StageError: The folder is gone or changed, the download failed, or there are no safetensors weights.
    """
    if "folder" in source:
        folder = Path(source["folder"])
        if not folder.is_dir():
            raise StageError(f"{folder}, which was pinned, is not there; put it back, or {_again(command)}")
        if model_digests(folder) != source["files"]:
            raise StageError(f"the files in {folder} are not those that were pinned; {_again(command)}")
        return folder
    from huggingface_hub import snapshot_download  # slow import

    name, commit = source["hub"], source["commit"]
    try:
        folder = Path(
            snapshot_download(
                name, revision=commit, allow_patterns=list(MODEL_FILES), ignore_patterns=["*/*"]
            )
        )
    except Exception as error:  # the client's network errors have no stable type
        raise StageError(f"cannot download {name} at {commit}: {first_line(error)}") from error
    if not list(folder.glob("*.safetensors")):
        raise StageError(f"{name} at {commit} has no weights in *.safetensors")
    return folder


def _again(command: str) -> str:
    """Say how a stage pins a folder again: DVC sees no change, and would bring the old pin back."""
    group, what, *option = command.split()  # such as teacher finetune --language de
    stage = f"{group}-{what}" + "".join(f"@{value}" for value in option[1:])
    repro = "--cd ablation repro" if group == "ablation" else "repro"
    stage = what if group == "ablation" else stage
    return (
        f"pin it again with: python -m pipeline {command}, or under DVC: "
        f"dvc {repro} --force --single-item {stage}"
    )


def link(path: Path, target: Path) -> None:
    """Give a file a second name, or a copy where there are no links."""
    try:
        os.link(path.resolve(), target)
    except OSError:  # another file system, or one without links
        shutil.copy(path, target)


def link_all(folder: Path, target: Path) -> None:
    """Give all files of a folder a second name in another one, as `link` does."""
    for file in folder.rglob("*"):
        if file.is_file():
            other = target / file.relative_to(folder)
            other.parent.mkdir(parents=True, exist_ok=True)
            link(file, other)


def pin(folder: Path, source: dict[str, Any]) -> None:
    """Let a stage's output folder stand for a model that lies elsewhere."""
    write_atomically(folder / _PIN, json.dumps(source, indent=2, sort_keys=True).encode())


def read_pin(output: Path) -> dict[str, Any] | None:
    """Give what a stage's output folder stands for; None where it is a model itself."""
    path = output / _PIN
    if not path.is_file():
        return None
    source: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return source


def model_folder(output: Path, *, command: str) -> Path:
    """Give the folder with the model of a stage's output: itself, or the one pinned in it.

    Args:
        output: What a stage wrote.
        command: What writes it, for messages.

    Raises:
        StageError: The stage has not run, or the pinned model is gone or changed.
    """
    pinned = read_pin(output)
    if pinned is not None:
        return fetch(pinned, command=command)
    if not (output / "config.json").is_file():
        raise StageError(f"{output} holds no model; make it with: python -m pipeline {command}")
    return output


def model_digests(folder: Path) -> dict[str, str]:
    """Hash a model folder's weights, configuration and tokenizer, by file name."""
    return {path.name: file_digest(path) for path in model_files(folder)}


def model_files(folder: Path) -> list[Path]:
    """List a model folder's weights, configuration and tokenizer."""
    return [path for pattern in MODEL_FILES for path in folder.glob(pattern)]
