"""Which parameters decide a student of each variant: the others change nothing, and re-run nothing."""

from collections.abc import Sequence
from typing import Any

from stages.errors import StageError
from stages.student.params import DistillParams

HARD_ONLY = ("linear", "finetune")
"""Variants that learn from labelled examples alone, and read no soft labels."""

_SOFT = (
    *("branch_layers", "temperature", "hard_label_weight", "hidden_weight", "trust"),
    *("average_translations", "allow_top_k_error", "mixture", "start", "silver"),
)
_UNUSED = {
    "linear": (*_SOFT, "freeze", "layer_decay"),
    "finetune": _SOFT,
    "pseudo": ("branch_layers", "mixture", "temperature"),
    "distill": ("branch_layers", "mixture"),
    "branches": (),
    "mblm": (),
}


def temperature_of(params: DistillParams) -> float:
    """Give τ at which soft labels are averaged and compared; ``pseudo``, which learns classes, has none."""
    return 1.0 if params.variant == "pseudo" else params.temperature


def temperatures_of(params: DistillParams) -> list[float]:
    """Give τ, and behind it 1 where that is another: by how probable a class is there, ``trust`` goes."""
    own = temperature_of(params)
    return [own, 1.0] if params.trust == "probability" and own != 1 else [own]


def require_branches(supervised: Sequence[str], params: DistillParams) -> None:
    """Refuse a mixture of the branches of other languages where there is no other language.

    Raises:
        StageError: It is one.
    """
    if params.variant == "mblm" and len(supervised) < 2 and not params.mixture.own_branch:
        raise StageError(
            "mblm mixes the branches of other languages, but task.supervised names only "
            f"{supervised[0]}; add a language, leave mblm out of student.distill.variant and "
            "ablation.variants, or set student.distill.mixture.own_branch: true"
        )


def relevant(params: DistillParams, *, defaults: bool = True) -> dict[str, Any]:
    """Give the parameters of `student.distill` that a student of this variant depends on.

    Args:
        params: Section `student.distill`.
        defaults: Whether to give those, too, that have their default.
    """
    # A killed run goes on from what save_steps leaves; the student is the same.
    left_out: dict[str, Any] = dict.fromkeys(("save_steps", *_UNUSED[params.variant]), True)
    if params.variant == "branches":
        # What a zero-shot language goes through is all that this variant takes of the mixture.
        left_out["mixture"] = set(type(params.mixture).model_fields) - {"of"}
    values = params.model_dump(exclude=left_out, exclude_defaults=not defaults)
    return {key: value for key, value in values.items() if value != {}}  # a mixture of which nothing is left


def not_inherited(params: DistillParams, silver: list[str]) -> dict[str, list[str]]:
    """Give the languages whose translations a variant without soft labels leaves out: they have a teacher.

    Args:
        params: Section `student.distill`.
        silver: Zero-shot languages with a teacher.

    Returns:
        The languages as ``silver``; nothing where they make no difference.
    """
    matters = params.variant in HARD_ONLY and params.zero_shot_texts == "all"
    return {"silver": silver} if matters and silver else {}
