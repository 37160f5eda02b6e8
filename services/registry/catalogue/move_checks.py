"""What a move of an alias must fulfil before anything is looked up: expectations and protection."""

from __future__ import annotations

from collections.abc import Sequence

from graft.errors import GraftError, Reason
from graft.names import version_name

from services.registry.catalogue.base import AliasMove
from services.registry.domain import Alias, AliasPolicy, Version


def check_expected(move: AliasMove, parent: str, now: Alias | None) -> None:
    """Raises ALIAS_MOVED where the alias is not as the move expects it."""
    current = now.version if now is not None else 0
    if move.expected_version is not None and move.expected_version != current:
        raise _moved(move.name, parent, move.expected_version, current)
    if move.etag is not None and (now is None or now.etag != move.etag):
        raise GraftError(
            Reason.ALIAS_MOVED,
            f"{move.name} was moved since etag {move.etag} was read: it names "
            f"{_named(parent, current)}",
            next_step="Read it again with GetAlias and decide anew.",
            resource=move.name,
            version=version_name(parent, current) if current else "",
            etag=now.etag if now is not None else "",
        )


def check_protected(move: AliasMove, policy: AliasPolicy | None, now: Alias | None = None) -> None:
    """Raises PROTECTED where a protected alias may not be moved so."""
    if policy is None or not policy.protected or _was_agreed(move, now):
        return
    if move.actor not in policy.movers:
        raise not_a_mover(move.name, move.actor, policy)
    if not move.reason:
        raise _needs(move.name, "a reason", "Say why (--reason).")
    is_rollback = move.version is None
    if not is_rollback and move.expected_version is None and move.etag is None:
        raise _needs(
            move.name,
            "a condition on where it points",
            "Send expected_version or etag as you read it (--expected).",
        )


def _was_agreed(move: AliasMove, now: Alias | None) -> bool:
    """Whoever set limits and steps has agreed to what follows from them."""
    if now is None or now.rollout is None or now.rollout.limits is None:
        return False
    return move.advance or move.report is not None


def check_one_base(parts: Sequence[Version]) -> None:
    """Raises WRONG_BASE where versions that share an alias' requests were trained on different bases."""
    first = parts[0]
    trained_on = first.manifest.base_fingerprint
    for part in parts[1:]:
        other = part.manifest.base_fingerprint
        if trained_on and other and other != trained_on:
            name, number = version_name(part.parent, part.number), first.number
            raise GraftError(
                Reason.WRONG_BASE,
                f"{name} was trained on other weights ({other}) than version {number} "
                f"({trained_on}): no endpoint serves both",
                next_step="Train it on the base that is served, or promote it where its base is.",
                resource=name,
            )


def not_a_mover(name: str, actor: str, policy: AliasPolicy) -> GraftError:
    """PROTECTED, with who may."""
    who = ", ".join(policy.movers) or "nobody"
    return GraftError(
        Reason.PROTECTED,
        f"{name} is protected: {actor or 'somebody without a name'} may not change it, {who} may",
        next_step="Ask one of them, or have the policy changed.",
        resource=name,
        actor=actor,
        movers=who,
    )


def _needs(name: str, what: str, next_step: str) -> GraftError:
    return GraftError(
        Reason.PROTECTED,
        f"{name} is protected: it is moved with {what} only",
        next_step=next_step,
        resource=name,
    )


def _moved(name: str, parent: str, expected: int, current: int) -> GraftError:
    return GraftError(
        Reason.ALIAS_MOVED,
        f"{name} names {_named(parent, current)}, and not {_named(parent, expected)} as expected",
        next_step="Somebody moved it meanwhile: read it with GetAlias and decide anew.",
        resource=name,
        version=version_name(parent, current) if current else "",
        expected_version=version_name(parent, expected) if expected else "",
    )


def _named(parent: str, number: int) -> str:
    return version_name(parent, number) if number else "no version"
