"""Lays small data sets out as files: PAN-X entity types, and parts of XNLI. Recipes have their names.

    python docs/small_data.py panx-type FOLDER

Reads the languages from params.yaml, and texts from ``FOLDER/<data set>/<language>/<split>.parquet``; writes
``data/<language>/<split>.parquet``. Where the texts come from is written in docs/results.md.
"""

import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import typer

from pipeline.params import load_params
from stages.data.examples import SPLITS, UNLABELLED

_FOLDERS = {"panx-type": "panx_type", "xnli-15k": "xnli", "xnli-1200": "xnli", "xnli-3000": "xnli"}


def main(recipe: str, folder: Path) -> None:
    """Write the data set of a recipe, such as panx-type, out of the folder that holds all data sets."""
    params = load_params(Path("params.yaml"))
    task = params.task
    is_xnli = _FOLDERS[recipe] == "xnli"
    for language in task.languages:
        counts = []
        for split in SPLITS:
            path = folder / _FOLDERS[recipe] / language / f"{split}.parquet"
            if split == "train" and language not in task.supervised:
                continue
            if not path.is_file():
                raise SystemExit(f"error: there is no file {path}")
            table = pq.read_table(path)
            if recipe == "panx-type":  # whose classes are PER, ORG and LOC, in this order
                names = pa.array(task.classes).take(table["label"].combine_chunks())
                table = pa.table({"text": table["text"], "label": names})
            if is_xnli and split == "train":
                for field in task.text_fields:
                    texts = [_detokenised(text, language) for text in table[field].to_pylist()]
                    table = table.drop_columns(field).append_column(field, pa.array(texts))
            if is_xnli:  # a row is the same pair in every language
                table = table.append_column("entity", pa.array(f"{split} {i}" for i in range(len(table))))
            counts.append(_write(table, language, split))
        if params.student.pretrain.base == "scratch":  # texts for the encoders alone
            counts.append(_write(_unlabelled(folder, language, task.languages), language, UNLABELLED))
        typer.echo(f"{language}: {', '.join(counts)}")


def _write(table: pa.Table, language: str, split: str) -> str:
    path = Path("data") / language / f"{split}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)
    return f"{split} {table.num_rows:,}"


def _detokenised(text: str, language: str) -> str:
    """Undo what XNLI's training text had done to it, and its evaluation text had not.

    >>> _detokenised("Nein , das ( wohl ) nicht !", "de")
    'Nein, das (wohl) nicht!'
    """
    if language == "zh":
        return re.sub(r"(?<![a-zA-Z0-9]) | (?![a-zA-Z0-9])", "", text)
    text = re.sub(r" (?=[.,;:!?%)\]»؟،؛…])", "", text)
    text = re.sub(r"(?<=[(\[«]) ", "", text)
    return re.sub(r" (?=n't\b|'(?:s|m|re|ve|ll|d)\b)", "", text)


def _unlabelled(folder: Path, language: str, languages: list[str]) -> pa.Table:
    """Gather Wikipedia text, and translations of news and everyday sentences with the English originals."""
    texts: dict[str, str] = {}
    news = pq.read_table(folder / "parallel" / "ntrex" / language / "text.parquet")
    for number, text in zip(news["id"].to_pylist(), news["text"].to_pylist(), strict=True):
        texts[f"ntrex:{number}"] = text
    pairs = folder / "parallel" / "tatoeba"
    for other in languages if language == "en" else [language]:
        path = pairs / other / "text.parquet"
        if path.is_file():
            everyday = pq.read_table(path)
            column = "en" if language == "en" else "text"
            pairs_of_two = zip(everyday["en"].to_pylist(), everyday[column].to_pylist(), strict=True)
            for english, text in pairs_of_two:
                texts.setdefault(f"tatoeba:{english}", text)
    path = folder / "mono" / "wiki" / language / "text.parquet"
    if path.is_file():
        # The encoder shall not have read what it is tested on, not even without its label.
        tested = _test_texts(folder / "panx_type" / language / "test.parquet")
        for row, text in enumerate(pq.read_table(path)["text"].to_pylist()):
            if text not in tested:
                texts[f"wiki:{language}:{row}"] = text
    return pa.table({"text": list(texts.values()), "entity": list(texts)})


def _test_texts(path: Path) -> set[str]:
    return set(pq.read_table(path)["text"].to_pylist()) if path.is_file() else set()


if __name__ == "__main__":
    typer.run(main)
