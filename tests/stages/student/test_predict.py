"""Classifying users' files with the student: what goes in comes out, in its order, with a label beside it."""

import gzip
import io
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from families import save_plain, student_of
from tiny import ROOT, Run, examples, write_jsonl
from transformers import AutoTokenizer
from warm import warm_python

from pipeline.params import load_params
from stages.data.files import Input
from stages.data.output import Output
from stages.data.rows import windows
from stages.errors import StageError
from stages.models.modeling_mblm import MBLMForSequenceClassification
from stages.student.predict import predict

PREDICT = ("student", "predict")
TEXTS = ["Hund 1", "cat 17 of a longer text, which goes into another batch", "", "rood\u2028blauw", "x"]


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.split("\n") if line]


def refused(run: Run, *arguments: str) -> str:
    done = run(*PREDICT, *arguments)
    assert done.code == 1
    assert done.out == ""
    assert "Traceback" not in done.err
    [line] = [line for line in done.err.splitlines() if line.startswith("error: ")]
    return line


@pytest.fixture
def texts(finished: Path) -> Path:
    """A file of plain texts."""
    path = finished / "texts.txt"
    path.write_text("\n".join(TEXTS) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def expected(finished_once: Path) -> Any:
    """What the model itself says of one text through one branch: calibrated probabilities by class."""
    folder = finished_once / "artifacts/student"
    model = MBLMForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)

    def say(*texts: str, branch: int, calibrated: bool = True) -> dict[str, float]:
        with torch.inference_mode():
            batch = tokenizer(
                *([text] for text in texts), return_tensors="pt", truncation=True, max_length=48
            )
            logits = model(**batch, language_ids=torch.tensor([branch])).logits
        config, names = model.config, model.config.id2label
        temperature = config.mixture_temperature if branch < 0 else config.own_temperature
        probabilities = (logits / (temperature if calibrated else 1)).softmax(-1)
        return {names[i]: float(p) for i, p in enumerate(probabilities[0])}

    return say


def test_a_text_gets_the_label_and_the_probabilities_that_the_model_gives_it(
    texts: Path, run: Run, expected: Any
) -> None:
    for language, branch in {"de": 0, "en-GB": 1, "fr": -1, None: -1}.items():
        done = run(*PREDICT, "texts.txt", *(["--language", language] if language else []))
        assert done.code == 0
        rows = lines(done.out)
        assert [row["text"] for row in rows] == TEXTS
        for row in rows:
            probabilities = expected(row["text"], branch=branch)
            assert list(row["probabilities"]) == list(probabilities)
            assert row["probabilities"] == pytest.approx(probabilities, abs=1e-5)
            assert row["label"] == max(probabilities, key=lambda name: row["probabilities"][name])
            assert row["branch"] == ["de", "en", "mixture"][branch]


def test_raw_logits_and_answers_of_which_the_student_is_not_sure_on_request(
    texts: Path, run: Run, expected: Any
) -> None:
    rows = lines(run(*PREDICT, "texts.txt", "--language", "de", "--uncalibrated").out)
    for row in rows:
        wanted = expected(row["text"], branch=0, calibrated=False)
        assert row["probabilities"] == pytest.approx(wanted, abs=1e-5)
    least = float(np.mean(sorted(max(row["probabilities"].values()) for row in rows)[1:3]))
    done = run(*PREDICT, "texts.txt", "--language", "de", "--uncalibrated", "--abstain-below", str(least))
    assert "5 examples; 2 (40%) without a label, since no class is probable enough; by branch" in done.err
    for row, whole in zip(lines(done.out), rows, strict=True):
        is_sure = max(row["probabilities"].values()) >= least
        assert row == whole | {"label": whole["label"] if is_sure else None}


@pytest.mark.parametrize(("suffix", "codec"), [("gz", "gzip"), ("zst", "zstd")])
def test_output_may_be_compressed(suffix: str, codec: str, texts: Path, run: Run) -> None:
    plain = run(*PREDICT, "texts.txt").out
    done = run(*PREDICT, "texts.txt", "--output", f"out.jsonl.{suffix}")
    assert done.code == 0, done.err
    with pa.CompressedInputStream(pa.OSFile(f"out.jsonl.{suffix}"), codec) as stream:
        assert stream.read().decode() == plain
    assert "cannot write out.parquet" in refused(run, "texts.txt", "--output", f"out.parquet.{suffix}")


def test_the_language_may_differ_from_example_to_example(finished: Path, run: Run, expected: Any) -> None:
    languages = ["en", None, "de-AT", "", "nl", "de"]  # no branch for nl
    rows: list[dict[str, Any]] = [{"text": f"dog {i}", "lang": name} for i, name in enumerate(languages)]
    write_jsonl(finished / "in.jsonl", [*rows, {"text": "dog"}])
    found = lines(run(*PREDICT, "in.jsonl", "--language-field", "lang").out)
    assert [row["branch"] for row in found] == ["en", "mixture", "de", "mixture", "mixture", "de", "mixture"]
    for row, branch in zip(found, [1, -1, 0, -1, -1, 0, -1], strict=True):
        assert row["probabilities"] == pytest.approx(expected(row["text"], branch=branch), abs=1e-5)


def test_every_format_gives_the_same_labels_and_keeps_every_column(finished: Path, run: Run) -> None:
    texts = ["Hund 1", 'a "quoted" cat, and a comma', "grün"]
    rows = [{"n": f"00{i}", "text": text} for i, text in enumerate(texts)]
    write_jsonl(finished / "in.jsonl", rows)
    pq.write_table(pa.Table.from_pylist(rows), "in.parquet")
    quoted = [text.replace('"', '""') for text in texts]
    Path("in.csv").write_text("\ufeffn,text\r\n" + "".join(f'00{i},"{t}"\r\n' for i, t in enumerate(quoted)))
    Path("in.tsv").write_text("n\ttext\n" + "".join(f"00{i}\t{t}\n" for i, t in enumerate(texts)))
    expected = lines(run(*PREDICT, "in.jsonl").out)
    assert [{"n": row["n"], "text": row["text"]} for row in expected] == rows
    for suffix in ("csv", "tsv", "parquet"):
        assert lines(run(*PREDICT, f"in.{suffix}").out) == expected
        done = run(*PREDICT, f"in.{suffix}", "--output", f"{suffix}.parquet")
        assert done.out == f"3 examples in {suffix}.parquet; by branch: mixture 3\n"
        found = pq.read_table(f"{suffix}.parquet").to_pylist()
        assert [{**row, "probabilities": pytest.approx(row["probabilities"])} for row in expected] == found


def test_values_of_any_kind_come_out_as_they_were(finished: Path, run: Run) -> None:
    rows: list[dict[str, Any]] = [
        {"text": "Hund", "id": 2**60, "share": 0.1, "tags": ["a", None], "more": {"x": [1, {"y": "ä"}]}},
        {"text": "dog", "flag": True, "nothing": None, "other text": "zeile\nzwei"},
    ]
    write_jsonl(finished / "in.jsonl", rows)
    run(*PREDICT, "in.jsonl", "--output", "new/out.jsonl")
    new = ("label", "probabilities", "branch")
    found = lines(Path("new/out.jsonl").read_text(encoding="utf-8"))
    assert [{key: row[key] for key in row if key not in new} for row in found] == rows
    assert [list(row)[-3:] for row in found] == [list(new)] * 2


def test_a_parquet_column_keeps_its_type_and_its_file_its_metadata(finished: Path, run: Run) -> None:
    table = pa.table(
        {
            "when": pa.array([0, 1], pa.timestamp("ms")),
            "raw": pa.array([b"\x00", None], pa.binary()),
            "text": pa.array(["Hund", "dog"]).dictionary_encode(),
        },
    ).replace_schema_metadata({"from": "here"})
    pq.write_table(table, "in.parquet")
    assert run(*PREDICT, "in.parquet", "--output", "out.parquet").code == 0
    found = pq.read_table("out.parquet")
    assert found.select(table.column_names).equals(table)
    assert found.schema.metadata[b"from"] == b"here"
    assert "bytes in a column" in refused(run, "in.parquet", "--output", "out.jsonl")


def test_windows_and_batches_change_no_label_and_no_order(finished: Path) -> None:
    rows = [{"i": i, **row} for i, row in enumerate(examples("de", "train"))]
    write_jsonl(finished / "in.jsonl", rows)
    params = load_params(Path("params.yaml")).student
    small = params.evaluate.model_copy(update={"batch_size": 1})
    found = []
    for name, window, evaluate in (("one", 1000, params.evaluate), ("two", 7, small)):
        done = predict(
            Input(Path("in.jsonl"), None, ["text"], None),
            Output(Path(f"{name}.parquet")),
            params.distill,
            evaluate,
            language="de",
            prefix="new_",
            window=window,
        )
        assert (done.examples, done.branches) == (36, {"de": 36})
        found.append(pq.read_table(f"{name}.parquet").to_pylist())
    for one, two, row in zip(*found, rows, strict=True):
        assert one["i"] == two["i"] == row["i"]
        assert one["label"] == row["label"], "the column that was there"
        assert one["new_label"] == two["new_label"]
        assert one["new_probabilities"] == pytest.approx(two["new_probabilities"], abs=1e-5)


def test_pairs_are_read_from_two_columns_in_their_order(finished: Path, run: Run, expected: Any) -> None:
    Path("in.csv").write_text("b,a\nHund,eins zwei\n")
    config = Path("artifacts/student/config.json")
    config.write_text(json.dumps(json.loads(config.read_text()) | {"text_fields": ["premise", "hypothesis"]}))
    done = run(*PREDICT, "in.csv", "--text-field", "a", "--text-field", "b")
    [row] = lines(done.out)
    assert done.err.splitlines()[-1] == "1 example; by branch: mixture 1"
    assert row["probabilities"] == pytest.approx(expected("eins zwei", "Hund", branch=-1), abs=1e-5)
    assert "plain text has one text per line, but an example has 2, a and b" in refused(
        run, "in.csv", "--format", "plain", "--text-field", "a", "--text-field", "b"
    )


def test_files_as_people_have_them_are_classified(finished: Path, run: Run) -> None:
    write_jsonl(Path("in.jsonl"), [{"text": "Hund"}, {"text": "dog"}])
    expected = lines(run(*PREDICT, "in.jsonl").out)
    Path("array.json").write_text('[{"text": "Hund"},\n{"text": "dog"}]')
    Path("in.jsonl.gz").write_bytes(gzip.compress(Path("in.jsonl").read_bytes()))
    Path("in.txt.zst").write_bytes(pa.Codec("zstd").compress(b"Hund\ndog\n", asbytes=True))
    for name in ("array.json", "in.jsonl.gz", "in.txt.zst"):
        assert lines(run(*PREDICT, name).out) == expected
    Path("in.csv").write_text("1,Hund\n2,dog\n")
    found = lines(run(*PREDICT, "in.csv", "--column", "id", "--column", "text").out)
    assert found == [{"id": str(number), **row} for number, row in enumerate(expected, 1)]
    Path("in.jsonl.gz").write_bytes(Path("in.jsonl.gz").read_bytes()[:-9])
    assert "cannot read in.jsonl.gz: Truncated" in refused(run, "in.jsonl.gz", "--output", "out.jsonl")
    assert not Path("out.jsonl").exists()


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("in.csv", b"tekst\nHund\n", "in.csv has no column 'text'; did you mean tekst?"),
        ("in.jsonl", b'{"text": "Hund"}\n', "in.jsonl has no 'lang' in its first 1 examples"),
        ("in.csv", b"text,lang\n", "in.csv holds no examples"),
        ("in.jsonl", b"", "in.jsonl holds no examples"),
    ],
)
def test_columns_and_emptiness_are_looked_at_before_a_model_is_loaded(
    finished: Path, run: Run, name: str, data: bytes, message: str
) -> None:
    Path(name).write_bytes(data)
    assert message in refused(run, name, "--language-field", "lang", "--model", "no model is here")


def test_a_language_without_a_branch_is_counted_and_what_is_no_language_refused(
    finished: Path, run: Run
) -> None:
    languages = ["nl", "de", "nl-BE", "fr", "nl", None, " ", "it", "es", "pt", "quz"]
    rows = [{"text": "Hund", "lang": one} for one in languages]
    write_jsonl(Path("in.jsonl"), rows)
    done = run(*PREDICT, "in.jsonl", "--language-field", "lang")
    said = "without a branch of their own: nl 2, nl-BE 1, fr 1, it 1, es 1, 2 more languages"
    assert done.err.splitlines()[-1] == f"11 examples; by branch: de 1, mixture 10; {said}"
    for name, message in (
        ("German", "'German' is no language tag; did you mean de?"),
        ("deutsch", "'deutsch' is no language tag; did you mean de?"),
        ("deu", "'deu' has no branch; did you mean de?"),
        ("ger", "'ger' has no branch; did you mean de?"),
        ("xx", "'xx' is no language tag; write one such as de or zh-Hant, or nothing"),
        ("Nederlands", "'Nederlands' is no language tag; did you mean nl?"),
    ):
        assert refused(run, "in.jsonl", "--language", name) == f"error: --language: {message}"
        write_jsonl(Path("bad.jsonl"), [*rows, {"text": "Hund", "lang": name}])
        line = refused(run, "bad.jsonl", "--language-field", "lang", "--output", "out.jsonl")
        assert line == f"error: bad.jsonl, example 12: lang: {message}"


@pytest.mark.parametrize("fields", [["text"] * 2, ["a", "b", "c"]])
def test_an_example_has_one_text_or_two_others(finished: Path, run: Run, fields: list[str]) -> None:
    Path("in.csv").write_text("text,a,b,c\n1,2,3,4\n")
    options = [word for name in fields for word in ("--text-field", name)]
    assert f"--text-field names {', '.join(fields)}; an example has" in refused(run, "in.csv", *options)


def test_a_reader_that_has_seen_enough_ends_it_without_a_word(finished: Path) -> None:
    Path("in.txt").write_text("Hund\n" * 5000)
    command = f"{warm_python()} -m pipeline student predict in.txt | head -n 1"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, shell=True, capture_output=True, text=True, env=environment, check=True)
    assert json.loads(done.stdout)["text"] == "Hund"
    assert done.stderr == ""


def test_a_closed_standard_output_and_a_folder_that_cannot_be_are_one_line(finished: Path, run: Run) -> None:
    Path("in.txt").write_text("Hund\n")
    command = f"{sys.executable} -m pipeline student predict in.txt >&-"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, shell=True, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 1
    assert done.stderr == "error: standard output is closed; send it to a file, or to /dev/null\n"
    nowhere = "/proc/nowhere/out.jsonl"
    assert f"cannot write {nowhere}: No such file" in refused(run, "in.txt", "--output", nowhere)
    exported = run("student", "export", "/proc/nowhere")
    assert exported.code == 1
    assert exported.err == "error: cannot write /proc/nowhere: No such file or directory\n"


@pytest.mark.parametrize("format_", ["plain", "jsonl", "parquet"])
def test_a_pipe_may_bring_the_examples_and_take_the_answers(finished: Path, format_: str) -> None:
    rows = [{"text": "Hund"}, {"text": "grün"}]
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), buffer)
    data = {
        "plain": "Hund\r\ngrün".encode(),
        "jsonl": "\n\n".join(map(json.dumps, rows)).encode(),
        "parquet": buffer.getvalue(),
    }[format_]
    options = [] if format_ == "plain" else ["-", "--format", format_]
    done = subprocess.run(
        [warm_python(), "-m", "pipeline", *PREDICT, *options],
        input=data,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "latin-1"},
        capture_output=True,
        check=True,
    )
    assert [row["text"] for row in lines(done.stdout.decode("utf-8"))] == ["Hund", "grün"]
    assert done.stderr.decode().splitlines()[-1] == "2 examples; by branch: mixture 2"


def test_a_pipe_that_has_a_name_is_read_once(finished: Path, run: Run) -> None:
    reads, writes = os.pipe()
    with os.fdopen(writes, "w") as file:
        file.write('{"text": "Hund"}\n{"text": "Katze", "n": 1}\n')
    done = run(*PREDICT, f"/dev/fd/{reads}", "--format", "jsonl", "--output", "out.parquet")
    os.close(reads)
    assert done.code == 0, done.err
    assert pq.read_table("out.parquet")["text"].to_pylist() == ["Hund", "Katze"]


def test_without_input_a_terminal_is_told_what_to_type(
    finished: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal, other_end = os.openpty()
    with os.fdopen(other_end, encoding="utf-8") as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        assert "echo Hallo | python -m pipeline student predict" in refused(run)
    os.close(terminal)


def test_without_standard_input_a_file_is_asked_for(
    finished: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", None)  # as Python has it where it was closed
    for arguments in ([], ["-"]):
        assert refused(run, *arguments).endswith("standard input is closed; name a file")


def test_jsonl_has_only_what_json_has(tmp_path: Path) -> None:
    window = pa.table({"x": pa.array([[("a", math.nan)]], pa.map_(pa.string(), pa.float64()))})
    output = Output(tmp_path / "out.jsonl")
    with output.writing() as write:
        write(window, pa.table({"label": ["c"]}))
    assert json.loads((tmp_path / "out.jsonl").read_text()) == {"x": [["a", None]], "label": "c"}
    far = pa.table({"x": pa.array([2**62], pa.timestamp("s"))})
    with (
        pytest.raises(StageError, match=r"has a value that JSON has not \(.*\); write a .parquet"),
        Output(tmp_path / "far.jsonl").writing() as write,
    ):
        write(far, pa.table({"label": ["c"]}))


def test_another_student_may_classify(finished: Path, run: Run) -> None:
    Path("in.txt").write_text("Hund\n")
    Path("artifacts/student").rename("mine")
    assert lines(run(*PREDICT, "in.txt", "--model", "mine").out)[0]["text"] == "Hund"
    line = refused(run, "in.txt")
    assert line.endswith("artifacts/student holds no model; make it with: python -m pipeline student distill")
    line = refused(run, "in.txt", "--model", "artifacts/teachers/de")
    assert line == "error: artifacts/teachers/de holds a roberta model and no student"


def test_a_student_whose_languages_share_a_branch_calls_it_the_mixture(finished: Path, run: Run) -> None:
    Path("in.txt").write_text("Hund\n")
    [row] = lines(run(*PREDICT, "in.txt", "--language", "de", "--model", "artifacts/baseline").out)
    assert row["branch"] == "mixture"


def test_bfloat16_moves_a_probability_a_little(texts: Path, run: Run) -> None:
    exact = lines(run(*PREDICT, "texts.txt").out)
    rough = lines(run(*PREDICT, "texts.txt", "--set", "student.distill.precision=bfloat16").out)
    assert rough != exact
    for one, other in zip(rough, exact, strict=True):
        assert one["probabilities"] == pytest.approx(other["probabilities"], abs=0.05)


def test_a_language_is_found_whatever_its_case(finished: Path, run: Run) -> None:
    rows = [{"text": "Hund 1", "lang": lang} for lang in ("de", "DE", " de-AT ", "", None, "fr")]
    write_jsonl(Path("in.jsonl"), rows)
    found = lines(run(*PREDICT, "in.jsonl", "--language-field", "lang").out)
    assert [row["branch"] for row in found] == ["de"] * 3 + ["mixture"] * 3


def test_numbers_that_json_has_not_are_written_as_null(finished: Path, run: Run) -> None:
    table = pa.table({"text": ["a"], "n": [float("nan")], "many": [[1.0, float("inf")]]})
    pq.write_table(table, "in.parquet")
    [row] = lines(run(*PREDICT, "in.parquet").out)
    assert (row["n"], row["many"]) == (None, [1.0, None])


# What is wrong is said in one line


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("in.txt", b"", "in.txt holds no examples"),
        ("in.csv", b"text\n", "in.csv holds no examples"),
        ("in.txt", b"Hund\ngr\xfcn\n", "in.txt, line 2: not UTF-8 (invalid start byte)"),
        ("in.csv", b"text\ngr\xfcn\n", "in.csv, line 2: not UTF-8 (invalid start byte)"),
        ("in.csv", b"texts,n\na,1\n", "in.csv has no column 'text'; did you mean texts?"),
        ("in.csv", b"text,text\na,b\n", "in.csv has two columns 'text'"),
        ("in.csv", b"text,,\na,,\n", "in.csv has 2 columns without a name; name or delete them"),
        ("in.csv", b"text,n\na,1\nb\n", "in.csv, line 3: 1 values in 2 columns"),
        ("in.csv", b'text\n"a" b\n', "in.csv, line 2: "),
        ("in.csv", b"text,label\na,b\n", "in.csv has a column 'label' already; give the new columns"),
        ("in.jsonl", b'{"text": "a"}\n\n{"text": \n', "in.jsonl, line 3: not JSON (Expecting value, col"),
        ("in.jsonl", b'{"text": "a"}\n[1]\n', "in.jsonl, line 2: [1] is no JSON object"),
        ("in.jsonl", b'{"text": "a"}\n{"n": 1}\n', "in.jsonl, line 2 has no column 'text'; there are: n"),
        ("in.jsonl", b'{"text": 3}\n', "in.jsonl, line 1: text is 3, not a text"),
        ("in.jsonl", b'{"text": "a", "branch": 0}\n', "line 1 has a column 'branch' already"),
        ("in.jsonl", b'{"text": "\\ud800"}\n', "in.jsonl, line 1: not Unicode (surrogates not allowed)"),
        ("in.jsonl", b"[" * 100_000, "in.jsonl, line 1 (item 1): not JSON that can be read"),
        (
            "in.jsonl",
            b'{"text": "a", "text": "b"}\n',
            "line 1: not JSON that can be read (a name stands twice",
        ),
        ("in.jsonl", b'{"text": "a", "n": NaN}\n', "line 1: not JSON that can be read (NaN is no JSON)"),
        (
            "in.csv",
            b"text;n\na;1\n",
            "in.csv has no column 'text'; are its fields separated by ';'? say",
        ),
        ("in.csv", b"text,n\ra,1\r", "in.csv, line 1: it has a CR alone; end lines with LF, or quote it"),
        ("in.parquet", b"PAR1", "cannot read in.parquet: "),
        (
            "in.xlsx",
            b"",
            "the suffix of in.xlsx is none of .txt, .jsonl, .json, .csv, .tsv, .parquet; name",
        ),
    ],
)
def test_a_bad_file_is_refused_and_nothing_is_left(
    finished: Path, run: Run, name: str, data: bytes, message: str
) -> None:
    Path("new").mkdir()
    Path(name).write_bytes(data)
    for output in ("new/out.jsonl", "new/out.parquet"):
        assert message in refused(run, name, "--output", output)
    assert list(Path("new").iterdir()) == []


def test_tsv_that_looks_quoted_is_classified_once_it_is_said_how(finished: Path, run: Run) -> None:
    Path("texts.tsv").write_text('text\n"Hund ""1"""\n"Katze ""2"""\n')
    assert "texts.tsv: 2 fields look quoted, the last on line 3" in refused(run, "texts.tsv")
    for quoting, first in (("csv", 'Hund "1"'), ("none", '"Hund ""1"""')):
        done = run(*PREDICT, "texts.tsv", "--quoting", quoting)
        assert (done.code, lines(done.out)[0]["text"]) == (0, first)
    assert "--quoting all is none of csv, none" in refused(run, "texts.tsv", "--quoting", "all")


def test_what_is_wrong_in_a_parquet_file_is_named_by_its_row(finished: Path, run: Run) -> None:
    pq.write_table(pa.table({"text": ["a", None], "lang": [1, 2]}), "in.parquet")
    assert "in.parquet, row 2: text is null, not a text" in refused(run, "in.parquet", "--output", "x.jsonl")
    assert "row 1: lang is 1, not a language" in refused(run, "in.parquet", "--language-field", "lang")
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), "empty.parquet")
    assert "empty.parquet holds no examples" in refused(run, "empty.parquet")


def test_what_is_nested_too_deeply_to_be_written_is_refused(finished: Path, run: Run) -> None:
    Path("deep.jsonl").write_text('{"text": "a", "more": ' + "[" * 900 + "]" * 900 + "}\n")
    assert "the input has a value of hundreds of lists or objects in each other" in refused(run, "deep.jsonl")


def test_options_that_contradict_the_input_are_refused(texts: Path, run: Run) -> None:
    assert "not from both" in refused(run, "texts.txt", "--language", "de", "--language-field", "x")
    assert "texts.txt has no column 'x'; there are: text" in refused(
        run, "texts.txt", "--language-field", "x"
    )
    assert "--format xml is none of plain, jsonl, csv, tsv, parquet" in refused(
        run, "texts.txt", "--format", "xml"
    )
    assert "cannot write out.csv: it is not one of .jsonl, .jsonl.gz, .jsonl.zst, .parquet" in refused(
        run, "texts.txt", "--output", "out.csv"
    )
    assert "cannot read gone.txt: No such file" in refused(run, "gone.txt")
    Path("folder.parquet").mkdir()
    assert "folder.parquet is a folder; name a file" in refused(
        run, "texts.txt", "--output", "folder.parquet", "--overwrite"
    )
    assert "texts.txt is no folder" in refused(run, "texts.txt", "--output", "texts.txt/new/out.jsonl")
    write_jsonl(Path("in.jsonl"), [{"text": "a"}])
    assert "has no 'lang' in its first 1 examples" in refused(run, "in.jsonl", "--language-field", "lang")


def test_a_file_that_is_there_is_replaced_only_on_request(texts: Path, run: Run) -> None:
    Path("out.jsonl").write_text("mine")
    assert "out.jsonl is there already; replace it with --overwrite" in refused(
        run, "texts.txt", "--output", "out.jsonl"
    )
    assert Path("out.jsonl").read_text() == "mine"
    assert run(*PREDICT, "texts.txt", "--output", "out.jsonl", "--overwrite").code == 0
    Path("elsewhere").mkdir()
    Path("elsewhere/there.jsonl").touch()
    Path("link.JSONL").symlink_to("elsewhere/there.jsonl")
    assert run(*PREDICT, "texts.txt", "--output", "link.JSONL", "--overwrite").code == 0
    assert Path("link.JSONL").is_symlink()
    assert Path("elsewhere/there.jsonl").read_bytes() == Path("out.jsonl").read_bytes()
    assert len(lines(Path("out.jsonl").read_text())) == len(TEXTS)


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (
            {"x": 1},
            {"x": "a"},
            "column 'x' fits into no Parquet column (string in some examples, int64 in others)",
        ),
        ({}, {"x": "a"}, "column 'x' fits into no Parquet column (string in some examples, null in others)"),
        ({"x": {"a": 1}}, {"x": {"a": 1, "b": 2}}, "column 'x' fits into no Parquet column"),
        ({"x": {}}, {}, "Parquet has no place for the input (Cannot write struct type 'x' with no child"),
        ({"x": 1.5}, {"x": 2**53 + 1}, "column 'x' fits into no Parquet column (Integer value"),
        ({"x": 1.5}, {"x": 2}, None),
        ({"x": "a"}, {}, None),
    ],
)
def test_parquet_takes_no_column_whose_kind_changes(
    tmp_path: Path, first: dict[str, Any], second: dict[str, Any], message: str | None
) -> None:
    rows = [{"text": "a", **first}, {"text": "b", **second}]
    write_jsonl(tmp_path / "in.jsonl", rows)
    source = Input(tmp_path / "in.jsonl", None, ["text"], None)
    output = Output(tmp_path / "out.parquet")

    def copy() -> None:
        with output.writing() as write:
            for window in windows(source, 1):
                write(window, pa.table({"label": ["c"]}))

    if message is None:
        copy()
        found = pq.read_table(tmp_path / "out.parquet").to_pylist()
        assert found == [{"label": "c", "x": None, **row} for row in rows]
    else:
        with pytest.raises(StageError) as refusal:
            copy()
        assert message in str(refusal.value)
        assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


def test_parquet_of_json_lines_has_the_columns_of_all_rows(finished: Path) -> None:
    params = load_params(Path("params.yaml"))
    rows: list[dict[str, Any]] = [
        {"text": "a", "note": None, "n": 1, "tags": {"x": None}},
        {"text": "b", "note": "late", "n": 0.5, "tags": {"x": "y", "z": [1]}},
        {"text": "c", "new": True},
    ]

    def classified() -> list[dict[str, Any]]:
        write_jsonl(Path("in.jsonl"), rows)
        source, output = Input(Path("in.jsonl"), None, ["text"], None), Output(Path("out.parquet"))
        predict(source, output, params.student.distill, params.student.evaluate, window=1)
        found: list[dict[str, Any]] = pq.read_table("out.parquet").to_pylist()
        return found

    found = classified()
    assert [one["note"] for one in found] == [None, "late", None]
    assert [one["n"] for one in found] == [1.0, 0.5, None]
    assert [one["new"] for one in found] == [None, None, True]
    assert found[1]["tags"] == {"x": "y", "z": [1]}
    Path("out.parquet").unlink()
    rows[2]["n"] = "many"
    with pytest.raises(StageError, match=r"column 'n' fits into no Parquet column \(string in"):
        classified()


def test_a_student_of_single_texts_takes_no_pairs(finished: Path, run: Run) -> None:
    write_jsonl(Path("pairs.jsonl"), [{"premise": "a", "hypothesis": "b"}])
    line = refused(run, "pairs.jsonl", "--text-field", "premise", "--text-field", "hypothesis")
    assert "artifacts/student reads text, and is to be given premise and hypothesis; name as many" in line


def test_a_student_that_gives_nan_is_named(finished: Path, run: Run, tmp_path: Path) -> None:
    save_plain("roberta", tmp_path / "plain")
    student = student_of(tmp_path / "plain", languages=["de", "en"], n_branches=2)
    for parameter in student.head.parameters():
        parameter.data.fill_(float("nan"))
    student.save_pretrained(tmp_path / "broken")
    tokenizer = AutoTokenizer.from_pretrained("artifacts/student")
    tokenizer.save_pretrained(tmp_path / "broken")
    Path("in.txt").write_text("a\n")
    line = refused(
        run, "in.txt", "--model", str(tmp_path / "broken"), "--set", "student.distill.max_tokens=20"
    )
    assert "gives NaN, first for 'a'" in line


def test_a_tokenizer_that_pads_on_the_left_changes_no_answer(texts: Path, run: Run) -> None:
    before = lines(run(*PREDICT, "texts.txt").out)
    config = Path("artifacts/student/tokenizer_config.json")
    config.write_text(json.dumps(json.loads(config.read_text()) | {"padding_side": "left"}))
    assert lines(run(*PREDICT, "texts.txt").out) == before
