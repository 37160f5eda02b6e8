"""Requests to list and to say something else of resources, as domain values."""

from __future__ import annotations

from google.protobuf.field_mask_pb2 import FieldMask
from graft.names import parse_name
from graft.registry.v1 import registry_service_pb2 as pb

from services.registry.catalogue.updates import NewWords
from services.registry.convert.checks import (
    ADAPTER,
    BASE,
    NAMESPACE,
    check_labels,
    check_parent,
    check_text,
    version_number,
)
from services.registry.errors import invalid
from services.registry.find.listings import (
    ADAPTER_FIELDS,
    BASE_FIELDS,
    BY_NAME,
    MODEL_ORDERS,
    NAMESPACE_ORDERS,
    NEWEST,
    NEWEST_NUMBER,
    VERSION_FIELDS,
    VERSION_ORDERS,
    Listing,
)
from services.registry.find.order import parse_order
from services.registry.find.parser import parse_filter
from services.registry.pages import PageTokens, page_limit

ListRequest = pb.ListAdaptersRequest | pb.ListBasesRequest | pb.ListVersionsRequest
_SAID = ("description", "labels")


def adapters_listing(request: pb.ListAdaptersRequest, tokens: PageTokens) -> Listing:
    """Raises INVALID_NAME, INVALID_REQUEST, INVALID_FILTER, INVALID_PAGE_TOKEN."""
    parse_name(request.parent, NAMESPACE)
    return Listing(
        request.parent,
        page_limit(request.page_size),
        parse_filter(request.filter, ADAPTER_FIELDS),
        parse_order(request.order_by, MODEL_ORDERS, BY_NAME),
        request.show_deleted,
        _after(request, tokens),
    )


def bases_listing(request: pb.ListBasesRequest, tokens: PageTokens) -> Listing:
    """Raises as adapters_listing()."""
    parse_name(request.parent, NAMESPACE)
    return Listing(
        request.parent,
        page_limit(request.page_size),
        parse_filter(request.filter, BASE_FIELDS),
        parse_order(request.order_by, MODEL_ORDERS, BY_NAME),
        request.show_deleted,
        _after(request, tokens),
    )


def versions_listing(request: pb.ListVersionsRequest, tokens: PageTokens) -> Listing:
    """Raises as adapters_listing()."""
    if request.parent.endswith(("/adapters/-", "/bases/-")):
        parse_name(request.parent.rsplit("/", 2)[0], NAMESPACE)
        orders, default = NAMESPACE_ORDERS, NEWEST
    else:
        check_parent(request.parent)
        orders, default = VERSION_ORDERS, NEWEST_NUMBER
    return Listing(
        request.parent,
        page_limit(request.page_size),
        parse_filter(request.filter, VERSION_FIELDS),
        parse_order(request.order_by, orders, default),
        request.show_deleted,
        _after(request, tokens),
    )


def next_token(request: ListRequest, tokens: PageTokens, key: str | None) -> str:
    """The token for what follows a page that a request asked for."""
    return tokens.make(type(request).__name__, request.parent, key, *_terms(request))


def _after(request: ListRequest, tokens: PageTokens) -> str | None:
    return tokens.read(type(request).__name__, request.parent, request.page_token, *_terms(request))


def _terms(request: ListRequest) -> tuple[str, ...]:
    return request.filter, request.order_by, str(request.show_deleted)


def adapter_words(request: pb.UpdateAdapterRequest) -> NewWords:
    """Raises INVALID_NAME, INVALID_REQUEST."""
    parse_name(request.adapter.name, ADAPTER)
    return _words(request.adapter, request.update_mask)


def base_words(request: pb.UpdateBaseRequest) -> NewWords:
    """Raises INVALID_NAME, INVALID_REQUEST."""
    parse_name(request.base.name, BASE)
    return _words(request.base, request.update_mask)


def version_words(request: pb.UpdateVersionRequest) -> NewWords:
    """Raises INVALID_NAME, INVALID_REQUEST."""
    version_number(request.version.name)
    return _words(request.version, request.update_mask)


def _words(said: pb.Adapter | pb.Base | pb.Version, mask: FieldMask) -> NewWords:
    for path in mask.paths:
        if path not in _SAID:
            raise invalid(
                f"update_mask of {said.name} has {path[:80]!r}, which cannot be changed",
                "Name description, labels or both; labels are replaced as a whole.",
            )
    paths = mask.paths or _SAID
    return NewWords(
        said.name,
        check_text("description", said.description) if "description" in paths else None,
        check_labels(said.name, said.labels) if "labels" in paths else None,
        said.etag,
    )
