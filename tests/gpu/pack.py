"""Pack what a GPU's machine without a network lacks: wheels, a real encoder in four bits, data sets."""

import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer
from encoder import pack as pack_encoder

MISSING = (
    *("annotated-types", "datasets", "dill", "donfig", "google-crc32c", "multiprocess", "numcodecs"),
    *("platformdirs", "pydantic", "pydantic-core", "ruamel.yaml", "ruamel.yaml.clib", "typing-inspection"),
    *("xxhash", "zarr"),
)
"""What images with torch and transformers may lack of what the parts import."""

MIB = 2**20
LIMIT = 55
"""MiB that can be carried."""


def main(
    folder: Annotated[Path, typer.Argument(help="Where to; what an earlier run packed there is replaced.")],
    encoder: Annotated[Path | None, typer.Option(help="Folder of a model, packed in four bits.")] = None,
    data: Annotated[list[Path], typer.Option(help="Folder of a data set.")] = [],  # noqa: B006 - typer copies
    python: Annotated[str, typer.Option(help="Version of the machine's Python.")] = "3.12",
    machine: Annotated[str, typer.Option(help="Its processor, as wheels call it.")] = "x86_64",
) -> None:
    """Fill a folder for `make gpu`, of at most 55 MiB."""
    for part in ("wheels", "data"):
        shutil.rmtree(folder / part, ignore_errors=True)
    (folder / "encoder.zip").unlink(missing_ok=True)
    if folder.exists() and any(folder.iterdir()):
        sys.exit(f"error: {folder} holds what is no part of a pack; name another folder")
    download(folder / "wheels", python, machine)
    if encoder:
        pack_encoder(encoder, folder / "encoder.zip")
    for source in data:
        shutil.copytree(source, folder / "data" / source.name)
    sizes = {part.name: size_of(part) / MIB for part in sorted(folder.iterdir())}
    typer.echo(", ".join(f"{name} {size:.1f} MiB" for name, size in sizes.items()))
    if (size := sum(sizes.values())) > LIMIT:
        sys.exit(f"error: {size:.1f} MiB are more than {LIMIT}; pack less data, or fewer pieces of words")


def download(folder: Path, python: str, machine: str) -> None:
    """Download wheels of the versions that are installed here, for another Python on Linux."""
    wanted = [f"{name}=={version(name)}" for name in MISSING]
    options = ["--quiet", "--no-deps", "--only-binary=:all:", f"--python-version={python}"]
    options += [f"--platform=manylinux{tag}_{machine}" for tag in ("_2_28", "_2_17", "2014")]
    command = [sys.executable, "-m", "pip", "download", *options, f"--dest={folder}", *wanted]
    subprocess.run(command, check=True)


def size_of(folder: Path) -> int:
    """Give the bytes of a file, or of a folder's files."""
    return sum(path.stat().st_size for path in (folder, *folder.rglob("*")) if path.is_file())


if __name__ == "__main__":
    typer.run(main)
