"""The multilingual model (MPLM) that the student starts from: pin one, or pre-train a small one."""

from itertools import chain
from pathlib import Path

from tabulate import tabulate
from transformers import AutoTokenizer

from stages.artifacts import ENCODER, replaced_folder
from stages.data.examples import has_split, pretraining_texts, read_examples, training_texts
from stages.data.sources import read_corpus
from stages.data.task import TaskParams
from stages.errors import StageError
from stages.models.encoders import note_encoder, write_encoder
from stages.models.loading import loading
from stages.models.pins import fetch, resolve
from stages.models.scratch import build_encoder
from stages.models.vocabulary import Trimmer, Vocabulary
from stages.progress import Bar
from stages.student.params import PretrainParams, VocabularyParams

_COMPARED = 2000
"""Validation texts of a language whose tokens are counted, at most."""
_MOST_GROWTH = 1.5
"""More tokens than this, times those of before, say that a language's words were not counted."""


def pretrain(task: TaskParams, params: PretrainParams, *, output: Path = ENCODER) -> str:
    """Write an encoder, a part of one, or a pin of one, to `output`.

    A small one is pre-trained on the unlabelled texts of all languages where the task has them (translations
    in one input: Conneau and Lample, 2019), and on the supervised languages' training texts otherwise.

    Returns:
        A line about the model; of its vocabulary, more.

    Raises:
        StageError: There is no such base, it has fewer layers, or its vocabulary cannot be cut.
    """
    if params.base != "scratch":
        source = resolve(params.base, params.revision, key="student.pretrain.base")
        vocabulary, lines = None, [f"encoder: {params.base}, pinned"]
        if params.vocabulary is not None:
            base = fetch(source, command="student pretrain")
            vocabulary, table = _vocabulary(task, params.vocabulary, base)
            lines = [f"encoder: {params.base}, {len(vocabulary.kept):,} pieces", *table]
        with replaced_folder(output) as folder:
            write_encoder(
                folder,
                source,
                layers=params.layers,
                vocabulary=vocabulary,
                pooling=params.pooling,
                command="student pretrain",
            )
        if params.layers is not None:
            lines[0] = f"{lines[0].removesuffix(', pinned')}, {params.layers} layers"
        return "\n".join(lines)
    assert params.scratch is not None  # held by the validation of params.yaml
    texts = {language: pretraining_texts(task, language) for language in task.languages}
    with replaced_folder(output) as folder:
        build_encoder(
            params.scratch,
            texts,
            folder,
            seed=params.seed,
            max_tokens=params.max_tokens,
            subword_dropout=params.subword_dropout,
            pair_share=params.pair_share,
            title="pre-training for the student",
        )
        note_encoder(folder, None, pooling=params.pooling)
    n_texts = sum(map(len, texts.values()))
    return f"encoder: pre-trained on {n_texts:,} texts in {sum(map(bool, texts.values()))} languages"


def _vocabulary(task: TaskParams, params: VocabularyParams, base: Path) -> tuple[Vocabulary, list[str]]:
    """Find out which pieces of an encoder's vocabulary are used, and what that means for other texts.

    Returns:
        What is kept of the vocabulary, and lines that say how many tokens texts have that were not counted.

    Raises:
        StageError: There are no texts, or they lack the script of a language.
    """
    what = f"the encoder in {base}"
    with loading(what):
        before = AutoTokenizer.from_pretrained(base, trust_remote_code=False)
    trimmer = Trimmer(before, what=what)
    with Bar(desc="vocabulary", unit="text") as bar:
        for texts in chain(
            read_corpus(params.texts, params.columns),
            (training_texts(task, language) for language in task.languages),
        ):
            trimmer.count(texts)
            bar.update(len(texts))
    vocabulary = trimmer.trimmed()
    rows = []
    for language in task.languages:
        if has_split(language, "validation"):
            table = read_examples(task, language, "validation").slice(0, _COMPARED)
            texts = [text for name in task.text_fields for text in table[name].to_pylist()]
            old, new = (
                sum(map(len, tokenizer(texts, verbose=False)["input_ids"])) / table.num_rows
                for tokenizer in (before, vocabulary.tokenizer)
            )
            if new > _MOST_GROWTH * old:
                raise StageError(
                    f"student.pretrain.vocabulary.texts lack the words of '{language}': its validation texts "
                    f"would have {new / old:.1f} times as many tokens; add texts of that language"
                )
            rows.append([language, f"{old:.1f}", f"{new:.1f}"])
    shown = tabulate(rows, ["tokens per validation text", "before", "now"], "plain", disable_numparse=True)
    return vocabulary, [
        f"kept: {len(vocabulary.kept):,} of {len(before):,} pieces, with single characters: those that "
        f"{trimmer.n_texts:,} texts use",
        *shown.splitlines(),
    ]
