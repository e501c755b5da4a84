"""The encoder that all runs of one seed start from."""

from collections.abc import Sequence

from stages.artifacts import ABLATION
from stages.data.task import TaskParams
from stages.errors import StageError
from stages.student.params import PretrainParams
from stages.student.pretrain import pretrain as make_encoder


def pretrain(task: TaskParams, params: PretrainParams, seed: int, *, seeds: Sequence[int]) -> str:
    """Pre-train a small encoder with this seed, or pin the one that `student.pretrain.base` names.

    Accuracy in zero-shot languages differs as much between encoders as between variants, so that these
    vary with the seed, and variants are compared on the same ones.

    Args:
        task: Section `task`.
        params: Section `student.pretrain`.
        seed: Which one.
        seeds: Those of section `ablation`.

    Returns:
        One line about the model.

    Raises:
        StageError: There is no such seed or base.
    """
    if seed not in seeds:
        raise StageError(
            f"{seed} is not in ablation.seeds, {list(seeds)}; add it there, or name another --seed"
        )
    with_seed = params.model_copy(update={"seed": seed})
    return make_encoder(task, with_seed, output=ABLATION / "encoders" / str(seed))
