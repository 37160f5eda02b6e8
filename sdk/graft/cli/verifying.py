"""`graft verify`: whether an answer is what a service stands for, and what of it is not."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from graft.attestation import Attestation, check_signature
from graft.attested import MAX_FILE_BYTES, Finding, compare, read_saved
from graft.cli.output import Output
from graft.cli.session import EXIT_CONFLICT, JsonOption, run
from graft.client import Client
from graft.errors import GraftError, NotFoundError, Reason
from graft.keys import load_trusted

_SIGNATURE = "signature"
_VERSION = re.compile(r"namespaces/([^/]+)/adapters/([^/]+)/versions/([1-9][0-9]*)")


def verify(
    ctx: typer.Context,
    file: Annotated[
        Path,
        typer.Argument(help="An answer saved as JSON, or its attestation; - is standard input."),
    ],
    key: Annotated[
        list[Path] | None,
        typer.Option(
            envvar="GRAFT_ATTESTATION_KEYS",
            help="A file with public keys of services that you trust; again for more.",
        ),
    ] = None,
    unsigned: Annotated[
        bool, typer.Option("--unsigned", help="Ask for no signature: anybody can have written it.")
    ] = False,
    answer: Annotated[
        str | None,
        typer.Option(help="The answer's text, or @FILE, where FILE has only the attestation."),
    ] = None,
    prompt: Annotated[
        str | None, typer.Option(help="The prompt's text as it was sent, or @FILE.")
    ] = None,
    prompt_tokens: Annotated[
        str | None, typer.Option(help="The prompt's token ids as JSON, [1, 17], or @FILE.")
    ] = None,
    with_registry: Annotated[
        bool, typer.Option("--with-registry", help="Ask it whether it has that version and base.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Say whether an answer's attestation holds, and name what does not; ends with 4 then."""
    out = Output(as_json)

    async def work(client: Client) -> int:
        trusted = await asyncio.to_thread(load_trusted, key or [])
        attestation, said = read_saved(await asyncio.to_thread(_read, file))
        if answer is not None:
            said.texts[0] = _text(answer)
        if prompt is not None:
            said.prompt = _text(prompt)
        if prompt_tokens is not None:
            said.prompt_token_ids = _ids(_text(prompt_tokens))
        findings = [] if unsigned else [_signed(attestation, trusted)]
        statement = attestation.statement
        findings += compare(statement, said)
        if with_registry:
            findings += await _ask(client, statement)
        return _report(out, statement, findings)

    run(ctx, out, work)


def _signed(attestation: Attestation, trusted: Sequence[Any]) -> Finding:
    if not trusted:
        detail = "no key is trusted: name one with --key, or say --unsigned"
        return Finding(_SIGNATURE, False, detail)
    key_id, problem = check_signature(attestation, trusted)
    return Finding(_SIGNATURE, not problem, problem or f"by {key_id}")


async def _ask(client: Client, statement: dict[str, Any]) -> list[Finding]:
    adapter = statement["adapter"] or {}
    # Of a blend its parts are in the registry, and not itself.
    parts = adapter.get("parts") or ([adapter] if adapter else [])
    found = []
    for number, part in enumerate(parts):
        at = f"adapter.parts[{number}]" if adapter.get("parts") else "adapter"
        found.append(await _ask_version(client, at, part, statement["base"]))
    return found or [await _ask_base(client, statement["base"])]


async def _ask_version(
    client: Client, at: str, part: dict[str, Any], base: dict[str, Any]
) -> Finding:
    name, digest = str(part.get("version")), part.get("digest")
    match = _VERSION.fullmatch(name)
    if match is None:
        return Finding(f"registry: {at}.version", False, f"{name[:80]!r} is no version's name")
    try:
        version = await client.adapters.version("{}/{}:{}".format(*match.groups()))
    except NotFoundError as error:
        return Finding(f"registry: {at}.version", False, error.message)
    if version.digest != digest:
        detail = f"{name} is {version.digest} there, and attested is {digest}"
        return Finding(f"registry: {at}.digest", False, detail)
    if version.base_fingerprint != base["fingerprint"]:
        detail = f"{name} is of {version.base_fingerprint}, and attested is {base['fingerprint']}"
        return Finding("registry: base.fingerprint", False, detail)
    return Finding(f"registry: {at}.digest", True, f"{name} is {digest}")


async def _ask_base(client: Client, attested: dict[str, Any]) -> Finding:
    at = "registry: base.fingerprint"
    try:
        base = await client.bases.get(attested["name"])
    except NotFoundError as error:
        return Finding(at, False, error.message)
    if base.fingerprint == attested["fingerprint"]:
        return Finding(at, True, f"{base.name} is {base.fingerprint}")
    return Finding(at, False, f"{base.name} is {base.fingerprint} there")


def _report(out: Output, statement: dict[str, Any], findings: Sequence[Finding]) -> int:
    wrong = [one for one in findings if not one.holds]
    if out.as_json:
        out.json({"verified": not wrong, "findings": findings, "statement": statement})
    out.note(_about(statement))
    for one in findings:
        out.note(f"  {'ok   ' if one.holds else 'WRONG'}  {one.what}: {one.detail}")
    out.note("Verified." if not wrong else f"Not verified: {', '.join(one.what for one in wrong)}.")
    return EXIT_CONFLICT if wrong else 0


def _about(statement: dict[str, Any]) -> str:
    adapter, engine = statement["adapter"], statement["engine"]
    who = statement["base"]["name"]
    if adapter is not None:
        who = f"{adapter['version']} ({adapter['digest']}) on {who}"
    return f"{statement['time']}: {who}, by {engine['name']} {engine['version']}"


def _read(path: Path) -> str:
    if str(path) == "-":
        return sys.stdin.read(MAX_FILE_BYTES)
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise _bad_file(path, f"has more than {MAX_FILE_BYTES} bytes")
        return path.read_text("utf-8")
    except OSError as error:
        raise _bad_file(path, f"cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise _bad_file(path, "is not UTF-8") from None


def _text(given: str) -> str:
    return _read(Path(given[1:])) if given.startswith("@") else given


def _ids(text: str) -> list[int]:
    try:
        ids = json.loads(text)
    except ValueError:
        ids = None
    if not isinstance(ids, list) or not all(type(one) is int and 0 <= one < 2**32 for one in ids):
        raise GraftError(
            Reason.INVALID_REQUEST,
            f"--prompt-tokens is {text[:80]!r}, and not a list of token ids",
            next_step="Write it as JSON: [1, 17, 512].",
        )
    return ids


def _bad_file(path: Path, why: str) -> GraftError:
    return GraftError(
        Reason.INVALID_REQUEST, f"{path} {why}", next_step="Name another file.", path=path
    )
