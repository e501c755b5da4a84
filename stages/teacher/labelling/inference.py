"""Run a teacher over texts, each exactly once, longest first."""

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate.utils.memory import should_reduce_batch_size
from numpy.typing import NDArray
from torch import Tensor
from transformers import (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)
from transformers.utils.import_utils import is_peft_available

from stages.errors import StageError
from stages.models.batches import Tokens, current_device, fitting, to_device, tokenize
from stages.models.loading import loading, require_embeddings, require_max_tokens
from stages.models.precision import say_if_slower
from stages.progress import say
from stages.teacher.labelling.decoders import NO_ID, LastToken, classifier_of, is_decoder
from stages.teacher.params import LabelParams


class Answers(NamedTuple):
    """What a teacher says of a batch of texts.

    Attributes:
        positions: Of the texts among those asked about, shape ``(B,)``.
        logits: Raw, float32, shape ``(B, C)``.
        hidden: The last layer's state of the first token, or of a decoder's last one, or what a teacher pools
            in a way of its own; float32, shape ``(B, H)``, where it is asked for.
        tokens: Tokens of the B texts together.
        cells: Tokens and padding: B times the length of the longest.
    """

    positions: NDArray[np.int64]
    logits: NDArray[np.float32]
    hidden: NDArray[np.float32] | None
    tokens: int
    cells: int


class Teacher:
    """A Hugging Face sequence classifier with its tokenizer, in memory."""

    def __init__(self, folder: Path, params: LabelParams) -> None:
        """Load it.

        Args:
            folder: Where its files are.
            params: Section `teacher.label`.

        Raises:
            StageError: It cannot be loaded, has no trained classifier or another model's tokenizer, needs
                PEFT, or takes no inputs of `max_tokens`.
        """
        _require_peft(folder)
        self._folder, self._params = folder, params
        self._budget = params.batch_tokens
        self._device = current_device()
        say_if_slower(params.precision, key="teacher.label.precision")
        # On a device of its own the next batch is made and sent while this one is computed.
        self._n_ahead = 0 if self._device.type == "cpu" else 1
        what = f"the teacher in {folder}"
        with loading(what):
            self._tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
            model, untrained = _load(folder)
        if untrained:
            raise StageError(
                f"{what} has no weights for {', '.join(untrained)}; "
                "fine-tune it first: teachers.<language>.finetune: true"
            )
        with suppress(AttributeError, NotImplementedError):  # CANINE and Perceiver have no such table
            require_embeddings(self._tokenizer, model, what=what)
        require_max_tokens(params.max_tokens, self._tokenizer, model.config, key="teacher.label.max_tokens")
        self._last = LastToken(model) if is_decoder(model.config, type(model)) else None
        self._padding_id: int | None = None  # as the tokenizer has it
        self._last_states: Tensor | None = None
        self._is_pooled = model.config.model_type == "mblm"
        if params.hidden:
            model.base_model.register_forward_hook(self._keep_states)
        model = model.eval().to(self._device)
        self._model: Any = torch.compile(model, dynamic=True) if params.compile else model

    def tokenize(self, fields: Sequence[Sequence[str]]) -> Tokens:
        """Turn texts into tokens. Another thread may do it while the teacher answers.

        Args:
            fields: One or two sequences of N texts.

        Raises:
            StageError: The tokenizer makes no token of a text.
        """
        return tokenize(self._tokenizer, fields, max_tokens=self._params.max_tokens)

    def answer(self, tokens: Tokens) -> Iterator[Answers]:
        """Compute a teacher's logits, longest texts first, each text exactly once.

        A batch holds as many texts as fit into `batch_tokens`, or half of that, and so on, once the device
        has said that so many need more memory than it has. A device may say so only when results are
        fetched: that batch, and what was begun after it, is then computed again.

        Raises:
            StageError: The logits are NaN or infinite, or there is no memory for a single text.
        """
        running: deque[tuple[slice, Tensor, Tensor | None, torch.cuda.Event | None]] = deque()
        n_answers = np.zeros(len(tokens), np.int64)
        start, n_ahead = 0, self._n_ahead
        padding = self._last.unused(tokens.columns["input_ids"]) if self._last else None
        while running or start < len(tokens):
            begins = start < len(tokens) and len(running) <= n_ahead
            batch = self._next(tokens, start, padding) if begins else running[0][0]
            answers = None
            try:
                if begins:
                    inputs = tokens.batch(batch, self._tokenizer, padding_id=self._padding_id)
                    running.append((batch, *self._sent(*self._forward(to_device(inputs, self._device)))))
                else:
                    answers = self._answers(tokens, *running[0])
            except Exception as error:
                if not _is_out_of_memory(error):
                    others = running if begins else islice(running, 1, None)
                    yield from (self._answers(tokens, *other) for other in others)  # computed already
                    raise
            else:
                start, n_ahead = max(start, batch.stop), self._n_ahead
                if answers is not None:
                    running.popleft()
                    n_answers[batch] += 1
                    yield answers
                continue
            # Here no exception holds on to the batch that failed.
            alone = len(running) <= (0 if begins else 1)
            if not begins:
                running.clear()
                start = batch.start
            self._back_off(int(tokens.lengths[batch.start]), batch.stop - batch.start, alone=alone)
            n_ahead = 0  # until a batch has had the memory for itself
        if (n_answers != 1).any():
            raise StageError(
                f"the teacher in {self._folder} answered {int((n_answers == 1).sum())} of {len(tokens)} "
                "texts exactly once; run the same command again"
            )

    def _next(self, tokens: Tokens, start: int, padding: int | None) -> slice:
        """Tell which texts are the next batch.

        Args:
            tokens: Of all texts.
            start: The first text of the batch.
            padding: For a decoder, an id that is in none of the texts; None: there is none.
        """
        n_texts = fitting(tokens.lengths[start:], self._budget)
        if self._last:
            some = tokens.columns["input_ids"][tokens.cells(slice(start, start + n_texts))]
            padding = self._last.unused(some) if padding is None else padding
            if padding is None:  # not even in this batch: texts of one length need none
                lengths = tokens.lengths[start : start + n_texts]
                n_texts, padding = int(np.count_nonzero(lengths == lengths[0])), NO_ID
            self._last.pad_with(padding)
            self._padding_id = padding
        return slice(start, start + n_texts)

    def _forward(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor | None]:
        """Give logits, ``(B, C)``, and a token's states, ``(B, H)``, which may still be computed."""
        bfloat16 = self._params.precision == "bfloat16"
        autocast = torch.autocast(self._device.type, dtype=torch.bfloat16, enabled=bfloat16)
        with torch.inference_mode(), autocast:
            logits = self._model(**batch).logits
            if self._last_states is None:
                return logits, None
            if self._is_pooled:
                return logits, self._last_states
            if self._last:
                token = self._last.positions(batch["input_ids"])
            else:
                token = batch["attention_mask"].argmax(dim=1)  # the first: behind what is padded on the left
            return logits, self._last_states[torch.arange(len(token), device=token.device), token]

    def _sent(
        self, logits: Tensor, states: Tensor | None
    ) -> tuple[Tensor, Tensor | None, torch.cuda.Event | None]:
        """Begin to copy what a CUDA device computes, before it has the next batch to compute first.

        Returns:
            Both, and what tells when they are there; None: they are where they were.
        """
        if self._device.type != "cuda":
            return logits, states, None
        logits = logits.float().to("cpu", non_blocking=True)
        states = None if states is None else states.float().to("cpu", non_blocking=True)
        there = torch.cuda.Event()
        there.record()
        return logits, states, there

    def _answers(
        self,
        tokens: Tokens,
        texts: slice,
        logits: Tensor,
        states: Tensor | None,
        there: torch.cuda.Event | None,
    ) -> Answers:
        """Fetch what the device has computed."""
        if there is not None:
            there.synchronize()
        found = logits.float().cpu().numpy()
        hidden = None if states is None else states.float().cpu().numpy()
        self._require_finite(found, tokens.texts[texts], "NaN or infinite logits", "precision: float32")
        with np.errstate(over="ignore"):
            kept = found.astype(self._params.logits)
            self._require_finite(kept, tokens.texts[texts], "logits beyond float16", "logits: float32")
            if hidden is not None:
                states16 = hidden.astype(np.float16)
                self._require_finite(states16, tokens.texts[texts], "states beyond float16", "hidden: false")
        lengths = tokens.lengths[texts]
        return Answers(
            tokens.positions[texts],
            found,
            hidden,
            int(lengths.sum()),
            int(len(lengths) * lengths[0]),
        )

    def _require_finite(self, numbers: NDArray[Any], texts: list[str], what: str, instead: str) -> None:
        broken = np.flatnonzero(~np.isfinite(numbers).all(axis=1))
        if len(broken):
            raise StageError(
                f"the teacher in {self._folder} gives {what}, first for {texts[broken[0]][:80]!r}; "
                f"try teacher.label.{instead}, or another teacher"
            )

    def _back_off(self, length: int, n_texts: int, *, alone: bool) -> None:
        """Ask for half as much at once.

        Args:
            length: Tokens of the longest text of the batch that failed.
            n_texts: Of that batch.
            alone: Whether it had the device's memory for itself. A single text that had not is tried again.

        Raises:
            StageError: It was a single text, alone.
        """
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if n_texts == 1 and not alone:
            return
        if n_texts == 1:
            raise StageError(
                f"there is no memory for a single text of {length} tokens; lower teacher.label.max_tokens"
            )
        self._budget = length * n_texts // 2
        say(
            f"out of memory with {n_texts} texts of {length} tokens at once; going on with "
            f"{self._budget} tokens at once (teacher.label.batch_tokens is {self._params.batch_tokens})"
        )

    def _keep_states(self, _model: torch.nn.Module, _inputs: Any, output: Any) -> None:
        self._last_states = output.pooler_output if self._is_pooled else output[0]  # (B, H) or (B, T, H)


def _is_out_of_memory(error: Exception) -> bool:
    """Tell whether a smaller batch may do: torch says so in several ways, NumPy with its own exception."""
    said = str(error) if isinstance(error, RuntimeError) else ""
    elsewhere = "CUDA error: out of memory" in said or "CUBLAS_STATUS_ALLOC_FAILED" in said
    return isinstance(error, MemoryError) or elsewhere or should_reduce_batch_size(error)


def _require_peft(folder: Path) -> None:
    """Refuse a teacher with an adapter where transformers would pass over it.

    Raises:
        StageError: PEFT is not installed.
    """
    if (folder / "adapter_config.json").is_file() and not is_peft_available():
        raise StageError(
            f"the teacher in {folder} has an adapter, which needs PEFT; install it with: "
            "pip install -c constraints.txt -e '.[peft]'"
        )


def _load(folder: Path) -> tuple[Any, list[str]]:
    """Load a classifier with its adapter, if it has one.

    Attention is computed as transformers 5 does by default, whatever a later version prefers; what the
    configuration asks for goes first. It is part of the producer's facts.

    Returns:
        The classifier, and the names of the weights that no file holds.
    """
    config, classifier = classifier_of(folder)
    parts = [""]
    if config.model_type == "mblm":
        parts.append("mplm_config")
        config = config.mplm_config
        plain: Any = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING
        classifier = plain[type(config)]
    attention = config._attn_implementation or ("sdpa" if classifier._supports_sdpa else "eager")

    def load() -> Any:
        return AutoModelForSequenceClassification.from_pretrained(
            folder,
            trust_remote_code=False,
            use_safetensors=True,
            dtype=torch.float32,
            attn_implementation=dict.fromkeys(parts, attention),  # other parts have theirs
            output_loading_info=True,
        )

    model, found = load()
    untrained = set(found["missing_keys"])
    if (folder / "adapter_config.json").is_file():
        # What is said then is of the adapter alone. Weights from no file are drawn, anew each time.
        again = load()[0].state_dict()
        drawn = {name for name, value in model.state_dict().items() if not value.equal(again[name])}
        untrained |= {name for name in drawn if ".original_module." not in name}  # which the adapter replaces
    return model, sorted(untrained)
