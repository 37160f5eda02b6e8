"""What somebody sends with bad intentions is refused by name, and costs little memory and time."""

from __future__ import annotations

import pytest
from graft.errors import Reason, RefusedError

from services.registry.admission.admit import Admission, Limits
from services.registry.domain import File
from tests.support.admission import BASE, FINGERPRINT, good, listing, stored
from tests.support.hostile import everything

HOSTILE = everything()


@pytest.mark.parametrize("what", HOSTILE)
async def test_a_hostile_file_is_refused_with_its_check_and_what_is_at_fault(what: str) -> None:
    hostile = HOSTILE[what]
    files = hostile.make()
    admission = Admission(await stored(files), Limits())
    with pytest.raises(RefusedError) as raised:
        await admission.verify(listing(files), BASE, FINGERPRINT)
    error = raised.value
    assert error.reason is Reason.VERSION_REFUSED
    assert error.metadata["check"] == hostile.check
    assert hostile.fault in (error.metadata.get("tensor"), error.metadata.get("path"))
    assert hostile.fault in error.message
    assert hostile.words in str(error)
    assert error.next_step
    # It goes into logs, terminals and trailers of HTTP/2.
    assert str(error).isprintable()
    assert len(str(error)) < 1500


def test_there_are_many_kinds() -> None:
    assert len(HOSTILE) >= 60


async def test_a_file_that_is_listed_twice_is_named() -> None:
    files = good().files()
    admission = Admission(await stored(files), Limits())
    twice = [*listing(files), listing(files)[0]]
    with pytest.raises(RefusedError, match=r"'adapter_config\.json' is listed twice"):
        await admission.verify(twice, BASE, FINGERPRINT)


async def test_a_list_of_a_million_files_is_refused() -> None:
    admission = Admission(await stored({}), Limits())
    digest = "sha256:" + "0" * 64
    many = [File(f"part{number}.md", digest, 1) for number in range(5000)]
    with pytest.raises(RefusedError, match="5000 files are listed, and 2000 are allowed"):
        await admission.verify(many, BASE, FINGERPRINT)


@pytest.mark.parametrize(
    "digest", ["", "sha256:../../etc/passwd", "sha256:" + "A" * 64, "md5:" + "0" * 32, "sha256:" + "0" * 65]
)  # fmt: skip
async def test_a_digest_is_never_a_path(digest: str) -> None:
    files = [File("adapter_config.json", digest, 10), *listing(good().files())[1:]]
    with pytest.raises(RefusedError, match="64 lower-case hexadecimal digits"):
        await Admission(await stored({}), Limits()).verify(files, BASE, FINGERPRINT)


@pytest.mark.parametrize("size_bytes", [-1, 0, 2**63])
async def test_a_size_that_cannot_be_is_refused(size_bytes: int) -> None:
    files = listing(good().files())
    lie = [File(files[0].path, files[0].digest, size_bytes), *files[1:]]
    with pytest.raises(RefusedError, match=f"{size_bytes} bytes; 1 to"):
        await Admission(await stored({}), Limits()).verify(lie, BASE, FINGERPRINT)
