import pytest
from hypothesis import given
from hypothesis import strategies as st

from claude_vm.bench.stats import paired, percentile, summarise

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
def test_a_summary_is_in_order_and_within_the_values(of):
    found = summarise(of)
    slack = 1e-6
    assert found.n == len(of)
    assert found.least == min(of)
    assert found.most == max(of)
    assert found.least - slack <= found.p50 <= found.p95 + slack
    assert found.p95 <= found.p99 + slack <= found.most + 2 * slack


@given(values)
def test_the_order_of_the_values_does_not_matter(of):
    assert percentile(of, 95) == percentile(of[::-1], 95)


def test_pairs_are_subtracted_one_by_one():
    assert paired([5, 7], [1, 2]) == [4, 5]
    with pytest.raises(ValueError, match="shorter"):
        paired([1], [])
