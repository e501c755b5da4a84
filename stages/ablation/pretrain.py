"""The trunk that all runs of one seed start from."""

from stages.artifacts import ABLATION
from stages.student.params import PretrainParams
from stages.student.pretrain import pretrain as pretrain_trunk
from stages.task import TaskParams


def pretrain(task: TaskParams, params: PretrainParams, seed: int) -> str:
    """Pre-train a small encoder with this seed, or pin the one that `student.pretrain.base` names.

    Accuracy in zero-shot languages differs as much between trunks as between variants, so that trunks vary
    with the seed, and variants are compared on the same ones.

    Returns:
        One line about the model.

    Raises:
        StageError: There is no such base.
    """
    with_seed = params.model_copy(update={"seed": seed})
    return pretrain_trunk(task, with_seed, output=ABLATION / "trunks" / str(seed))
