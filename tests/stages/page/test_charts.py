"""Where a chart's names go."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.page.charts import spread


@given(st.lists(st.floats(-1e3, 1e3), max_size=12))
def test_names_at_the_ends_of_lines_keep_their_order_and_a_distance(places: list[float]) -> None:
    moved = spread(places, gap=16.0)
    order = np.argsort(places, kind="stable")
    assert np.all(np.diff(np.array(moved)[order]) >= 16.0 - 1e-6)
    if places:
        assert np.mean(moved) == pytest.approx(np.mean(places), abs=1e-6)
