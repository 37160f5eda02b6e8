"""Rollouts as people read them in a terminal."""

from __future__ import annotations

from graft.cli.output import Output
from graft.cli.promotion import canaries_text
from graft.results import Alias, short_id
from graft.rollout_policy import LIMITS, Rollout
from graft.rollouts import CanaryStatus, PartFigures, RolloutHere


def alias_text(alias: Alias) -> str:
    """An alias as people write it: "bot@production"."""
    adapter, _, name = alias.name.partition("/aliases/")
    return f"{short_id(adapter)}@{name}"


def show_alias(out: Output, alias: Alias) -> None:
    """An alias' parts, limits and steps, and why a canary was taken back."""
    report = alias.rollout_report
    out.fields(
        [
            ("alias", alias_text(alias)),
            ("version", short_id(alias.version)),
            ("canaries", canaries_text(alias) or "none"),
            *_rollout_fields(alias.rollout or Rollout()),
            ("taken back", None if report is None else f"{report.version}: {report.detail}"),
            ("moved by", f"{alias.actor}: {alias.reason}" if alias.reason else alias.actor),
        ]
    )


def _rollout_fields(rollout: Rollout) -> list[tuple[str, object]]:
    limits, shadow = rollout.limits, rollout.shadow
    steps = ", ".join(f"{step:g} %" for step in rollout.steps_percent)
    lines = (
        [] if limits is None else [f"window {limits.window_s:g} s, {limits.min_requests} requests"]
    )
    for name in LIMITS if limits is not None else ():
        value = getattr(limits, name)
        if value is not None:
            lines.append(f"{name} {value:g}")
    return [
        ("steps", f"{steps}{' (paused)' if rollout.paused else ''}" if steps else None),
        ("limits", "\n".join(lines) or "none: nothing is taken back by itself"),
        ("shadow", None if shadow is None else f"{shadow.percent:g} % to {shadow.version}"),
    ]


def show_here(out: Output, here: RolloutHere) -> None:
    """How the parts fare on one endpoint."""
    out.table(
        ("PART", "VERSION", "STATE", "REQUESTS", "FAILED", "REFUSED", "BABBLED", "FIRST", "TOKEN",
         "LENGTH", "WHY"),
        [_row("stable", here.stable, None), *(_row("canary", one.figures, one) for one in here.canaries)],
    )  # fmt: skip
    shadow = here.shadow
    if shadow is not None:
        out.note(
            f"shadow {short_id(shadow.version)}: {shadow.compared} compared, {shadow.equal} equal, "
            f"{100 * shadow.agreement:.0f} % of the tokens agree, {shadow.length_ratio:.2f} times as "
            f"long, {shadow.time_ratio:.2f} times the time, {shadow.failed} failed, "
            f"{shadow.dropped} dropped"
        )


def _row(part: str, figures: PartFigures, canary: CanaryStatus | None) -> tuple[object, ...]:
    def number(value: float | None, unit: str = "") -> str:
        return "" if value is None else f"{value:.3g}{unit}"

    return (
        part if canary is None else f"{part} {canary.weight_percent:g} %",
        short_id(figures.version),
        "" if canary is None else canary.state.replace("_", " "),
        figures.requests,
        f"{100 * figures.error_rate:.1f} %",
        f"{100 * figures.refusal_rate:.1f} %",
        f"{100 * figures.babble_rate:.1f} %",
        number(figures.first_token_s, " s"),
        number(figures.token_s, " s"),
        number(figures.mean_tokens),
        "" if canary is None else canary.message,
    )
