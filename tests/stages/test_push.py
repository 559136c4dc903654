"""`mebt push` and `mebt pull`: what arrives is what was sent, is used, and is checked before."""

import hashlib
import io
import json
import os
import pickle
import shutil
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from ruamel.yaml import YAML
from safetensors.numpy import save

from pipeline.sharing.card import About, write_card
from pipeline.storage.bucket import Bucket
from pipeline.storage.files import lock
from stages.__main__ import cli
from tests.helpers.fake_hub import FakeHub, HTTPError
from tests.helpers.small import ROOT, Flow, content, make_tokenizer
from tests.stages.test_s3 import objects
from tests.test_readme import run_section, sections

HUB = "hf://me/fish"
OTHERS = {"metrics": {}, "protocol": {"identities": {"model": "0" * 64}}}
METRICS = {"metrics": {"token_loss": 1.25}, "protocol": {"seed": 0}, "not_computed": {"fvd": "no"}}


def mebt(*words: object) -> Result:
    return CliRunner().invoke(cli, list(map(str, words)))


def ok(*words: object) -> str:
    result = mebt(*words)
    assert result.exit_code == 0, result.output + repr(result.exception)
    return result.output


def refused(*words: object, code: int = 1) -> str:
    result = mebt(*words)
    assert result.exit_code == code, result.output + repr(result.exception)
    (line,) = [line for line in result.output.splitlines() if line.startswith("Error: ")]
    return line


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    made = FakeHub(tmp_path / "cache")
    monkeypatch.setitem(sys.modules, "huggingface_hub", made.module())
    return made


@pytest.fixture
def words(made: Flow) -> list[object]:
    """Pushes the run of the flow; what is missing is --out."""
    params, tokenizer = made.root / "params.yaml", made.root / "tokenizer.safetensors"
    run = made.root / "run"
    return ["push", "--run", run, "--params", params, "--tokenizer", tokenizer]


@pytest.fixture
def pushed(words: list[object], tmp_path: Path) -> Path:
    ok(*words, "--out", tmp_path / "shared/fish")
    return tmp_path / "shared/fish"


def pull_refused(pushed: Path) -> str:
    out = pushed.parent / "out"
    line = refused("pull", "--from", pushed, "--out", out)
    assert sorted(path.name for path in pushed.parent.iterdir()) == [pushed.name]
    return line


def rewrite(pushed: Path, name: str, data: bytes, *, listed_as: str | None = None) -> None:
    """Puts a file of one's own there, and lists it as an attacker would."""
    (pushed / name).parent.mkdir(exist_ok=True, parents=True)
    (pushed / name).write_bytes(data)
    manifest = json.loads((pushed / "manifest.json").read_text())
    entry = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    manifest["files"][listed_as or name] = entry
    (pushed / "manifest.json").write_text(json.dumps(manifest))


def test_a_run_that_was_pulled_samples_and_decodes(
    made: Flow, pushed: Path, tmp_path: Path
) -> None:
    out = tmp_path / "fish"
    said = ok("pull", "--from", pushed, "--out", out)
    assert "files pulled, fingerprint" in said
    run = made.root / "run"
    for name in ("model.safetensors", "run.json", "metrics.jsonl", "previews/tokens.parquet"):
        assert (out / name).read_bytes() == (run / name).read_bytes()
    assert not (out / "checkpoints").exists()
    params = ("--params", out / "params.yaml")
    ok("sample", "--run", out, *params, "--out", tmp_path / "drawn")
    assert content(tmp_path / "drawn") == content(made.root / "samples")
    tokenizer = ("--tokenizer", out / "tokenizer.safetensors")
    ok("decode", "--tokens", tmp_path / "drawn", *tokenizer, *params, "--out", tmp_path / "videos")
    assert "nothing to do" in ok("pull", "--from", pushed, "--out", out)


@pytest.mark.slow
def test_with_its_checkpoint_it_is_trained_on(
    flow: Flow, words: list[object], tmp_path: Path
) -> None:
    ok(*words, "--checkpoints", "--out", tmp_path / "shared")
    ok("pull", "--from", tmp_path / "shared", "--out", tmp_path / "fish")
    more = ("--set", "train.max_steps=8")
    flow.ok("train", *more, out=str(tmp_path / "fish"))
    flow.ok("train", *more, out="run")
    assert (tmp_path / "fish/model.safetensors").read_bytes() == (
        flow.root / "run/model.safetensors"
    ).read_bytes()


def test_the_same_again_is_nothing_to_do_and_a_stop_is_gone_on_from(
    words: list[object], pushed: Path
) -> None:
    before = content(pushed)
    assert "nothing to do" in ok(*words, "--out", pushed)
    (pushed / "README.md").write_text("mine")
    assert "nothing to do" in ok(*words, "--out", pushed)
    assert (pushed / "README.md").read_text() == "mine"  # The card may be edited there.
    (pushed / "model.safetensors").unlink()
    assert "is missing, or no file" in pull_refused(pushed)
    assert "1 files pushed" in ok(*words, "--out", pushed)
    assert content(pushed) == before


def test_something_else_is_not_overwritten_unasked(
    words: list[object], pushed: Path, tmp_path: Path
) -> None:
    words[-1] = make_tokenizer(tmp_path / "other.safetensors", seed=1)
    assert "was trained on tokens of tokenizer" in refused(*words, "--out", pushed)
    words = words[:-2]
    line = refused(*words, "--license", "mit", "--out", pushed)
    assert "licence None, not mit; tokenizer.safetensors, which is not there now;" in line
    assert "give --overwrite" in line
    ok(*words, "--license", "mit", "--out", pushed, "--overwrite")
    assert not (pushed / "tokenizer.safetensors").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("years")
    line = refused(*words, "--out", tmp_path / "mine", "--overwrite")
    assert "holds thesis.txt but no manifest.json, so it is no pushed run" in line
    line = refused("pull", "--from", pushed, "--out", tmp_path / "mine")
    assert "mine is not empty; choose another --out." in line
    assert [path.name for path in (tmp_path / "mine").iterdir() if path.name[0] != "."] == [
        "thesis.txt"
    ]


def test_what_was_pulled_and_changed_is_said(pushed: Path, tmp_path: Path) -> None:
    out = tmp_path / "fish"
    ok("pull", "--from", pushed, "--out", out)
    data = (out / "run.json").read_bytes()
    (out / "run.json").write_bytes(data.replace(b"1", b"2"))
    line = refused("pull", "--from", pushed, "--out", out)
    assert "run.json is not what was pulled" in line


def test_a_tokenizer_alone(made: Flow, tmp_path: Path) -> None:
    tokenizer = made.root / "tokenizer.safetensors"
    ok("push", "--tokenizer", tokenizer, "--out", tmp_path / "shared")
    ok("pull", "--from", tmp_path / "shared", "--out", tmp_path / "got")
    assert sorted(content(tmp_path / "got")) == ["manifest.json", "tokenizer.safetensors"]
    assert "mebt tokenize --frames" in (tmp_path / "shared/README.md").read_text()


def test_the_hub_gets_it_in_one_private_commit(
    words: list[object], hub: FakeHub, tmp_path: Path
) -> None:
    words += ["--license", "cc-by-4.0", "--out", HUB]
    assert f"{HUB}: " in ok(*words)
    assert hub.private == {"me/fish"}
    assert len(hub.repositories["me/fish"]) == 2  # The empty one, and this.
    assert "nothing to do" in ok(*words)
    ok("pull", "--from", HUB, "--out", tmp_path / "fish")
    got = content(tmp_path / "fish")
    there = hub.files("me/fish")
    assert got == {name: there[name] for name in there.keys() - {"README.md", ".gitattributes"}}
    words[words.index("cc-by-4.0")] = "mit"
    assert "licence cc-by-4.0, not mit" in refused(*words)
    ok(*words, "--overwrite")
    assert b"license: mit" in hub.files("me/fish")["README.md"]


def test_what_the_hub_refuses_is_one_line(
    words: list[object], hub: FakeHub, tmp_path: Path
) -> None:
    mit = ("--license", "mit")
    assert "the hub needs --license" in refused(*words, "--out", HUB, code=2)
    assert "write hf://owner/name" in refused(*words, *mit, "--out", "hf://fish")
    line = refused("pull", "--from", HUB, "--out", tmp_path / "x")
    assert f"{HUB}/manifest.json does not exist" in line
    hub.repositories["me/fish"] = [{"README.md": b"Mine."}]
    assert "holds README.md but no manifest.json" in refused(*words, *mit, "--out", HUB)
    hub.refusing = HTTPError("401 Client Error.\nMore.")
    line = refused(*words, *mit, "--out", HUB)
    assert "hf://me/fish cannot be read: 401 Client Error; check the name" in line


def test_without_the_library_the_extra_is_named(
    words: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    line = refused(*words, "--license", "mit", "--out", HUB)
    assert line == f"Error: {HUB} needs the extra `hf`: pip install 'mebt[hf]'."


def test_a_bucket_holds_the_same(
    words: list[object], pushed: Path, bucket: Bucket, tmp_path: Path
) -> None:
    url = bucket.root
    ok(*words, "--out", url)
    here, there = content(pushed), objects(bucket)
    assert here.keys() == there.keys()
    assert {n: d for n, d in here.items() if n != "README.md"} == {
        n: d for n, d in there.items() if n != "README.md"
    }
    assert "nothing to do" in ok(*words, "--out", url)
    bucket.remove("model.safetensors")
    assert "is missing, or no file" in refused("pull", "--from", url, "--out", tmp_path / "x")
    ok(*words, "--out", url)
    ok("pull", "--from", url, "--out", tmp_path / "got")
    assert (tmp_path / "got/model.safetensors").read_bytes() == there["model.safetensors"]


def front_matter(text: str) -> Any:
    start, head, rest = text.split("---\n", 2)
    assert start == ""
    return YAML(typ="safe").load(head), rest


def test_the_card_says_what_it_is_and_how_good(
    made: Flow, words: list[object], tmp_path: Path
) -> None:
    (tmp_path / "metrics.json").write_text(json.dumps(METRICS))
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos/sheet.webp").write_bytes(b"RIFF....WEBP")
    words += ["--metrics", tmp_path / "metrics.json", "--samples", tmp_path / "videos"]
    ok(*words, "--license", "cc-by-4.0", "--out", tmp_path / "shared")
    head, text = front_matter((tmp_path / "shared/README.md").read_text())
    assert head["license"] == "cc-by-4.0"
    assert head["library_name"] == "mebt"
    assert "model" in head["tags"]
    assert "![What the model draws](sheet.webp)" in text
    assert "| token\\_loss | 1.25 |" in text
    assert '"seed": 0' in text
    assert "max_steps: 6" in text
    for name in ("model.safetensors",):
        assert hashlib.sha256((made.root / "run" / name).read_bytes()).hexdigest() in text
    assert str(made.root) not in text
    ok("pull", "--from", tmp_path / "shared", "--out", tmp_path / "got")


def test_nothing_in_a_card_ends_its_block_or_becomes_markup() -> None:
    params = "```\n# Heading\n````"
    about = About(
        name="a|b<script>",
        place="FOLDER",
        facts=[("x", "[link](http://x)|\n")],
        files=["model.safetensors"],
        params=params,
    )
    text = write_card(about)
    assert f"`````yaml\n{params}\n`````" in text
    assert "<script" not in text.replace("\\<script", "")
    assert "| x | \\[link\\](http://x)\\|\\n |".replace("\\n", "\\\\n") in text


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[]", "not the JSON of a finished evaluation"),
        ('{"metrics": {"a": "b"}, "protocol": {}}', "not what `mebt evaluate` writes"),
    ],
)
def test_metrics_that_are_none_are_refused(
    words: list[object], tmp_path: Path, content: str, said: str
) -> None:
    (tmp_path / "metrics.json").write_text(content)
    line = refused(*words, "--metrics", tmp_path / "metrics.json", "--out", tmp_path / "x")
    assert said in line
    assert not (tmp_path / "x").exists()


def test_numbers_of_another_model_are_refused(words: list[object], tmp_path: Path) -> None:
    (tmp_path / "metrics.json").write_text(json.dumps(OTHERS))
    line = refused(*words, "--metrics", tmp_path / "metrics.json", "--out", tmp_path / "x")
    assert "was measured with model 000" in line


def test_a_run_without_params_or_model_or_in_training_is_refused(
    flow: Flow, words: list[object], tmp_path: Path
) -> None:
    run = flow.root / "run"
    out = ("--out", tmp_path / "x")
    assert "holds no params.yaml; give --params" in refused("push", "--run", run, *out)
    with lock(run):
        assert "is being written by another process" in refused("push", "--run", run, *out)
    assert "has no sheet.webp" in refused("push", "--run", run, "--samples", run, *out)
    (run / "model.safetensors").unlink()
    assert "neither a model.safetensors" in refused("push", "--run", run, *out)
    assert "give --run or --tokenizer" in refused("push", *out, code=2)
    assert "write an identifier" in refused(*words, "--license", "Mine!", *out, code=2)
    assert not (tmp_path / "x").exists()


HOSTILE_NAMES = [
    *("../evil.safetensors", "/etc/cron.d/evil", "model.pkl", "previews/../../evil.webp"),
    *("previews/step-00000001.webp\n", "model.safetensors.exe", "C:\\evil", "README.md"),
]


@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_other_names_than_ours_are_refused(pushed: Path, name: str) -> None:
    rewrite(pushed, "aside", b"evil", listed_as=name)
    assert "which no `mebt push` writes; do not trust it" in pull_refused(pushed)


def pickled() -> bytes:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return (os.mkdir, ("evil",))

    return pickle.dumps(Evil())


def bomb() -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    buffer = io.BytesIO()
    pq.write_table(pa.table({"step": pa.array([0]).take(pa.array([0] * (2**26 + 1)))}), buffer)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("model.safetensors", pickled(), "is not a readable safetensors file"),
        ("model.safetensors", b"\xff" * 8 + b"{}", "is not a readable safetensors file"),
        ("model.safetensors", save({}), "model.safetensors has format None"),
        ("checkpoints/step-00000001/state.safetensors", pickled(), "not a readable safetensors"),
        ("checkpoints/last", b"../..", "names '../..', which is no checkpoint"),
        ("run.json", b"[" * 100_000, "is not the JSON of a run"),
        ("run.json", b'{"a": 1}', "run.json is not what `mebt train` or `mebt fit-tokenizer` wri"),
        ("run.json", b'{"config": {}, "model": {}, "tokens": {}}', "is of another run than"),
        ("metrics.json", b'{"metrics": {"x": "text"}, "protocol": {}}', "not what `mebt evaluate`"),
        ("metrics.json", json.dumps(OTHERS).encode(), "was measured with model 000"),
        ("metrics.jsonl", b'{"step": 1}\n{"no": 1}\n', "metrics.jsonl is no log of a run"),
        ("params.yaml", b"!!python/object/apply:os.mkdir [evil]", "not YAML"),
        ("params.yaml", b"other: 1", "unknown section 'other'"),
        ("sheet.webp", b"<script>", "sheet.webp is no picture"),
        ("previews/tokens.parquet", b"PAR1", "is no table of previews"),
        ("previews/tokens.parquet", bomb(), "too many for previews"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_file_that_is_not_what_its_name_says_is_refused(
    pushed: Path, name: str, data: bytes, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(pushed.parent)
    rewrite(pushed, name, data)
    line = pull_refused(pushed)
    assert said in line
    assert ".partial" not in line
    assert not (pushed.parent / "evil").exists()


def test_a_tokenizer_that_is_not_the_runs_is_refused(pushed: Path, tmp_path: Path) -> None:
    other = make_tokenizer(tmp_path / "other.safetensors", seed=1)
    rewrite(pushed, "tokenizer.safetensors", other.read_bytes())
    line = pull_refused(pushed)
    assert f"{pushed}/model.safetensors was trained on tokens of tokenizer" in line


@pytest.mark.parametrize("damage", ["flip", "longer", "shorter", "link", "folder", "missing"])
def test_a_file_that_is_not_the_one_listed_is_refused(pushed: Path, damage: str) -> None:
    path = pushed / "metrics.jsonl"
    data = path.read_bytes()
    path.unlink()
    match damage:
        case "flip":
            path.write_bytes(data.replace(b"1", b"2"))
        case "longer":
            path.write_bytes(data + b"\n")
        case "shorter":
            path.write_bytes(data[:-1])
        case "link":
            (pushed / "aside").write_bytes(data)
            path.symlink_to(pushed / "aside")
        case "folder":
            path.mkdir()
    assert f"{path} " in pull_refused(pushed)


def test_a_folder_that_is_a_link_is_not_followed(pushed: Path, tmp_path: Path) -> None:
    shutil.move(pushed / "previews", tmp_path / "elsewhere")
    (pushed / "previews").symlink_to(tmp_path / "elsewhere")
    assert "previews/tokens.parquet is missing, or no file" in pull_refused(pushed)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"format": "mebt-share-2"}, "this version reads 'mebt-share-1'"),
        ({"files": {}}, "lists neither a model nor a tokenizer"),
        ({"files": []}, "is not what `mebt push` writes"),
        ({"license": "<b>"}, "is not what `mebt push` writes"),
        ({"more": 1}, "is not what `mebt push` writes"),
        ({"files": {"run.json": 5}}, "is listed without its bytes and SHA-256"),
        ({"files": {"run.json": {"bytes": True, "sha256": "0" * 64}}}, "without its bytes"),
        ({"files": {"run.json": {"bytes": 1, "sha256": "0"}}}, "without its bytes and SHA-256"),
        ({"files": {"run.json": {"bytes": 1 << 40, "sha256": "0" * 64}}}, "make sense"),
        ({"files": {"run.json": {"bytes": -1, "sha256": "0" * 64}}}, "make sense"),
    ],
)
def test_a_manifest_that_is_none_is_refused(
    pushed: Path, change: dict[str, Any], said: str
) -> None:
    path = pushed / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    assert said in pull_refused(pushed)


def test_a_manifest_without_end_is_not_read(pushed: Path) -> None:
    (pushed / "manifest.json").write_bytes(b" " * (5 * 2**20))
    assert "has more than" in pull_refused(pushed)
    (pushed / "manifest.json").unlink()
    assert "does not exist, so nothing was pushed" in pull_refused(pushed)


def test_the_hub_may_say_less_than_it_sends(
    pushed: Path, hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = content(pushed)
    hub.repositories["me/fish"] = [files]
    listed = hub.model_info("me/fish", files_metadata=True)
    monkeypatch.setattr(hub, "model_info", lambda *_, **__: listed)
    files["model.safetensors"] += b"more"
    line = refused("pull", "--from", HUB, "--out", tmp_path / "x")
    assert f"{HUB}/model.safetensors is damaged" in line


def test_places_keep_apart(made: Flow, pushed: Path, words: list[object]) -> None:
    run = made.root / "run"
    assert "lies inside" in refused(*words, "--out", run / "shared")
    assert "lies inside" in refused("pull", "--from", pushed, "--out", pushed / "x")


def test_the_commands_of_the_page_run(
    made: Flow,
    hub: FakeHub,
    bucket: Bucket,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    url = os.environ["AWS_ENDPOINT_URL"]
    urllib.request.urlopen(urllib.request.Request(f"{url}/bucket", method="PUT"))
    shutil.copytree(made.root / "run", tmp_path / "run")
    shutil.copy(made.root / "params.yaml", tmp_path)
    (tmp_path / "tokenizer-run").mkdir()
    shutil.copy(made.root / "tokenizer.safetensors", tmp_path / "tokenizer-run")
    (tmp_path / "samples/videos").mkdir(parents=True)
    (tmp_path / "samples/videos/sheet.webp").write_bytes(b"RIFF....WEBP")
    (tmp_path / "metrics.json").write_text(json.dumps(METRICS))
    page = dict(sections(ROOT / "docs/sharing.md"))
    assert len(run_section(page["Push"], tmp_path, monkeypatch)) == 4
    lines = run_section(page["Pull"], tmp_path, monkeypatch)
    assert [line for line in lines if line.startswith("mebt pull")] == lines[:1] + lines[3:]
    assert list((tmp_path / "fish-samples/videos").glob("*.mp4"))
