"""The baseline: fine-tune the same encoder on the hard labels, with stage two's code and settings."""

from collections.abc import Mapping

from stages.artifacts import BASELINE
from stages.data.task import TaskParams
from stages.results.teachers import Teachers
from stages.student.distill import Trained, distill
from stages.student.params import DistillParams


def baseline(
    task: TaskParams, teachers: Mapping[str, Teachers], params: DistillParams, *, resume: bool = False
) -> Trained:
    """Train the variant `finetune` of section `student.distill`, whatever its variant is.

    Args:
        task: Section `task` of params.yaml.
        teachers: Section `teachers`, of which only the languages count: for how long the student learns.
        params: Section `student.distill`.
        resume: See `stages.student.distill.distill`.

    Raises:
        StageError: As `stages.student.distill.distill`.
    """
    finetune = params.model_copy(update={"variant": "finetune"})
    return distill(task, teachers, finetune, output=BASELINE, resume=resume)
