"""What commands share: the parameters file and how it is read."""

import os
import shlex
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from pipeline.params import PipelineParams

_STARTED = "MBLM_STARTED_BY_LAUNCH"

Resume = Annotated[
    bool,
    typer.Option(
        "--resume", help="Go on from an interrupted run's checkpoint though code or libraries have changed."
    ),
]
ParamsFile = Annotated[
    Path, typer.Option("--params", help="The parameters: a command has the section of its name.")
]
Changes = Annotated[
    list[str],
    typer.Option("--set", metavar="KEY=VALUE", help="Change one parameter; may be repeated."),
]


class Engine(StrEnum):
    """What runs a teacher over the examples."""

    LOCAL = "local"
    RAY = "ray"


def load(params: Path, changes: list[str]) -> "PipelineParams":
    """Read the parameters, and close the network to Hugging Face unless they name the Hub."""
    from pipeline.params import load_params  # slow import

    loaded = load_params(params, changes)
    if not loaded.uses_hub():
        os.environ["HF_HUB_OFFLINE"] = "1"
    return loaded


def launch(params: "PipelineParams") -> None:
    """Let what `launch` names do this command in the place of this process, where it names anything.

    Raises:
        ParamsError: There is no such program.
    """
    from pipeline.params import ParamsError

    if params.launch in (None, "python -m pipeline") or _STARTED in os.environ or "RANK" in os.environ:
        return
    program, *arguments = shlex.split(params.launch)
    try:
        os.execvpe(program, [program, *arguments, *sys.argv[1:]], {**os.environ, _STARTED: "1"})
    except OSError as error:
        raise ParamsError(f"launch is {params.launch}: cannot start {program} ({error.strerror})") from error
