"""Section `ablation` of params.yaml. Light to import: no torch."""

from typing import Annotated, Any, Self, get_args

from pydantic import Field, ValidationError, model_validator

from stages.params import Params, Seed
from stages.student.params import DistillParams, Variant

_Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]


class SweepRun(Params):
    """A setting of the sweep."""

    name: _Name
    """Of its predictions and its line in the table."""
    changes: dict[str, Any] = {}
    """Parameters below `student.distill` by their dotted keys, such as ``mixture.loss_weight``."""


class SweepParams(Params):
    """Section `ablation.sweep`: settings to choose from, on validation data alone."""

    seeds: Annotated[list[Seed], Field(min_length=1)] = [0]
    """Some of `ablation.seeds`, whose encoders they start from."""
    runs: Annotated[list[SweepRun], Field(min_length=1)] = [SweepRun(name="as-it-is")]
    """The others are compared with the first."""


class AblationParams(Params):
    """Section `ablation`."""

    seeds: Annotated[list[Seed], Field(min_length=1)] = [0, 1, 2]
    """A run of each variant for each. A seed decides the student's training and, where
    `student.pretrain.base` is ``scratch``, the encoder, which the runs of a seed share."""
    variants: Annotated[list[_Name], Field(min_length=1)] = ["finetune", "distill", "branches", "mblm"]
    """The others are compared with the first."""
    changes: dict[_Name, dict[str, Any]] = {}
    """By the name of a variant: parameters below `student.distill` that it has for itself, by their dotted
    keys. A name that is none of ``linear``, ``finetune``, … changes ``variant`` to one of them."""
    kept: Annotated[str, Field(min_length=1)] | None = None
    """Folder with finished runs, which `ablation keep` writes. `ablation train` takes a run from there that
    is made of the same parameters, soft labels, encoder and texts, and does not train it again."""
    sweep: SweepParams = SweepParams()

    @model_validator(mode="after")
    def _names_are_distinct(self) -> Self:
        named: dict[str, list[Any]] = {
            "seeds": self.seeds,
            "sweep.seeds": self.sweep.seeds,
            "run": [*self.variants, *(run.name for run in self.sweep.runs)],
        }
        for what, values in named.items():
            for value in values:
                if values.count(value) > 1:
                    raise ValueError(f"{what}: {value} is named twice")
        return self

    @model_validator(mode="after")
    def _sweep_has_encoders(self) -> Self:
        for seed in self.sweep.seeds:
            if seed not in self.seeds:
                raise ValueError(f"sweep.seeds: {seed} is not among ablation.seeds, whose encoders it shares")
        return self

    @model_validator(mode="after")
    def _variants_are_known(self) -> Self:
        known = ", ".join(get_args(Variant))
        for name in self.variants:
            if name not in get_args(Variant) and "variant" not in self.changes.get(name, {}):
                raise ValueError(
                    f"variants: {name} is none of {known}; to give one of these another name, set "
                    f"ablation.changes: {{{name}: {{variant: mblm}}}}"
                )
        for name, changes in self.changes.items():
            if name not in (*self.variants, *get_args(Variant)) and "variant" not in changes:
                raise ValueError(f"changes: {name} is not among ablation.variants, and none of {known}")
            if name in get_args(Variant) and "variant" in changes:
                raise ValueError(f"changes: {name} cannot be another variant; give that one a new name")
        for run in self.sweep.runs:
            if run.name in get_args(Variant) and run.name not in self.variants:
                raise ValueError(f"sweep.runs: {run.name} is the name of a variant; give the run another one")
        return self

    def settings(self, distill: DistillParams) -> dict[str, DistillParams]:
        """Give section `student.distill` of each run, but for its seed, by the run's name.

        Raises:
            ValueError: There is no such parameter, or it may not have this value.
        """
        named = {
            name: _changed(
                distill, {"variant": name} | self.changes.get(name, {}), where=f"ablation.changes.{name}"
            )
            for name in self.variants
        }
        swept = {
            run.name: _changed(distill, run.changes, where=f"ablation.sweep.runs: {run.name}")
            for run in self.sweep.runs
        }
        return named | swept


def _changed(distill: DistillParams, changes: dict[str, Any], *, where: str) -> DistillParams:
    """Give section `student.distill` with changes in it.

    Raises:
        ValueError: There is no such parameter, or it may not have this value.
    """
    values = distill.model_dump() | {"report_to": distill.report_to}  # which no dump has
    for key, value in changes.items():
        *sections, last = key.split(".")
        section: Any = values
        before: Any = distill
        for name in sections:
            section = section.get(name) if isinstance(section, dict) else None
            before = getattr(before, name, None)
        if not isinstance(section, dict) or last not in section or key == "seed":
            reason = "is each run's own" if key == "seed" else "is not a parameter of student.distill"
            raise ValueError(f"{where}: {key} {reason}")
        is_section = isinstance(getattr(before, last, None), Params) and isinstance(value, dict)
        section[last] = section[last] | value if is_section else value
    try:
        return DistillParams.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        key, reason = ".".join(map(str, first["loc"])), first["msg"].removeprefix("Value error, ")
        raise ValueError(f"{where}: {key}: {reason}") from None
