"""What a cluster says of itself and of things that nothing here controls: answers that a test puts at paths."""

from __future__ import annotations

from typing import Any

from aiohttp import web

Object = dict[str, Any]


class Facts:
    """Answers at paths, and of access reviews.

    Attributes:
        at: by path; a list is the items of a collection, an int the status of a refusal.
        denied: (user, verb, resource) that an access review says no to; user "" is the asking one.
        asked: methods and paths of what was answered here, in their order.
        page_size: most items of one answer.
    """

    def __init__(self) -> None:
        self.at: dict[str, Object | list[Object] | int] = {}
        self.denied: set[tuple[str, str, str]] = set()
        self.asked: list[str] = []
        self.page_size = 500

    async def answer(self, request: web.Request) -> web.Response | None:
        """The answer to a request; None where there is none here."""
        path = request.path
        if path.endswith("accessreviews"):
            self.asked.append(f"{request.method} {path}")
            return web.json_response(self._review(await request.json()), status=201)
        if path not in self.at:
            return None
        self.asked.append(f"{request.method} {path}")
        found = self.at[path]
        if isinstance(found, int):
            message = f'cannot list resource at "{path}"'
            body = {"kind": "Status", "status": "Failure", "code": found, "message": message}
            return web.json_response(body, status=found)
        return web.json_response(self._page(found, request) if isinstance(found, list) else found)

    def _review(self, body: Object) -> Object:
        told = body["spec"]["resourceAttributes"]
        resource = "/".join(filter(None, (told["resource"], told.get("subresource", ""))))
        key = (body["spec"].get("user", ""), told["verb"], resource)
        return {"status": {"allowed": key not in self.denied}}

    def _page(self, items: list[Object], request: web.Request) -> Object:
        begin = int(request.query.get("continue", "0"))
        size = min(self.page_size, int(request.query.get("limit", "500")))
        rest = begin + size < len(items)
        return {
            "items": items[begin : begin + size],
            "metadata": {"continue": str(begin + size)} if rest else {},
        }
