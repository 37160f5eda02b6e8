"""What is looked for in an adapter's files before an engine gets them; test_bad_adapters.py asks real engines."""

from __future__ import annotations

from pathlib import Path

import pytest
from graft.errors import GraftError, Reason

from services.inference.engines.vllm_inspection import Inspection
from tests.support import hostile
from tests.support.bad_adapters import A0, BadAdapter, everything, scaled
from tests.support.models import make_adapter

FLOAT32, FLOAT16 = 3.4028234663852886e38, 65504.0
# Seen by the configuration before the files are looked into, or by what the registry says.
ELSEWHERE = ("IA3", "DoRA", "PROMPT_TUNING", "has rank", "fully trained", "the rank ", "it has no ")
BAD = {
    what: bad
    for what, bad in everything().items()
    if not any(words in bad.endpoint_words for words in ELSEWHERE)
}
# What it is as a zip archive makes no difference to an engine, which takes it for safetensors alone.
HOSTILE = {
    what: each
    for what, each in hostile.everything().items()
    if what.startswith(("config: ", "weights: ")) and what != "weights: a zip besides"
}


@pytest.fixture(scope="module")
def inspection(tiny_base: Path) -> Inspection:
    return Inspection(tiny_base, FLOAT32)


def refusal(inspection: Inspection, folder: Path) -> GraftError:
    with pytest.raises(GraftError) as caught:
        inspection.check("bot:1", folder)
    error = caught.value
    assert error.reason is Reason.ADAPTER_UNUSABLE
    assert error.message.startswith("bot:1 cannot be served: ")
    assert error.next_step
    return error


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
def test_a_bad_adapter_is_refused_in_words_unless_it_can_harm_nobody(
    bad: BadAdapter, inspection: Inspection, tmp_path: Path
) -> None:
    folder = bad.write(tmp_path / "bad")
    if bad.endpoint_words:
        refusal(inspection, folder)
    else:
        inspection.check("bot:1", folder)


@pytest.mark.parametrize("each", HOSTILE.values(), ids=HOSTILE)
def test_a_file_that_attacks_its_reader_is_refused(
    each: hostile.Hostile, inspection: Inspection, tmp_path: Path
) -> None:
    for path, data in each.make().items():
        (tmp_path / path).write_bytes(data)
    refusal(inspection, tmp_path)


def test_what_is_sound_is_read_once(
    inspection: Inspection, tiny_base: Path, tmp_path: Path
) -> None:
    folder = make_adapter(tmp_path / "a", tiny_base)
    inspection.check("bot:1", folder)
    (folder / "adapter_model.safetensors").unlink()
    inspection.check("bot:1", folder)


def test_numbers_beyond_the_engines_type_are_refused_with_their_tensor(
    tiny_base: Path, tmp_path: Path
) -> None:
    folder = scaled(1e5).write(tmp_path / "a")
    error = refusal(Inspection(tiny_base, FLOAT16), folder)
    assert error.metadata["tensor"] == A0
    assert "the engine's numbers end at 65504" in error.message


def test_a_base_whose_weights_are_elsewhere_still_has_pairs_that_fit_each_other(
    tiny_base: Path, tmp_path: Path
) -> None:
    inspection = Inspection(tmp_path, FLOAT32)
    inspection.check("bot:1", make_adapter(tmp_path / "good", tiny_base))
    for what in ("another rank in one matrix", "NaN", "half a pair", "a vector for a matrix"):
        refusal(inspection, everything()[f"tensors: {what}"].write(tmp_path / what))
