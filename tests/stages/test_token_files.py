"""Ids of other programs by the commands: every form to tokens, a model and samples, and out."""

import io
import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from pipeline.exchange import into_store
from pipeline.store.reader import TokenStore
from pipeline.store.writer import StoreWriter
from stages.__main__ import cli
from tests.helpers.small import Flow, content, write_params
from tests.helpers.token_files import draw_ids, npy, write_folder, write_tar, write_v1, write_v2


def tokens(*words: object) -> Result:
    return CliRunner().invoke(cli, ["tokens", *map(str, words)])


def ok(*words: object) -> str:
    result = tokens(*words)
    assert result.exit_code == 0, result.output
    return result.output


def refused(*words: object, code: int = 1) -> str:
    """Runs a command that must end with one clear line."""
    result = tokens(*words)
    assert result.exit_code == code, result.output
    assert isinstance(result.exception, SystemExit), repr(result.exception)
    (line,) = [line for line in result.output.splitlines() if line.startswith("Error: ")]
    assert len(line) < 700
    return line


def a_video(root: Path) -> list[object]:
    np.save(root / "ids", draw_ids(40, 3, 5))
    return [root / "ids.npy", "--codebook-size", 24, "--frames", 4, "--hop", 2]


def a_folder(root: Path) -> list[object]:
    names = ("a.npy", "walk/b.npy", "walk/c.safetensors")
    write_folder(root / "ids", {name: draw_ids(20, 3, 5) for name in names})
    return [root / "ids", "--codebook-size", 24, "--frames", 4, "--test-share", 0.2]


def two_folders(root: Path) -> list[object]:
    for split in ("train", "test"):
        write_folder(
            root / "ids" / split, {f"{n}.npy": draw_ids(4, 3, 5, seed=n) for n in range(4)}
        )
    return [root / "ids", "--codebook-size", 24]


def some_tars(root: Path) -> list[object]:
    for number in range(2):
        members: dict[str, bytes] = {}
        for key in "abc":
            members |= {f"{key}.json": b"{}", f"{key}.npy": npy(draw_ids(8, 3, 5))}
        write_tar(root / f"ids/{number}.tar", members)
    return [root / "ids", "--codebook-size", 24, "--frames", 4]


def digits(root: Path) -> list[object]:
    write_folder(root / "ids", {f"{n}.npy": draw_ids(9, 3, 5, 3, codes=2) for n in range(4)})
    return [root / "ids", "--levels", "2,3,4", "--frames", 4]


def v1(root: Path) -> list[object]:
    for name in ("ids", "test"):
        write_v1(root / name, [draw_ids(n, 3, 3) for n in (20, 30)])
    return [root / "ids", "--test", root / "test", "--frames", 4, "--stride", 2]


def v2(root: Path) -> list[object]:
    write_v2(root / "ids", [[34, 34], [51]], flat=False, codes=24)
    return [root / "ids", "--codebook-size", 24]  # Else 64,000, which takes a model its time.


FORMS = [a_video, a_folder, two_folders, some_tars, digits, v1, v2]


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
def test_every_form_becomes_tokens_a_model_and_samples(
    form: Callable[[Path], list[object]], tmp_path: Path
) -> None:
    ok("import", *form(tmp_path), "--out", tmp_path / "tokens")
    ok("verify", tmp_path / "tokens")
    assert "tokenizer    unknown: the tokens were imported" in ok("info", tmp_path / "tokens")
    store = TokenStore(tmp_path / "tokens")
    params = ("--params", str(write_params(tmp_path / "params.yaml")))
    small = ("train.max_steps=2", "train.validation_windows=1", "train.batch_size=2")
    small += ("sample.num_samples=2", "sample.draft_steps=1", "sample.revise_rounds=0")
    for stage, *words in (
        ("train", "--tokens", str(store.root), "--out", str(tmp_path / "run")),
        ("sample", "--run", str(tmp_path / "run"), "--out", str(tmp_path / "samples")),
    ):
        section = [word for value in small if value.startswith(stage) for word in ("--set", value)]
        result = CliRunner().invoke(cli, [stage, *words, *params, *section])
        assert result.exit_code == 0, f"{result.output} {result.exception!r}"
    sampled = TokenStore(tmp_path / "samples")
    assert (sampled.grid, sampled.codebook_size) == (store.grid, store.codebook_size)


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
def test_an_import_that_was_killed_goes_on(
    form: Callable[[Path], list[object]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(into_store, "SHARD_WINDOWS", 2)
    words = form(tmp_path)
    ok("import", *words, "--out", tmp_path / "whole")
    write, done = StoreWriter.write_shard, []

    def dies(self: StoreWriter, *args: object) -> None:
        if len(done) == 1:
            raise KeyboardInterrupt
        done.append(write(self, *args))

    with monkeypatch.context() as patch:
        patch.setattr(StoreWriter, "write_shard", dies)
        assert tokens("import", *words, "--out", tmp_path / "cut").exit_code == 1
    assert "is unfinished" in refused("info", tmp_path / "cut")
    ok("import", *words, "--out", tmp_path / "cut")
    assert content(tmp_path / "cut") == content(tmp_path / "whole")


def test_damaged_states_are_named_and_made_again(tmp_path: Path) -> None:
    words = ("import", *v1(tmp_path), "--out", tmp_path / "store")
    ok(*words)
    before = content(tmp_path / "store")
    path = tmp_path / "store/states/train-00000.parquet"
    for damage in (path.read_bytes()[:-9], path.read_bytes().replace(b"j", b"k"), b""):
        path.write_bytes(damage)
        assert str(path) in refused_lines("verify", tmp_path / "store")
        ok(*words)
        assert content(tmp_path / "store") == before
    path.write_bytes((tmp_path / "store/states/test-00000.parquet").read_bytes())
    assert "is not of the rows of its shard" in refused_lines("verify", tmp_path / "store")
    path.unlink()
    assert f"{path} is missing" in refused_lines("verify", tmp_path / "store")
    ok(*words)
    assert content(tmp_path / "store") == before
    ok("export", tmp_path / "store", "--format", "webdataset", "--out", tmp_path / "tars")
    ok("import", tmp_path / "tars", "--out", tmp_path / "back")
    assert content(tmp_path / "back") == before


def refused_lines(*words: object) -> str:
    result = tokens(*words)
    assert result.exit_code == 1, result.output
    return result.output


def test_other_values_or_other_ids_are_another_store(tmp_path: Path) -> None:
    words = a_folder(tmp_path)
    ok("import", *words, "--out", tmp_path / "store")
    assert "extra.hop = 4, not 2" in refused(
        "import", *words, "--hop", 2, "--out", tmp_path / "store"
    )
    np.save(tmp_path / "ids/a.npy", draw_ids(20, 3, 5, seed=1))
    assert "source = " in refused("import", *words, "--out", tmp_path / "store")
    ok("import", *words, "--out", tmp_path / "store", "--overwrite")


def test_1x_and_back_is_the_same_tokens(tmp_path: Path) -> None:
    ok("import", *v1(tmp_path), "--out", tmp_path / "store")
    store = TokenStore(tmp_path / "store")
    export = ("export", tmp_path / "store", "--format", "1x")
    assert refused(*export, "--out", tmp_path / "x", code=2)
    said = ok(*export, "--split", "train", "--out", tmp_path / "x")
    assert "left out" not in said
    assert "window       4 frames, stride 2\n" in ok("info", tmp_path / "store")
    about = json.loads((tmp_path / "x/metadata.json").read_text())
    windows = store.num_windows("train")
    assert about == {
        **{"token_dtype": "uint32", "s": 3, "h": 3, "w": 3, "t": 4, "vocab_size": 24},
        **{"num_images": windows * 4, "hz": 15.0},
    }
    # As their own reader does.
    shape = (about["num_images"], about["s"], about["s"])
    raw = np.memmap(tmp_path / "x/video.bin", np.dtype("uint32"), "r", shape=shape)
    np.testing.assert_array_equal(raw.reshape(windows, 4, 3, 3), store.read("train"))
    ids = np.memmap(tmp_path / "x/segment_ids.bin", np.int32, "r", shape=shape[:1])
    np.testing.assert_array_equal(ids, np.arange(windows).repeat(4))
    ok("import", tmp_path / "x", "--out", tmp_path / "back")
    back = TokenStore(tmp_path / "back")
    np.testing.assert_array_equal(back.read("train"), store.read("train"))
    assert back.states("train", 0).equals(store.states("train", 0))
    assert (back.info.fps, back.codebook_size) == (store.info.fps, 24)
    assert "exists; choose another" in refused(*export, "--split", "train", "--out", tmp_path / "x")


def test_what_1x_cannot_say_is_said(tmp_path: Path) -> None:
    ok("import", *v2(tmp_path), "--out", tmp_path / "store")
    said = ok("export", tmp_path / "store", "--format", "1x", "--out", tmp_path / "x")
    assert "left out the states: they are of 17 frames, not of 3 latent ones" in said
    assert "left out hz" in said
    np.save(tmp_path / "wide.npy", draw_ids(6, 2, 3, 5))
    ok("import", tmp_path / "wide.npy", "--codebook-size", 24, "--out", tmp_path / "wide")
    said = ok("export", tmp_path / "wide", "--format", "1x", "--out", tmp_path / "y")
    assert "left out s: latent frames are 3x5" in said
    ok("import", tmp_path / "y", "--out", tmp_path / "back")
    for name, out in (("store", "x"), ("wide", "y")):
        ok("import", tmp_path / out, "--out", tmp_path / "back", "--overwrite")
        wanted = TokenStore(tmp_path / name).read("train")
        np.testing.assert_array_equal(TokenStore(tmp_path / "back").read("train"), wanted)


def test_keys_of_a_tar_may_lie_in_folders(tmp_path: Path) -> None:
    path, whole = tmp_path / "clips.tar", draw_ids(4, 3, 5)
    with tarfile.open(path, "w") as tar:
        for name, data in (("./", b""), ("./a/", b""), ("./a/1.ids.npy", npy(whole))):
            entry = tarfile.TarInfo(name)
            entry.type = tarfile.REGTYPE if data else tarfile.DIRTYPE
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    ok("import", path, "--codebook-size", 24, "--out", tmp_path / "store")
    store = TokenStore(tmp_path / "store")
    assert store.plan()["video"].to_pylist() == ["clips/a/1"]
    np.testing.assert_array_equal(store.read("train"), whole[None])


def test_what_is_left_out_is_counted(tmp_path: Path) -> None:
    words = some_tars(tmp_path)
    said = ok("import", *words, "--out", tmp_path / "tars")
    assert "left out members beside the ids: 6, first a.json" in said
    names = TokenStore(tmp_path / "tars").plan()["video"].to_pylist()
    assert names[:3] == ["0/a", "0/a", "0/b"]
    words = two_folders(tmp_path / "two")
    (tmp_path / "two/ids/README.md").touch()
    (tmp_path / "two/ids/train/labels.csv").touch()
    said = ok("import", *words, "--frames", 3, "--out", tmp_path / "store")
    assert "left out what is outside of train/ and test/: 1, first README.md" in said
    assert "left out files that hold no ids: 1, first labels.csv" in said
    assert "left out latent frames after the last windows of videos: 4" in said
    members = {"a.npy": npy(draw_ids(8, 3, 5)), "b.txt": b"none", "b.json": b"{}", "c": b""}
    path = write_tar(tmp_path / "some.tar", {**members, "d.npy": npy(draw_ids(8, 3, 5))})
    said = ok("import", path, "--codebook-size", 24, "--out", tmp_path / "some")
    assert "left out members of keys without an .npy: 3, first b.txt\n" in said
    assert "beside the ids" not in said
    assert TokenStore(tmp_path / "some").plan()["video"].to_pylist() == ["some/a", "some/d"]


def wrong(name: str, change: Callable[[Path], object], message: str) -> object:
    return pytest.param(change, message, id=name)


def saved(name: str, array: np.ndarray) -> Callable[[Path], object]:
    return lambda root: np.save(root / name, array, allow_pickle=True)


def tar(**members: bytes) -> Callable[[Path], object]:
    named = {name.replace("__", "."): data for name, data in members.items()}
    return lambda root: (
        [path.unlink() for path in root.iterdir()] + [write_tar(root / "x.tar", named)]
    )


GOOD = npy(draw_ids(9, 3, 5))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        wrong("floats", saved("b.npy", np.zeros((9, 3, 5))), "but holds float64 [9, 3, 5]"),
        wrong("pickled", saved("b.npy", np.array([{}])), "never unpickled"),
        wrong("axes", saved("b.npy", draw_ids(3, 5, 9)), "b.npy has (5, 9) ids a latent frame"),
        wrong("flat", saved("b.npy", draw_ids(135)), "but holds int64 [135]"),
        wrong("batch", saved("b.npy", draw_ids(1, 9, 3, 5)), "Save its only row."),
        wrong("windows", saved("b.npy", draw_ids(2, 9, 3, 5)), "windows a file of their own"),
        wrong("empty", saved("b.npy", draw_ids(0, 3, 5)), "holds no window"),
        wrong("range", saved("b.npy", draw_ids(9, 3, 5, codes=99)), "ids must be 0 … 23"),
        wrong("cut", lambda root: (root / "b.npy").write_bytes(GOOD[:-1]), "b.npy is cut off"),
        wrong("link", lambda root: (root / "b.npy").symlink_to("/etc/hostname"), "leads out of"),
        wrong("folder", lambda root: (root / "b").symlink_to("/etc"), "leads out of"),
        wrong("both", lambda root: write_tar(root / "x.tar", {"a.npy": GOOD}), "holds both x.tar"),
        wrong("none", lambda root: (root / "a.npy").rename(root / "a.txt"), "holds no ids"),
        wrong("path", lambda root: tar(**{"../a.npy": GOOD})(root), "leads out of the tar"),
        wrong("up", lambda root: tar(**{"a/../b.npy": GOOD})(root), "leads out of the tar"),
        wrong("rooted", lambda root: tar(**{"/a.npy": GOOD})(root), "leads out of the tar"),
        wrong("no npy", tar(a__json=b"{}"), "holds no KEY.npy"),
        wrong("two npy", tar(a__npy=GOOD, a__more__npy=GOOD), "its key has 2 .npy"),
        wrong("twice", tar(a__npy=GOOD, b__npy=GOOD, a__ids__npy=GOOD), "its key is there twice"),
        wrong("in tar", tar(a__npy=npy(np.array([{}]))), "x.tar: a.npy is no .npy of numbers"),
        wrong("claim", tar(a__npy=GOOD[:-10]), "x.tar: a.npy is cut off"),
        wrong("no tar", lambda root: [tar()(root), (root / "x.tar").write_bytes(b"?")], "damaged"),
    ],
)
def test_a_folder_that_is_wrong_is_one_clear_line(
    tmp_path: Path, change: Callable[[Path], object], message: str
) -> None:
    write_folder(tmp_path / "ids", {"a.npy": draw_ids(9, 3, 5)})
    change(tmp_path / "ids")
    words = ("--codebook-size", 24, "--frames", 4, "--out", tmp_path / "store")
    assert message in refused("import", tmp_path / "ids", *words)
    assert not (tmp_path / "store").exists()


def test_pipes_and_links_to_nowhere_are_not_read(tmp_path: Path) -> None:
    write_folder(tmp_path / "ids", {"a.npy": draw_ids(9, 3, 5)})
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "ids/b.npy")
    (tmp_path / "ids/c.npy").symlink_to("gone.npy")
    words = ("--codebook-size", 24, "--frames", 4, "--out", tmp_path / "store")
    assert "files that hold no ids: " in ok("import", tmp_path / "ids", *words)


def test_words_that_do_not_fit_are_wrong_usage(tmp_path: Path) -> None:
    folder, out = a_folder(tmp_path)[0], ("--out", tmp_path / "store")
    size = ("--codebook-size", 24)
    assert "give --codebook-size or --levels" in refused("import", folder, *out, code=2)
    for levels in ("8,x", "8,,8", "1,8", "-8", "²"):
        assert refused("import", folder, "--levels", levels, *out, code=2)
    assert refused("import", folder, *size, "--test-share", "nan", *out, code=2)
    assert refused("import", folder, *size, "--hop", 1 << 70, *out, code=2)
    both = (folder, *size, "--test", folder, "--test-share", 0.1)
    assert "--test-share" in refused("import", *both, *out, code=2)
    two = two_folders(tmp_path / "two")
    assert "--test-share" in refused("import", *two, "--test-share", 0.1, *out, code=2)
    (tmp_path / "two/ids/test").rename(tmp_path / "elsewhere")
    (tmp_path / "two/ids/test").symlink_to(tmp_path / "elsewhere")
    assert "leads out of" in refused("import", *two, *out)
    said = refused("import", folder, *size, "--levels", "4,7", *out, code=2)
    assert "give one of --codebook-size and --levels" in said
    write_folder(folder, {"a.npy": draw_ids(7, 3, 5)})
    assert "give --frames" in refused("import", folder, *size, *out)
    np.save(tmp_path / "w.npy", draw_ids(9, 4, 3, 5))
    said = refused("import", tmp_path / "w.npy", *size, "--frames", 4, *out)
    assert "holds windows, one a row" in said
    said = refused("import", tmp_path / "w.npy", *size, "--test", folder, *out)
    assert "grid of" in said
    said = refused("import", folder, *size, "--frames", 4, "--test-share", 0.1, *out)
    assert "no test window fits" in said
    for name, codes in (("a", 24), ("b", 25)):
        write_v1(tmp_path / name, [draw_ids(8, 3, 3)], vocab_size=codes)
    said = refused("import", tmp_path / "a", "--test", tmp_path / "b", *out)
    assert "codebooks of 24 and 25 are meant, not of one" in said
    assert not (tmp_path / "store").exists()


def test_the_axes_are_said_as_they_were_read(made: Flow, tmp_path: Path) -> None:
    np.save(tmp_path / "ids.npy", draw_ids(6, 3, 5, 2))
    words = ("import", tmp_path / "ids.npy", "--out", tmp_path / "out")
    said = ok(*words, "--codebook-size", 24)
    assert "out: 6 train windows of 3 latent frames of 5x2 tokens, codebook 24\n" in said
    assert "is decoded as" not in said
    tokenizer = ("--tokenizer", made.root / "tokenizer.safetensors")  # Of 2x4x4 pixels a token.
    said = ok(*words, *tokenizer, "--overwrite")
    assert said.endswith("a window is decoded as 6 frames of 20x8 pixels\n")
    np.save(tmp_path / "ids.npy", draw_ids(6, 3, 2, 1025))
    said = refused(*words[:2], *tokenizer, "--out", tmp_path / "none")
    assert "has 2x1025 tokens a latent frame, which its tokenizer cannot decode: " in said
    assert "at most 4096, got (8, 4100). The axes must be [N, t, h, w]." in said
    assert not (tmp_path / "none").exists()


def test_ids_whose_tokenizer_is_named_are_decoded(made: Flow, tmp_path: Path) -> None:
    tokenizer = made.root / "tokenizer.safetensors"
    ok("export", made.root / "samples", "--out", tmp_path / "ids.npy")
    ok("import", tmp_path / "ids.npy", "--tokenizer", tokenizer, "--out", tmp_path / "again")
    here, there = (TokenStore(root).info for root in (tmp_path / "again", made.root / "samples"))
    keys = ("tokenizer", "codebook_size", "grid", "frames", "size")
    assert all(getattr(here, key) == getattr(there, key) for key in keys)
    for out, store in (("one", tmp_path / "again"), ("two", made.root / "samples")):
        words = ["decode", "--tokens", store, "--tokenizer", tokenizer, "--out", tmp_path / out]
        result = CliRunner().invoke(cli, [*map(str, words), "--set", "decode.fps=8"])
        assert result.exit_code == 0, result.output
    one, two = (sorted((tmp_path / out).glob("*.mp4")) for out in ("one", "two"))
    assert len(one) == 34
    assert [path.read_bytes() for path in one] == [path.read_bytes() for path in two]


def test_a_tokenizer_that_did_not_make_the_ids_is_refused(made: Flow, tmp_path: Path) -> None:
    tokenizer = made.root / "tokenizer.safetensors"
    np.save(tmp_path / "ids.npy", draw_ids(8, 2, 3, 4))
    words = ["import", tmp_path / "ids.npy", "--tokenizer", tokenizer, "--out", tmp_path / "out"]
    assert "codebooks of 24 and 25 are meant" in refused(*words, "--codebook-size", 25)
    write_v2(tmp_path / "v2", [[34]])
    words[1] = tmp_path / "v2"
    assert "codebooks of 24 and 64000 are meant" in refused(*words)
    words = [*words, "--codebook-size", 24]
    assert "of 1 pieces of 17 frames; its tokenizer decodes 3 latent frames as 6" in refused(*words)
    assert not (tmp_path / "out").exists()
