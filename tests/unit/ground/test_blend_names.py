"""A blend is read back as it was written, one blend has one name, and what is wrong is refused by its part."""

from __future__ import annotations

from urllib.parse import quote

import pytest
from graft.blends import (
    KINDS,
    MAX_PARTS,
    BlendReference,
    Combining,
    WeightedReference,
    combining,
    is_blend,
)
from graft.errors import GraftError, Reason
from graft.names import ModelReference
from hypothesis import given
from hypothesis import strategies as st

_IDS = st.from_regex(r"[a-z0-9]([a-z0-9._-]{0,20}[a-z0-9])?", fullmatch=True)
_REFERENCES = st.builds(ModelReference, _IDS, _IDS, st.none() | _IDS, st.none()) | st.builds(
    ModelReference, _IDS, _IDS, st.none(), st.integers(1, 10**9)
)
_WEIGHTS = st.integers(-(10**9), 10**9).filter(bool).map(lambda millionths: millionths / 10**6)
_PARTS = st.lists(
    st.builds(WeightedReference, _REFERENCES, _WEIGHTS),
    min_size=1, max_size=MAX_PARTS, unique_by=lambda part: str(part.reference),
)  # fmt: skip


@st.composite
def ways(draw: st.DrawFn) -> Combining:
    how = Combining(draw(st.sampled_from(KINDS)))
    density = 0.0 if how.is_sum else draw(st.integers(1, 10**6)) / 10**6
    rank = draw(st.integers(0, 4096)) if how.chooses_rank else 0
    return combining(how.kind, density, rank, draw(st.integers(0, 2**63 - 1)) if how.draws else 0)


@given(_PARTS, ways())
def test_a_blend_is_read_as_it_is_written(parts: list[WeightedReference], how: Combining) -> None:
    blend = BlendReference.make(parts, how)
    assert BlendReference.parse(str(blend)) == blend
    backwards = BlendReference.make(reversed(parts), how)
    assert str(backwards) == str(blend)
    # In a path it needs no escaping but for the slash of a namespace.
    assert quote(str(blend), safe="/:@*+~=") == str(blend)


@given(_REFERENCES)
def test_what_names_one_adapter_is_no_blend(reference: ModelReference) -> None:
    assert not is_blend(str(reference))


@pytest.mark.parametrize(
    "text",
    [
        "0.7*bot@production+0.3*tone:2",
        "0.30*tone:2+.7*bot@production",
        " 0.7 * bot@production + 0.3 * tone:2 ",
        "0.4*bot@production+0.3*tone:2+0.3*bot@production",
        "0.7*default/bot@production+0.3*tone:2~sum",
        "0.7*bot@production+0.3*tone:2~cat",
    ],
)
def test_one_blend_has_one_name(text: str) -> None:
    assert str(BlendReference.parse(text)) == "0.7*bot@production+0.3*tone:2"


def test_what_is_left_out_is_the_default() -> None:
    assert str(BlendReference.parse("bot+tone")) == "1*bot+1*tone"
    assert BlendReference.parse("bot+tone").how == Combining("cat")
    for text in ("a+b~ties", "a+b~ties~density=0.5", "a+b~ties~density=0.50"):
        assert str(BlendReference.parse(text)) == "1*a+1*b~ties"
    assert str(BlendReference.parse("a+b~dare~seed=3~density=.25")) == (
        "1*a+1*b~dare_linear~density=0.25~seed=3"
    )
    assert BlendReference.parse("a+-0.5*b", "team").parts[1] == WeightedReference(
        ModelReference("team", "b"), -0.5
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("0*bot+1*tone", "bot has the weight 0"),
        ("0.0000001*bot+tone", "weight of bot is '0.0000001'"),
        ("nan*bot+tone", "weight of bot is 'nan'"),
        ("inf*bot+tone", "weight of bot is 'inf'"),
        ("1e3*bot+tone", "weight of bot is '1e3'"),
        ("1001*bot+tone", "bot has the weight 1001"),
        ("0.5*bot+-0.5*bot", "bot has the weight 0"),
        ("--1*bot+tone", "weight of bot is '--1'"),
        ("*bot+tone", "weight of bot is ''"),
        ("0.5*", "a part that names no adapter"),
        ("bot+", "a part that names no adapter"),
        ("0.5*Bot+tone", "'Bot' in '0.5*Bot+tone' is not an adapter"),
        ("0.5*../etc+tone", "'../etc' in"),
        ("+".join(f"a{n}" for n in range(9)), "blends 9 adapters, and 8 may be"),
        ("a+b~average", "'average' is no way to blend"),
        ("a+b~", "names no kind after its ~"),
        ("a+b~ties~depth=3", "'depth=3' in"),
        ("a+b~ties~density=1~density=1", "or is there twice"),
        ("a+b~ties~density=0", "density is 0"),
        ("a+b~ties~density=1.5", "density is 1.5"),
        ("a+b~cat~density=0.5", "cat drops nothing"),
        ("a+b~ties~rank=4", "ties does not choose one"),
        ("a+b~svd~rank=0", "rank is 0"),
        ("a+b~svd~rank=9999", "rank is 9999"),
        ("a+b~ties~seed=4", "ties draws nothing"),
        ("a+b~dare~seed=-1", "seed is '-1'"),
        ("a+b~dare~seed=9999999999999999999", "seed is 9999999999999999999"),
        ("a+" * 2000, "characters"),
    ],
)
def test_what_is_wrong_is_refused_by_its_part(text: str, words: str) -> None:
    with pytest.raises(GraftError) as caught:
        BlendReference.parse(text)
    assert caught.value.reason is Reason.INVALID_REFERENCE
    assert words in caught.value.message
    assert caught.value.next_step
