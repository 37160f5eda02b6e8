"""Reads a job spec from a file: YAML or JSON, in the protobuf message's JSON form.

The one reader of the SDK, the CLI and the worker. Checks what the file says against the contract's
fields, not whether the values make sense: the trainer does that.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePath
from typing import Any, TypeVar, cast

import yaml
from google.protobuf import json_format
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from graft.errors import GraftError, Reason
from graft.trainer.v1 import job_spec_pb2 as pb
from graft.trainer.v1.model_jobs_pb2 import EvaluationSpec, MergeSpec

AnySpec = pb.JobSpec | MergeSpec | EvaluationSpec
SPECS: Mapping[str, type[AnySpec]] = {
    "train": pb.JobSpec,
    "merge": MergeSpec,
    "evaluate": EvaluationSpec,
}
_YAML_ENDINGS = (".yaml", ".yml")
M = TypeVar("M", bound=Message)


def read_spec_file(path: Path) -> pb.JobSpec:
    """The message in a .json, .yaml or .yml file. Keys in snake_case or camelCase; enum values also short ("nf4").

    Raises:
        GraftError: INVALID_SPEC, naming the field, or the line where the file is not YAML or JSON.
    """
    return read_message_file(path, pb.JobSpec())


def read_message_file(path: Path, message: M) -> M:
    """As read_spec_file(), for a spec of another kind; fills in the empty message and returns it.

    Raises:
        GraftError: INVALID_SPEC.
    """
    return _filled(message, _read(path), str(path))


def read_any_spec(source: Path | str | Mapping[str, Any], kind: str = "") -> AnySpec:
    """The spec of a job of any kind, from a file or a mapping.

    Args:
        kind: "train", "merge" or "evaluate"; "" to tell it from the names of the fields.

    Raises:
        GraftError: INVALID_SPEC, also where the fields fit several kinds; INVALID_REQUEST for another kind.
    """
    if kind and kind not in SPECS:
        raise GraftError(
            Reason.INVALID_REQUEST,
            f"There is no kind of job {kind!r}",
            next_step=f"Name one of {', '.join(SPECS)}.",
        )
    if isinstance(source, Mapping):
        values, where = source, "The spec"
    else:
        values, where = _read(Path(source)), str(source)
    return _filled(SPECS[kind or _kind_of(values, where)](), values, where)


def _kind_of(values: Any, where: str) -> str:
    """The kind whose message has the most of the fields; a training, where nothing says otherwise."""
    if not isinstance(values, Mapping):
        return "train"
    unknown = {
        kind: len({str(key) for key in values} - _fields(_descriptor(message())).keys())
        for kind, message in SPECS.items()
    }
    fitting = [kind for kind, count in unknown.items() if count == min(unknown.values())]
    if len(fitting) > 1 and "train" not in fitting:
        raise _refused(
            f"{where} may be of {' or '.join(fitting)}",
            f"Say which with --kind, or name a field that only one of them has: {_only(fitting)}.",
        )
    return fitting[0]


def _only(kinds: list[str]) -> str:
    """The fields by which kinds are told apart."""
    names = {kind: {field.name for field in _descriptor(SPECS[kind]()).fields} for kind in kinds}
    shared = set.intersection(*names.values())
    return ", ".join(sorted(set.union(*names.values()) - shared))


def _read(path: Path) -> Any:
    """What a file holds."""
    try:
        text = path.read_text("utf-8")
    except FileNotFoundError:
        raise _refused(f"There is no spec file {path}", "Name a file that exists.") from None
    except OSError as error:
        raise _refused(f"{path} cannot be read ({error.strerror})", "Name a file.") from None
    except UnicodeDecodeError as error:
        raise _refused(f"{path} is not UTF-8 (byte {error.start})", "Save it as UTF-8.") from None
    return _parse(path, text)


def spec_from_dict(values: Any, where: str = "The spec") -> pb.JobSpec:
    """The message of a mapping in protobuf JSON form.

    Raises:
        GraftError: INVALID_SPEC, naming the field.
    """
    return _filled(pb.JobSpec(), values, where)


def _filled(message: M, values: Any, where: str) -> M:
    if not isinstance(values, Mapping):
        first = ", ".join(f"{field.name}:" for field in _descriptor(message).fields[:2])
        raise _refused(f"{where} holds {_kind(values)}, not fields", f"Write {first}, ...")
    _fill(message, values, "")
    return message


def replace_field(spec: pb.JobSpec, path: str, value: Any) -> None:
    """Sets one field, for example "method.lora.rank", whatever it held; "" leaves it unset.

    Raises:
        GraftError: INVALID_SPEC, naming the field, when the value is not one for it.
    """
    message: Message = spec
    *outer, name = path.split(".")
    for part in outer:
        message = getattr(message, part)
    message.ClearField(name)
    if value != "":
        _set(message, _descriptor(message).fields_by_name[name], value, path)


def _parse(path: Path, text: str) -> Any:
    try:
        if path.suffix.lower() in _YAML_ENDINGS:
            return yaml.safe_load(text)
        return json.loads(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "cannot be read"
        raise _refused(f"{path} is not YAML{where}: {problem}", "Mend that line.") from None
    except json.JSONDecodeError as error:
        raise _refused(
            f"{path} is not JSON at line {error.lineno}, column {error.colno}: {error.msg}",
            "Mend that line, or name the file .yaml if it is YAML.",
        ) from None


def _fill(message: Message, values: Mapping[Any, Any], prefix: str) -> None:
    fields = _fields(_descriptor(message))
    seen: dict[str, str] = {}
    for key, value in values.items():
        field = fields.get(str(key))
        if field is None:
            raise _unknown(prefix + str(key), str(key), _descriptor(message))
        if field.name in seen:
            raise _refused(f"{prefix}{key} is given twice", f"Remove it or {seen[field.name]}.")
        seen[field.name] = str(key)
        if value is not None:
            _check_alone(message, field, prefix)
            _set(message, field, value, prefix + field.name)


def _check_alone(message: Message, field: FieldDescriptor, prefix: str) -> None:
    """Refuses a second field of those of which there may be one."""
    oneof = field.containing_oneof
    other = message.WhichOneof(oneof.name) if oneof else None
    if other and other != field.name:
        where = prefix.removesuffix(".") or "The spec"
        raise _refused(
            f"{where} holds both {other} and {field.name}; it must hold one of them",
            f"Remove {prefix}{other} or {prefix}{field.name}.",
        )


def _set(message: Message, field: FieldDescriptor, value: Any, path: str) -> None:
    if field.message_type is not None and not field.message_type.GetOptions().map_entry:
        if field.is_repeated:
            _set_list(message, field, value, path)
            return
        child: Message = getattr(message, field.name)
        child.SetInParent()
        _fill_child(child, value, path)
        return
    if field.enum_type is not None:
        value = _enum_value(field.enum_type, value, path)
    try:
        parsed = json_format.ParseDict(
            {field.name: _plain(value)}, GetMessageClass(_descriptor(message))()
        )
    except json_format.ParseError:
        raise _refused(
            f"{path} is {value!r}; it must be {_wanted(field)}",
            f"Change {path} in the job's spec.",
        ) from None
    message.MergeFrom(parsed)


def _set_list(message: Message, field: FieldDescriptor, value: Any, path: str) -> None:
    if not isinstance(value, list | tuple):
        raise _refused(
            f"{path} holds {_kind(value)}; it must hold a list", f"Change {path} in the job's spec."
        )
    for index, one in enumerate(value):
        _fill_child(getattr(message, field.name).add(), one, f"{path}[{index}]")


def _fill_child(child: Message, value: Any, path: str) -> None:
    if not isinstance(value, Mapping):
        raise _refused(
            f"{path} holds {_kind(value)}; it must hold fields",
            f"Known: {', '.join(f.name for f in _descriptor(child).fields)}.",
        )
    _fill(child, value, path + ".")


def _wanted(field: FieldDescriptor) -> str:
    if field.message_type is not None:
        return "names with texts"
    kind = _TYPES.get(field.cpp_type, "value")
    return f"a list of {kind}s" if field.is_repeated else f"a {kind}"


def _plain(value: Any) -> Any:
    """What Python code may write in a mapping and JSON does not have."""
    if isinstance(value, PurePath):
        return str(value)
    return list(value) if isinstance(value, tuple) else value


def _enum_value(enum: EnumDescriptor, value: Any, path: str) -> Any:
    if not isinstance(value, str):
        return value
    full = [known.name for known in enum.values]
    prefix = full[0].removesuffix("UNSPECIFIED")
    for name in (value, prefix + value.upper().replace("-", "_")):
        if name in full:
            return name
    short = [name.removeprefix(prefix).lower() for name in full[1:]]
    raise _refused(
        f"{path} is {value!r}; it must be one of {', '.join(short)}",
        did_you_mean(value.lower(), short) or f"Change {path} in the job's spec.",
    )


_TYPES = {
    FieldDescriptor.CPPTYPE_INT32: "whole number",
    FieldDescriptor.CPPTYPE_INT64: "whole number",
    FieldDescriptor.CPPTYPE_DOUBLE: "number",
    FieldDescriptor.CPPTYPE_BOOL: "true or false",
    FieldDescriptor.CPPTYPE_STRING: "text",
}


def _descriptor(message: Message) -> Descriptor:
    return cast(Descriptor, message.DESCRIPTOR)


def _fields(descriptor: Descriptor) -> dict[str, FieldDescriptor]:
    return {name: field for field in descriptor.fields for name in (field.name, field.json_name)}


def _unknown(path: str, key: str, descriptor: Descriptor) -> GraftError:
    known = [field.name for field in descriptor.fields]
    hint = did_you_mean(key, known) or f"Known here: {', '.join(known)}."
    return _refused(f"The job spec has no field {path}", hint)


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """A question that names what is spelled most like it; "" when nothing is."""
    near = difflib.get_close_matches(given, known, n=1, cutoff=0.5)
    return f"Did you mean {near[0]}?" if near else ""


def _kind(value: Any) -> str:
    if value is None:
        return "nothing"
    return "a list" if isinstance(value, list) else f"{value!r}"


def _refused(message: str, next_step: str) -> GraftError:
    return GraftError(Reason.INVALID_SPEC, message, next_step=next_step)
