"""The params files that are shipped, and their schema: `python -m tests.shipped` writes them anew.

A value that is new in a dataclass comes into all of them.
"""

import textwrap
from pathlib import Path
from tempfile import TemporaryDirectory

from pipeline.config import load_params
from pipeline.params.file import to_yaml
from pipeline.params.schema import NAME
from stages.import_config import import_config
from stages.init import init
from stages.sections import complete
from tests.helpers.published_yaml import EXPERIMENTS

ROOT = Path(__file__).parent.parent
DEMO = ROOT / "demo/params.yaml"
DATA_SETS = {"sky": "Sky Timelapse", "taichi": "Taichi-HD", "ucf": "UCF-101"}
TITLE = (
    "MeBT on {data}, {frames} frames of 128x128 pixels, as published (CVPR 2023). Sections without "
    "a published value, such as fit_tokenizer, hold our defaults. train.batch_size is the "
    "published batch of ONE GPU: multiply it by the number of GPUs it is to stand for."
)


def shipped_files() -> dict[Path, str]:
    """Path -> text of each."""
    files = {}
    with TemporaryDirectory() as folder:
        published, params = Path(folder) / "published.yaml", Path(folder) / "params.yaml"
        for name, experiment in EXPERIMENTS.items():
            import_config(experiment.write(published), params, overwrite=True)
            title = TITLE.format(data=DATA_SETS[experiment.vqgan], frames=experiment.frames)
            comment = textwrap.indent(textwrap.fill(title, 98), "# ")
            files[ROOT / f"configs/{name}.yaml"] = f"{comment}\n{params.read_text()}"
        init(params, [], overwrite=True)
        for path in (params, params.with_name(NAME)):
            files[ROOT / path.name] = path.read_text()
    # Its values are chosen by hand, but for those that it does not name.
    files[DEMO] = to_yaml(complete(load_params(DEMO), where=str(DEMO)))
    return files


if __name__ == "__main__":
    for path, text in shipped_files().items():
        path.write_text(text, encoding="utf-8")
