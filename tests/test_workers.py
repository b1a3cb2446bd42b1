from __future__ import annotations

import threading
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


def test_items_are_worked_on_at_a_time() -> None:
    together = threading.Barrier(2, timeout=30)  # one alone would wait for ever
    with ThreadPoolExecutor(2) as pool:
        assert sorted(in_order(pool, lambda item: together.wait(), range(6), ahead=3)) == [0, 0, 0, 1, 1, 1]


def test_what_is_left_early_does_not_begin_what_lies_ready() -> None:
    begun, second, go_on = list[int](), threading.Event(), threading.Event()

    def work(item: int) -> int:
        begun.append(item)
        if len(begun) > 1:
            second.set()
            assert go_on.wait(timeout=30)
        return item

    with ThreadPoolExecutor(1) as pool:
        results = in_order(pool, work, range(50), ahead=2)
        assert next(results) == 0
        assert second.wait(timeout=30)
        threading.Timer(0.3, go_on.set).start()
        results.close()  # type: ignore[attr-defined]
    assert begun == [0, 1]
