from __future__ import annotations

from collections.abc import Sequence

import pytest

from bertfast.errors import AccuracyError
from bertfast.quantize.product import QuantizedProduct
from bertfast.quantize.search import Sensitivity, hold_drop, hold_error, sensitivities
from tests.quantize.test_product import quantized

COSTS = {0: 0.5, 1: 3.0, 2: 1.0, 3: 2.0}


class Costs:
    """A trial in which every product in INT8 costs what COSTS says, in points and in error."""

    def __init__(self, floor: float = 0.0) -> None:
        self.floor = floor
        self.tried = 0

    def error(self, kept: Sequence[QuantizedProduct]) -> float:
        self.tried += 1
        return self.drop(kept)

    def drop(self, kept: Sequence[QuantizedProduct]) -> float:
        places = [PRODUCTS.index(one) for one in kept]
        return self.floor + sum(COSTS[place] for place in places)


PRODUCTS = [quantized(place) for place in COSTS]


def ranked(trial: Costs) -> list[Sensitivity]:
    return sensitivities(trial, PRODUCTS, lambda *_: None)  # type: ignore[arg-type]


def chosen(trial: Costs, max_drop: float) -> list[str]:
    found = next(hold_drop(trial, PRODUCTS, ranked(trial), max_drop, lambda *_: None))  # type: ignore[arg-type]
    assert {one.product.name for one in found.quantized} | set(found.restored) == {one.product.name for one in PRODUCTS}
    assert found.drop == trial.drop(found.quantized) <= max_drop
    return [name.rpartition("layer.0.")[2] for name in found.restored]


def test_the_product_that_costs_most_comes_first_and_each_is_tried_once() -> None:
    trial = Costs()
    assert [PRODUCTS.index(item.quantized) for item in ranked(trial)] == [1, 3, 2, 0]
    assert trial.tried == 1 + len(PRODUCTS)


@pytest.mark.parametrize(
    ("max_drop", "restored"),
    [(6.5, []), (6.4, ["attention.output.dense"]), (1.5, ["attention.output.dense", "output.dense"])],
)
def test_the_fewest_products_are_restored_that_hold_the_drop(max_drop: float, restored: list[str]) -> None:
    assert chosen(Costs(), max_drop) == restored


def test_a_drop_that_cannot_be_held_is_an_error_of_its_own_status() -> None:
    trial = Costs(floor=2.0)
    with pytest.raises(AccuracyError, match=r"loses 2\.50 points at the least, .*, and 1 is the limit") as caught:
        chosen(trial, 1.0)
    assert caught.value.exit_status == 3


def test_without_rows_a_product_is_restored_where_it_mends_the_error_and_most_weights_stay() -> None:
    large = [quantized(place, outputs=40) for place in range(3)]
    small = quantized(3, outputs=4)
    worst = {id(small): 5.0}

    class Trial:
        def error(self, kept: Sequence[QuantizedProduct]) -> float:
            return 1 + sum(worst.get(id(one), 1.0) for one in kept)

    products = [*large, small]
    order = sensitivities(Trial(), products, lambda *_: None)  # type: ignore[arg-type]
    found = hold_error(Trial(), products, order)  # type: ignore[arg-type]
    assert found.restored == (small.product.name,)
    assert found.error == 4.0
    assert found.drop is None
