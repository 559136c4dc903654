"""Tars from anywhere: what they hold is read where it lies, or refused by name."""

import io
import json
import tarfile
import tracemalloc
from pathlib import Path

import pytest
from PIL import Image

from pipeline.errors import FrameError
from pipeline.frames.images import read_frames
from pipeline.frames.listing import source_fingerprint
from pipeline.frames.scan import scan_frames
from pipeline.storage import tars
from pipeline.storage.tars import add, new_tar, read_samples

PNG = io.BytesIO()
Image.new("RGB", (8, 8), (3, 60, 90)).save(PNG, "PNG")
ABOUT = {"split": "train", "frames": ["train/a/a_0.png", "train/a/a_1.png"]}


def clip(path: Path, about: object = None, key: str = "0001", frames: int = 2) -> Path:
    with new_tar(path) as tar:
        add(tar, key, "json", json.dumps(about or ABOUT).encode())
        for number in range(frames):
            add(tar, key, f"{number:05d}.png", PNG.getvalue())
    return path


def entry(name: str, **fields: object) -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    for field, value in fields.items():
        setattr(made, field, value)
    return made


def test_a_clip_is_a_video_like_that_of_a_folder(tmp_path: Path) -> None:
    clip(tmp_path / "tars" / "x.tar")
    for name in ABOUT["frames"]:
        path = tmp_path / "folder" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(PNG.getvalue())
    found, there = scan_frames(tmp_path / "tars"), scan_frames(tmp_path / "folder")
    (video,) = found.videos
    assert (video.name, video.split, len(video.frames)) == ("train/a", "train", 2)
    assert there.videos[0].name == video.name
    assert (found.num_files, found.rejected) == (2, [])
    one, two = (source_fingerprint(x.videos, tmp_path) for x in (found, there))
    assert one == two
    assert read_frames(video.frames, size=4)[1, 2, 3].tolist() == [3, 60, 90]


def test_gaps_and_what_is_no_frame_are_accounted_for(tmp_path: Path) -> None:
    names = ["a_1.png", "a_2.png", "a_4.png", "notes.txt", "a_2.png"]
    clip(tmp_path / "x.tar", {"split": "test", "frames": names}, frames=5)
    (tmp_path / "b_1.png").write_bytes(PNG.getvalue())
    (tmp_path / "y.tar").symlink_to("gone.tar")
    found = scan_frames(tmp_path)
    assert [(v.name, v.split, len(v.frames)) for v in found.videos] == [
        ("a", "test", 2),
        ("a#2", "test", 1),
    ]
    assert found.num_files == 7
    reasons = sorted(rejected.reason for rejected in found.rejected)
    assert reasons == [
        "a link that leads nowhere",
        "another file has frame number 2",
        "beside tars, which are read instead",
        "no image by its extension",
    ]


@pytest.mark.parametrize("inside", ["v/0.png", "0001.png", None])
def test_images_beside_the_tar_that_they_were_unpacked_from_are_read(
    tmp_path: Path, inside: str | None
) -> None:
    with tarfile.open(tmp_path / "dataset.tar", "w") as tar:
        if inside:
            made = entry(inside, size=len(PNG.getvalue()))
            tar.addfile(made, io.BytesIO(PNG.getvalue()))
    for number in range(2):
        path = tmp_path / "train" / "v" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(PNG.getvalue())
    found = scan_frames(tmp_path)
    assert [(v.name, len(v.frames)) for v in found.videos] == [("train/v", 2)]
    assert found.num_files == 3
    (rejected,) = found.rejected
    assert rejected.name == str(tmp_path / "dataset.tar")
    assert ("no .json beside it" if inside else "holds no clip") in rejected.reason


def test_a_tar_that_begins_with_a_clip_is_not_given_up_for_images(tmp_path: Path) -> None:
    (tmp_path / "cover_1.png").write_bytes(PNG.getvalue())
    clips = b"".join(
        clip(tmp_path / "x.tar", key=key).read_bytes()[:3072] for key in ("0001", "0002")
    )
    bad = entry("../0002.png").tobuf(tarfile.GNU_FORMAT)
    (tmp_path / "x.tar").write_bytes(clips + bad + bytes(1024))
    with pytest.raises(FrameError, match=r"0002\.png' leads out of the tar"):
        scan_frames(tmp_path)
    clip(tmp_path / "x.tar")
    (tmp_path / "a.tar").write_bytes(b"no tar" * 100)
    with pytest.raises(FrameError, match=r"a\.tar is damaged, or no uncompressed tar"):
        scan_frames(tmp_path)


@pytest.mark.parametrize(
    ("about", "message"),
    [
        ({"split": "train", "frames": ["../a_0.png", "a_1.png"]}, "leads out of the folder"),
        ({"split": "train", "frames": ["/a_0.png", "a_1.png"]}, "leads out of the folder"),
        ({"split": "train", "frames": [1, 2]}, "leads out of the folder"),
        ({"split": "train", "frames": ["a_0.png"]}, "names 1 frames, but there are 2"),
        ({"split": "valid", "frames": []}, "names no split of train, test"),
        ({"split": ["train"], "frames": []}, "names no split of train, test"),
        ({"split": "train", "frames": 3}, "or no frames"),
        ([1], "is not the JSON of a clip"),
    ],
)
def test_a_clip_that_lies_is_refused_by_name(tmp_path: Path, about: object, message: str) -> None:
    clip(tmp_path / "x.tar", about)
    with pytest.raises(FrameError, match=message) as error:
        scan_frames(tmp_path)
    assert str(error.value).startswith(f"{tmp_path / 'x.tar'}: 0001.json")


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (entry("../../0001.png"), r"\.\./\.\./0001\.png' leads out of the tar"),
        (entry("/etc/0001.png"), r"/etc/0001\.png' leads out of the tar"),
        (entry("train/0001.png"), "train/0001.png belongs to no clip"),
        (entry("0001.ü"), "is no name of a frame"),
        (entry("0001.__key__"), "that webdataset keeps for itself"),
        (entry("0001.png", type=tarfile.SYMTYPE, linkname="/etc/passwd"), "is no plain file"),
        (entry("0001.png", type=tarfile.LNKTYPE, linkname="0001.json"), "is no plain file"),
        (entry("0001.png", type=tarfile.CHRTYPE), "is no plain file"),
        (entry("0001.png", size=1 << 40), "claims bytes that the tar does not have|is damaged"),
        (entry("0001.png", size=-1024), "claims bytes that the tar does not have|is damaged"),
        (entry("0001.json"), "is there twice"),
        (entry("0002.png"), "belongs to no clip"),
    ],
    ids=lambda value: value.name if isinstance(value, tarfile.TarInfo) else "",
)
@pytest.mark.timeout(20)
def test_members_that_lead_elsewhere_are_refused_by_name(
    tmp_path: Path, made: tarfile.TarInfo, message: str
) -> None:
    path = clip(tmp_path / "x.tar")
    data = path.read_bytes().rstrip(b"\0")
    data += b"\0" * (-len(data) % 512) + made.tobuf(tarfile.GNU_FORMAT) + b"\0" * 1024
    path.write_bytes(data)
    with pytest.raises(FrameError, match=message) as error:
        scan_frames(tmp_path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    "data", [b"", b"no tar", b"\0" * 512, b"\x1f\x8b" + b"\0" * 600, b"x" * 5000]
)
def test_what_is_no_tar_is_one_clear_line(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "x.tar").write_bytes(data)
    with pytest.raises(FrameError, match=r"no uncompressed tar|holds no video") as error:
        scan_frames(tmp_path)
    assert "\n" not in str(error.value)


def test_a_tar_of_names_within_names_ends(tmp_path: Path) -> None:
    nested = b"".join(
        entry("././@LongLink", type=tarfile.GNUTYPE_LONGNAME, size=0).tobuf(tarfile.GNU_FORMAT)
        for _ in range(3000)
    )
    (tmp_path / "x.tar").write_bytes(nested + b"\0" * 1024)
    with pytest.raises(FrameError, match=r"x\.tar is damaged, or no uncompressed tar"):
        scan_frames(tmp_path)


def long_name(kind: bytes = tarfile.GNUTYPE_LONGNAME, size: int = 20_000) -> bytes:
    about = entry("././@LongLink", type=kind, size=size)
    return about.tobuf(tarfile.GNU_FORMAT) + b"a" * size + bytes(-size % 512)


def pax(kind: bytes = tarfile.XHDTYPE) -> bytes:
    record = b"20000 comment=" + b"x" * 19_985 + b"\n"
    about = entry("pax", type=kind, size=len(record)).tobuf(tarfile.USTAR_FORMAT)
    return about + record + bytes(-len(record) % 512)


def sparse() -> bytes:
    """Holes that go on from block to block."""
    head = bytearray(entry("a", type=tarfile.GNUTYPE_SPARSE).tobuf(tarfile.GNU_FORMAT))
    head[482], head[148:156] = 1, b"        "
    head[148:156] = b"%06o\0 " % sum(head)
    return bytes(head) + (bytes(504) + b"\1" + bytes(7)) * 40


@pytest.mark.parametrize(
    "header",
    [
        *(long_name(), long_name(tarfile.GNUTYPE_LONGLINK), long_name(size=2000) * 4),
        *(pax(), pax(tarfile.XGLTYPE), sparse()),
    ],
    ids=["name", "link", "names", "pax", "pax of all", "sparse"],
)
def test_long_headers_are_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, header: bytes
) -> None:
    monkeypatch.setattr(tars, "MAX_HEADER_BYTES", 8192)
    path = clip(tmp_path / "x.tar")
    path.write_bytes(header + path.read_bytes())
    with pytest.raises(FrameError, match=r"x\.tar is .*: a header claims more than 8,192 bytes\."):
        scan_frames(tmp_path)


def test_headers_are_not_kept(tmp_path: Path) -> None:
    of_all = (tarfile.TarInfo.create_pax_global_header({f"x{n}": "x" * 20_000}) for n in range(99))
    of_one = entry("", pax_headers={"comment": "x" * 20_000})
    members = (of_one.replace(name=f"{n}.txt").tobuf(tarfile.PAX_FORMAT) for n in range(99))
    data = b"".join(header for pair in zip(of_all, members, strict=True) for header in pair)
    (tmp_path / "x.tar").write_bytes(data + bytes(1024))
    del data
    tracemalloc.start()
    try:
        assert sum(1 for _ in read_samples(tmp_path / "x.tar", FrameError)) == 99
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_large_claims_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clip(tmp_path / "x.tar")
    monkeypatch.setattr(tars, "MAX_TEXT_BYTES", 10)
    with pytest.raises(FrameError, match=r"0001\.json claims .* bytes, too many"):
        scan_frames(tmp_path)


def test_a_tar_that_became_shorter_is_named(tmp_path: Path) -> None:
    path = clip(tmp_path / "x.tar")
    (video,) = scan_frames(tmp_path).videos
    path.write_bytes(path.read_bytes()[:1100])
    with pytest.raises(FrameError, match=r"x\.tar: 0001\.00000\.png .* is not a readable image"):
        read_frames(video.frames, size=8)


def test_the_same_makes_the_same_bytes(tmp_path: Path) -> None:
    one, two = clip(tmp_path / "1.tar"), clip(tmp_path / "2.tar")
    assert one.read_bytes() == two.read_bytes()
    ((key, sample),) = read_samples(one, FrameError)
    assert key == "0001"
    assert [*sample] == ["json", "00000.png", "00001.png"]
    with tarfile.open(one) as tar:
        assert {(m.mtime, m.uid, m.gid, m.uname, m.gname) for m in tar} == {(0, 0, 0, "", "")}
