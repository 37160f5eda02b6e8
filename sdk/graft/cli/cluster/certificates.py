"""`graft cluster certificates`: Secrets for components/tls from a CA of one's own, where there is no cert-manager."""

from __future__ import annotations

import base64
import os
from pathlib import Path
from typing import Annotated

import typer
import yaml

from graft.authority import Authority
from graft.cli.output import Output
from graft.cli.session import JsonOption, options, reported
from graft.errors import GraftError, Reason
from graft.kubernetes.pod_tls import service_names
from graft.tls import Pair, read_pair

_CA, _CLIENT, _SECRETS = "ca", "client", "secrets.yaml"
_CA_DAYS = 3650
_SERVICES = ("registry", "trainer", "inference")


def certificates(
    ctx: typer.Context,
    folder: Annotated[
        Path,
        typer.Argument(help="Where the CA is kept, or made. Keep ca.key secret, and a copy of it."),
    ],
    kube_namespace: Annotated[
        str, typer.Option(metavar="NAME", help="Kubernetes' namespace, where Graft is or will be.")
    ] = "graft",
    base: Annotated[
        list[str] | None,
        typer.Option(help="Deployed base whose endpoint needs a certificate too; repeatable."),
    ] = None,
    host: Annotated[
        list[str] | None,
        typer.Option(help="Further name or IP address of the services; repeatable."),
    ] = None,
    days: Annotated[int, typer.Option(min=1, max=825, help="How long they are valid.")] = 365,
    as_json: JsonOption = False,
) -> None:
    """Make certificates for all services, workers and clients: Secrets to apply, and your own beside them.

    Run it again with the same folder to renew: the CA stays, and nothing has to be restarted.
    """
    out, chosen = Output(as_json), options(ctx)
    with reported(out, chosen.debug):
        authority = _authority(folder)
        secrets = folder / _SECRETS
        made = _issued(authority, kube_namespace, base or [], host or [], days)
        client = authority.issue("graft-client", days=days)
        _write(secrets, _manifests(made, authority, kube_namespace).encode())
        _write(folder / f"{_CLIENT}.key", client.key)
        _write(folder / f"{_CLIENT}.crt", client.certificate)
    names = sorted(made)
    if as_json:
        out.json({"folder": str(folder), "secrets": names, "days": days})
    out.note(f"{secrets} has {', '.join(names)}, valid for {days} days:")
    out.note(f"  kubectl apply --server-side -f {secrets}")
    out.note("Clients, also yours:")
    out.note(
        f"  export GRAFT_TLS_CA={folder}/{_CA}.crt GRAFT_TLS_CERTIFICATE={folder}/{_CLIENT}.crt "
        f"GRAFT_TLS_KEY={folder}/{_CLIENT}.key"
    )


def _authority(folder: Path) -> Authority:
    """The one in the folder; made where there is none."""
    certificate, key = folder / f"{_CA}.crt", folder / f"{_CA}.key"
    if certificate.exists() or key.exists():
        return Authority.load(read_pair(certificate, key))
    authority = Authority.new("graft-ca", _CA_DAYS)
    _write(key, authority.pem.key)
    _write(certificate, authority.pem.certificate)
    return authority


def _issued(
    authority: Authority, namespace: str, bases: list[str], hosts: list[str], days: int
) -> dict[str, Pair]:
    """By the Secret's name."""
    services = {f"graft-{one}-tls": f"graft-{one}" for one in _SERVICES}
    services["graft-inference-tls"] = "graft-inference-default"
    services |= {f"graft-inference-{one}-tls": f"graft-inference-{one}" for one in bases}
    made = {
        secret: authority.issue(
            service, [*service_names(service, namespace), "127.0.0.1", *hosts], days
        )
        for secret, service in services.items()
    }
    return made | {"graft-worker-tls": authority.issue("graft-worker", days=days)}


def _manifests(made: dict[str, Pair], authority: Authority, namespace: str) -> str:
    def secret(name: str, pair: Pair) -> dict[str, object]:
        data = {
            "ca.crt": authority.pem.certificate,
            "tls.crt": pair.certificate,
            "tls.key": pair.key,
        }
        return {
            "apiVersion": "v1",
            "kind": "Secret",
            "type": "kubernetes.io/tls",
            "metadata": {
                "name": name,
                "namespace": namespace,
                "labels": {"app.kubernetes.io/part-of": "graft"},
            },
            "data": {key: base64.b64encode(value).decode() for key, value in data.items()},
        }

    return yaml.safe_dump_all([secret(*one) for one in sorted(made.items())], sort_keys=False)


def _write(path: Path, data: bytes) -> None:
    """For its owner alone."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        fresh = path.with_name(f".{path.name}.new")
        fresh.unlink(missing_ok=True)
        handle = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        fresh.replace(path)
    except OSError as error:
        raise GraftError(
            Reason.INVALID_REQUEST,
            f"{path} cannot be written: {error.strerror}",
            next_step="Name a folder in which you may write.",
        ) from None
