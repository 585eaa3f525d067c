"""What is asked of each table of states, whichever connection it is of."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pytest

from flowstack.states import IllegalMove

Event = Callable[[Any], Any]


class Noting(tuple[Any, ...]):
    """The states that may follow one; notes those that do."""

    note: Callable[[Any], None]

    def __contains__(self, state: object) -> bool:
        follows = super().__contains__(state)
        if follows:
            self.note(state)
        return follows


@contextmanager
def noted(moves: dict[Any, tuple[Any, ...]]) -> Iterator[list[tuple[Any, Any]]]:
    """Each move that is made meanwhile by what looks into this table."""
    made: list[tuple[Any, Any]] = []

    def noting(before: Any, following: tuple[Any, ...]) -> Noting:
        table = Noting(following)
        table.note = lambda after: made.append((before, after))
        return table

    plain = dict(moves)
    moves.update({before: noting(before, following) for before, following in plain.items()})
    try:
        yield made
    finally:
        moves.update(plain)


def moves_of(
    play_to: Callable[[Any], Any], script: Iterable[Sequence[Any]], moves: dict[Any, tuple[Any, ...]]
) -> set[tuple[Any, Any]]:
    """Each move that a script's events, which stand behind the state that they begin in, bring about."""
    with noted(moves) as made:
        for state, events, *_ in script:
            play = play_to(state)
            for event in events:
                event(play)
    return set(made)


def legal(moves: Mapping[Any, Collection[Any]]) -> set[tuple[Any, Any]]:
    """Each move of a table."""
    return {(before, after) for before, following in moves.items() for after in following}


def assert_others_raise(play_to: Callable[[Any], Any], before: Any, moves: Mapping[Any, Collection[Any]]) -> None:
    """Each move from a state that is not in the table raises, and changes nothing."""
    for after in set(type(before)) - set(moves[before]):
        connection = play_to(before).connection
        with pytest.raises(IllegalMove, match=f"from {before.name} to {after.name}$"):
            connection._move(after)
        assert connection.state is before


def play_all_pairs(play_to: Callable[[Any], Any], state: Any, events: Sequence[Event]) -> None:
    """Have each two events happen in a state, one after the other."""
    for first in events:
        for second in events:
            play = play_to(state)
            first(play)
            second(play)
            play.settle()
