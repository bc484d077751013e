import pytest
from hypothesis import given
from hypothesis import strategies as st

from claude_vm.bench.stats import paired, percentile

values = st.lists(st.floats(-1e9, 1e9), min_size=1, max_size=50)


def test_percentiles_of_known_values():
    assert percentile([4, 1, 3, 2], 50) == 2.5
    assert percentile([10, 20, 30, 40, 50], 95) == pytest.approx(48)
    assert percentile([7], 99) == 7
    assert percentile([1, 2], 0) == 1
    assert percentile([1, 2], 100) == 2


@pytest.mark.parametrize(("of", "percent"), [([], 50), ([1], -1), ([1], 101)])
def test_a_percentile_of_nothing_or_no_percentage_is_an_error(of, percent):
    with pytest.raises(ValueError, match="percent"):
        percentile(of, percent)


@given(values)
def test_percentiles_are_in_order_and_within_the_values(of):
    least, p50, p95, p99, most = (percentile(of, percent) for percent in (0, 50, 95, 99, 100))
    slack = 1e-6
    assert (least, most) == (min(of), max(of))
    assert least - slack <= p50 <= p95 + slack
    assert p95 <= p99 + slack <= most + 2 * slack


@given(values)
def test_the_order_of_the_values_does_not_matter(of):
    assert percentile(of, 95) == percentile(of[::-1], 95)


def test_pairs_are_subtracted_one_by_one():
    assert paired([5, 7], [1, 2]) == [4, 5]
    with pytest.raises(ValueError, match="shorter"):
        paired([1], [])
