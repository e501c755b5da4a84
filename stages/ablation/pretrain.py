"""The encoder that all runs of one seed start from."""

from stages.artifacts import ABLATION
from stages.data.task import TaskParams
from stages.student.params import PretrainParams
from stages.student.pretrain import pretrain as make_encoder


def pretrain(task: TaskParams, params: PretrainParams, seed: int) -> str:
    """Pre-train a small encoder with this seed, or pin the one that `student.pretrain.base` names.

    Accuracy in zero-shot languages differs as much between encoders as between variants, so that these
    vary with the seed, and variants are compared on the same ones.

    Returns:
        One line about the model.

    Raises:
        StageError: There is no such base.
    """
    with_seed = params.model_copy(update={"seed": seed})
    return make_encoder(task, with_seed, output=ABLATION / "encoders" / str(seed))
