"""python -m tests.support.again: runs what failed in the last run of pytest once more, one after the other.

Says of up to three whether they fail by themselves, too (exit code 1), or only beside others (0): where to begin to look.
It makes no failed run a good one.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

_FAILED = Path(".pytest_cache/v/cache/lastfailed")
_MOST = 3


def main() -> int:
    """Returns the exit code."""
    failed: list[str] = sorted(json.loads(_FAILED.read_text("utf-8"))) if _FAILED.exists() else []
    if not failed:
        print("No test failed by itself; the run ended for another reason, which is above.")
        return 1
    if len(failed) > _MOST:
        print(f"{len(failed)} tests failed: more than {_MOST} are not run again.")
        return 1
    code = subprocess.run([sys.executable, "-m", "pytest", *failed], check=False).returncode
    verdict = "pass alone: look into what they share" if code == 0 else "fail alone, too"
    print(f"These failed beside others and {verdict}:", *failed, sep="\n  ", flush=True)
    return code


if __name__ == "__main__":
    sys.exit(main())
