"""Where each stage writes. Paths are relative to the folder that the pipeline runs in, as in dvc.yaml."""

from pathlib import Path

DATA = Path("artifacts/data")
TEACHERS = Path("artifacts/teachers")
SOFT_LABELS = Path("artifacts/soft_labels")
TRUNK = Path("artifacts/trunk")
STUDENT = Path("artifacts/student")
BASELINE = Path("artifacts/baseline")
METRICS = Path("artifacts/metrics")
PLOTS = Path("artifacts/plots")
REPORT = Path("artifacts/report")
