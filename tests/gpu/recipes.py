"""The recipes on the packed encoder and data: teachers, soft labels, and one student after the other.

What is finished stays in .gpu-recipes, by what it is made of, so that the next call goes on: a finished run
is the unit. Where each was right is kept beside the results.
"""

import hashlib
import json
import os
import sys
import time
from contextlib import chdir
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from encoder import unpack
from measure import heading, note, progress, row
from ruamel.yaml import YAML

from cache import file_digest
from pipeline.__main__ import main as pipeline_main

ROOT = Path(__file__).parents[2]
WORK = ROOT / ".gpu-recipes"
DATA = {"sib200-150": "sib200"}
"""The packed data set of each recipe."""
TINY: dict[str, Any] = {"batch_size": 8, "epochs": 1, "precision": "float32"}


def main(pack: Path, *, tiny: bool) -> None:
    """Go on with each recipe whose data is in the pack, for as long as the caller lets this run."""
    for name, data in DATA.items():
        heading(f"Recipe {name}")
        if not ((pack / "encoder.zip").is_file() and (pack / "data" / data).is_dir()):
            note(f"the pack has no encoder, or no data set {data}")
            continue
        with TemporaryDirectory() as rehearsal:
            params = params_of(name, pack / "data" / data, tiny=tiny)
            digest = hashlib.sha256(f"{params}{file_digest(pack / 'encoder.zip')}".encode()).hexdigest()
            folder = (Path(rehearsal) if tiny else WORK) / f"{name}-{digest[:8]}"
            folder.mkdir(parents=True, exist_ok=True)
            with chdir(folder):
                go_on(params, pack, pack / "data" / data)


def go_on(params: dict[str, Any], pack: Path, data: Path) -> None:
    """Do what is left of a recipe, in the current folder; each step writes what its row names."""
    if not Path("encoder").is_dir():
        unpack(pack / "encoder.zip", Path("encoder"))
    Path("data").unlink(missing_ok=True)
    Path("data").symlink_to(data)
    with Path("params.yaml").open("w", encoding="utf-8") as file:
        YAML(typ="safe").dump(params, file)
    os.environ["MBLM_TEACHER_CACHE"] = "store"
    step("prepare", made="artifacts/data/manifest.json")
    for language in params["task"]["supervised"]:
        step("teacher", "finetune", "--language", language, made=f"artifacts/teachers/{language}")
        step("teacher", "label", "--language", language, made=f"artifacts/soft_labels/{language}")
    step("ablation", "plan", made="ablation/artifacts/plan")
    seeds, variants = params["ablation"]["seeds"], params["ablation"]["variants"]
    for n_seeds, seed in enumerate(seeds, start=1):
        step("ablation", "pretrain", "--seed", str(seed), made=f"ablation/artifacts/encoders/{seed}")
        for run in variants:
            made = f"ablation/artifacts/predictions/{run}-{seed}.arrow"
            step("ablation", "train", "--run", run, "--seed", str(seed), made=made)
            pipeline("ablation", "keep")
        pipeline("ablation", "compare", "--set", f"ablation.seeds={seeds[:n_seeds]}", *sweep_of(seeds))
    of_test = json.loads(Path("ablation/artifacts/test.json").read_text(encoding="utf-8"))["runs"]["mblm"]
    for kind in ("supervised", "zero-shot"):
        row(f"mblm, {kind}, test accuracy", 100 * of_test[kind]["mean"], "%")
        row(f"mblm over finetune, {kind}", 100 * of_test[kind]["difference"]["mean"], "points")


def sweep_of(seeds: list[int]) -> tuple[str, str]:
    """Give the option that keeps the sweep to a seed that there is."""
    return "--set", f"ablation.sweep.seeds=[{seeds[0]}]"


def params_of(name: str, data: Path, *, tiny: bool) -> dict[str, Any]:
    """Give the recipe's parameters with packed data and encoder in the place of the Hub's."""
    params: dict[str, Any] = YAML(typ="safe").load(ROOT / "recipes" / f"{name}.yaml")
    task = params["task"]
    source = {key: value for key, value in task["source"].items() if key not in ("dataset", "config")}
    task["source"] = source | {"kind": "files", "pattern": "data/{language}/{split}.parquet"}
    task["zero_shot"] = [language for language in task["zero_shot"] if (data / language).is_dir()]
    params["student"]["pretrain"]["base"] = "./encoder"
    params["ablation"]["kept"] = str(Path(os.environ["KEPT"]) / name)
    trainings = (params["teacher"]["finetune"], params["student"]["distill"])
    if tiny:
        task["supervised"], task["max_labels"] = task["supervised"][:2], 12
        params["ablation"] |= {"seeds": [0], "variants": ["finetune", "mblm"]}
        for section in trainings:
            section |= TINY
    params["teachers"] = {language: {"base": "./encoder"} for language in task["supervised"]}
    return params


def step(*command: str, made: str) -> None:
    """Run a command unless an earlier call has, and write down how long it took."""
    if not Path(made).exists():
        progress(" ".join(command))
        start = time.monotonic()
        pipeline(*command)
        row(" ".join(command), time.monotonic() - start, "s")


def pipeline(*command: str) -> None:
    """Run a command of the pipeline in the current folder, and in this process, which has imported it all.

    Raises:
        SystemExit: It failed.
    """
    sys.argv = ["pipeline", *command]
    try:
        code: Any = pipeline_main()
    except SystemExit as end:  # so typer ends a command
        code = end.code
    if code:
        sys.exit(code)


if __name__ == "__main__":
    main(Path(sys.argv[1]), tiny="--tiny" in sys.argv)
