"""params.yaml: composed from the stages' sections, validated as a whole before anything runs."""

import datetime
import difflib
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Self, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    StringConstraints,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from pipeline.terminal import counted
from stages.ablation.params import AblationParams
from stages.data.silver import silver_languages
from stages.data.task import HubSource, TaskParams
from stages.params import Params
from stages.student.params import StudentSection
from stages.teacher.params import CacheParams, TeacherParams, TeacherSection


class ParamsError(Exception):
    """A params file that cannot be used; the message is one line."""


def _has_words(launch: str) -> str:
    """Refuse what no shell could read."""
    try:
        shlex.split(launch)
    except ValueError as error:
        raise ValueError(f"{launch} is no command ({error}); quote its words as in a shell") from error
    return launch


class PipelineParams(Params):
    """The whole of params.yaml."""

    launch: Annotated[str, StringConstraints(pattern=r"\S"), AfterValidator(_has_words)] | None = None
    """What starts the three trainings, such as ``torchrun --nproc-per-node 2 -m pipeline``; null: nothing but
    the command itself."""
    task: TaskParams
    teachers: dict[str, TeacherParams]
    teacher: TeacherSection = TeacherSection()
    student: StudentSection
    ablation: AblationParams = AblationParams()
    cache: CacheParams = CacheParams()

    @field_validator("cache", "teacher", "ablation", mode="before")
    @classmethod
    def _a_section_may_be_empty(cls, section: Any) -> Any:
        """Take null, which YAML makes of a section all of whose lines are comments, for no values."""
        return {} if section is None else section

    @model_validator(mode="after")
    def _every_supervised_language_has_a_teacher(self) -> Self:
        for language in self.task.supervised:
            if language not in self.teachers:
                raise ValueError(
                    f"task.supervised names '{language}', which has no teacher; "
                    f"add teachers.{language} with a base"
                )
        return self

    @model_validator(mode="after")
    def _teachers_without_labels_are_ready(self) -> Self:
        for language in silver_languages(self.task, self.teachers):
            for one in self.teachers[language].all:
                if one.base is not None and one.finetune:
                    raise ValueError(
                        f"teachers.{language} has a base, but '{language}' is a zero-shot language, without "
                        "labels to fine-tune it on; name a finished student and set finetune: false"
                    )
        return self

    @model_validator(mode="after")
    def _scratch_encoders_are_described(self) -> Self:
        sections = [
            (f"teachers.{name}.base", t.base, "teacher.finetune", self.teacher.finetune.scratch)
            for name, teacher in self.teachers.items()
            for t in teacher.all
        ]
        pretrain = self.student.pretrain
        sections.append(("student.pretrain.base", pretrain.base, "student.pretrain", pretrain.scratch))
        for key, base, section, scratch in sections:
            if base == "scratch" and scratch is None:
                raise ValueError(f"{key} is scratch, which needs {section}.scratch; write scratch: {{}}")
        return self

    @model_validator(mode="after")
    def _endpoints_can_tell_every_class(self) -> Self:
        n_classes = len(self.task.classes)
        for language, teacher in self.teachers.items():
            for how in (one.endpoint for one in teacher.all if one.endpoint):
                most, instead = 255, "use the shape classify"
                if how.shape == "chat-logprobs":
                    by_id = "logprob_token_ids" in how.extra
                    most = 26 if by_id else min(26, how.top_logprobs)
                    instead = "use the shape decision, or vLLM's extra: {logprob_token_ids: …} up to 26"
                if how.shape != "classify" and n_classes > most:
                    raise ValueError(
                        f"teachers.{language}.endpoint: the shape {how.shape} tells {most} classes at most, "
                        f"the task has {n_classes}; {instead}"
                    )
                if how.shape == "chat-logprobs" and "classes" in self.task.text_fields:
                    raise ValueError(
                        f"teachers.{language}.endpoint: in its template, {{classes}} is the list of letters; "
                        "give the text field classes another name"
                    )
                if how.dialect == "vllm" and len(self.task.text_fields) > 1:
                    raise ValueError(
                        f"teachers.{language}.endpoint: vLLM's /classify takes one text, the task has two"
                    )
        return self

    @model_validator(mode="after")
    def _weights_by_name_name_all(self) -> Self:
        sections = {"student.distill": self.student.distill}
        for run, settings in self.ablation.settings(self.student.distill).items():
            sections[f"ablation, run {run}: student.distill"] = settings
        for section, distill in sections.items():
            for key, weights, what, names in (
                ("mixture.weights", distill.mixture.weights, "task.supervised", self.task.supervised),
                ("class_weights", distill.class_weights, "task.classes", self.task.classes),
            ):
                if isinstance(weights, dict) and set(weights) != set(names):
                    raise ValueError(
                        f"{section}.{key} is {weights}; it needs one weight for each of {what}: "
                        f"{', '.join(names)}"
                    )
        return self

    def teacher_of(self, language: str) -> TeacherParams:
        """Give section `teachers.<language>` of a supervised language.

        Raises:
            ParamsError: The language is not supervised.
        """
        if language not in self.task.supervised:
            known = ", ".join(self.task.supervised)
            raise ParamsError(f"'{language}' is not in task.supervised; these are: {known}")
        return self.teachers[language]

    def uses_hub(self) -> bool:
        """Tell whether anything names the Hugging Face Hub; if not, no connection is ever opened."""
        named = [one.base for teacher in self.teachers.values() for one in teacher.all if one.base]
        named.append(self.student.pretrain.base)
        if isinstance(self.task.source, HubSource):
            named += [self.task.source.dataset.replace("{language}", one) for one in self.task.languages]
        return any(name != "scratch" and not Path(name).exists() for name in named)


_RENAMED: dict[str, str] = {}
"""Dotted keys of the release before this one, and their names now. A key stays here for one release."""


def load_params(
    path: Path, changes: Sequence[str] = (), *, renamed: Mapping[str, str] = _RENAMED
) -> PipelineParams:
    """Read and validate a params file.

    Args:
        path: A YAML file.
        changes: ``key=value`` with dotted keys and YAML values, such as ``student.distill.temperature=4``.
        renamed: Keys that are called otherwise now; what has the old name is taken with a warning.

    Raises:
        ParamsError: The file is not YAML, or a key or value in it is not allowed.
    """
    try:
        values = YAML(typ="safe").load(path)
    except (OSError, UnicodeDecodeError) as error:
        raise ParamsError(f"cannot read {path}; name another file with --params ({error})") from None
    except (YAMLError, ValueError) as error:  # such as a date that there is not
        raise ParamsError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise ParamsError(f"{path} holds no sections")
    for change in changes:
        _apply(values, change)
    for old, new in renamed.items():
        _rename(values, old, new, path)
    try:
        return PipelineParams.model_validate(values)
    except ValidationError as error:
        raise ParamsError(f"{path}: {_one_line(error.errors())}") from error


def _apply(values: dict[str, Any], change: str) -> None:
    key, equals, text = change.partition("=")
    if not equals:
        raise ParamsError(f"--set {change}: write it as key=value")
    try:
        value = YAML(typ="safe").load(text)
    except (YAMLError, ValueError) as error:
        raise ParamsError(f"--set {change}: {text} is not a YAML value") from error
    *sections, last = key.strip().split(".")
    for section in sections:
        inner = {} if values.get(section) is None else values[section]
        if not isinstance(inner, dict):
            raise ParamsError(f"--set {change}: {section} is a value, not a section")
        values[section] = values = dict(inner)  # a copy: an alias in the file shares what it names
    values[last] = value


def _rename(values: dict[str, Any], old: str, new: str, path: Path) -> None:
    """Move a value from its key's old name to the new one, and say so."""
    *sections, last = old.split(".")
    node: Any = values
    for section in sections:
        node = node.get(section) if isinstance(node, dict) else None
    if not isinstance(node, dict) or last not in node:
        return
    value = node.pop(last)
    *sections, last = new.split(".")
    for section in sections:
        values = values.setdefault(section, {})
    if last in values:
        raise ParamsError(f"{path}: {old} is called {new} now, and both are there; delete {old}")
    values[last] = value
    sys.stderr.write(f"warning: {path}: {old} is called {new} now; the old name goes with the next release\n")


def _one_line(errors: list[ErrorDetails]) -> str:
    # A misspelt key is also a missing one: the unknown key is the one to show.
    errors.sort(key=lambda error: error["type"] != "extra_forbidden")
    first = errors[0]
    others = [error for error in errors[1:] if _key(error["loc"]) != _key(first["loc"])]
    if first["type"] not in ("extra_forbidden", "missing", "value_error"):  # what else the value may be
        same = [error["msg"] for error in errors if _key(error["loc"]) == _key(first["loc"])]
        first["msg"] = ", or ".join([same[0], *(one.removeprefix("Input should be ") for one in same[1:])])
    more = f" (and {counted(len(others), 'other error')})" if others else ""
    return _explain(first) + more


def _key(location: tuple[int | str, ...]) -> str:
    """Write a location without the kinds of values that pydantic tried there."""
    named = (part for part in map(str, location) if part not in ("names", "hub", "files"))
    return ".".join(part for part in named if not re.search(r"-int$|^literal\[", part))


def _explain(error: ErrorDetails) -> str:
    location, message = error["loc"], error["msg"]
    key = _key(location)
    if error["type"] == "extra_forbidden":
        known = _known_keys(location)
        close = difflib.get_close_matches(str(location[-1]), known, n=1)
        hint = f"did you mean {close[0]}?" if close else f"there are: {', '.join(known)}"
        return f"{key} is not a parameter; {hint}"
    if error["type"] == "missing":
        return f"{key} is missing"
    if error["type"] == "union_tag_not_found":
        return f"{key}.kind is missing"
    if error["type"] == "union_tag_invalid":
        kinds = error["ctx"]["expected_tags"].replace("'", "")
        return f"{key}.kind is {error['ctx']['tag']!r}; there are: {kinds}"
    if error["type"] == "value_error":
        return (f"{key}: " if key else "") + message.removeprefix("Value error, ")
    given = error["input"]
    quoted = ""
    if error["type"] == "string_type" and isinstance(given, bool | int | float | datetime.date):
        quoted = "; put quotes around it as it stands in the file"  # which may be 007, or 0012e4
    message = re.sub(r"valid dictionary.*", "section or mapping", message)
    return f"{key} is {given!r}: {message[0].lower()}{message[1:]}{quoted}"


def _known_keys(location: tuple[int | str, ...]) -> list[str]:
    """List the keys that may stand where the last key of a location stands."""
    models: list[type[BaseModel]] = [PipelineParams]
    for part in location[:-1]:
        models = [model for model in models if _is_of_kind(model, part)] or models
        inner = [
            found
            for model in models
            if part in model.model_fields
            for found in _models_in(model.model_fields[str(part)].annotation)
        ]
        models = inner or models  # a language, or the kind of a source: no level of its own
    return sorted({name for model in models for name in model.model_fields})


def _is_of_kind(model: type[BaseModel], kind: int | str) -> bool:
    """Tell whether a model is the one of several that key `kind` chooses with this value."""
    return "kind" in model.model_fields and kind in get_args(model.model_fields["kind"].annotation)


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in _models_in(argument)]
