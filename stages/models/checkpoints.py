"""Checkpoints of trainings: where they lie, and which of them a training may go on from."""

import hashlib
import json
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from accelerate.utils import broadcast_object_list
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainingArguments

from cache import canonical_json, write_atomically
from stages.dependencies import code_digests
from stages.models.processes import process_index
from stages.progress import say

_CHECKPOINTS = Path(".checkpoints")


_MADE_BY = "made_by.json"
_SECONDS = 300  # between checkpoints


def last_complete_checkpoint(folder: Path) -> str | None:
    """Find the last checkpoint that a killed run had finished writing: its state is written last."""
    complete = {}
    for path in folder.glob("checkpoint-*/trainer_state.json"):
        with suppress(ValueError):
            complete[int(json.loads(path.read_bytes())["global_step"])] = str(path.parent)
    return complete[max(complete)] if complete else None


class Checkpoints(NamedTuple):
    """Where a training keeps its checkpoints while it runs.

    Attributes:
        folder: What an interrupted run has left is in it.
        went_on_over: What of code and libraries had changed when the training went on all the same.
    """

    folder: Path
    went_on_over: list[str]


def checkpoints_of(name: str, facts: Any, *, file: str, resume: bool) -> Checkpoints:
    """Choose where a training keeps its checkpoints, and delete those of an interrupted run of other code.

    Outside of ``artifacts/``, because DVC deletes a stage's outputs before it runs it again. A training that
    depends on other parameters or data gets another folder, so that it never goes on from a foreign one.

    Args:
        name: The stage's name.
        facts: JSON values: the parameters and the data that the training depends on.
        file: The training's file, whose code, and what that imports, must not have changed.
        resume: Go on from a checkpoint of other code as well.
    """
    folder = _CHECKPOINTS / name / hashlib.sha256(canonical_json(facts)).hexdigest()[:16]
    if process_index() == 0:
        shutil.rmtree(_deleted(folder), ignore_errors=True)  # what a run was killed over
    now = code_and_versions(file)
    if process_index():
        while _read_json(folder / _MADE_BY).get("now") != now:  # what the first process writes
            time.sleep(0.2)
    elif any(folder.rglob("*config.json")):  # a model, or an adapter, to go on from
        noted = _read_json(folder / _MADE_BY)
        changes = _changes(noted.get("now"), now)
        if changes and not resume:
            say(
                f"{name}: a training that was interrupted is left in {folder}, but since then other: "
                f"{', '.join(changes)}; training starts anew (--resume goes on regardless)"
            )
            _delete(folder)
            noted, changes = {}, []
        over = [*noted.get("went_on_over", []), *changes]
    else:
        over = []
    if process_index() == 0:
        write_atomically(folder / _MADE_BY, canonical_json({"now": now, "went_on_over": over}))
    return Checkpoints(folder, _read_json(folder / _MADE_BY)["went_on_over"])


def code_and_versions(file: str) -> dict[str, dict[str, str]]:
    """Give digests of the code that a file runs, and versions of the libraries that decide what it does."""
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    return {"code": code_digests(Path(file)), "versions": versions}


def delete_finished(folders: Iterable[Path]) -> None:
    """Delete the checkpoints of trainings that are done, and say what others of the same name are left."""
    places = set()
    for folder in folders:
        _delete(folder)
        places.add(folder.parent)
    for place in sorted(places):
        left = [path for path in place.glob("*") if path.is_dir()]
        size = sum(path.stat().st_size for one in left for path in one.rglob("*") if path.is_file())
        if size >= 1e6:
            say(
                f"{place} still holds {size / 1e6:,.0f} MB of interrupted trainings with other parameters or "
                "data; delete it unless you go on with them"
            )


def _delete(folder: Path) -> None:
    """Delete a training's checkpoints; a run that is killed over it leaves none of them in part."""
    with suppress(FileNotFoundError):
        folder.rename(_deleted(folder))
    shutil.rmtree(_deleted(folder), ignore_errors=True)


def _deleted(folder: Path) -> Path:
    return folder.with_suffix(".deleted")


def _read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file; nothing where it is not there, as in what an older version left."""
    with suppress(FileNotFoundError, ValueError):
        values: dict[str, Any] = json.loads(path.read_bytes())
        return values
    return {}


def _changes(before: Mapping[str, Any] | None, now: Mapping[str, Any]) -> list[str]:
    """Say what of code and libraries is not what it was."""
    if before is None:
        return ["code of a version that did not note it"]
    files = before["code"].keys() | now["code"].keys()
    code = [file for file in sorted(files) if before["code"].get(file) != now["code"].get(file)]
    versions = [
        f"{library} {now['versions'][library]} (was {version})"
        for library, version in before["versions"].items()
        if now["versions"][library] != version
    ]
    return code + versions


class InTime(TrainerCallback):
    """Asks for a checkpoint where the last one is old: a thousand steps may take an hour."""

    def __init__(self) -> None:
        self._saved = time.monotonic()

    def on_step_end(
        self, args: TrainingArguments, state: Any, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Look at the clock after every tenth step."""
        if state.global_step % 10 == 0:
            # The processes of a training ask their own clocks, and must save together.
            (is_time,) = broadcast_object_list([time.monotonic() - self._saved >= _SECONDS])
            control.should_save |= is_time

    def on_save(self, args: TrainingArguments, state: Any, control: TrainerControl, **kwargs: Any) -> None:
        """Remember when it was."""
        self._saved = time.monotonic()


class BestInMemory(TrainerCallback):
    """Keeps the weights of the best validation in memory; ends a training that gets no better.

    A checkpoint holds the weights and, twice as large, the optimizer's state: to write one after each epoch
    takes longer than many an epoch, so one is asked for every few minutes.

    Attributes:
        step: Of the best validation so far.
        accuracy: What that saw, on average over the validation sets, in [0, 1].
    """

    def __init__(self, folder: Path, *, names: Sequence[str] = ("",), patience: int | None = None) -> None:
        """Take up what an interrupted run has left, if it left a checkpoint; what begins anew knows no best.

        Args:
            folder: Where the training keeps its checkpoints.
            names: Of the validation sets; a single one has none.
            patience: After how many validations without a better one the training ends; None: it goes on.
        """
        self.step, self.accuracy = 0, -1.0
        self._keys = [f"eval_{name}_accuracy" if name else "eval_accuracy" for name in names]
        self._patience = patience
        self._file = folder / "best.safetensors"
        self._weights: dict[str, Tensor] = {}
        self._seen: dict[str, float] = {}  # by validation set
        self._is_written = True
        self._saved = time.monotonic()
        if self._file.is_file() and last_complete_checkpoint(folder):
            with safe_open(self._file, "pt") as file:
                self.step = int(file.metadata().get("step", 0))  # the first one noted none
                self.accuracy = float(file.metadata()["accuracy"])
                self._seen = json.loads(file.metadata().get("seen", "{}"))
                self._weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118

    def on_train_begin(
        self, args: TrainingArguments, state: Any, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Log the best validation again where it came after the checkpoint, at the same step.

        Patience may have ended the training there, which the Trainer does not note.
        """
        logged = any(log["step"] == self.step and self._keys[-1] in log for log in state.log_history)
        if self._seen and self.step <= state.global_step and not logged:
            state.log_history.append({**self._seen, "step": self.step})
        if self._seen and self._is_out_of_patience(self._validations(state)):
            control.should_training_stop = True

    def on_step_end(
        self, args: TrainingArguments, state: Any, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Write the best weights before a checkpoint, which is only what it is with these."""
        if control.should_save:
            self._write()

    def on_save(self, args: TrainingArguments, state: Any, control: TrainerControl, **kwargs: Any) -> None:
        """Remember when it was."""
        self._saved = time.monotonic()

    def on_evaluate(
        self, args: TrainingArguments, state: Any, control: TrainerControl, model: Any = None, **kwargs: Any
    ) -> None:
        """Compare with the best so far; ask for a checkpoint where the last one is old."""
        seen = self._validations(state)
        if state.global_step not in seen:  # other validation sets follow
            return
        accuracy = sum(seen[state.global_step].values()) / len(self._keys)
        if accuracy > self.accuracy:
            self.step, self.accuracy = state.global_step, accuracy
            self._seen = seen[state.global_step]
            self._weights = {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}
            self._is_written = False
            if args.save_strategy != "no":  # checkpoints follow that are only what they are with these
                self._write()
        is_over = self._is_out_of_patience(seen)
        control.should_training_stop |= is_over
        # The processes of a training ask their own clocks, and must save together.
        (is_time,) = broadcast_object_list([time.monotonic() - self._saved >= _SECONDS])
        if is_time or (is_over and args.save_strategy != "no"):  # one of several trainings is not done again
            control.should_save = True
        if control.should_save:
            self._write()

    def _validations(self, state: Any) -> dict[int, dict[str, float]]:
        """Give the accuracies on all validation sets, by the step at which all of them were seen."""
        seen: dict[int, dict[str, float]] = {}
        for log in state.log_history:
            its = seen.setdefault(log["step"], {})
            its |= {key: log[key] for key in self._keys if key in log}
        return {step: its for step, its in seen.items() if len(its) == len(self._keys)}

    def _is_out_of_patience(self, seen: Iterable[int]) -> bool:
        return self._patience is not None and sum(step > self.step for step in seen) >= self._patience

    def _write(self) -> None:
        if process_index() == 0 and not self._is_written:
            metadata = {"accuracy": repr(self.accuracy), "step": str(self.step)}
            metadata["seen"] = json.dumps(self._seen)
            write_atomically(self._file, save(self._weights, metadata))
            self._is_written = True

    def restore(self, model: Any) -> None:
        """Give a model the best weights."""
        model.load_state_dict(self._weights)
