from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from bertfast.workers import in_order


@pytest.mark.parametrize(("ahead", "taken_by_result"), [(0, [1, 2, 3, 4, 5]), (2, [3, 4, 5, 5, 5]), (9, [5] * 5)])
def test_results_come_in_order_and_few_items_are_taken_ahead(ahead: int, taken_by_result: list[int]) -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for item in range(5):
            taken.append(item)
            yield item

    with ThreadPoolExecutor(3) as pool:
        seen = [(result, len(taken)) for result in in_order(pool, lambda item: item * item, items(), ahead)]
    assert seen == list(zip([0, 1, 4, 9, 16], taken_by_result, strict=True))


def test_a_failure_comes_in_the_place_of_its_result() -> None:
    with ThreadPoolExecutor(2) as pool:
        quotients = in_order(pool, lambda item: 6 / item, [3, 0, 1], ahead=2)
        assert next(quotients) == 2
        with pytest.raises(ZeroDivisionError):
            next(quotients)
