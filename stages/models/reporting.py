"""The curves of a training while it runs, for tools that show them; written to folders here, sent nowhere."""

import os
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from transformers import TrainerCallback
from transformers.integrations.integration_utils import (
    DVCLiveCallback,
    TensorBoardCallback,
    WandbCallback,
)

from stages.errors import StageError
from stages.params import Reporter

_RUNS = Path("runs")
_DVCLIVE = Path("dvclive")
_DVC_YAML = "metrics: [metrics.json]\nplots: [{plots/metrics: {x: step}}]\n"


def reporters(names: Sequence[Reporter], training: str, *, resumed: bool) -> list[TrainerCallback]:
    """Make what writes a training's losses, accuracies and learning rate.

    TensorBoard reads ``runs/``. DVCLive writes ``dvclive/<training>`` with a dvc.yaml in it, so that ``dvc
    metrics show`` and ``dvc exp show`` find it. Weights & Biases writes ``runs/wandb``, and sends nothing
    unless ``WANDB_MODE`` in the environment says so.

    Args:
        names: Of the tools.
        training: Its name, which the folders have.
        resumed: Whether it goes on from a checkpoint, and so do the curves.

    Raises:
        StageError: A tool is not installed.
    """
    made: list[TrainerCallback] = []
    for name in names:
        if find_spec(name) is None:
            raise StageError(
                f"report_to names {name}, which is not installed; install it with: pip install {name}"
            )
        if name == "tensorboard":
            from torch.utils.tensorboard import SummaryWriter  # an extra

            made.append(TensorBoardCallback(SummaryWriter(str(_RUNS / training))))
        elif name == "dvclive":
            from dvclive.live import Live  # an extra

            folder = _DVCLIVE / training
            live = Live(str(folder), resume=resumed, save_dvc_exp=False, dvcyaml=None)
            # DVCLive would add the same lines to it at every step.
            (folder / "dvc.yaml").write_text(_DVC_YAML, encoding="utf-8")
            made.append(DVCLiveCallback(live))
        else:
            os.environ.setdefault("WANDB_MODE", "offline")
            os.environ.setdefault("WANDB_PROJECT", "mblm")
            os.environ.setdefault("WANDB_DIR", str(_RUNS))
            _RUNS.mkdir(exist_ok=True)
            made.append(WandbCallback())
    return made
