"""Section `cache`: what has soft labels, and the teachers' forward passes that reading them saves."""

from collections.abc import Sequence

import numpy as np

from stages.page.findings import Findings
from stages.page.tables import Table, percent
from stages.page.taught import LabelSet


def cost(found: Findings) -> Table:
    """Count what has soft labels, and the teachers' forward passes that reading them saves."""
    rows = []
    totals = np.zeros(6, np.int64)
    for language in found.supervised:
        taught = found.teachers[language]
        n_labels = sum(one.n_labels for one in taught.sets)
        n_bytes = sum(one.n_bytes for one in taught.sets)
        needed = saved = 0
        if found.variant not in ("linear", "finetune"):  # which read no soft labels
            run_here = [one for one in taught.sets if one.producers[0].imported is None]
            needed = found.epochs * sum(one.n_asked for one in run_here)
            saved = needed - sum(one.n_labels for one in run_here)
        counts = found.counts[language]
        n_without = sum(round((1 - share) * counts[split]) for split, share in taught.coverage.items())
        n_examples = sum(counts.values())
        numbers = (n_examples, n_examples - n_without, n_labels, n_bytes, needed, saved)
        totals += numbers
        rows.append([language, *_counts(numbers), _operations(taught.sets)])
    rows.append(["together", *_counts(totals.tolist()), ""])
    return Table(
        "Soft labels, and forward passes of the teachers",
        [
            "language",
            "examples",
            "of them with a soft label",
            "soft labels",
            "bytes",
            "passes without the cache",
            "saved, if no run came before",
            "million operations per token",
        ],
        rows,
        ["together"],
    )


def _counts(numbers: Sequence[int]) -> list[str]:
    n_examples, n_covered, *others = numbers
    covered = "100 %" if n_covered == n_examples else percent(n_covered / n_examples)
    return [f"{n_examples:,}", covered, *(f"{number:,}" for number in others)]


def _operations(sets: Sequence[LabelSet]) -> str:
    """Give about how many operations a forward pass takes for each token, from the teachers' configurations.

    Twice the weights of the layers (Kaplan et al., 2020, section 2.1): attention has four matrices, and the
    feed-forward part two.
    """
    total = 0
    for one in sets:
        config = one.producers[0].facts["config"]  # folds differ in their weights alone
        try:
            layers = config.get("num_hidden_layers") or config["n_layers"]  # the second is DistilBERT's word
            hidden = config.get("hidden_size") or config["dim"]
            inner = config.get("intermediate_size") or config["hidden_dim"]
        except KeyError:
            return "–"
        total += 2 * layers * (4 * hidden * hidden + 2 * hidden * inner)
    return f"{total / 1e6:,.1f}"
