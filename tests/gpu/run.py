"""Run what needs a GPU, each part in its time, and write down what was measured: `make gpu`.

A part is a script beside this one. Wheels of a pack (`make gpu-pack`) stand in for packages that are missing;
neither DVC nor a network is needed. Where there is no GPU, the parts run on the CPU.
"""

import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from argparse import ArgumentParser
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
SECONDS = {"checks": 90, "label": 240, "train": 120, "million": 150, "recipes": 570}
"""Seconds that each part may take."""
BY_DEFAULT = ("checks", "label", "train", "million")
"""Ten minutes together; the recipes take as long again, several times, and go on where they were."""


class Part(NamedTuple):
    """What came of a part.

    Attributes:
        name: Of its script.
        ended: How: ``done``, or why it did not end.
        seconds: That it took.
        rows: What it measured; as far as it came.
    """

    name: str
    ended: str
    seconds: float
    rows: list[dict[str, Any]]


def main() -> None:
    """Run parts, one after the other, and write down what they measured after each."""
    parser = ArgumentParser(description=__doc__)  # of Python itself: typer may need what the pack brings
    parser.add_argument(
        "parts", nargs="*", metavar="PART", help=f"of {', '.join(SECONDS)}; all but the last by default"
    )
    parser.add_argument("--pack", type=Path, default="gpu-pack", help="what `make gpu-pack` wrote")
    parser.add_argument(
        "--to", type=Path, default="gpu-results", help="folder of results.json and results.md"
    )
    parser.add_argument("--tiny", action="store_true", help="a rehearsal, as small as it goes")
    given = parser.parse_args()
    for name in given.parts:
        if name not in SECONDS:
            sys.exit(f"error: no part is called {name!r}; there are {', '.join(SECONDS)}")
    given.to.mkdir(parents=True, exist_ok=True)
    done: list[Part] = []
    with TemporaryDirectory(prefix="mblm-gpu-") as folder:
        site = Path(folder) / "site"
        install(given.pack / "wheels", site)
        machine = describe(must_be_seen=not given.tiny)
        os.environ["KEPT"] = str((given.to / "kept").absolute())
        for name in given.parts or BY_DEFAULT:
            say(f"{name}, {SECONDS[name]} s at most")
            options = [str(given.pack.absolute()), *(["--tiny"] if given.tiny else [])]
            done.append(run(name, options, SECONDS[name], Path(folder), site))
            say(f"{name}: {done[-1].ended}, {done[-1].seconds:.0f} s")
            write(given.to, machine, done)
    say(str(given.to / "results.md"))
    sys.exit(any(part.ended.startswith("failed") for part in done))


def say(line: str) -> None:
    """Tell parts apart among what they print."""
    sys.stdout.write(f"\n=== {line}\n")
    sys.stdout.flush()


def install(wheels: Path, site: Path) -> None:
    """Unpack the wheels of packages that are missing here."""
    site.mkdir()
    for wheel in sorted(wheels.glob("*.whl")):
        try:
            version(wheel.name.partition("-")[0])
        except PackageNotFoundError:
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(site)


def describe(*, must_be_seen: bool) -> dict[str, str]:
    """Name the card, its driver and the versions that matter; nothing slow is imported for it.

    Args:
        must_be_seen: Whether to stop where torch does not see the card, and the parts would run on the CPU.
    """
    query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    found = {"card": "none: on the CPU"}
    versions = {name: version(name) for name in ("torch", "transformers")}
    said = output_of(query).partition("\n")[0] if shutil.which(query[0]) else ""
    if said:
        sees = [sys.executable, "-c", "import torch; print(torch.cuda.is_available())"]
        if "True" in output_of(sees):
            found = dict(zip(("card", "memory", "driver"), said.split(", "), strict=False))
        elif must_be_seen:
            sys.exit(f"error: torch {versions['torch']} does not see the {said}; install one that does")
    return found | versions | {"python": platform.python_version(), "cores": str(os.cpu_count())}


def output_of(command: list[str]) -> str:
    """Give what a program writes, and nothing where it fails."""
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


def run(name: str, options: list[str], seconds: float, folder: Path, site: Path) -> Part:
    """Run a part; one that takes too long is stopped, and what it has measured is kept."""
    measured = folder / f"{name}.jsonl"
    measured.touch()
    paths = [ROOT, ROOT / "tests", ROOT / "tests/benchmarks", site]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(map(str, paths)),
        "MEASURED": str(measured),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "true",
    }
    start = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, str(HERE / f"{name}.py"), *options], env=environment, start_new_session=True
    )
    try:
        code = process.wait(timeout=seconds)
        ended = "done" if code == 0 else f"failed with code {code}"
    except subprocess.TimeoutExpired:
        ended = f"stopped after {seconds:.0f} s"
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    rows = [json.loads(line) for line in measured.read_text(encoding="utf-8").splitlines()]
    return Part(name, ended, time.monotonic() - start, rows)


def write(folder: Path, machine: dict[str, str], parts: list[Part]) -> None:
    """Write results.json, and the same as tables."""
    told = {"machine": machine, "parts": [part._asdict() for part in parts]}
    (folder / "results.json").write_text(json.dumps(told, indent=1, ensure_ascii=False), encoding="utf-8")
    lines = ["; ".join(f"{name} {value}" for name, value in machine.items()) + "."]
    for part in parts:
        lines += ["", f"## {part.name}: {part.ended}, {part.seconds:.0f} s", ""]
        lines += ["| | measured | | target | |", "|---|---:|---|---|---|"] if part.rows else []
        heading = ""
        for one in part.rows:
            if one["heading"] != heading:
                heading = one["heading"]
                lines.append(f"| **{heading}** | | | | |")
            cells = (one.get(key, "") for key in ("what", "shown", "unit", "target", "verdict"))
            lines.append(f"| {' | '.join(cells)} |")
    (folder / "results.md").write_text("\n".join([*lines, ""]), encoding="utf-8")


if __name__ == "__main__":
    main()
