#!/usr/bin/env bash
# Makes the CPU environment from the locks: requirements/install.sh PYTHON VENV
# Every line of a lock is exact, so nothing is resolved here (--no-deps). That is also what keeps
# torchvision, torchaudio and torchcodec out: their published wheels are CUDA builds, and with them
# beside a CPU torch neither vllm nor transformers can be imported.
set -euo pipefail
python=$1 venv=$2
cd "$(dirname "$0")/.."

if ! command -v "$python" >/dev/null; then
  echo "graft needs Python 3.11, and '$python' was not found. Install it, or name it: make PYTHON=/path/to/python3.11 ..." >&2
  exit 1
fi
"$python" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || {
  echo "graft needs Python 3.11; '$python' is $("$python" -V 2>&1). Name another: make PYTHON=/path/to/python3.11 ..." >&2
  exit 1
}

[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
pip() { "$venv/bin/python" -m pip --disable-pip-version-check --no-input "$@"; }

torch=$(grep -E '^torch==' requirements/cpu.lock)
echo "Installing $torch ..."
if ! pip install --quiet --no-deps "$torch" 2>/dev/null; then
  echo "The configured package index has no CPU build of torch; taking PyTorch's own index."
  pip install --quiet --no-deps --index-url https://download.pytorch.org/whl/cpu "$torch"
fi
echo "Installing the rest (a few minutes on a first run) ..."
pip install --quiet --no-deps -r requirements/cpu.lock -r requirements/dev.lock
pip install --quiet --no-deps --no-build-isolation -e .
echo "Done: $venv"
