"""Export the student for others: a plain model per language, and ONNX of each language and of the mixture.

Where no plain model pools as the student does, a language's model is a student with its branch alone.
"""

import json
import logging
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from cache import write_atomically
from stages.artifacts import STUDENT, replaced_folder
from stages.errors import StageError
from stages.models.loading import require_max_tokens
from stages.models.modeling_mblm import MBLMForSequenceClassification
from stages.models.students import MIXTURE, class_names, load_student
from stages.progress import Bar
from stages.student.params import DistillParams

TOLERANCE = 1e-4
"""Largest difference of a logit between PyTorch and ONNX."""

_ONNX = "onnx"
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
    """

    folder: Path
    languages: list[str]
    is_plain: bool
    largest_difference: float | None

    def line(self) -> str:
        """Say it in one line."""
        kind = "plain models" if self.is_plain else "one-branch models, with their code,"
        models = f"{self.folder}: {kind} of {', '.join(self.languages)}"
        if self.largest_difference is None:
            return models
        return f"{models}; ONNX of these and of the mixture, within {self.largest_difference:.0e} of PyTorch"


def export(
    folder: Path,
    distill: DistillParams,
    *,
    model: Path = STUDENT,
    onnx: bool = False,
    overwrite: bool = False,
) -> Exported:
    """Write ``<language>/`` for each supervised language, and ``onnx/`` where it is asked for.

    Args:
        folder: Where to; of what is there, only what an export wrote is replaced.
        distill: Section `student.distill`, whose `max_tokens` is the longest input that ONNX is checked with.
        model: The student's folder.
        onnx: Whether ONNX is wanted.
        overwrite: Whether there may be something in `folder`.

    Raises:
        StageError: There is no student, the folder is not empty, a package is missing, or ONNX differs.
    """
    if folder.exists() and not folder.is_dir():
        raise StageError(f"{folder} is no folder")
    if (folder / "config.json").exists():
        raise StageError(f"{folder} holds a model; name a folder for the export alone")
    if folder.exists() and any(folder.iterdir()) and not overwrite:
        raise StageError(f"{folder} is not empty; replace what is in it with --overwrite")
    if onnx and not all(map(find_spec, _PACKAGES)):
        raise StageError(
            f"--onnx needs {', '.join(_PACKAGES)}; install them with: "
            "pip install --constraint constraints.txt --editable '.[onnx]'"
        )
    student, tokenizer = load_student(model)
    languages = student.config.languages
    if onnx:
        require_max_tokens(
            distill.max_tokens, tokenizer, student.mblm.encoder.config, key="student.distill.max_tokens"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StageError(f"cannot write {folder}: {error.strerror}") from error
    _remove_former(folder)
    is_plain = True
    for language in Bar(languages, desc="export", unit="language", delay=2):
        with replaced_folder(folder / language) as target:
            one = student.to_plain(language)
            is_plain = not isinstance(one, MBLMForSequenceClassification)
            one.save_pretrained(target)
            tokenizer.save_pretrained(target)
        _note(folder, language)
    if not onnx:
        return Exported(folder, languages, is_plain, None)
    with replaced_folder(folder / _ONNX) as target:
        largest = _export_onnx(student, tokenizer, target, distill.max_tokens)
    _note(folder, _ONNX)
    return Exported(folder, languages, is_plain, largest)


def _remove_former(folder: Path) -> None:
    """Delete what an earlier export wrote: nothing of another student stays beside the new one."""
    try:
        former = json.loads((folder / _WRITTEN).read_bytes())
    except FileNotFoundError:
        return
    except ValueError as error:
        raise StageError(f"{folder / _WRITTEN} makes no sense; empty the folder") from error
    for name in former:
        shutil.rmtree(folder / Path(str(name)).name, ignore_errors=True)
    (folder / _WRITTEN).unlink()


def _note(folder: Path, name: str) -> None:
    """Write down that an export wrote a folder."""
    path = folder / _WRITTEN
    written = json.loads(path.read_bytes()) if path.exists() else []
    write_atomically(path, json.dumps([*written, name]).encode())


def _export_onnx(
    student: MBLMForSequenceClassification, tokenizer: PreTrainedTokenizerBase, folder: Path, max_tokens: int
) -> float:
    """Write one file per language, one of the mixture, the tokenizer, and what a server has to know.

    Returns:
        The largest difference of a logit from PyTorch's.
    """
    names = list(tokenizer.model_input_names)
    lengths = sorted({min(length, max_tokens) for length in (3, 17, max_tokens)})
    largest = 0.0
    for name in Bar([MIXTURE, *student.config.languages], desc="export to ONNX", unit="model"):
        path = folder / f"{name}.onnx"
        is_mixture = name == MIXTURE
        student.set_default_language(None if is_mixture else name)
        _write_onnx(student if is_mixture else student.to_plain(name), names, path)
        family = student.config.mplm_config.model_type
        try:
            difference = _largest_difference(student, names, path, lengths)
        except Exception as error:  # onnxruntime's have no common type
            reason = str(error).strip().partition("\n")[0]
            raise StageError(f"onnxruntime cannot run {name}.onnx of a {family} model: {reason}") from error
        if not difference <= TOLERANCE:  # nor NaN
            raise StageError(
                f"the logits of {name}.onnx differ from PyTorch's by {difference:.1e}, more than "
                f"{TOLERANCE:.0e}; torch does not export this {family} model correctly"
            )
        largest = max(largest, difference)
    tokenizer.save_pretrained(folder)
    facts = {
        "classes": class_names(student.config),
        "inputs": names,
        "outputs": ["logits"],
        "max_tokens": max_tokens,
    }
    (folder / "model.json").write_text(json.dumps(facts, indent=1, ensure_ascii=False), encoding="utf-8")
    return largest


class _Logits(nn.Module):
    """A classifier that takes a tokenizer's outputs by position and gives nothing but logits."""

    def __init__(self, classifier: nn.Module, names: list[str]) -> None:
        super().__init__()
        self.classifier, self.names = classifier, names

    def forward(self, *inputs: Tensor) -> Any:
        return self.classifier(**dict(zip(self.names, inputs, strict=True))).logits


def _write_onnx(classifier: Any, names: list[str], path: Path) -> None:
    """Write a classifier as ONNX whose batch and length are free."""
    example = _inputs(classifier.config, names, batch=3, length=4)
    free = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    with _quiet():
        try:
            program = torch.onnx.export(
                _Logits(classifier, names).eval(),
                tuple(example[name] for name in names),
                input_names=names,
                output_names=["logits"],
                dynamic_shapes=((free,) * len(names),),
                dynamo=True,
                verbose=False,
            )
        except torch.onnx.OnnxExporterError as error:
            family = getattr(classifier.config, "mplm_config", classifier.config).model_type
            reason = str(error.__cause__ or error).strip().partition("\n")[0]
            raise StageError(f"torch cannot export a {family} model to ONNX: {reason}") from error
        assert program is not None
        program.save(path)


def _largest_difference(
    student: MBLMForSequenceClassification, names: list[str], path: Path, lengths: list[int]
) -> float:
    """Compare a file with the student, for several batches and lengths, with padding."""
    import onnxruntime  # an extra

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    differences = []
    for batch in (1, 5):
        for length in lengths:
            inputs = _inputs(student.config.mplm_config, names, batch=batch, length=length)
            with torch.inference_mode():
                expected = student(**inputs).logits
            [logits] = session.run(["logits"], {name: value.numpy() for name, value in inputs.items()})
            differences.append((torch.from_numpy(logits) - expected).abs().max())
    return float(torch.stack(differences).max())


def _inputs(config: Any, names: list[str], *, batch: int, length: int) -> dict[str, Tensor]:
    """Draw inputs, ``(B, T)``: every second text is shorter, and padded."""
    config = getattr(config, "mplm_config", config)
    generator = torch.Generator().manual_seed(batch * length)
    shape = (batch, length)
    mask = torch.ones(shape, dtype=torch.int64)
    mask[1::2, length // 2 :] = 0
    padding = config.pad_token_id or 0
    ids = torch.randint(config.vocab_size, shape, generator=generator)
    segments = torch.randint(max(1, getattr(config, "type_vocab_size", 1)), shape, generator=generator)
    made = {
        "input_ids": torch.where(mask == 1, ids, padding),
        "attention_mask": mask,
        "token_type_ids": segments,
    }
    for name in names:
        if name not in made:
            raise StageError(f"the tokenizer gives {name}, which ONNX models here do not take")
    return {name: made[name] for name in names}


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep back what torch and onnxscript say of themselves: deprecations, operators that it lacks."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
