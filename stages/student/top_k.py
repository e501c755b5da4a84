"""Whether soft labels of which only the largest logits were kept teach what all of them would."""

from cache import SoftLabelSet
from stages.data.task import TaskParams
from stages.errors import StageError
from stages.models.processes import process_index
from stages.progress import say
from stages.results.teachers import Said
from stages.student.params import DistillParams
from stages.student.variants import temperatures_of

_TOP_K_ERROR = 0.01
"""What top-k may change, as a share of what a student that knows nothing has to learn."""


def require_small_top_k_change(
    task: TaskParams, label_set: SoftLabelSet, params: DistillParams, said: Said
) -> None:
    """Refuse soft labels without their small logits where these matter, see `cache.top_k.Change`.

    Raises:
        StageError: At a temperature that matters, the relative change is above 1 %, or was not measured.
    """
    top_k, n_classes = label_set.producers[0].outputs.top_k, len(label_set.classes)
    # The most probable class of one teacher is the same whatever was left out.
    averages = params.average_translations or task.zero_shot_texts or len(said.each) > 1
    keeps_class = params.variant == "pseudo" and not averages and params.trust != "probability"
    # Who imports soft labels of some classes says nothing of the others that could be left out. A file of a
    # teacher that was run says what was measured; one of an earlier version did not.
    facts = label_set.producers[0].facts.get("imported")
    imported = isinstance(facts, dict) and "exported_from" not in facts and label_set.top_k_change is None
    if top_k is None or params.allow_top_k_error or keeps_class or imported:
        return
    language = label_set.language
    what = f"the soft labels of '{language}' keep {top_k} of {n_classes} logits"
    writer = "silver" if language in task.zero_shot else f"label --language {language}"
    again = f"python -m pipeline teacher {writer}"
    if label_set.top_k_change is None:  # of an earlier version
        if process_index() == 0:
            how = f"measure it with: {again}" if facts is None else "export them again where it was measured"
            say(f"{what}; what that changes is not known, {how}")
        return
    temperatures = temperatures_of(params)
    if said.by_confidence and 1.0 not in temperatures:
        temperatures.append(1.0)  # how sure a teacher is
    for temperature in temperatures:
        change = label_set.top_k_change.relative(temperature)
        if change is None or change > _TOP_K_ERROR:
            by = "more than was measured" if change is None else f"{change:.1%}, more than {_TOP_K_ERROR:.0%}"
            is_set = params.variant != "pseudo" and temperature == params.temperature
            raise StageError(
                f"{what}, which changes what is learned at {'student.distill.' * is_set}temperature "
                f"{temperature} by {by}; set a larger teacher.label.top_k, or null, and write them with: "
                f"{again}; or {'lower the temperature, or ' * is_set}set student.distill.allow_top_k_error: "
                "true"
            )
