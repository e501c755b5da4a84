"""How sure a student may be: what its logits are divided by before they become probabilities."""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from stages.data.examples import NO_LABEL, UNLABELLED, has_only_texts, has_split, read_examples
from stages.data.tables import some_of
from stages.data.task import SplitName, TaskParams
from stages.models.batches import Tokens, tokenize
from stages.models.modeling_mblm import MBLMForSequenceClassification
from stages.progress import Bar
from stages.results.measures import fit_temperature, probabilities
from stages.student.mixtures import mixture_logits
from stages.student.params import DistillParams

_MOST_TEXTS, _MOST_OTHERS = 1000, 200
"""Of a supervised language, and of any other, so many texts are looked at; a hash chooses them."""
_FEWEST = 0.2
"""Share of the noisy texts that decide at the least."""


class Temperatures(NamedTuple):
    """What logits are divided by before the softmax.

    Attributes:
        own: Of texts in a supervised language or a variety of it, which go through its branch.
        mixture: Of texts in any other language, which go through the mixture of all branches.
        others: What was seen of such languages on the way, where their validation texts have labels.
    """

    own: float
    mixture: float
    others: "dict[str, Seen]"


class Seen(NamedTuple):
    """How often the student is right in a language; nothing depends on it but the student's card.

    Attributes:
        accuracy: From 0 to 1.
        counts: Of labels, by class.
    """

    accuracy: float
    counts: list[int]


def fitted_temperatures(
    model: MBLMForSequenceClassification,
    tokenizer: PreTrainedTokenizerBase,
    task: TaskParams,
    params: DistillParams,
) -> Temperatures:
    """Fit temperatures on the validation texts of the supervised languages (Guo et al. 2017, section 4.2).

    A text of another language meets no branch of its own, and words that no training text had: what is
    fitted on texts that the student knows how to read may make it far too sure of others. So the mixture's
    temperature is fitted on mixtures that leave out the branch of each text's language, on texts in which
    some of the tokens are replaced by others (as Tomani et al. 2021, arXiv 2012.10988, do with images, for
    all shifts of a domain at once). How many are, says how sure the student is of other languages: as many
    as make it no less sure of texts that are known; all, if it is surer of other languages than of those that
    it was taught. No label of another language is used.

    Args:
        model: The student, on its device.
        tokenizer: Its tokenizer.
        task: Section `task`.
        params: Section `student.distill`, whose seed draws the noise.
    """
    n_branches = model.config.n_branches
    generator = np.random.default_rng(params.seed)

    def say(language: str, split: SplitName, weights: Tensor, *, noise: bool = False) -> _Said:
        most = _MOST_TEXTS if language in task.supervised else _MOST_OTHERS
        examples = some_of(read_examples(task, language, split), most)
        fields = [examples[field].to_pylist() for field in task.text_fields]
        tokens = tokenize(tokenizer, fields, max_tokens=params.max_tokens)
        shares = generator.permutation(np.linspace(0, float(noise), len(tokens)))
        tokens = noisy_tokens(tokens, tokenizer, shares, generator) if noise else tokens
        batch_tokens = params.batch_size * params.max_tokens
        [logits] = mixture_logits(
            model,
            tokenizer,
            tokens,
            weights[None],
            batch_tokens=batch_tokens,
            precision=params.precision,
        )
        in_order = shares[np.argsort(tokens.positions)]
        return _Said(logits, examples["label"].fill_null(NO_LABEL).to_numpy(), in_order)

    own, noisy, others, seen = [], [], [], {}
    for language in Bar(task.languages, desc="calibrate", unit="language", delay=2):
        if language in task.supervised:
            its = torch.eye(n_branches)[task.supervised.index(language) % n_branches]
            without = its if n_branches == 1 else (1 - its) / (n_branches - 1)
            own.append(say(language, "validation", its))
            noisy.append(say(language, "validation", without, noise=True))
        else:
            is_labelled = has_split(language, "validation") or not has_only_texts(task, language)
            split: SplitName = "validation" if is_labelled else UNLABELLED
            if has_split(language, split):
                position = model.config.language_id(language)  # a variety goes through its language's branch
                alike = torch.full((n_branches,), 1 / n_branches)
                its = alike if position < 0 else torch.eye(n_branches)[position % n_branches]
                said = say(language, split, its)
                others += [said] if position < 0 else []
                if (said.labels != NO_LABEL).any():
                    seen[language] = _seen(said, len(task.classes))
    return Temperatures(_fitted(own), _fitted(noisy, surest=_surest(own, others)), seen)


class _Said(NamedTuple):
    """What the student says of N texts: logits, hard labels, and shares of tokens that were replaced."""

    logits: NDArray[np.float32]
    labels: NDArray[np.int32]
    shares: NDArray[np.float64]


def _seen(said: _Said, n_classes: int) -> Seen:
    """Count what the student gets right of the texts that have a label."""
    has_label = said.labels != NO_LABEL
    labels = said.labels[has_label]
    is_right = said.logits[has_label].argmax(axis=1) == labels
    return Seen(float(is_right.mean()), np.bincount(labels, minlength=n_classes).tolist())


def _confidence(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Give the probability of each text's most probable class, before calibration, ``(N,)``."""
    confidence: NDArray[np.float64] = probabilities(logits).max(axis=1)
    return confidence


def _surest(own: Sequence[_Said], others: Sequence[_Said]) -> float | None:
    """Give how sure the student is of other languages, where that says how well it can read them.

    Args:
        own: What it says of each supervised language, through the language's own branch.
        others: What it says of each other language.

    Returns:
        Its mean confidence; None where no other language has texts, or where it is surer of them than of what
        it was taught: then it does not know what it cannot read.
    """
    known, unknown = ([_confidence(one.logits).mean() for one in said] for said in (own, others))
    return float(np.mean(unknown)) if unknown and np.mean(unknown) <= np.mean(known) else None


def _fitted(said: Sequence[_Said], *, surest: float | None = None) -> float:
    """Fit one temperature to what was said of several languages.

    Args:
        said: Of each language.
        surest: Only the least noisy texts count: as many as it takes until the student is less sure of them,
            on average; None: all do.
    """
    logits, labels, shares = (np.concatenate(parts) for parts in zip(*said, strict=True))
    order = np.argsort(shares, kind="stable")
    n = len(order)
    if surest is not None:
        as_sure = np.flatnonzero(np.cumsum(_confidence(logits[order])) / np.arange(1, n + 1) >= surest)
        n = max(round(_FEWEST * n), int(as_sure[-1]) + 1 if len(as_sure) else 0)
    return fit_temperature(logits[order[:n]], labels[order[:n]])


def noisy_tokens(
    tokens: Tokens,
    tokenizer: PreTrainedTokenizerBase,
    shares: NDArray[np.float64],
    generator: np.random.Generator,
) -> Tokens:
    """Replace a share of each text's tokens by any others.

    Args:
        tokens: Of N texts.
        tokenizer: Theirs; special tokens are neither replaced nor drawn.
        shares: Of each text's tokens, in [0, 1], shape ``(N,)``.
        generator: Draws which, and by what.
    """
    ids = tokens.columns["input_ids"]
    special = np.array(tokenizer.all_special_ids)
    ordinary = np.setdiff1d(np.arange(len(tokenizer)), special)
    replaced = (generator.random(len(ids)) < np.repeat(shares, tokens.lengths)) & ~np.isin(ids, special)
    drawn = generator.choice(ordinary, len(ids)).astype(ids.dtype)
    return replace(tokens, columns=tokens.columns | {"input_ids": np.where(replaced, drawn, ids)})
