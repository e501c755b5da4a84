"""The model card: what it says is so, the Hub can read it, and its lines of Python run."""

import json
import re
import subprocess
from ast import literal_eval
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from families import config_of
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt
from markdown_it.token import Token
from ruamel.yaml import YAML
from tiny import CLASSES, Run, tiny_params, use_ready_teacher
from transformers import AutoTokenizer
from warm import warm_python

from cache import SoftLabelSet, file_digest
from pipeline.params import load_params
from stages.data.task import TaskParams
from stages.models.configuration_mblm import MBLMConfig
from stages.student.calibration import Seen
from stages.student.card import TeacherFacts, model_card
from stages.student.params import DistillParams
from stages.student.variants import relevant

HOSTILE = [
    "a|b",
    "\\|",
    "`x`",
    "```",
    "a\n---\nlicense: mit",
    "\n\n# a title",
    "<script>alert(1)</script>",
    "[a](https://example.org)",
    "![a](a.png)",
    "&lt;",
    "{{ a }}",
    "*a* _b_ ~~c~~ $d$",
    "\"'",
    "no",
    "größer ≥ 3",
]


def card_of(*, params: dict[str, Any] | None = None, others: Sequence[str] = ("fr",), **task: Any) -> str:
    """Write the card of a student with two branches that was never trained."""
    sections = tiny_params()
    languages = (sections["task"] | task)["supervised"]
    return model_card(
        TaskParams.model_validate(sections["task"] | task),
        DistillParams.model_validate(sections["student"]["distill"] | (params or {})),
        name="student",
        config=MBLMConfig(mplm_config=config_of("roberta"), languages=languages, n_branches=2),
        encoder={
            "source": {"hub": "a/b_c", "commit": "0" * 40},
            "layers": None,
            "pooling": None,
        },
        accuracy=dict.fromkeys(languages, 0.5),
        counts={name: [30, 60, 10] for name in languages},
        others={language: Seen(0.25, [5, 10, 25]) for language in others},
        teachers={name: [TeacherFacts(HOSTILE[i] * 2, ["ab"], "cd", {})] for i, name in enumerate(languages)},
        data="some/data at 0123",
    )


def body_of(card: str) -> str:
    header, body = re.fullmatch(r"---\n(.*?)\n---\n(.*)", card, re.DOTALL).groups()  # type: ignore[union-attr]
    assert header
    return str(body)


def parsed(card: str) -> list[Token]:
    return MarkdownIt("commonmark").enable("table").parse(body_of(card))


def text_of(token: Token) -> str:
    """What a reader sees of an inline token that is all text."""
    assert {child.type for child in token.children or []} <= {"text", "text_special", "code_inline"}
    return "".join(child.content for child in token.children or [])


def python_in(card: str) -> str:
    (code,) = [token.content for token in parsed(card) if token.info == "python"]
    return code


def run_as_a_stranger(code: str, folder: Path) -> str:
    done = subprocess.run(
        [warm_python(), "-c", code],
        cwd=folder,
        env={"PATH": "", "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "hf"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("name", ["student", "baseline"])
def test_the_cards_three_lines_of_python_run_anywhere(finished: Path, name: str) -> None:
    code = python_in((finished / f"artifacts/{name}/README.md").read_text(encoding="utf-8"))
    code = code.replace("A text", "A longer text than the student can read " * 200)
    assert len(code.splitlines()) == 3
    ((answer,),) = [literal_eval(run_as_a_stranger(code, finished / "artifacts"))]
    assert answer["label"] in CLASSES


def test_the_lines_for_text_pairs_and_for_a_chosen_branch_run(finished: Path) -> None:
    card = card_of(text_fields=["premise", "hypothesis"])
    choice = re.search(r"`(classify\.model\.set_default_language\(.*?\))`", card)
    assert choice
    last_line = python_in(card).splitlines()[-1]
    code = f"{python_in(card)}{choice[1]}\n{last_line}"
    mixture, branch = map(literal_eval, run_as_a_stranger(code, finished / "artifacts").splitlines())
    (mixture,) = mixture if isinstance(mixture, list) else (mixture,)
    (branch,) = branch if isinstance(branch, list) else (branch,)
    assert mixture["score"] != branch["score"]


def test_the_card_says_where_the_student_comes_from(finished: Path) -> None:
    card = (finished / "artifacts/student/README.md").read_text(encoding="utf-8")
    validation = json.loads((finished / "artifacts/student/validation.json").read_text())[-1]
    rows = [[c.strip() for c in line.split("|")[1:-1]] for line in card.splitlines() if line.startswith("|")]
    by_language = {row[0]: row for row in rows}
    assert by_language["nl"][1:] == ["0.333", "0.121 to 0.646", "0.333"]
    for row, language in [(by_language[language], language) for language in ("de", "en")]:
        folder = Path("artifacts/soft_labels") / language
        producer = SoftLabelSet.read(folder, language=language).producers[0]
        digest = file_digest(folder / "manifest.json")
        own = f"{validation[language]:.3f}"
        assert (row[:2], row[3:]) == ([language, own], ["0.333", "scratch", producer.id, digest])
    (params,) = [json.loads(token.content) for token in parsed(card) if token.info == "json"]
    assert params == relevant(load_params(Path("params.yaml")).student.distill)
    assert "variant `mblm`" in card
    assert "roberta, 2 layers, 16 wide" in card
    length = AutoTokenizer.from_pretrained("artifacts/student").model_max_length
    assert length == params["max_tokens"]
    assert f"Length: the first {length} tokens of a text" in card


def test_the_table_shows_how_sure_an_accuracy_is_and_what_chance_is() -> None:
    card = card_of()
    assert re.search(r"\| 0\.500 +\| 0\.404 to 0\.596 +\| 0\.600 ", card)
    assert "Of up to 40 validation texts in each" in card
    assert re.search(r"\| fr +\| 0\.250 +\| 0\.142 to 0\.402 +\| 0\.625 ", card)
    assert "Divide them by 1 for a text that goes through its language's branch" in card
    assert "texts go through the mixture. Of" in card
    through = "texts go through the mixture; those in de-AT through their language's branch. Of"
    assert through in card_of(others=["fr", "de-AT"])


def test_the_hub_reads_the_header(finished: Path) -> None:
    data = ModelCard.load(finished / "artifacts/student/README.md").data.to_dict()
    assert data == {
        "language": ["de", "en"],
        "library_name": "transformers",
        "pipeline_tag": "text-classification",
        "tags": ["mblm", "multilingual", "knowledge-distillation"],
    }
    baseline = ModelCard.load(finished / "artifacts/baseline/README.md").data
    assert baseline.tags == ["mblm", "multilingual"]
    assert ModelCard(card_of()).data.to_dict()["base_model"] == "a/b_c"


def test_the_same_student_gets_the_same_card(finished: Path, run: Run) -> None:
    before = Path("artifacts/student/README.md").read_bytes()
    assert run("student", "distill").code == 0
    assert Path("artifacts/student/README.md").read_bytes() == before


def test_a_card_shows_what_decides_the_student_and_no_other_parameter(finished: Path) -> None:
    card = (finished / "artifacts/baseline/README.md").read_text(encoding="utf-8")
    (params,) = [json.loads(token.content) for token in parsed(card) if token.info == "json"]
    finetune = load_params(Path("params.yaml"), ["student.distill.variant=finetune"]).student.distill
    assert params == relevant(finetune)
    assert not set(params) & {"temperature", "mixture", "branch_layers", "save_steps"}
    assert params["variant"] == "finetune"


def test_the_card_does_not_say_where_an_encoder_lay(finished: Path, run: Run) -> None:
    folder = use_ready_teacher(finished / "artifacts/encoder")
    assert run("student", "pretrain", "--set", f"student.pretrain.base={folder}").code == 0
    assert run("student", "baseline").code == 0
    card = Path("artifacts/baseline/README.md").read_text(encoding="utf-8")
    assert "Made from: ready (roberta" in card
    assert str(folder.parent) not in card


def test_names_in_params_break_neither_the_header_nor_the_markdown() -> None:
    weights = {name: 1.0 + i for i, name in enumerate(HOSTILE)}
    card = card_of(classes=HOSTILE, supervised=["no", "zh-Hant"], params={"class_weights": weights})
    header = YAML(typ="safe").load(card.split("---\n")[1])
    assert header == ModelCard(card).data.to_dict()
    assert header["language"] == ["no", "zh"]  # as the Hub wants codes
    assert header["language_bcp47"] == ["no", "zh-Hant"]
    assert set(header) == {
        *("language", "language_bcp47", "library_name", "pipeline_tag", "tags", "base_model"),
    }
    tokens = parsed(card)
    plain = parsed(card_of(supervised=["no", "zh-Hant"]))
    assert [token.type for token in tokens] == [token.type for token in plain]
    texts = [text_of(token) for token in tokens if token.type == "inline"]
    assert f"Classes: {', '.join(' '.join(name.split()) for name in HOSTILE)}" in texts
    assert [" ".join((name * 2).split()) in texts for name in HOSTILE[:2]] == [True, True]
    (params,) = [json.loads(token.content) for token in tokens if token.info == "json"]
    assert params["class_weights"] == weights
