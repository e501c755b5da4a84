"""Export the student for others: a plain model per language, and ONNX, one graph of all branches.

Where no plain model pools as the student does, a language's model is a student with its branch alone.
"""

import json
import shutil
from contextlib import ExitStack
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from cache import write_atomically
from stages.artifacts import DATA, STUDENT, replaced_folder
from stages.data.task import TaskParams
from stages.errors import StageError
from stages.models.loading import require_max_tokens
from stages.models.modeling_mblm import MBLMForSequenceClassification
from stages.models.students import class_names, load_student
from stages.progress import Bar
from stages.student.exporting.graph import example_inputs, traced_graph
from stages.student.exporting.measured import Change, changes_by_int8, session_of
from stages.student.exporting.quantized import quantized
from stages.student.exporting.routing import LANGUAGE_IDS, add_routing
from stages.student.params import DistillParams, EvaluateParams
from stages.student.serving.model import FACTS, FLOAT32, INT8, Facts

TOLERANCE = 1e-4
"""Largest difference of a logit between PyTorch and ONNX."""

_ONNX = "onnx"
_MOST_BYTES = 2**31 - 2**24
"""Of weights in an ONNX file, which protobuf limits to 2 GiB; the rest is for the operators."""
_WRITTEN = "export.json"
_PACKAGES = ("onnx", "onnxscript", "onnxruntime")


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        folder: Where.
        languages: Those with a plain model.
        is_plain: Whether these are models of the encoder's family; no family pools in every way.
        largest_difference: Of a logit between PyTorch and ONNX; None without ONNX.
        int8: What int8 changes; None where it was not asked for.
    """

    folder: Path
    languages: list[str]
    is_plain: bool
    largest_difference: float | None
    int8: "Int8 | None" = None

    def line(self) -> str:
        """Say it in one line."""
        kind = "plain models" if self.is_plain else "one-branch models, with their code,"
        models = f"{self.folder}: {kind} of {', '.join(self.languages)}"
        if self.largest_difference is None:
            return models
        line = f"{models}; ONNX of all branches, within {self.largest_difference:.0e} of PyTorch"
        return line if self.int8 is None else "\n".join([line, *self.int8.lines()])


@dataclass(frozen=True)
class Int8:
    """What int8 changes.

    Attributes:
        sizes: Of the files in float32 and int8, in bytes.
        changes: By language and split.
        reason: Why nothing was measured; empty where something was.
    """

    sizes: tuple[int, int]
    changes: list[Change]
    reason: str = ""

    def lines(self) -> list[str]:
        """Say it: the sizes, a line per language and split, the largest change."""
        before, after = (size / 1e6 for size in self.sizes)
        sizes = f"{INT8}: {after:.1f} MB, {FLOAT32}: {before:.1f} MB"
        if not self.changes:
            return [f"{sizes}; what int8 changes was not measured: {self.reason}"]
        most = max(self.changes, key=lambda one: abs(one.int8 - one.float32))
        largest = f"largest change of accuracy: {100 * (most.int8 - most.float32):+.1f} points"
        where = f"{most.language}, {most.split}"
        return [sizes, *(one.line() for one in self.changes), f"{largest} ({where})"]


def export(
    folder: Path,
    distill: DistillParams,
    evaluate: EvaluateParams,
    task: TaskParams,
    *,
    model: Path = STUDENT,
    onnx: bool = False,
    int8: bool = False,
    overwrite: bool = False,
) -> Exported:
    """Write ``<language>/`` for each supervised language, and ``onnx/`` where it is asked for.

    Args:
        folder: Where to; of what is there, only what an export wrote is replaced.
        distill: Section `student.distill`, whose `max_tokens` is the longest input that ONNX is checked with.
        evaluate: Section `student.evaluate`, whose `batch_size` is used to measure what int8 changes.
        task: Section `task`, whose examples int8 is measured on.
        model: The student's folder.
        onnx: Whether ONNX is wanted.
        int8: Whether it is wanted in int8, too.
        overwrite: Whether there may be something in `folder`.

    Raises:
        StageError: There is no student, the folder is not empty, a package is missing, or ONNX differs.
    """
    _require_place(folder, onnx=onnx, int8=int8, overwrite=overwrite)
    student, tokenizer = load_student(model)
    languages = student.config.languages
    names = [*languages, *([_ONNX] if onnx else [])]
    former = _former(folder)
    _require_exports(folder, names, former)
    if onnx:
        require_max_tokens(distill.max_tokens, tokenizer, student.config, key="student.distill.max_tokens")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StageError(f"cannot write {folder}: {error.strerror}") from error
    is_plain, largest = True, None
    with ExitStack() as stack:  # what is there stays, until all is written that takes its place
        targets = {name: stack.enter_context(replaced_folder(folder / name)) for name in names}
        for language in Bar(languages, desc="export", unit="language", delay=2):
            one = _calibrated(student.to_plain(language), student.config.own_temperature)
            is_plain = not isinstance(one, MBLMForSequenceClassification)
            one.save_pretrained(targets[language])
            tokenizer.save_pretrained(targets[language])
        if onnx:
            largest = _export_onnx(student, tokenizer, targets[_ONNX], distill.max_tokens, int8=int8)
            _write_facts(targets[_ONNX], student, tokenizer, distill.max_tokens, task)
        _note(folder, {*former, *names})
    for name in former - set(names):  # nothing of another student stays beside the new one
        shutil.rmtree(folder / name, ignore_errors=True)
    _note(folder, set(names))
    exported = Exported(folder, languages, is_plain, largest)
    if not int8:
        return exported
    return replace(exported, int8=_measured(folder / _ONNX, student, tokenizer, distill, evaluate, task))


def _require_place(folder: Path, *, onnx: bool, int8: bool, overwrite: bool) -> None:
    """Refuse to export where something else lies, or what cannot be exported here.

    Raises:
        StageError: See `export`.
    """
    if folder.exists() and not folder.is_dir():
        raise StageError(f"{folder} is no folder")
    if (folder / "config.json").exists():
        raise StageError(f"{folder} holds a model; name a folder for the export alone")
    if folder.exists() and any(folder.iterdir()) and not overwrite:
        raise StageError(f"{folder} is not empty; replace what is in it with --overwrite")
    if int8 and not onnx:
        raise StageError("--quantize is for ONNX: add --onnx")
    if onnx and not all(map(find_spec, _PACKAGES)):
        raise StageError(
            f"--onnx needs {', '.join(_PACKAGES)}; install them with: "
            "pip install --constraint constraints.txt --editable '.[onnx]'"
        )


def _require_exports(folder: Path, names: list[str], former: set[str]) -> None:
    """Refuse to replace folders and files that no export wrote.

    Raises:
        StageError: One is of something else.
    """
    for name in names:
        place = folder / name
        is_free = not place.exists() or (place.is_dir() and not any(place.iterdir()))
        if name not in former and not is_free:
            raise StageError(
                f"{place} is there, and {folder / _WRITTEN} does not list it as an export's; delete "
                "it, or name a folder for the export alone"
            )


def _measured(
    folder: Path,
    student: MBLMForSequenceClassification,
    tokenizer: PreTrainedTokenizerBase,
    distill: DistillParams,
    evaluate: EvaluateParams,
    task: TaskParams,
) -> Int8:
    """Say how large both graphs are, and how much less accurate int8 is, where there are examples."""
    files = folder / FLOAT32, folder / INT8
    sizes = files[0].stat().st_size, files[1].stat().st_size
    if class_names(student.config) != task.classes:
        return Int8(sizes, [], "the student is of other classes than params.yaml names")
    if (student.config.text_fields or task.text_fields) != task.text_fields:
        return Int8(sizes, [], "the student reads other text fields than params.yaml names")
    try:
        changes = changes_by_int8(
            task,
            tokenizer,
            student.config.language_id,
            files,
            max_tokens=distill.max_tokens,
            batch_size=evaluate.batch_size,
        )
    except StageError as error:
        return Int8(sizes, [], str(error))
    return Int8(sizes, changes, f"there are no examples in {DATA}")


def _former(folder: Path) -> set[str]:
    """List what an earlier export wrote.

    Raises:
        StageError: Its list makes no sense.
    """
    try:
        return {Path(name).name for name in json.loads((folder / _WRITTEN).read_bytes())} - {"", ".."}
    except FileNotFoundError:
        return set()
    except (TypeError, ValueError) as error:
        raise StageError(f"{folder / _WRITTEN} makes no sense; empty the folder") from error


def _note(folder: Path, names: set[str]) -> None:
    """Write down which folders are an export's."""
    write_atomically(folder / _WRITTEN, json.dumps(sorted(names)).encode())


def _calibrated(plain: Any, temperature: float) -> Any:
    """Divide the weights of the last layer by a temperature, so that softmax of the logits is calibrated."""
    is_student = isinstance(plain, MBLMForSequenceClassification)
    modules = (plain.head if is_student else plain).modules()
    n_classes = plain.config.num_labels
    *_, last = (one for one in modules if isinstance(one, nn.Linear) and one.out_features == n_classes)
    with torch.no_grad():
        for weight in last.parameters():
            weight.div_(temperature)
    if is_student:
        plain.config.own_temperature = plain.config.mixture_temperature = 1.0
    return plain


def _export_onnx(
    student: MBLMForSequenceClassification,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    max_tokens: int,
    *,
    int8: bool,
) -> float:
    """Write the graph and the tokenizer.

    Returns:
        The largest difference of a logit from PyTorch's.
    """
    import onnx  # an extra, and slow

    config = student.config
    family = config.mplm_config.model_type
    n_bytes = sum(one.numel() * one.element_size() for one in student.parameters())
    if n_bytes > _MOST_BYTES:
        raise StageError(f"the student has {n_bytes / 2**30:.1f} GiB of weights; one ONNX file holds 2 GiB")
    names = list(tokenizer.model_input_names)
    graph = traced_graph(student, names)
    smaller = quantized(graph, vocabulary=config.mplm_config.vocab_size) if int8 else None
    add_routing(graph, config.n_branches)
    onnx.save(graph, folder / FLOAT32)
    lengths = sorted({min(length, max_tokens) for length in (3, 17, max_tokens)})
    try:
        largest = _largest_difference(student, names, folder / FLOAT32, lengths)
    except Exception as error:  # onnxruntime's have no common type
        reason = str(error).strip().partition("\n")[0]
        raise StageError(f"onnxruntime cannot run {FLOAT32} of a {family} model: {reason}") from error
    if not largest <= TOLERANCE:  # nor NaN
        raise StageError(
            f"the logits of {FLOAT32} differ from PyTorch's by {largest:.1e}, more than "
            f"{TOLERANCE:.0e}; torch does not export this {family} model correctly"
        )
    if smaller is not None:
        add_routing(smaller, config.n_branches)
        onnx.save(smaller, folder / INT8)
    tokenizer.save_pretrained(folder)
    return largest


def _write_facts(
    folder: Path,
    student: MBLMForSequenceClassification,
    tokenizer: PreTrainedTokenizerBase,
    max_tokens: int,
    task: TaskParams,
) -> None:
    """Write what a server has to know."""
    config = student.config
    facts = Facts(
        classes=class_names(config),
        text_fields=config.text_fields or task.text_fields,
        inputs=[*tokenizer.model_input_names, LANGUAGE_IDS],
        outputs=["logits"],
        max_tokens=max_tokens,
        languages={language: index for index, language in enumerate(config.languages)},
        n_branches=config.n_branches,
        pad_token_id=tokenizer.pad_token_id or 0,
        truncation_side=tokenizer.truncation_side,
    )
    text = json.dumps(facts.model_dump(), indent=1, ensure_ascii=False)
    (folder / FACTS).write_text(text, encoding="utf-8")


def _largest_difference(
    student: MBLMForSequenceClassification, names: list[str], path: Path, lengths: list[int]
) -> float:
    """Compare a graph with the student, for one text of each branch, mixed batches, and padding.

    Returns:
        The largest difference of a logit before it is calibrated: a low temperature magnifies all of them.
    """
    session = session_of(path)
    config = student.config
    everything = list(range(-1, len(config.languages)))
    differences = []
    for ids in Bar([*([one] for one in everything), [-1, -1], [0, 0, 0], everything], desc="check ONNX"):
        language_ids = torch.tensor(ids)
        temperatures = torch.where(language_ids < 0, config.mixture_temperature, config.own_temperature)
        temperatures = temperatures.unsqueeze(1)
        for length in lengths:
            inputs = example_inputs(config, names, batch=len(ids), length=length)
            inputs[LANGUAGE_IDS] = language_ids
            with torch.inference_mode():
                expected = student(**inputs).logits / temperatures
            [logits] = session.run(["logits"], {name: value.numpy() for name, value in inputs.items()})
            differences.append(((torch.from_numpy(logits) - expected) * temperatures).abs().max())
    return float(torch.stack(differences).max())
