"""Create .venv from requirements.lock, or .venv-tpu from requirements-tpu.lock, if it does not exist yet. Uses only the
standard library.

    python3.11 scripts/setup_venv.py
    python3.11 scripts/setup_venv.py tpu

The environment is complete when its stamp equals the hash of everything it was made from, so an interrupted
or outdated one is created again, and two set-ups at once wait for each other.
"""

import fcntl
import hashlib
import shutil
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SUFFIX = "-tpu" if sys.argv[1:] == ["tpu"] else ""
VENV = ROOT / f".venv{SUFFIX}"
LOCK = ROOT / f"requirements{SUFFIX}.lock"
PYTHON = VENV / "bin" / "python"


def say(text: str) -> None:
    print(f"[set-up] {text}", flush=True)


def fingerprint() -> str:
    sources = LOCK.read_bytes() + (ROOT / "pyproject.toml").read_bytes()
    where = f"{sys.version_info[:2]} {ROOT}".encode()  # an environment that was moved no longer works
    return hashlib.sha256(sources + where).hexdigest()


def locked_block(package: str) -> str:
    """Return the lines of the lock file that pin one package with its hashes."""
    lines = LOCK.read_text(encoding="utf-8").splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(f"{package}=="))
    end = next(i for i in range(start + 1, len(lines) + 1) if i == len(lines) or lines[i][:1].strip())
    return "\n".join(line for line in lines[start:end] if "# via" not in line)


def run(*command: str | Path) -> bool:
    return subprocess.run([str(part) for part in command], check=False).returncode == 0


def install() -> bool:
    """Install what LOCK pins: with the uv that is on PATH, else with the one that LOCK pins, else with pip."""
    venv.create(VENV, with_pip=True, clear=True)
    pip = (PYTHON, "-m", "pip", "--quiet", "--disable-pip-version-check", "install")
    uv = shutil.which("uv")
    if uv is None:
        bootstrap = VENV / "uv.lock"
        bootstrap.write_text(locked_block("uv"), encoding="utf-8")
        if run(*pip, "--require-hashes", "-r", bootstrap):
            uv = VENV / "bin" / "uv"
    if uv and run(uv, "pip", "install", "--quiet", "--python", PYTHON, "--require-hashes", "-r", LOCK):
        say("dependencies are installed")
    else:
        say("uv did not succeed (see above); trying again with pip, which takes longer")
        if not run(*pip, "--require-hashes", "-r", LOCK):
            return False
    return run(*pip, "--no-deps", "--no-build-isolation", "--editable", ROOT)


def main() -> int:
    with (ROOT / f"{VENV.name}.lock").open("w", encoding="utf-8") as guard:
        try:
            fcntl.flock(guard, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"another set-up of {VENV.name} is running; waiting for it")
            fcntl.flock(guard, fcntl.LOCK_EX)
        stamp = VENV / "made-from.sha256"
        if stamp.exists() and stamp.read_text(encoding="utf-8") == fingerprint() and PYTHON.exists():
            return 0
        version = ".".join(map(str, sys.version_info[:3]))
        say(f"making {VENV} with Python {version} from {LOCK.name}")
        say("this happens once; it downloads up to 3 GB (torch with its GPU libraries) and needs 6 to 8 GB of disk")
        if not install():
            say("failed. The lines above say why; once that is fixed, run the same command again.")
            return 1
        stamp.write_text(fingerprint(), encoding="utf-8")
        say("done; later runs reuse it")
    return 0


if __name__ == "__main__":
    if sys.version_info < (3, 11):  # noqa: UP036 - this script runs before anything checks that
        sys.exit(f"carvision needs Python 3.11 or newer, and this is {sys.version.split()[0]}")
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("[set-up] interrupted; run the same command again to start over")
