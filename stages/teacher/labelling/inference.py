"""Run a teacher over texts, each exactly once, longest first."""

import sys
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate.utils.memory import should_reduce_batch_size
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from transformers.utils.import_utils import is_peft_available

from stages.errors import StageError
from stages.models.loading import loading, require_max_tokens
from stages.teacher.labelling.decoders import NO_ID, LastToken, classifier_of, is_decoder
from stages.teacher.params import LabelParams

# What a tokenizer is given at once, at most: texts, and about so many characters.
_TOKENIZER_BATCH, _TOKENIZER_TEXT = 4096, 1 << 20

# A batch ends where its texts become this much shorter than its longest, if it is large enough by then:
# texts of very different lengths would be padding for the most part.
_SHORTEST_IN_BATCH = 0.95
_LARGE_ENOUGH = 0.125  # of the budget


class Answers(NamedTuple):
    """What a teacher says of a batch of texts.

    Attributes:
        positions: Of the texts among those asked about, shape ``(B,)``.
        logits: Raw, float32, shape ``(B, C)``.
        hidden: The last layer's state of the first token, or of a decoder's last one, float32, shape
            ``(B, H)``, where it is asked for.
        tokens: Tokens of the B texts together.
        cells: Tokens and padding: B times the length of the longest.
    """

    positions: NDArray[np.int64]
    logits: NDArray[np.float32]
    hidden: NDArray[np.float32] | None
    tokens: int
    cells: int


@dataclass(frozen=True)
class Tokens:
    """N texts as a model reads them, one behind the other, longest first.

    Attributes:
        positions: Of the texts among those that were given, shape ``(N,)``.
        lengths: Tokens of each, shape ``(N,)``, in falling order.
        columns: By name, as the model calls them: a number per token, shape ``(sum of lengths,)``.
        texts: The first field of each, for messages.
    """

    positions: NDArray[np.int64]
    lengths: NDArray[np.int64]
    columns: dict[str, NDArray[np.int32]]
    texts: list[str]

    def __len__(self) -> int:
        return len(self.positions)

    @cached_property
    def _starts(self) -> NDArray[np.int64]:
        return np.concatenate([[0], np.cumsum(self.lengths)])

    def cells(self, texts: slice) -> slice:
        """Tell where the tokens of some texts stand in the columns."""
        return slice(int(self._starts[texts.start]), int(self._starts[texts.stop]))

    def keep(self, wanted: NDArray[np.bool_]) -> "Tokens":
        """Leave out texts.

        Args:
            wanted: By position among the texts that were given.
        """
        kept = wanted[self.positions]
        cells = np.repeat(kept, self.lengths)
        columns = {name: values[cells] for name, values in self.columns.items()}
        texts = [text for text, keep in zip(self.texts, kept, strict=True) if keep]
        return Tokens(self.positions[kept], self.lengths[kept], columns, texts)


class Teacher:
    """A Hugging Face sequence classifier with its tokenizer, in memory."""

    def __init__(self, folder: Path, params: LabelParams) -> None:
        """Load it.

        Args:
            folder: Where its files are.
            params: Section `teacher.label`.

        Raises:
            StageError: It cannot be loaded, has no trained classifier, needs PEFT, or takes no inputs of
                `max_tokens`.
        """
        _require_peft(folder)
        self._folder, self._params = folder, params
        self._budget = params.batch_tokens
        self._device = torch.accelerator.current_accelerator() or torch.device("cpu")
        # On a device of its own the next batch is made and sent while this one is computed.
        self._n_ahead = 0 if self._device.type == "cpu" else 1
        with loading(f"the teacher in {folder}"):
            self._tokenizer = AutoTokenizer.from_pretrained(folder)
            model, untrained = _load(folder)
        if untrained:
            raise StageError(
                f"the teacher in {folder} has no weights for {', '.join(untrained)}; "
                "fine-tune it first: teachers.<language>.finetune: true"
            )
        require_max_tokens(params.max_tokens, self._tokenizer, model.config, key="teacher.label.max_tokens")
        self._last = LastToken(model) if is_decoder(model.config, type(model)) else None
        self._padding = {
            "input_ids": self._tokenizer.pad_token_id or 0,
            "token_type_ids": self._tokenizer.pad_token_type_id,
        }
        self._last_states: Tensor | None = None
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
        lengths: list[int] = []
        parts: dict[str, list[NDArray[np.int32]]] = {}
        for some in _few_at_once(fields):
            encoded = self._tokenizer(
                *(list(field[some]) for field in fields),
                truncation=True,
                max_length=self._params.max_tokens,
                return_attention_mask=False,  # all ones: `_batch` makes it
            )
            lengths += map(len, encoded["input_ids"])
            for name, rows in encoded.items():
                parts.setdefault(name, []).append(np.fromiter(chain.from_iterable(rows), np.int32))
        if 0 in lengths:
            raise StageError(
                f"the tokenizer in {self._folder} makes no token of the text "
                f"{fields[0][lengths.index(0)]!r}; take it out of the data"
            )
        return _longest_first(
            np.array(lengths, np.int64),
            {name: np.concatenate(values) for name, values in parts.items()},
            fields[0],
        )

    def answer(self, tokens: Tokens) -> Iterator[Answers]:
        """Compute a teacher's logits, longest texts first, each text exactly once.

        A batch holds as many texts as fit into `batch_tokens`, or half of that, and so on, once the device
        has said that so many need more memory than it has. A device may say so only when results are
        fetched: that batch, and what was begun after it, is then computed again.

        Raises:
            StageError: The logits are NaN or infinite, or there is no memory for a single text.
        """
        running: deque[tuple[slice, Tensor, Tensor | None]] = deque()
        n_answers = np.zeros(len(tokens), np.int64)
        start, n_ahead = 0, self._n_ahead
        padding = self._last.unused(tokens.columns["input_ids"]) if self._last else None
        while running or start < len(tokens):
            begins = start < len(tokens) and len(running) <= n_ahead
            batch = self._next(tokens, start, padding) if begins else running[0][0]
            answers = None
            try:
                if begins:
                    running.append((batch, *self._forward(self._batch(tokens, batch))))
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
        n_texts = _fitting(tokens.lengths[start:], self._budget)
        if self._last:
            some = tokens.columns["input_ids"][tokens.cells(slice(start, start + n_texts))]
            padding = self._last.unused(some) if padding is None else padding
            if padding is None:  # not even in this batch: texts of one length need none
                lengths = tokens.lengths[start : start + n_texts]
                n_texts, padding = int(np.count_nonzero(lengths == lengths[0])), NO_ID
            self._last.pad_with(padding)
            self._padding["input_ids"] = padding
        return slice(start, start + n_texts)

    def _batch(self, tokens: Tokens, texts: slice) -> dict[str, Tensor]:
        """Pad texts to the longest of them and send them to the device, each ``(B, T)``."""
        lengths = tokens.lengths[texts, None]
        cells = tokens.cells(texts)
        width = int(lengths[0, 0])
        left = self._tokenizer.padding_side == "left" and not self._last
        column = np.arange(width)
        is_token = column >= width - lengths if left else column < lengths
        batch = {"attention_mask": is_token.astype(np.int64)}
        for name, values in tokens.columns.items():
            batch[name] = np.full(is_token.shape, self._padding.get(name, 0))
            batch[name][is_token] = values[cells]
        return {name: self._send(torch.from_numpy(values)) for name, values in batch.items()}

    def _send(self, values: Tensor) -> Tensor:
        if self._device.type == "cuda":
            return values.pin_memory().to(self._device, non_blocking=True)
        return values.to(self._device)

    def _forward(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor | None]:
        """Give logits, ``(B, C)``, and a token's states, ``(B, H)``, which may still be computed."""
        bfloat16 = self._params.precision == "bfloat16"
        autocast = torch.autocast(self._device.type, dtype=torch.bfloat16, enabled=bfloat16)
        with torch.inference_mode(), autocast:
            logits = self._model(**batch).logits
            if self._last_states is None:
                return logits, None
            if self._last:
                token = self._last.positions(batch["input_ids"])
            else:
                token = batch["attention_mask"].argmax(dim=1)  # the first: behind what is padded on the left
            return logits, self._last_states[torch.arange(len(token), device=token.device), token]

    def _answers(self, tokens: Tokens, texts: slice, logits: Tensor, states: Tensor | None) -> Answers:
        """Fetch what the device has computed."""
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
        tqdm.write(
            f"out of memory with {n_texts} texts of {length} tokens at once; going on with "
            f"{self._budget} tokens at once (teacher.label.batch_tokens is {self._params.batch_tokens})",
            file=sys.stderr,
        )

    def _keep_states(self, _model: torch.nn.Module, _inputs: Any, output: Any) -> None:
        self._last_states = output[0]  # (B, T, H)


def _is_out_of_memory(error: Exception) -> bool:
    """Tell whether a smaller batch may do: torch says so in several ways, NumPy with its own exception."""
    return isinstance(error, MemoryError) or should_reduce_batch_size(error)


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
    attention = config._attn_implementation or ("sdpa" if classifier._supports_sdpa else "eager")

    def load() -> Any:
        return AutoModelForSequenceClassification.from_pretrained(
            folder,
            dtype=torch.float32,
            attn_implementation={"": attention},  # parts with a configuration of their own have theirs
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


def _few_at_once(fields: Sequence[Sequence[str]]) -> Iterator[slice]:
    """Cut texts into what a tokenizer is given at once: it needs many times the memory of the text."""
    start = n_characters = 0
    for stop, texts in enumerate(zip(*fields, strict=True), 1):
        n_characters += sum(map(len, texts))
        if stop - start == _TOKENIZER_BATCH or n_characters >= _TOKENIZER_TEXT or stop == len(fields[0]):
            yield slice(start, stop)
            start, n_characters = stop, 0


def _longest_first(
    lengths: NDArray[np.int64], columns: dict[str, NDArray[np.int32]], texts: Sequence[str]
) -> Tokens:
    """Sort N texts, whose tokens stand one behind the other, by their lengths, ``(N,)``."""
    order = np.argsort(-lengths, kind="stable")
    starts = np.cumsum(lengths) - lengths
    sorted_lengths = lengths[order]
    sorted_starts = np.cumsum(sorted_lengths) - sorted_lengths
    source = np.repeat(starts[order] - sorted_starts, sorted_lengths) + np.arange(int(lengths.sum()))
    return Tokens(
        order,
        sorted_lengths,
        {name: values[source] for name, values in columns.items()},
        [texts[i] for i in order],
    )


def _fitting(lengths: NDArray[np.int64], budget: int) -> int:
    """Tell how many texts make the next batch.

    Args:
        lengths: Tokens of the texts that are left, in falling order.
        budget: B texts whose longest has T tokens fit where B * T is at most this; a single text always does.
    """
    longest = int(lengths[0])
    most = max(1, budget // longest)
    similar = int(np.searchsorted(-lengths[:most], -_SHORTEST_IN_BATCH * longest, side="right"))
    return min(max(similar, int(most * _LARGE_ENOUGH), 1), len(lengths), most)
