"""How sure a student may be: what its logits are divided by before they become probabilities."""

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from stages.data.examples import read_examples
from stages.data.tables import some_of
from stages.data.task import TaskParams
from stages.models.batches import Tokens, tokenize
from stages.models.modeling_mblm import MBLMForSequenceClassification
from stages.progress import Bar
from stages.results.measures import fit_temperature
from stages.student.mixtures import mixture_logits
from stages.student.params import DistillParams

MOST_NOISE = 1.0
"""Of validation texts, none to so many of the tokens are replaced: how foreign an unseen language may be."""

_MOST_TEXTS = 1000
"""Of a language, so many texts are looked at; a hash chooses them."""


class Temperatures(NamedTuple):
    """What logits are divided by before the softmax.

    Attributes:
        own: Of texts in a supervised language, which go through its branch.
        mixture: Of texts in any other language, which go through the mixture of all branches.
    """

    own: float
    mixture: float


def fitted_temperatures(
    model: MBLMForSequenceClassification,
    tokenizer: PreTrainedTokenizerBase,
    task: TaskParams,
    params: DistillParams,
) -> Temperatures:
    """Fit temperatures on the validation texts of the supervised languages (Guo et al. 2017, section 4.2).

    A text of another language meets no branch of its own, and words that no training text had: what is
    fitted on texts that the student knows how to read makes it far too sure of others. So the mixture's
    temperature is fitted on mixtures that leave out the branch of each text's language, on texts in which
    none to all of the tokens are replaced by others (as Tomani et al. 2021, arXiv 2012.10988, do with
    images for all shifts of a domain). No label of another language is used.

    Args:
        model: The student, on its device.
        tokenizer: Its tokenizer.
        task: Section `task`.
        params: Section `student.distill`, whose seed draws the noise.
    """
    n_branches = model.config.n_branches
    generator = np.random.default_rng(params.seed)
    labels: list[NDArray[np.int32]] = []
    own: list[NDArray[np.float32]] = []
    others: list[NDArray[np.float32]] = []
    for place, language in enumerate(Bar(task.supervised, desc="calibrate", unit="language", delay=2)):
        examples = some_of(read_examples(task, language, "validation"), _MOST_TEXTS)
        fields = [examples[field].to_pylist() for field in task.text_fields]
        tokens = tokenize(tokenizer, fields, max_tokens=params.max_tokens)
        shares = generator.permutation(np.linspace(0, MOST_NOISE, len(tokens)))
        noisy = noisy_tokens(tokens, tokenizer, shares, generator)
        its = torch.eye(n_branches)[[place % n_branches]]
        without = its if n_branches == 1 else (1 - its) / (n_branches - 1)
        for texts, weights, found in ((tokens, its, own), (noisy, without, others)):
            batch_tokens = params.batch_size * params.max_tokens
            [logits] = mixture_logits(model, tokenizer, texts, weights, batch_tokens=batch_tokens)
            found.append(logits)
        labels.append(examples["label"].to_numpy())
    right = np.concatenate(labels)
    return Temperatures(*(fit_temperature(np.concatenate(logits), right) for logits in (own, others)))


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
