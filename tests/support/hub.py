"""A small stand-in for the Hugging Face Hub: the HTTP API that huggingface_hub really speaks.

Repositories of models and data in memory with commits, regular and LFS files, a token, private and gated
repositories. It has no Xet storage: clients set HF_HUB_DISABLE_XET.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import unquote, urlsplit

TOKEN = "hf_test"
_LFS = (".safetensors", ".bin", ".pt", ".parquet")
_NAME = r"[\w.-]+/[\w.-]+"
_ID = rf"(?P<id>{_NAME})"
# A data set is the repository "datasets/owner/name" here.
_DATASET = rf"(?P<id>datasets/{_NAME})"


@dataclass
class Repository:
    """files by commit, newest commit last; a file's content is bytes, however it is stored."""

    private: bool = False
    gated: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)

    def commit(self, files: dict[str, bytes], branch: str = "main") -> str:
        """Adds files to what the branch holds."""
        before = self.commits.get(self.branches.get(branch, ""), {})
        content = {**before, **files}
        listing = repr((len(self.commits), sorted((k, _sha256(v)) for k, v in content.items())))
        oid = hashlib.sha1(listing.encode()).hexdigest()
        self.commits[oid], self.branches[branch] = content, oid
        return oid

    def files(self, revision: str = "main") -> dict[str, bytes]:
        """What a branch or commit holds."""
        return self.commits[self.branches.get(revision, revision)]


class Hub:
    """The stand-in's content and what was asked of it."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.corrupt: set[str] = set()
        self.failures: list[int] = []
        self.address = ""

    def add(self, name: str, folder: Path, **kind: Any) -> str:
        """A repository with the files of a folder; answers its commit."""
        repository = self.repositories[name] = Repository(**kind)
        return repository.commit({path.name: path.read_bytes() for path in folder.iterdir()})

    def environment(self, home: Path, token: str = TOKEN) -> dict[str, str]:
        """What makes huggingface_hub of another process speak to this."""
        return {
            "HF_ENDPOINT": self.address,
            "HF_HOME": str(home),
            "HF_TOKEN": token,
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "NO_PROXY": "*",
        }


@contextmanager
def running_hub() -> Iterator[Hub]:
    """A stand-in on a free port of this machine."""
    hub = Hub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    hub.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: ClassVar[Hub]
    protocol_version = "HTTP/1.1"
    _routes: ClassVar[list[tuple[str, str, str]]] = [
        ("POST", r"/api/repos/create", "_create"),
        ("POST", r"/api/validate-yaml", "_validate"),
        ("POST", rf"/api/models/{_ID}/preupload/(?P<revision>[^/]+)", "_preupload"),
        ("POST", rf"/{_ID}\.git/info/lfs/objects/batch", "_batch"),
        ("PUT", r"/lfs/(?P<oid>[0-9a-f]{64})", "_put"),
        ("POST", r"/lfs/verify", "_verify"),
        ("POST", rf"/api/models/{_ID}/commit/(?P<revision>[^/]+)", "_commit"),
        ("GET", rf"/api/models/{_ID}(?:/revision/(?P<revision>[^/]+))?", "_info"),
        ("GET", rf"/api/models/{_ID}/tree/(?P<revision>[^/]+)", "_tree"),
        ("GET", rf"/{_ID}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", "_resolve"),
        ("GET", rf"/api/{_DATASET}(?:/revision/(?P<revision>[^/]+))?", "_info"),
        ("GET", rf"/api/{_DATASET}/tree/(?P<revision>[^/]+)", "_tree"),
        ("GET", rf"/{_DATASET}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", "_resolve"),
        ("GET", r"/cdn/(?P<oid>[0-9a-f]{64})", "_cdn"),
    ]

    def log_message(self, *arguments: Any) -> None:
        """Nothing: the test says what went wrong."""

    def do_GET(self) -> None:
        self._serve()

    do_HEAD = do_POST = do_PUT = do_GET

    def _serve(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"{self.command} {path}")
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.hub.failures:
            self._answer(self.hub.failures.pop(0), b"")
            return
        method = "GET" if self.command == "HEAD" else self.command
        for wanted, pattern, name in self._routes:
            match = re.fullmatch(pattern, path)
            if wanted == method and match:
                getattr(self, name)(**match.groupdict())
                return
        self._answer(501, f"{self.command} {path}".encode())

    # Writing.

    def _create(self) -> None:
        if not self._may_write():
            return
        wanted = json.loads(self.body)
        name = f"{wanted['organization']}/{wanted['name']}"
        if name in self.hub.repositories:
            self._json({"error": "exists", "url": f"{self.hub.address}/{name}"}, 409)
            return
        private = wanted.get("visibility") == "private"
        self.hub.repositories[name] = Repository(private=private)
        self._json({"url": f"{self.hub.address}/{name}", "name": name, "id": name})

    def _validate(self) -> None:
        content = json.loads(self.body)["content"]
        bad = not content.startswith("---\n")
        errors = [{"message": "no metadata"}] if bad else []
        self._json({"errors": errors, "warnings": []}, 400 if bad else 200)

    def _preupload(self, id: str, revision: str) -> None:
        if self._repository(id) is None:
            return
        files = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(_LFS) else "regular",
                "shouldIgnore": False,
            }
            for file in json.loads(self.body)["files"]
        ]
        self._json({"files": files})

    def _batch(self, id: str) -> None:
        if not self._may_write():
            return
        objects = []
        for wanted in json.loads(self.body)["objects"]:
            found = {"oid": wanted["oid"], "size": wanted["size"]}
            if wanted["oid"] not in self.hub.objects:
                found["actions"] = {
                    "upload": {"href": f"{self.hub.address}/lfs/{wanted['oid']}"},
                    "verify": {"href": f"{self.hub.address}/lfs/verify"},
                }
            objects.append(found)
        self._json({"transfer": "basic", "objects": objects})

    def _put(self, oid: str) -> None:
        if _sha256(self.body) != oid:
            self._answer(400, b"other bytes")
            return
        self.hub.objects[oid] = self.body
        self._answer(200, b"")

    def _verify(self) -> None:
        wanted = json.loads(self.body)
        found = self.hub.objects.get(wanted["oid"], b"")
        self._json({}, 200 if len(found) == wanted["size"] else 404)

    def _commit(self, id: str, revision: str) -> None:
        repository = self._repository(id)
        if repository is None or not self._may_write():
            return
        files = {}
        for line in self.body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                files[value["path"]] = self.hub.objects[value["oid"]]
        oid = repository.commit(files, revision)
        self._json(
            {
                "success": True,
                "commitOid": oid,
                "commitUrl": f"{self.hub.address}/{id}/commit/{oid}",
                "hookOutput": "",
            }
        )

    # Reading.

    def _info(self, id: str, revision: str | None = None) -> None:
        found = self._files(id, revision or "main")
        if found is not None:
            oid, files = found
            siblings = [{"rfilename": path} for path in sorted(files)]
            self._json({"id": id, "modelId": id, "sha": oid, "siblings": siblings, "tags": []})

    def _tree(self, id: str, revision: str) -> None:
        found = self._files(id, revision)
        if found is None:
            return
        entries: list[dict[str, Any]] = [
            {"type": "directory", "oid": "0" * 40, "size": 0, "path": "runs"}
        ]
        for path, data in sorted(found[1].items()):
            entry = {"type": "file", "oid": _git_oid(data), "size": len(data), "path": path}
            if path.endswith(_LFS):
                entry["lfs"] = {"oid": _sha256(data), "size": len(data), "pointerSize": 130}
            entries.append(entry)
        self._json(entries)

    def _resolve(self, id: str, revision: str, path: str) -> None:
        found = self._files(id, revision)
        if found is None:
            return
        oid, files = found
        if path not in files:
            self._refuse(404, "EntryNotFound")
            return
        data = files[path]
        headers = {"X-Repo-Commit": oid}
        if path.endswith(_LFS):
            digest = _sha256(data)
            self.hub.objects[digest] = data
            headers |= {"X-Linked-Etag": f'"{digest}"', "X-Linked-Size": str(len(data))}
            # Another host, as the real one: a redirect to the Hub itself would be followed for its headers.
            cdn = self.hub.address.replace("127.0.0.1", "localhost")
            headers["Location"] = f"{cdn}/cdn/{digest}"
            self._answer(302, b"", headers)
            return
        self._answer(200, data, headers | {"ETag": f'"{_git_oid(data)}"'})

    def _cdn(self, oid: str) -> None:
        data = self.hub.objects[oid]
        if oid in self.hub.corrupt:
            data = bytes(len(data))
        self._answer(200, data, {"ETag": f'"{oid}"'})

    # What several need.

    def _files(self, id: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        repository = self._repository(id)
        if repository is None:
            return None
        oid = repository.branches.get(revision, revision)
        if oid not in repository.commits:
            self._refuse(404, "RevisionNotFound")
            return None
        return oid, repository.commits[oid]

    def _repository(self, id: str) -> Repository | None:
        found = self.hub.repositories.get(id)
        if found is None or (found.private and not self._known()):
            self._refuse(404 if self._known() else 401, "RepoNotFound")
            return None
        if found.gated:
            self._refuse(403, "GatedRepo")
            return None
        return found

    def _known(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def _may_write(self) -> bool:
        if not self._known():
            self._json({"error": "Invalid username or password."}, 401)
        return self._known()

    def _refuse(self, status: int, code: str) -> None:
        self._answer(status, b"{}", {"X-Error-Code": code, "X-Error-Message": code})

    def _json(self, value: Any, status: int = 200) -> None:
        self._answer(status, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _answer(self, status: int, data: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _git_oid(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
