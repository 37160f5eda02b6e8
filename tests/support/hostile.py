"""Generators of files that somebody with bad intentions, or a bad disk, would send; by what they are.

Each is a right adapter but for one thing. What must be answered is beside it.
"""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from tests.support.admission import Q0, good, pack

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
QA, QB = f"{Q0}.lora_A.weight", f"{Q0}.lora_B.weight"
MIB = 1024 * 1024
Files = dict[str, bytes]


@dataclass(frozen=True)
class Hostile:
    """Files, and how they must be refused.

    fault is the tensor or path that the refusal names as such; words are in its message.
    """

    make: Callable[[], Files]
    check: str
    fault: str
    words: str


def named(path: str, words: str) -> Hostile:
    """A file of that name beside the adapter."""
    return Hostile(
        lambda: {**good().files(), path: b"text"}, "files", ascii(path[:120])[1:-1], words
    )


def beside(data: Callable[[], bytes], words: str) -> Hostile:
    """README.md with these bytes."""
    return Hostile(lambda: {**good().files(), "README.md": data()}, "files", "README.md", words)


def configured(text: Callable[[], bytes], words: str) -> Hostile:
    """adapter_config.json with these bytes."""
    return Hostile(lambda: {**good().files(), CONFIG: text()}, "adapter-config", CONFIG, words)


def saying(words: str, **changes: object) -> Hostile:
    """adapter_config.json with these fields."""
    return configured(lambda: json.dumps({**good().config, **changes}).encode(), words)


def weighing(
    data: Callable[[], bytes], fault: str, words: str, check: str = "safetensors"
) -> Hostile:
    """adapter_model.safetensors with these bytes."""
    return Hostile(lambda: {**good().files(), WEIGHTS: data()}, check, fault, words)


def header(
    text: bytes | Callable[[], bytes],
    fault: str,
    words: str,
    data: bytes = b"",
    check: str = "safetensors",
) -> Hostile:
    """Weights with this header; a large one is made when it is needed."""

    def make() -> bytes:
        return pack(text if isinstance(text, bytes) else text(), data)

    return weighing(make, fault, words, check)


def entry(words: str, fault: str = QA, padding: bytes = b"", **changes: object) -> Hostile:
    """Weights whose first tensor's entry says something else."""

    def make() -> bytes:
        folder = good()
        text = folder.header()
        text[QA] = {
            key: value for key, value in {**text[QA], **changes}.items() if value is not ...
        }
        return pack(text, folder.data() + padding)

    return weighing(make, fault, words)


def moved(words: str, fault: str, **offsets: tuple[int, int]) -> Hostile:
    """Weights whose tensors lie elsewhere: A for the first lora_A, B for the first lora_B."""

    def make() -> bytes:
        folder = good()
        text = folder.header()
        for letter, place in offsets.items():
            text[QA if letter == "A" else QB]["data_offsets"] = list(place)
        return pack(text, folder.data())

    return weighing(make, fault, words)


def one(name: bytes, body: bytes = b'{"dtype":"F32","shape":[1],"data_offsets":[0,4]}') -> bytes:
    """A header of one tensor, as it stands."""
    return b'{"' + name + b'":' + body + b"}"


def tensors(count: int) -> bytes:
    """A header of so many empty tensors."""
    empty = b'{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
    return b"{" + b",".join(b'"%08d":%b' % (number, empty) for number in range(count)) + b"}"


def filling(before: bytes, unit: bytes, after: bytes) -> Callable[[], bytes]:
    """As much of the same as the limit of a header lets through."""
    times = (16 * MIB - len(before) - len(after)) // len(unit)
    return lambda: before + unit * times + after


def zipped(content: bytes = b"x") -> bytes:
    """A zip archive."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("data.pkl", content)
    return buffer.getvalue()


def tarred() -> bytes:
    """A tar archive."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("../../etc/passwd"), io.BytesIO())
    return buffer.getvalue()


def polyglot() -> bytes:
    """A right safetensors file whose last tensor is a zip archive, so that it opens as both."""
    # The archive's comment takes up what rounds it to whole numbers.
    padding = -len(zipped()) % 4
    archive = zipped()[:-2] + struct.pack("<H", padding) + bytes(padding)
    folder = good()
    text, data = folder.header(), folder.data()
    last = max(text, key=lambda name: text[name].get("data_offsets", [0, 0])[1])
    begin, end = text[last]["data_offsets"]
    assert len(archive) <= end - begin
    return pack(text, data[: len(data) - len(archive)] + archive)


def keys_twice(text: bytes) -> Callable[[], bytes]:
    """adapter_config.json with something before its first field."""
    return lambda: b"{" + text + b"," + json.dumps(good().config).encode()[1:]


NAMES: Mapping[str, Hostile] = {
    "a path upwards": named("../README.md", "plain file name"),
    "a path far upwards": named("../../../../etc/cron.d/x.txt", "plain file name"),
    "two dots": named("..", "plain file name"),
    "one dot": named(".", "plain file name"),
    "an absolute path": named("/etc/passwd.txt", "plain file name"),
    "a drive": named("C:README.md", "plain file name"),
    "a drive's path": named("C:\\x.md", "plain file name"),
    "a network path": named("\\\\host\\x.md", "plain file name"),
    "a folder": named("sub/README.md", "plain file name"),
    "a Windows folder": named("sub\\README.md", "plain file name"),
    "a null": named("README.md\0.txt", "plain file name"),
    "a line's end": named("README.md\n", "plain file name"),
    "a tab": named("READ\tME.md", "plain file name"),
    "an escape sequence": named("\x1b[2JREADME.md", "plain file name"),
    "a blank at the end": named("README.md ", "plain file name"),
    "a blank at the beginning": named(" README.md", "plain file name"),
    "a dot at the end": named("README.md.", "plain file name"),
    "an option": named("-rf.md", "plain file name"),
    "a hidden file": named(".bashrc", "plain file name"),
    "a home": named("~root.md", "plain file name"),
    "an alternate stream": named("README.md:evil", "plain file name"),
    "a percent-encoded path": named("%2e%2e%2fREADME.md", "plain file name"),
    "a variable": named("$HOME.md", "plain file name"),
    "no name": named("", "plain file name"),
    "a name of 300 letters": named("a" * 300 + ".md", "plain file name"),
    "Cyrillic that looks like Latin": named("RE\u0410DME.md", "plain file name"),
    "a full-width dot": named("README\uff0emd", "plain file name"),
    "full-width dots upwards": named("\uff0e\uff0e\uff0fREADME.md", "plain file name"),
    "an accent of its own": named("re\u0301sume\u0301.md", "plain file name"),
    "text that runs backwards": named("README\u202edm.yp", "plain file name"),
    "a space of no width": named("README\u200b.md", "plain file name"),
    "a soft hyphen": named("READ\u00adME.md", "plain file name"),
    "a device": named("CON.md", "device"),
    "a device without an end": named("nul", "device"),
    "a port": named("com1.txt", "device"),
    "a printer": named("LPT9.md", "device"),
    "a name in other case": named("Adapter_Model.safetensors", "does not belong"),
    "the configuration in other case": named("ADAPTER_CONFIG.JSON", "does not belong"),
    "a pickle": named("pytorch_model.bin", "pickle"),
    "a pickle in capitals": named("MODEL.PT", "pickle"),
    "a pickle of optimizer states": named("optimizer.pt", "pickle"),
    "a joblib pickle": named("pipeline.joblib", "pickle"),
    "NumPy's pickles": named("data.npy", "pickle"),
    "a path file": named("evil.pth", "pickle"),
    "code": named("modeling_llama.py", "code"),
    "code behind text": named("README.md.py", "code"),
    "a pickle behind safetensors": named("adapter_model.safetensors.bin", "pickle"),
    "a notebook": named("demo.ipynb", "code"),
    "a library": named("libevil.so", "code"),
    "a script": named("install.sh", "code"),
    "a wheel": named("peft-9.9-py3-none-any.whl", "code"),
    "an archive": named("adapter.zip", "archive"),
    "a compressed archive": named("adapter.tar.gz", "archive"),
    "two names of one file": Hostile(
        lambda: {**good().files(), "README.md": b"a", "readme.md": b"b"}, "files", "readme.md", "upper and lower case"
    ),
}  # fmt: skip

TEXTS: Mapping[str, Hostile] = {
    "a zip": beside(zipped, "zip archive"),
    "a zip of a gigabyte of zeros": beside(
        lambda: zipped(bytes(64 * MIB))[: MIB - 1], "zip archive"
    ),
    "a zip after text": beside(lambda: b"# Read me\n" + zipped(), "not text"),
    "a gzip": beside(lambda: gzip.compress(bytes(64 * MIB)), "gzip"),
    "a bzip2": beside(lambda: bz2.compress(bytes(64 * MIB)), "bzip2"),
    "an xz": beside(lambda: lzma.compress(bytes(MIB)), "xz"),
    "a tar": beside(tarred, "tar archive"),
    "a zstandard": beside(lambda: b"\x28\xb5\x2f\xfd" + bytes(20), "zstandard"),
    "a 7z": beside(lambda: b"7z\xbc\xaf\x27\x1c" + bytes(20), "7z"),
    "a pickle": beside(lambda: pickle.dumps({"a": 1}), "pickle"),
    "a pickle in ASCII": beside(lambda: b"cos\nsystem\n(S'true'\ntR.", "pickle"),
    "an old pickle of a dict": beside(lambda: pickle.dumps({"a": 1}, protocol=0), "pickle"),
    "a program": beside(lambda: b"\x7fELF\x02\x01\x01" + bytes(64), "program"),
    "a Windows program": beside(lambda: b"MZ\x90\x00" + bytes(64), "program"),
    "a script": beside(lambda: b"#!/bin/sh\ntrue\n", "script"),
    "PHP": beside(lambda: b"<?php system($_GET['x']); ?>", "script"),
    "UTF-16": beside(lambda: "text".encode("utf-16"), "not text"),
    "Latin-1": beside(lambda: "Größe".encode("latin-1"), "not text"),
    "a cut character": beside(lambda: "Größe".encode()[:3], "not text"),
    "a null": beside(lambda: b"a\0b", "not text"),
    "escape sequences": beside(lambda: b"\x1b]0;title\x07", "not text"),
    "nothing": beside(lambda: b"", "0 bytes"),
    "too much": beside(lambda: b"a" * (MIB + 1), "allowed"),
}

CONFIGS: Mapping[str, Hostile] = {
    "a field twice": configured(keys_twice(b'"r":999'), "'r' is there twice"),
    "a field twice by an escape": configured(keys_twice(b'"\\u0072":999'), "'r' is there twice"),
    "great depth": configured(lambda: b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "deeply"),
    "great breadth": configured(lambda: b'{"a":[' + b"[]," * 300_000 + b"[]]}", "allowed"),
    "a number of 100,000 digits": configured(keys_twice(b'"x":' + b"9" * 100_000), "not JSON"),
    "a rank of 4,000 digits": configured(lambda: json.dumps({**good().config, "r": 0}).replace('"r": 0', '"r": ' + "-" + "9" * 4000).encode(), "number too large"),
    "an alpha beyond floats": configured(lambda: json.dumps({**good().config, "lora_alpha": 0}).replace('"lora_alpha": 0', '"lora_alpha": 1e999').encode(), "lora_alpha"),
    "infinity": configured(keys_twice(b'"x":Infinity'), "no number"),
    "half a surrogate pair": configured(keys_twice(b'"x":"\\ud800"'), "UTF-8"),
    "a byte order mark": configured(lambda: b"\xef\xbb\xbf" + json.dumps(good().config).encode(), "not JSON"),
    "UTF-16": configured(lambda: json.dumps(good().config).encode("utf-16"), "UTF-8"),
    "a comment": configured(keys_twice(b"/* x */"), "not JSON"),
    "something after it": configured(lambda: json.dumps(good().config).encode() + b"{}", "not JSON"),
    "a list": configured(lambda: b"[]", "not a JSON object"),
    "a pickle": configured(lambda: pickle.dumps({}), "UTF-8"),
    "a library to import": saying("code from elsewhere", auto_mapping={"parent_library": "os.path", "base_model_class": "x"}),
    "remote code's library": saying("code from elsewhere", auto_mapping={"parent_library": "transformers_modules.evil"}),
    "code to load": saying("auto_map", auto_map={"AutoModel": "evil.Model"}),
    "Megatron": saying("Megatron", megatron_config={"a": 1}),
    "a switch in words": saying("true or false", use_rslora="false"),
    "a pattern of endless cost": saying("regular expression", rank_pattern={"(a+)+$": 4}),
    "a layers_pattern of endless cost": saying("regular expression", layers_to_transform=[0, 1], layers_pattern="(a+)+"),
    "an alpha_pattern that is a list": saying("not an object", alpha_pattern=[1]),
    "a rank that is a truth value": saying("whole number", r=True),
    "a target that is a path upwards": saying("no module's name", target_modules=["../q_proj"]),
    "a target that is a number": saying("list of module names", target_modules=[1]),
    "layers in words": saying("layers' numbers", layers_to_transform=["0"]),
    "layers beside a pattern of targets": saying("PEFT would not load", layers_to_transform=[0], target_modules=".*q_proj"),
    "a layers_pattern without layers": saying("PEFT would not load", layers_pattern="layers"),
}  # fmt: skip

HEADERS: Mapping[str, Hostile] = {
    "a length of gigabytes": weighing(lambda: struct.pack("<Q", 4 << 30) + b'{"a":1}', WEIGHTS, "allowed"),
    "a length that is negative elsewhere": weighing(lambda: struct.pack("<Q", 2**63) + b"{}", WEIGHTS, "allowed"),
    "the largest length": weighing(lambda: b"\xff" * 8 + b"{}", WEIGHTS, "allowed"),
    "a length of nothing": weighing(lambda: bytes(8) + b"{}", WEIGHTS, "0 bytes"),
    "a length beyond the file": weighing(lambda: struct.pack("<Q", 10_000) + b"{}", WEIGHTS, "truncated"),
    "a zip": weighing(zipped, WEIGHTS, "zip archive"),
    "a gzip": weighing(lambda: gzip.compress(bytes(MIB)), WEIGHTS, "gzip"),
    "a pickle": weighing(lambda: pickle.dumps({"a": 1}), WEIGHTS, "a pickle"),
    "a zip besides": weighing(polyglot, WEIGHTS, "a zip archive besides", "files"),
    "a zip behind": weighing(lambda: good().files()[WEIGHTS] + zipped(), WEIGHTS, "belong to no tensor"),
    "great depth": header(b'{"a":' * 50_000, WEIGHTS, "not JSON"),
    "great depth up to the limit": header(filling(b'{"a":', b'{"a":', b""), "a", "entry"),
    "lists up to the limit": header(filling(b'{"a":[', b"[],", b"[]]}"), "a", "entry"),
    "metadata up to the limit": header(filling(b'{"__metadata__":{', b'"a":"",', b'"b":""}}'), "__metadata__", "allowed"),
    "escapes up to the limit": header(filling(b'{"__metadata__":{"a":"', b"\\n", b'"}}'), "__metadata__", "allowed"),
    "a text without an end": header(filling(b'{"__metadata__":{"a":"', b"x\\n", b""), "__metadata__", "texts"),
    "dimensions up to the limit": header(filling(b'{"a":{"dtype":"F32","shape":[', b"1,", b'1],"data_offsets":[0,4]}}'), "a", "entry"),
    "a number up to the limit": header(filling(b'{"a":{"dtype":"F32","shape":[', b"9", b'],"data_offsets":[0,4]}}'), "a", "entry"),
    "a name up to the limit": header(filling(b'{"', b"n", b'":1}'), WEIGHTS, "printable ASCII"),
    "tensors up to the limit": header(lambda: tensors(200_000), WEIGHTS, "more than 100000 tensors"),
    "a billion numbers in no bytes": header(one(b"a", b'{"dtype":"F32","shape":[1000000000],"data_offsets":[0,0]}'), "a", "does not fit"),
    "a shape that overflows to 0": header(one(b"a", b'{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]}'), "a", "does not fit"),
    "a shape that overflows to 4": header(one(b"a", b'{"dtype":"F32","shape":[4611686018427387905],"data_offsets":[0,4]}'), "a", "does not fit", b"1234"),
    "offsets beyond 64 bits": header(one(b"a", b'{"dtype":"F32","shape":[1],"data_offsets":[0,99999999999999999999]}'), "a", "entry"),
    "offsets beyond the file": header(one(b"a", b'{"dtype":"F32","shape":[1099511627776],"data_offsets":[0,4398046511104]}'), "a", "truncated"),
    "a negative size": entry("entry", shape=[-4, -64]),
    "half a number": entry("entry", shape=[4.0, 64]),
    "a size with an exponent": header(one(b"a", b'{"dtype":"F32","shape":[1e0],"data_offsets":[0,4]}'), "a", "entry", b"1234"),
    "a size with a zero before": header(one(b"a", b'{"dtype":"F32","shape":[01],"data_offsets":[0,4]}'), WEIGHTS, "not JSON", b"1234"),
    "minus zero": header(one(b"a", b'{"dtype":"F32","shape":[-0],"data_offsets":[0,0]}'), "a", "entry"),
    "nine dimensions": entry("entry", shape=[1] * 9),
    "no dtype": entry("entry", dtype=...),
    "no shape": entry("entry", shape=...),
    "no offsets": entry("entry", data_offsets=...),
    "one offset": entry("entry", data_offsets=[0]),
    "something more": entry("entry", code="import os"),
    "a field twice": header(one(b"a", b'{"dtype":"F32","dtype":"F16","shape":[1],"data_offsets":[0,4]}'), "a", "entry", b"1234"),
    "a field twice instead of another": header(one(b"a", b'{"dtype":"F32","dtype":"F16","shape":[1]}'), "a", "entry"),
    "a tensor twice": header(b'{"a":{"dtype":"F32","shape":[0],"data_offsets":[0,0]},"a":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}', "a", "twice"),
    "a tensor twice by an escape": header(b'{"a":{"dtype":"F32","shape":[0],"data_offsets":[0,0]},"\\u0061":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}', "a", "twice"),
    "metadata twice": header(b'{"__metadata__":{},"__metadata__":{}}', "__metadata__", "twice"),
    "metadata of numbers": header(b'{"__metadata__":{"a":1}}', "__metadata__", "texts"),
    "metadata that nests": header(b'{"__metadata__":{"a":{"b":"c"}}}', "__metadata__", "texts"),
    "metadata with half a pair": header(b'{"__metadata__":{"a":"\\ud800"}}', "__metadata__", "UTF-8"),
    "a comma too many": header(one(b"a")[:-1] + b",}", WEIGHTS, "not JSON", b"1234"),
    "a comment": header(one(b"a")[:-1] + b"/**/}", WEIGHTS, "not JSON", b"1234"),
    "something after it": header(one(b"a") + b"{}", WEIGHTS, "not JSON", b"1234"),
    "nulls after it": header(one(b"a") + b"\0\0", WEIGHTS, "not JSON", b"1234"),
    "no name": header(one(b""), WEIGHTS, "printable ASCII", b"1234"),
    "a name that is a path": header(one(b"../../etc/passwd"), "../../etc/passwd", "no matrix", b"1234", "tensor-names"),
    "a name with a null": header(one(b"a\\u0000b"), WEIGHTS, "printable ASCII", b"1234"),
    "a name with a line's end": header(one(b"a\\nb"), WEIGHTS, "printable ASCII", b"1234"),
    "a name of half a pair": header(one(b"\\ud800"), WEIGHTS, "printable ASCII", b"1234"),
    "a name that looks like another": header(one(QA.replace("a", "\u0430").encode()), WEIGHTS, "printable ASCII", b"1234"),
    "a name of no UTF-8": header(one(b"\xff"), WEIGHTS, "printable ASCII", b"1234"),
    "a type that is not": entry("dtype is F99", dtype="F99"),
    "a type of truth values": entry("dtype is BOOL", dtype="BOOL"),
    "half bytes": entry("dtype is F4", dtype="F4"),
    "a type that is a path": entry("entry", dtype="../x"),
    "offsets backwards": moved("does not fit", QA, A=(1024, 0)),
    "bytes of two tensors": moved("overlap", QB, A=(0, 1024), B=(0, 1024)),
    "bytes of two tensors in part": moved("overlap", QB, B=(1020, 2044)),
    "a gap": moved("belong to none", QB, B=(1028, 2052)),
    "a gap at the beginning": moved("belong to none", QA, A=(4, 1028), B=(1028, 2052)),
    "bytes behind": weighing(lambda: good().files()[WEIGHTS] + b"x", WEIGHTS, "belong to no tensor"),
    "UTF-16": weighing(lambda: pack('{"a":1}'.encode("utf-16-le"), b""), WEIGHTS, "not JSON"),
}  # fmt: skip


def everything() -> dict[str, Hostile]:
    """All of them, by what they are."""
    groups: dict[str, Mapping[str, Hostile]] = {
        "name": NAMES, "text": TEXTS, "config": CONFIGS, "weights": HEADERS,
    }  # fmt: skip
    return {
        f"{group}: {what}": found
        for group, kinds in groups.items()
        for what, found in kinds.items()
    }
