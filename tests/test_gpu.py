"""What needs a GPU is rehearsed on the CPU, by a Python without the packages that such machines may lack."""

import json
import subprocess
import sys
import venv
import zipfile
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import run as gpu_run
from clone import NO_NETWORK
from encoder import dequantised, pack, quantised, unpack
from families import config_of, save_plain
from pack import MISSING
from safetensors.numpy import load_file
from tiny import ROOT, examples, may_unshare
from transformers import AutoModel, AutoTokenizer

from stages.data.examples import SPLITS


def test_weights_in_four_bits_are_near_and_lose_nothing_more(tmp_path: Path) -> None:
    save_plain("xlm-roberta", tmp_path / "model", hidden_size=64, intermediate_size=96)
    pack(tmp_path / "model", tmp_path / "packed.zip")
    unpack(tmp_path / "packed.zip", tmp_path / "unpacked")
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("model", "unpacked"))
    assert before.keys() == after.keys()
    for name, weights in before.items():
        assert np.abs(weights - after[name]).max() <= np.abs(weights).max() / 8
        if weights.ndim == 2:
            np.testing.assert_array_equal(dequantised(*quantised(after[name])), after[name])
        else:
            np.testing.assert_array_equal(weights, after[name])
    unpacked = (tmp_path / "unpacked/model.safetensors").stat().st_size
    assert (tmp_path / "packed.zip").stat().st_size < unpacked / 4


LEFT_OUT = ("babel", "dvc", "mblm")
"""What such machines lack, and no part needs."""


def bare_python(folder: Path) -> str:
    """Make an environment with what is installed here, but for what a pack brings and for this project."""
    venv.create(folder, with_pip=False)
    ours = {file.parts[0] for name in (*MISSING, *LEFT_OUT) for file in distribution(name).files or []}
    (site,) = (folder / "lib").glob("python*/site-packages")
    for path in Path(pa.__file__).parents[1].iterdir():
        if path.name not in ours and not path.name.startswith("__editable__"):
            (site / path.name).symlink_to(path)
    return str(folder / "bin/python")


def write_pack(folder: Path, tokenizer: Any) -> None:
    """Write a pack as `make gpu-pack` does, of wheels for this Python, of a tiny encoder and few texts."""
    (folder / "wheels").mkdir(parents=True)
    for name in MISSING:
        found = distribution(name)
        with zipfile.ZipFile(
            folder / f"wheels/{name.replace('-', '_')}-{found.version}-any.whl", "w"
        ) as wheel:
            for file in found.files or []:
                if ".." not in file.parts and "__pycache__" not in file.parts:
                    wheel.write(str(file.locate()), str(file))
    plain = folder.with_name("plain")
    size = {"hidden_size": 32, "vocab_size": len(tokenizer), "max_position_embeddings": 140}
    AutoModel.from_config(config_of("xlm-roberta", **size)).save_pretrained(plain)
    tokenizer.save_pretrained(plain)
    pack(plain, folder / "encoder.zip")
    (folder / "data/words").mkdir(parents=True)
    table = pa.table({"text": [row["text"] for row in examples("de", "train")]})
    pq.write_table(table, folder / "data/words/train.parquet")
    topics = ["travel", "politics", "sports"]
    for language in ("arb_Arab", "deu_Latn", "fra_Latn"):
        (folder / "data/sib200" / language).mkdir(parents=True)
        for split in SPLITS:
            rows = examples("de", split)
            columns = {
                "index_id": [*range(len(rows))],
                "category": [topics[number % 3] for number in range(len(rows))],
                "text": [f"{row['text']} {language}" for row in rows],
            }
            pq.write_table(pa.table(columns), folder / f"data/sib200/{language}/{split}.parquet")


@pytest.mark.slow
def test_make_gpu_measures_every_part_without_a_network_and_missing_packages(
    finished_once: Path, tmp_path: Path
) -> None:
    write_pack(tmp_path / "pack", AutoTokenizer.from_pretrained(finished_once / "artifacts/encoder"))
    python = bare_python(tmp_path / "bare")
    lacks = subprocess.run([python, "-c", "import zarr"], capture_output=True, text=True, check=False)
    assert "No module named 'zarr'" in lacks.stderr
    before = NO_NETWORK if may_unshare("-rn") else ()
    settings = [f"PYTHON={python}", f"PACK={tmp_path / 'pack'}", f"OUT={tmp_path / 'out'}", "TINY=1"]
    settings.append(f"PARTS={' '.join(gpu_run.SECONDS)}")
    done = subprocess.run(
        [*before, "make", "gpu", *settings], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    results = json.loads((tmp_path / "out/results.json").read_text(encoding="utf-8"))
    assert [(part["name"], part["ended"]) for part in results["parts"]] == [
        (name, "done") for name in gpu_run.SECONDS
    ]
    rows = {
        (part["name"], row["what"]): row.get("measured") for part in results["parts"] for row in part["rows"]
    }
    assert rows["checks", "failed"] == 0
    assert rows["label", "texts per second over CrossEncoder.predict"] > 0
    assert rows["label", "real tokens over that rate, as it is"] > 0
    assert rows["label", "texts"] == 80
    assert 0 < rows["train", "share of the time in which the CPU computes"] < 100
    assert rows["train", "mblm over finetune"] > 1
    assert rows["million", "kept after kill -9"] + rows["million", "labelled by the second run"] == 300
    assert rows["recipes", "ablation train --run mblm --seed 0"] > 0
    assert "mblm over finetune, zero-shot" in {what for part, what in rows if part == "recipes"}
    assert (tmp_path / "out/kept/sib200-150/predictions/mblm-0.arrow").is_file()
    table = (tmp_path / "out/results.md").read_text(encoding="utf-8")
    assert f"torch {results['machine']['torch']}" in table
    assert "| examples with more than one | 0 |  | ≤ 0 | met |" in table


def test_a_part_that_takes_too_long_is_stopped_and_what_it_measured_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = "from measure import row\nimport time\nrow('so far', 3)\ntime.sleep(60)\n"
    (tmp_path / "endless.py").write_text(script)
    monkeypatch.setattr(gpu_run, "HERE", tmp_path)
    part = gpu_run.run("endless", [], 2, tmp_path, tmp_path)
    assert part.ended == "stopped after 2 s"
    assert [(one["what"], one["measured"]) for one in part.rows] == [("so far", 3)]
    gpu_run.write(tmp_path, {"card": "none"}, [part])
    assert "| so far | 3 |" in (tmp_path / "results.md").read_text()


def test_a_part_that_is_not_there_is_refused() -> None:
    script = [sys.executable, str(ROOT / "tests/gpu/run.py"), "labels"]
    done = subprocess.run(script, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (
        1,
        "error: no part is called 'labels'; there are checks, label, train, million, recipes\n",
    )
