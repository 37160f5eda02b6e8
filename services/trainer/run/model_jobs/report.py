"""What a merge says of itself: a page of text that goes into the version, beside the numbers in its lineage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from services.trainer.run.model_jobs.proof import Proof

FILE = "MERGE_REPORT.md"


@dataclass(slots=True)
class Report:
    """Gathered while a job works.

    Attributes:
        title: what was made, in words.
        facts: what it was made of and how, in the order of the stages.
        proofs: what fresh processes found, by what they loaded.
        held_out: where the tokens of the proof are from.
    """

    title: str
    facts: list[tuple[str, str]] = field(default_factory=list)
    proofs: list[tuple[str, Proof]] = field(default_factory=list)
    metrics: dict[str, float] = field(default_factory=dict)
    held_out: str = ""

    def add(self, name: str, fact: str) -> None:
        """Takes a fact."""
        self.facts.append((name, fact))

    def prove(self, what: str, proof: Proof) -> None:
        """Takes a proof; the last one's numbers are the version's."""
        self.proofs.append((what, proof))
        self.metrics |= proof.metrics()

    def write(self, folder: Path, libraries: Mapping[str, str]) -> None:
        """Writes the page into a result's folder."""
        versions = ", ".join(f"{name} {version}" for name, version in libraries.items())
        parts = [f"# {self.title}", _table(("", ""), [*self.facts, ("libraries", versions)])]
        if self.proofs:
            parts += [
                "## Proof",
                f"Compared with the trained model on {self.held_out}.",
                self._proofs(),
            ]
        else:
            parts += ["## Proof", "Left out, as the spec said."]
        (folder / FILE).write_text("\n\n".join(parts) + "\n", "utf-8")

    def as_dict(self) -> dict[str, Any]:
        """For scripts."""
        return {
            "title": self.title,
            "facts": dict(self.facts),
            "metrics": self.metrics,
            "held_out": self.held_out,
            "proofs": [{"loaded": what, **asdict(proof)} for what, proof in self.proofs],
        }

    def _proofs(self) -> str:
        names = (
            "what was loaded",
            "relative RMS",
            "limit",
            "largest",
            "same top token",
            "positions",
        )
        rows = [
            (
                what,
                f"{one.relative_rms:.3g}",
                f"{one.limit:.3g}",
                f"{one.largest:.3g}",
                f"{one.top1_agreement:.2%}",
                str(one.positions),
            )
            for what, one in self.proofs
        ]
        return _table(names, rows)


def _table(names: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [names, ["---"] * len(names), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)
