"""INT8 for the encoder's matrix products: their ranges, their rounding, and which of them bear it.

calibration text -> `walk` (what goes into each product) -> `ranges` and `rounding` -> `fit` (a product in INT8)
-> `simulate` (the model with them, in torch) -> `search` (the fewest that must stay as they were)
"""
