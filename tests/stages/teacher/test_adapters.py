"""Teachers as LoRA adapters: what learns, what is written, and whom the store takes them for."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from families import config_of
from safetensors.torch import load_file, save_file
from tiny import Run, tiny_params, write_params
from transformers import AutoModel, AutoTokenizer, set_seed

from cache import SoftLabelSet
from stages.artifacts import SOFT_LABELS
from stages.models.training import TextTrainer

FINETUNE = ("teacher", "finetune", "--language", "de")
LABEL = ("teacher", "label", "--language", "de")
TEACHER = Path("artifacts/teachers/de")

pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing`:FutureWarning",  # peft 0.21 asks transformers 5.23 for it
)


@pytest.fixture
def base(finished: Path) -> Path:
    """A base without pooler and classifier, and params.yaml that makes a teacher of it."""
    tokenizer = AutoTokenizer.from_pretrained("artifacts/encoder")
    set_seed(0)
    sizes = {
        "vocab_size": len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        "max_position_embeddings": 64,
    }
    AutoModel.from_config(config_of("bert", **sizes), add_pooling_layer=False).save_pretrained("base")
    tokenizer.save_pretrained("base")
    params = tiny_params()
    params["teachers"]["de"]["base"] = str(finished / "base")
    params["teacher"]["finetune"] |= {"lora": {"rank": 2}, "learning_rate": 0.01}
    write_params(params)
    return finished / "base"


def producers() -> list[Any]:
    return SoftLabelSet.read(SOFT_LABELS / "de", language="de").producers


def test_an_adapter_learns_and_its_base_is_a_link(base: Path, run: Run) -> None:
    done = run(*FINETUNE)
    assert done.code == 0, done.err
    weights = TEACHER / "model.safetensors"
    assert weights.samefile(base / "model.safetensors")
    adapter = load_file(TEACHER / "adapter_model.safetensors")
    assert any(name.endswith("lora_B.weight") and value.abs().max() > 0 for name, value in adapter.items())
    assert any("pooler" in name for name in adapter)
    assert any("classifier" in name for name in adapter)
    assert run(*LABEL).code == 0
    facts = producers()[0].facts
    assert facts["adapter"]["config"]["r"] == 2
    accuracy = json.loads(Path("artifacts/metrics/teachers/de.json").read_text())["validation"]["accuracy"]
    assert done.out == f"teacher 'de': {accuracy:.1%} of 9 validation examples\n"


@pytest.mark.parametrize("lora", [{"rank": 2}, None])
def test_an_adapter_is_no_base_of_another_training(base: Path, run: Run, lora: dict[str, Any] | None) -> None:
    assert run(*FINETUNE).code == 0
    shutil.copytree(TEACHER, "adapted")
    params = tiny_params()
    params["teachers"]["de"]["base"] = "adapted"
    params["teacher"]["finetune"]["lora"] = lora
    write_params(params)
    done = run(*FINETUNE)
    assert done.code == 1
    assert "teachers.de.base, adapted, is an adapter beside its base; merge the two" in done.err


def test_base_and_adapter_decide_who_the_teacher_is(base: Path, run: Run) -> None:
    ids = []
    for options in ([], ["--set", "teacher.finetune.lora.rank=1"], ["--set", "teacher.finetune.seed=5"]):
        assert run(*FINETUNE, *options).code == 0
        assert run(*LABEL).code == 0
        ids.append(producers()[0].id)
    assert len(set(ids)) == 3


def test_folds_share_their_base_on_disk(base: Path, run: Run) -> None:
    folds = ["--set", "teachers.de.folds=2"]
    assert run(*FINETUNE, *folds).code == 0
    assert run(*LABEL, *folds).code == 0
    assert all((TEACHER / f"fold-{i}/model.safetensors").samefile(base / "model.safetensors") for i in (0, 1))


def test_a_killed_adapter_does_not_go_on_over_other_code(
    base: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stages.models.checkpoints._SECONDS", 0)
    step = TextTrainer.training_step

    def stop(self: TextTrainer, *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step == 8:
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(TextTrainer, "training_step", stop)
        assert run(*FINETUNE).code == 130
    [made_by] = Path(".checkpoints").glob("teacher-finetune-de/*/made_by.json")
    made_by.write_text(made_by.read_text().replace('"cache/errors.py":"', '"cache/errors.py":"0'))
    done = run(*FINETUNE)
    assert "since then other: cache/errors.py; training starts anew" in done.err


def test_what_transformers_could_not_load_beside_its_base_becomes_one_model(base: Path, run: Run) -> None:
    assert run(*FINETUNE, "--set", "teacher.finetune.pooling=mean").code == 0
    assert not (TEACHER / "adapter_config.json").exists()
    merged = load_file(TEACHER / "model.safetensors")
    before = load_file(base / "model.safetensors")
    name = "encoder.layer.0.output.dense.weight"
    assert not torch.equal(merged[f"mblm.encoder.{name}"], before[name])
    embeddings = "embeddings.word_embeddings.weight"
    assert torch.equal(merged[f"mblm.encoder.{embeddings}"], before[embeddings])
    assert run(*LABEL).code == 0
    assert producers()[0].facts["config"]["pooling"] == "mean"


def test_layers_that_are_not_there_cannot_be_adapted(base: Path, run: Run) -> None:
    done = run(*FINETUNE, "--set", "teacher.finetune.lora.targets=[q_proj]")
    assert done.code == 1
    assert "error: teacher.finetune.lora does not fit the model: No modules were targeted" in done.err


def test_peft_must_be_there(base: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stages.teacher.adapters.is_peft_available", lambda: False)
    done = run(*FINETUNE)
    assert done.code == 1
    assert "error: teacher.finetune.lora needs PEFT; install it with: pip install" in done.err


def test_an_adapter_needs_its_base_and_that_of_its_size(base: Path, run: Run) -> None:
    assert run(*FINETUNE).code == 0
    alone, wrong = Path("alone").absolute(), Path("wrong").absolute()
    shutil.copytree(TEACHER, wrong)
    shutil.copytree(TEACHER, alone)
    (alone / "config.json").unlink()
    ready = ["--set", f"teachers.de.base={alone}", "--set", "teachers.de.finetune=false"]
    done = run(*FINETUNE, *ready)
    assert done.code == 1
    assert f"error: teachers.de.base is {alone}, an adapter without its base; put the base's" in done.err
    adapter = load_file(wrong / "adapter_model.safetensors")
    halved = {name: value[..., : value.shape[-1] // 2].contiguous() for name, value in adapter.items()}
    save_file(halved, wrong / "adapter_model.safetensors", metadata={"format": "pt"})
    ready[1] = f"teachers.de.base={wrong}"
    assert run(*FINETUNE, *ready).code == 0
    done = run(*LABEL, *ready)
    assert done.code == 1
    [line] = [line for line in done.err.splitlines() if line.startswith("error: ")]
    assert line.startswith(f"error: cannot load the teacher in {wrong}: ")
