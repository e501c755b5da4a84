"""`make test-transformers` where the package index does not answer."""

import os
import subprocess
import sys

import pytest
from tiny import ROOT


@pytest.mark.slow
def test_tests_that_cannot_be_fetched_are_an_error_in_one_line() -> None:
    nowhere = {"PIP_INDEX_URL": "http://127.0.0.1:1/simple", "PIP_RETRIES": "0", "PIP_NO_CACHE_DIR": "1"}
    done = subprocess.run(
        [sys.executable, "tests/common/run_common.py"],
        cwd=ROOT,
        env={**os.environ, **nowhere},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stdout == ""
    [line] = done.stderr.splitlines()
    assert line.startswith("error: cannot fetch the tests of transformers==")
