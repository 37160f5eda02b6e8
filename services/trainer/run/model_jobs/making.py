"""The stages of a merge, a combination, a conversion and an export; each ends with a proof by a fresh process.

Works in folders that are given, and leaves nothing anywhere else. Reads top to bottom.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from graft.errors import GraftError, Reason
from transformers import AutoConfig

from services.trainer.run import whole_models
from services.trainer.run.model_jobs import combining, plain_lora
from services.trainer.run.model_jobs.assembling import (
    plain_base,
    trained_model,
    with_adapter,
    with_adapters,
)
from services.trainer.run.model_jobs.held_out import HeldOut
from services.trainer.run.model_jobs.logits import (
    Distance,
    distance,
    fitting,
    logits_of,
    write_probe,
)
from services.trainer.run.model_jobs.proof import LIMITS, Loading, Proof, prove
from services.trainer.run.model_jobs.pulled import Pulled
from services.trainer.run.model_jobs.report import Report
from services.trainer.spec.recipe import Recipe

_PROBE = "probe.npz"
_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


@dataclass(frozen=True, slots=True)
class Maker:
    """Makes what a recipe asks for.

    Args:
        recipe: what is made.
        every: the versions that it is made of, on this machine's disk.
        held_out: what it is proven on.
        work_dir: for the probe.
        stage: called with the name of each stage as it begins; raises when the attempt shall end.
        log: takes a line for people.
    """

    recipe: Recipe
    every: Sequence[Pulled]
    held_out: HeldOut
    work_dir: Path
    stage: Callable[[str], None]
    log: Callable[[str], None]

    def adapter(self, folder: Path) -> Report:
        """Writes the combined or converted adapter to a folder.

        Raises:
            GraftError: INVALID_SPEC; NOT_THE_SAME, with the number.
        """
        if self.recipe.combining is not None:
            report = self._report("A combination of adapters")
            model = self._combined(report, folder)
            limit = LIMITS["float32"]
            del model
        else:
            report = self._report("A plain LoRA")
            limit = self._converted(folder, report)
        gc.collect()
        base = self._first.base
        loading = Loading(base.folder, adapter=folder, base=self._first.base_spec)
        self._prove(report, "the base with the new adapter", loading, limit)
        return report

    def model(self, folder: Path, dtype: str) -> Report:
        """Writes the merged model to a folder.

        Args:
            dtype: of the weights; "auto" for the base's.

        Raises:
            GraftError: INVALID_SPEC, NOT_SUPPORTED; NOT_THE_SAME, with the number.
        """
        report = self._report("A merged model")
        if self.recipe.combining is not None:
            together = self._combined(report, self.work_dir / "combined")
            merged = self._merged(together, adapter_names=[combining.COMBINED])
            del together
        else:
            self._known()
            held = self._first.base_spec.quantization
            self.stage(f"merging into the base ({held} quantization, undone)")
            model = plain_base(self._first)
            if self._first.is_adapter:
                merged = self._merged(with_adapter(model, self._first))
            else:
                merged = model
            del model
        merged.config.use_cache = True
        whole_models.save(merged, self._first.base.folder, folder, _DTYPES.get(dtype))
        del merged
        gc.collect()
        stored = _stored(folder)
        report.add("weights", stored)
        own = self.recipe.requantization == "none" and not self._to_gguf
        self._prove(report, f"the folder ({stored})", Loading(folder), LIMITS[stored], own)
        return report

    def requantized(self, merged: Path, folder: Path, report: Report) -> None:
        """Writes a merged model to another folder in 4 bits.

        Raises:
            GraftError: NOT_THE_SAME, with the number.
        """
        from services.trainer.run.model_jobs.requantizing import requantize

        kind = self.recipe.requantization
        self.stage(f"quantizing to {kind}")
        requantize(merged, folder, kind)
        report.add("quantization", kind)
        self._prove(report, f"the folder ({kind})", Loading(folder), LIMITS[kind])

    def gguf(self, merged: Path, path: Path, name: str, report: Report) -> None:
        """Writes a merged model to a GGUF file.

        Raises:
            GraftError: NOT_SUPPORTED; NOT_THE_SAME, with the number.
        """
        from services.trainer.run.model_jobs.gguf_file import compare_gguf, write_gguf

        assert self.recipe.export is not None
        kind = self.recipe.export.gguf_type
        self.stage(f"writing GGUF ({kind})")
        write_gguf(merged, path, kind, name)
        count = compare_gguf(path, merged, kind)
        report.add(
            "GGUF", f"{count} tensors, matrices as {kind}; every number read back and compared"
        )
        loading = Loading(path.parent, gguf=path.name, config=merged)
        self._prove(report, f"the GGUF file ({kind})", loading, LIMITS[kind])

    @property
    def _first(self) -> Pulled:
        return self.every[0]

    @property
    def _to_gguf(self) -> bool:
        return self.recipe.export is not None and bool(self.recipe.export.gguf_type)

    @property
    def _probe(self) -> Path:
        return self.work_dir / _PROBE

    def _report(self, title: str) -> Report:
        report = Report(title, held_out=f"{self.held_out.origin}, {self.held_out.tokens} tokens")
        for one, source in zip(self.every, self.recipe.sources, strict=True):
            kind = one.version.kind_in_words if one.is_adapter else "a base"
            weight = f", weight {source.weight:g}" if self.recipe.combining else ""
            report.add("made of", f"{one.version.name} ({kind}{weight}), {one.version.digest}")
        base = self._first.base.record
        held = self._first.base_spec.quantization
        report.add(
            "base", f"{base.name}, {base.fingerprint.digest}, {held} while it was trained on"
        )
        return report

    def _known(self) -> None:
        """Keeps what the trained model says."""
        if self.recipe.proof.skip:
            return
        self.stage("asking the trained model")
        model = trained_model(self._first)
        rows = self._rows(model)
        write_probe(self._probe, rows, logits_of(model, rows))
        del model
        gc.collect()

    def _rows(self, model: Any) -> list[list[int]]:
        return fitting(self.held_out.rows, model.config.get_text_config().vocab_size)

    def _combined(self, report: Report, folder: Path) -> Any:
        """The dequantized base with the adapters, and the combined one active, which is in the folder, too."""
        how = self.recipe.combining
        assert how is not None
        weights = [source.weight for source in self.recipe.sources]
        self.stage(f"combining {len(weights)} adapters by {how.kind}")
        model, names = with_adapters(plain_base(self._first), self.every)
        rank = combining.combine(model, self.every, weights, how, folder)
        report.add("combination", f"{how.kind}, rank {rank}" + _with(how))
        report.metrics["rank"] = float(rank)
        if self.recipe.proof.skip:
            return model
        rows = self._rows(model)
        said = logits_of(model, rows)
        write_probe(self._probe, rows, said)
        with combining.exact_sum(model, names, weights):
            to_sum = distance(said, logits_of(model, rows))
        self._check_sum(report, to_sum)
        for number, (name, one) in enumerate(zip(names, self.every, strict=True)):
            model.set_adapter(name)
            away = distance(said, logits_of(model, rows))
            report.metrics[f"difference_from_source_{number + 1}"] = away.relative_rms
            report.add(
                f"from {one.version.name}",
                f"{away.relative_rms:.3g} of the logits' spread, same top token {away.top1_agreement:.1%}",
            )
        model.set_adapter(combining.COMBINED)
        return model

    def _check_sum(self, report: Report, found: Distance) -> None:
        """Says how far the combination is from the weighted sum; one that stands for it must be near.

        Raises:
            GraftError: NOT_THE_SAME, for svd and cat.
        """
        how = self.recipe.combining
        assert how is not None
        report.metrics["difference_from_sum"] = found.relative_rms
        said = f"{found.relative_rms:.3g} of the logits' spread from the exact weighted sum"
        report.add("sum", said)
        self.log(f"{how.kind} is {said}.")
        usual = LIMITS["svd" if how.kind == "svd" else "float32"]
        limit = self.recipe.proof.max_relative_rms or usual
        if how.kind in ("svd", "cat") and not found.relative_rms <= limit:
            raise GraftError(
                Reason.NOT_THE_SAME,
                f"The combination at rank {int(report.metrics['rank'])} is {said}, and {limit:g} is the limit; "
                "nothing was committed",
                next_step="Raise combination.rank, use cat, or move the limit by proof.max_relative_rms.",
                difference=f"{found.relative_rms:.6g}",
                limit=f"{limit:g}",
            )

    def _converted(self, folder: Path, report: Report) -> float:
        self._known()
        self.stage("converting to a plain LoRA")
        done = plain_lora.convert(self._first, self.recipe.plain_rank, folder)
        report.add("conversion", f"{'exact' if done.exact else 'measured'}: {done.how}")
        self.log(f"Converted {'exactly' if done.exact else 'approximately'}: {done.how}.")
        if not done.exact:
            report.metrics["weights_error"] = done.weights_error
            lost = f"{done.weights_error:.1%} of the updates' norm is lost, most in {done.worst}"
            report.add("lost", lost)
            self.log(f"{lost}.")
        return LIMITS["float32" if done.exact else "svd"]

    def _merged(self, model: Any, **which: Any) -> Any:
        return model.merge_and_unload(safe_merge=True, **which)

    def _prove(
        self, report: Report, what: str, loading: Loading, usual: float, final: bool = True
    ) -> None:
        """Has a fresh process compare; the spec's own limit is for what is kept."""
        proof = self.recipe.proof
        if proof.skip:
            return
        self.stage(f"proving {what} in a fresh process")
        limit = proof.max_relative_rms if final and proof.max_relative_rms else usual
        found: Proof = prove(loading, self._probe, limit, f"What was made, {what},")
        report.prove(what, found)
        self.log(f"A fresh process computes the same: {found.describe()}.")


def _stored(folder: Path) -> str:
    stored = getattr(AutoConfig.from_pretrained(folder), "dtype", None)
    return str(stored or torch.float32).removeprefix("torch.")


def _with(how: Any) -> str:
    density = "" if how.is_sum else f", density {how.density:g}"
    return density + (f", seed {how.seed}" if how.kind.startswith("dare") else "")
