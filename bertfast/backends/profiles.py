"""How sequences are put into batches, and which of an engine's profiles a batch goes to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from bertfast.config import ShapeProfile
from bertfast.errors import ProfileError
from bertfast.text.batch import Int64, group_by_budget, group_by_cost

BATCH_COST_TOKENS = 32
MAX_BATCH_TOKENS = 4096
MAX_BATCH_SEQUENCES = 256


def by_length(
    lengths: Sequence[int], batch_cost_tokens: int = BATCH_COST_TOKENS, profiles: Sequence[ShapeProfile] = ()
) -> Iterator[Int64]:
    """The batches that sequences are computed in, as arrays of their places: of similar length, with little padding.

    Args:
        profiles: those of the backend, which batches fill where there are any.
    Raises:
        ProfileError: a sequence is longer than every profile.
    """
    if profiles:
        return group_by_profile(lengths, profiles, batch_cost_tokens)
    return group_by_cost(lengths, batch_cost_tokens, MAX_BATCH_TOKENS, MAX_BATCH_SEQUENCES)


def as_given(lengths: Sequence[int], profiles: Sequence[ShapeProfile] = ()) -> Iterator[Int64]:
    """Batches in the order given, whatever the lengths: so large that a profile holds them, where there are any."""
    longest = max((profile.length[2] for profile in profiles), default=0)
    rows = max((profile.batch[2] for profile in profiles if profile.length[2] == longest), default=MAX_BATCH_SEQUENCES)
    return group_by_budget(lengths, MAX_BATCH_TOKENS, min(rows, MAX_BATCH_SEQUENCES), in_order=True)


def choose_profile(profiles: Sequence[ShapeProfile], rows: int, length: int) -> int:
    """The place of the profile that a batch goes to: of those that hold it with the least padding, the one whose best
    shape is nearest. A batch is padded to a profile's shortest length.

    Raises:
        ProfileError: no profile holds it.
    """
    able = [place for place, profile in enumerate(profiles) if profile.holds(rows, max(length, profile.length[0]))]
    if not able:
        raise ProfileError(_refusal(profiles, rows, length))

    def distance(place: int) -> tuple[int, int]:
        profile = profiles[place]
        return max(length, profile.length[0]), abs(rows * length - profile.batch[1] * profile.length[1])

    return min(able, key=distance)


def _refusal(profiles: Sequence[ShapeProfile], rows: int, length: int) -> str:
    if rows == 0:
        return f"a batch of no sequences (0x{length}) cannot be computed. Give one at least."
    known = ", ".join(map(str, profiles))
    refused = f"batch {rows}x{length} exceeds the engine's profile{'s' * (len(profiles) > 1)} {known}."
    again = "and run 'bertfast build' again."
    longest = max(profile.length[2] for profile in profiles)
    if length > longest:
        return f"{refused} Cut its texts to {longest} tokens, or raise length {again}"
    most = max(profile.batch[2] for profile in profiles if profile.length[2] >= length)
    if rows > most:
        return f"{refused} Split it to {most}, or raise batch {again}"
    return f"{refused} Lower the least batch of a profile {again}"


def group_by_profile(lengths: Sequence[int], profiles: Sequence[ShapeProfile], batch_cost: int) -> Iterator[Int64]:
    """Yield index arrays that fill an engine's profiles, each sequence in the one that pads it the least.

    Args:
        lengths: tokens of each sequence.
        batch_cost: what a batch costs beside its tokens, in tokens.
    Raises:
        ProfileError: a sequence is longer than every profile.
    """
    tokens = np.asarray(lengths, dtype=np.int64)
    homes = {length: _home(profiles, length) for length in set(lengths)}
    home = np.array([homes[length] for length in lengths])
    for place, profile in enumerate(profiles):
        inside = np.flatnonzero(home == place)
        padded = np.maximum(tokens[inside], profile.length[0])
        rows = profile.batch[2]
        for group in group_by_cost(padded, batch_cost, rows * profile.length[2], rows):
            yield inside[group]


def _home(profiles: Sequence[ShapeProfile], length: int) -> int:
    """Where a batch goes that is as full as it can be without more padding."""
    full = [(max(length, profile.length[0]), -profile.batch[2]) for profile in profiles if profile.length[2] >= length]
    if not full:
        raise ProfileError(_refusal(profiles, 1, length))
    return choose_profile(profiles, -min(full)[1], length)
