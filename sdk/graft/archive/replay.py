"""Makes an archive's aliases: their moves one after the other, then their policies."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from graft.archive.policies import read_policy, rules_of
from graft.archive.renaming import Renaming
from graft.catalogue import pages
from graft.connection import Connection
from graft.errors import NotFoundError
from graft.names import version_name
from graft.registry.v1 import registry_service_pb2 as pb

_PEER = "the registry"
_MOST_REASON = 9_000
# A version here, and the canaries beside it with their weights: what a move said.
Target = tuple[str, tuple[tuple[str, float], ...]]


class Replay:
    """Moves aliases as they were moved.

    Args:
        connection: to the registry.
        renaming: of the archive's names.
        numbers: the number that a version of the archive has here, by its name there.
        say: takes a sentence about what is not as it was.
    """

    def __init__(
        self,
        connection: Connection,
        renaming: Renaming,
        numbers: Mapping[str, int],
        say: Callable[[str], None],
    ) -> None:
        self._connection, self._stub = connection, connection.registry
        self._renaming, self._numbers, self._say = renaming, numbers, say
        self._moves: dict[str, list[pb.Alias]] = {}
        self._policies: list[pb.AliasPolicy] = []

    def add(self, move: pb.Alias) -> None:
        """The next move of an alias."""
        self._moves.setdefault(move.name, []).append(move)

    def add_policy(self, policy: pb.AliasPolicy) -> None:
        """What must hold before an alias moves; set when all aliases stand."""
        self._policies.append(policy)

    async def run(self) -> int:
        """Makes everything that was added; answers how many aliases were moved."""
        moved = 0
        for name, moves in self._moves.items():
            moved += await self._replay(self._renaming.name(name), moves)
        for policy in self._policies:
            await self._set_policy(policy)
        return moved

    async def _replay(self, name: str, moves: Sequence[pb.Alias]) -> bool:
        # An alias that was removed and set again: only what it named counts.
        steps = [(self._target(move), move) for move in moves if not move.deleted]
        lost = [move.version for target, move in steps if target is None]
        if lost:
            self._say(f"{len(lost)} moves of {name} named versions that are not in the archive.")
        kept = [(target, move) for target, move in steps if target is not None]
        before = await self._history(name)
        if before != [target for target, _ in kept][: len(before)]:
            if before[-1:] != [target for target, _ in kept][-1:]:
                self._say(f"{name} was moved here otherwise, and stays where it is.")
            return False
        for target, move in kept[len(before) :]:
            await self._move(name, target, move)
        return len(before) < len(kept)

    async def _move(self, name: str, target: Target, move: pb.Alias) -> None:
        version, canaries = target
        when = move.update_time.ToJsonString()
        by = f"imported; moved by {move.actor or 'somebody'} at {when}"
        request = pb.SetAliasRequest(
            name=name,
            version=version,
            reason=f"{move.reason[:_MOST_REASON]} ({by})" if move.reason else by,
            canaries=[pb.Canary(version=v, weight_percent=weight) for v, weight in canaries],
        )
        await self._connection.call(self._stub.SetAlias, request, _PEER)

    async def _history(self, name: str) -> list[Target]:
        """Where the alias pointed here, oldest first; nothing where it never was."""

        async def page(token: str) -> pb.ListAliasHistoryResponse:
            request = pb.ListAliasHistoryRequest(name=name, page_size=1000, page_token=token)
            return await self._connection.call(self._stub.ListAliasHistory, request, _PEER)

        try:
            moves = [one async for answer in pages(page) for one in answer.aliases]
        except NotFoundError:
            return []
        return [_said(move) for move in reversed(moves) if not move.deleted]

    def _target(self, move: pb.Alias) -> Target | None:
        """What a move of the archive means here; None where one of its versions is not there."""
        names = [move.version, *(one.version for one in move.canaries)]
        if any(name not in self._numbers for name in names):
            return None
        parent = self._renaming.name(move.name).rsplit("/", 2)[0]
        here = [version_name(parent, self._numbers[name]) for name in names]
        weights = (one.weight_percent for one in move.canaries)
        return here[0], tuple(zip(here[1:], weights, strict=True))

    async def _set_policy(self, policy: pb.AliasPolicy) -> None:
        name = self._renaming.name(policy.name)
        found = await read_policy(self._connection, name)
        if found.etag:
            if rules_of(found) != rules_of(policy):
                self._say(f"{name} has another policy here, which stays.")
            return
        wanted = rules_of(policy)
        wanted.name = name
        change = pb.SetAliasPolicyRequest(policy=wanted, reason="imported")
        await self._connection.call(self._stub.SetAliasPolicy, change, _PEER)


def _said(move: pb.Alias) -> Target:
    return move.version, tuple((one.version, one.weight_percent) for one in move.canaries)
