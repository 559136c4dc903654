import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from pipeline.evaluation.copying import SHARES
from pipeline.frames.tars import Rejected
from pipeline.report.artefacts import Artefact
from pipeline.report.clips import NearestPair, Pair
from pipeline.report.curves import by_mask_ratio
from pipeline.report.meanings import MEANINGS
from pipeline.report.report import SHOWN_REJECTS, Contents, make_report

COPYING = {
    "flagged": True,
    "chance": 1e-5,
    "near": 0.25,
    "near_copies": {"samples": 3, "real": 1},
    "windows_copied": 2,
    "distances": {"samples": [0.0, 0.0, 0.1, 0.6], "real": [0.2, 0.5, 0.5, 0.5, 0.7]},
}
HOSTILE = "<script>alert('x')</script><img src=x onerror=alert(1)>\"'&"
METRICS = {
    "psnr": 33.5,
    "psnr_mean_frame": 31.3,
    "token_loss_mask_10": 1.5,
    "token_loss_mask_50": 2.25,
    "token_loss_mask_100": 4.0,
    "token_accuracy_mask_50": 0.4,
    "token_loss_uniform": 6.24,
    "frechet_real": 0.02,
    "frechet_reconstructions": 0.1,
    "frechet_samples": 0.4,
    "kernel_real": -0.001,
    "kernel_samples": 0.002,
}
EVALUATION = {
    "metrics": METRICS,
    "protocol": {"num_videos": 17, "identities": {"tokens": "abc"}, "mask_ratios": [0.1, 0.5]},
    "not_computed": {"fvd": "needs the I3D network"},
}


class Reader(HTMLParser):
    """Collects elements and text, and checks that every element is closed in order."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(page)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in ("img", "link", "meta", "source"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def clip(level: int, *, frames: int = 3, size: int = 16) -> np.ndarray:
    steps = np.arange(frames, dtype=np.uint8)[:, None, None, None] * 40
    return np.broadcast_to(steps + np.uint8(level), (frames, size, size, 3)).copy()


def pictures(page: str) -> list[Image.Image]:
    data = re.findall(r'<img src="data:image/webp;base64,([^"]*)"', page)
    return [Image.open(io.BytesIO(base64.b64decode(part))) for part in data]


@pytest.fixture(scope="module")
def full() -> str:
    log = [{"step": step, "loss": 6 / step, "loss/mask_00_20": 3 / step} for step in range(1, 50)]
    log += [{"step": 25, "val_loss": 3.0}, {"step": 26, "loss": None}]
    return make_report(
        Contents(
            lede=HOSTILE,
            samples=[clip(0), clip(50), clip(100)],
            pairs=[pair(HOSTILE)],
            evaluation=EVALUATION,
            training_log=log,
            codebook_size=512,
            tokenizer_log=[{"step": 1, "psnr": 20.0, "psnr_mean_frame": 19.0, "codebook_use": 0.5}],
            artefacts=[Artefact(name="Tokens", about=HOSTILE, facts=[("grid", "4x8x8")])],
            rejected=[Rejected(f"{HOSTILE} {i}", "still") for i in range(SHOWN_REJECTS + 1234)],
            params=f"extract:\n  size: 64  # {HOSTILE}\n",
        )
    )


def test_page_is_well_formed(full):
    assert not Reader(full).open


def test_nothing_is_fetched_and_nothing_runs(full):
    reader = Reader(full)
    for tag, attributes in reader.elements:
        assert tag not in ("script", "iframe", "object", "embed", "link", "form", "base")
        assert not any(name.startswith("on") for name in attributes)
        for name in {"src", "srcset", "href"} & attributes.keys():
            assert attributes[name].startswith("data:image/webp;base64,")
    assert not re.search(r"url\(|@import|https?:", full)
    policies = [a["content"] for tag, a in reader.elements if "content" in a and "http-equiv" in a]
    assert policies == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]


def test_hostile_names_are_shown_as_text(full):
    assert "<script" not in full
    assert Reader(full).text.count("<script>alert('x')</script>") == 3 + SHOWN_REJECTS


def pair(name: str) -> Pair:
    return Pair(name=name, real=clip(10), reconstruction=clip(20))


NAMED_BY_OTHERS = {
    "video": {"pairs": [pair(HOSTILE)]},
    "split": {"pairs": [pair("a")], "pairs_split": HOSTILE},
    "nearest video": {
        "evaluation": {"copying": COPYING},
        "nearest": [NearestPair(name=HOSTILE, sample=clip(0), training=clip(9), distance=0.5)],
    },
    "why it is not known": {
        "evaluation": {"copying": {"flagged": None}, "not_computed": {SHARES[0]: HOSTILE}}
    },
    "key of a metric": {"evaluation": {"metrics": {HOSTILE: 1.0}}},
    "value of the protocol": {
        "evaluation": {"metrics": {"psnr": 1.0}, "protocol": {"how": HOSTILE}}
    },
    "key of the protocol": {"evaluation": {"metrics": {"psnr": 1.0}, "protocol": {HOSTILE: [1]}}},
    "number of videos": {"evaluation": EVALUATION | {"protocol": {"num_videos": HOSTILE}}},
    "reason": {"evaluation": {"metrics": {"psnr": 1.0}, "not_computed": {"fvd": HOSTILE}}},
    "artefact": {"artefacts": [Artefact(name=HOSTILE, about="")]},
    "about": {"artefacts": [Artefact(name="a", about=HOSTILE)]},
    "fact": {"artefacts": [Artefact(name="a", about="", facts=[(HOSTILE, "1")])]},
    "value": {"artefacts": [Artefact(name="a", about="", facts=[("run", HOSTILE)])]},
    "identity": {"artefacts": [Artefact(name="a", about="", identity=HOSTILE)]},
    "reject": {"artefacts": [Artefact(name="a", about="")], "rejected": [Rejected(HOSTILE, "b")]},
    "params": {"params": HOSTILE},
}


@pytest.mark.parametrize("place", NAMED_BY_OTHERS)
def test_what_others_named_is_text_wherever_it_stands(place):
    reader = Reader(make_report(Contents(lede="", **NAMED_BY_OTHERS[place])))
    values = [value for _, attributes in reader.elements for value in attributes.values()]
    assert any(HOSTILE in text for text in (reader.text, *values))
    assert "script" not in {tag for tag, _ in reader.elements}
    assert "onerror" not in {name for _, attributes in reader.elements for name in attributes}


def test_clips_move_side_by_side_in_one_picture(full):
    strip, *others = pictures(full)
    assert strip.size == (3 * 16, 16)
    assert strip.n_frames == 3
    strip.seek(2)
    pixels = np.asarray(strip.convert("RGB"))
    for place, level in ((8, 10), (24, 20), (40, 0)):
        assert abs(int(pixels[8, place, 0]) - (level + 80)) < 6
    assert [picture.size for picture in others] == [(16, 16)] * 2


def test_a_reader_who_wants_less_motion_sees_first_frames(full):
    stills = re.findall(r'<source srcset="data:image/webp;base64,([^"]*)" media="([^"]*)"', full)
    assert len(stills) == 3
    for data, media in stills:
        assert media == "(prefers-reduced-motion: reduce)"
        assert Image.open(io.BytesIO(base64.b64decode(data))).n_frames == 1


def test_samples_of_another_length_stand_apart():
    contents = Contents(
        lede="",
        samples=[clip(0, frames=5)],
        pairs=[pair("a")],
    )
    assert [picture.size for picture in pictures(make_report(contents))] == [(32, 16), (16, 16)]


def test_each_seed_has_a_row_in_which_steps_follow_one_another():
    previews = {1000: [clip(100), clip(140)], 0: [clip(0), clip(40)], 500: [clip(50), clip(90)]}
    page = make_report(Contents(lede="", previews=previews))
    rows = pictures(page)
    assert [row.size for row in rows] == [(3 * 16, 16)] * 2
    for row, first in zip(rows, (0, 40), strict=True):
        row.seek(2)
        pixels = np.asarray(row.convert("RGB"))[8, [8, 24, 40], 0].astype(int)
        assert np.abs(pixels - [first + 80, first + 130, first + 180]).max() < 6
    assert "step 0 500 1,000" in Reader(page).text
    assert 'style="--columns:3"' in page


def test_numbers_come_with_what_they_are_compared_with(full):
    text = Reader(full).text
    assert "33.5 dB" in text
    assert "A still picture of each clip has 31.3." in text
    assert "2.25 nat Loss on held-out videos of which 50% are hidden." in text
    assert "A blind guess has 6.24." in text
    assert "from the same 17 real videos" in text
    assert "other real videos 0.020 reconstructions 0.100 new videos 0.400" in text
    assert "other real videos −0.00100 new videos 0.00200" in text  # noqa: RUF001
    assert "fvd needs the I3D network" in text
    assert "identities tokens abc" in text
    assert "mask ratios 0.1, 0.5" in text


def test_bars_are_as_long_as_their_numbers(full):
    widths = re.findall(r'style="width:([\d.]+)%"', full)
    assert list(map(float, widths)) == [5, 25, 100, 0, 100]


def test_every_number_in_the_table_has_its_sentence():
    metrics = dict.fromkeys(MEANINGS, 0.5)
    text = Reader(make_report(Contents(lede="", evaluation={"metrics": metrics}))).text
    for name, unit, meaning in MEANINGS.values():
        shown = "50%" if unit == "%" else f"0.5 {unit}".rstrip()
        assert f"{name} {shown} {meaning}" in text


def test_a_number_that_is_not_known_yet_is_still_shown():
    text = Reader(make_report(Contents(lede="", evaluation={"metrics": {"fvd": 438.0}}))).text
    assert "fvd 438" in text


def test_long_videos_have_their_distance_drawn_along_them():
    metrics = {"frechet_samples": 1.0, "frechet_samples_at_0": 0.5, "frechet_samples_at_16": 2.0}
    reader = Reader(make_report(Contents(lede="", evaluation={"metrics": metrics})))
    assert "Fréchet distance along the video" in reader.text
    assert "FVD along the video" not in reader.text
    assert "frechet_" not in reader.text


def test_fvd_is_shown_as_bars_along_the_video_and_with_its_spread():
    metrics = {"fvd_real": 40.0, "fvd_samples": 438.0, "fvd_samples_std": 3.5, "kvd_samples": 2.0}
    metrics |= {"fvd_samples_at_0": 100.0, "fvd_samples_at_16": 200.0, "fvd_samples_at_16_std": 1.0}
    page = make_report(Contents(lede="", evaluation={"metrics": metrics}))
    text = Reader(page).text
    assert "438 FVD of new videos from real ones. Real ones from one another: 40." in text
    assert "other real videos 40 new videos 438" in text
    assert "Spread of FVD, new videos 3.5 Standard deviation" in text
    assert "Spread of FVD, new videos, from frame 16 1 Standard deviation" in text
    assert "new videos: 200 at 16" in page
    assert "fvd_" not in text


def test_copying_is_said_in_a_sentence_drawn_and_shown():
    nearest = [
        NearestPair(name=HOSTILE, sample=clip(0), training=clip(0), distance=0.0),
        NearestPair(name="b", sample=clip(0), training=clip(51), distance=0.125),
    ]
    page = make_report(Contents(lede="", evaluation={"copying": COPYING}, nearest=nearest))
    text = Reader(page).text
    assert (
        "Is it copying? It copies: 3 of 4 new videos (75%) and 1 of 5 held-out real ones (20%) are "
        "near copies of training clips; different clips copied: 2."
    ) in text
    assert "new training: 0% of tokens differ, the same pictures" in text
    assert "new training: 12% of tokens differ, PSNR 14.0 dB" in text  # A fifth of 255.
    names = set(re.findall(r'class="name [^"]*">([^<]*)<', page))
    assert names == {"new videos", "held-out real ones", "near copies"}
    assert [picture.size for picture in pictures(page)] == [(32, 16)] * 2


def test_too_few_to_tell_copies_are_said_to_be():
    evaluation = {
        "copying": {"flagged": None, "distances": {"samples": [0.5], "real": [0.5]}},
        "not_computed": {"copying_z": "1 samples and 1 held-out windows are too few"},
    }
    text = Reader(make_report(Contents(lede="", evaluation=evaluation))).text
    assert "is not known: 1 samples and 1 held-out windows are too few." in text
    assert "near copies" not in text.partition("In tokens that differ")[2]


def test_numbers_at_mask_ratios_are_ordered_by_ratio():
    assert by_mask_ratio(METRICS, "loss") == [(0.1, 1.5), (0.5, 2.25), (1.0, 4.0)]
    assert by_mask_ratio(METRICS, "accuracy") == [(0.5, 0.4)]


def test_curves_are_named(full):
    names = set(re.findall(r'class="name [^"]*">([^<]*)<', full))
    assert names == {"training", "held out", "blind guess", "0–20%", "mean frame"}  # noqa: RUF001


def test_rejects_beyond_the_first_are_counted(full):
    assert "Rejected: 1,274" in Reader(full).text
    assert "1,234 more" in Reader(full).text


def test_what_is_not_given_leaves_no_empty_section():
    text = Reader(make_report(Contents(lede="Nothing yet."))).text
    assert text == "Videos, tokens, new videos mebt report Videos, tokens, new videos Nothing yet."


def test_same_contents_same_page():
    contents = Contents(lede="x", samples=[clip(0)], evaluation=EVALUATION)
    assert make_report(contents) == make_report(contents)
