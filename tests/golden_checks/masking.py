"""Mask schedules, context/target splits and clip lengths of the published code."""

from pathlib import Path

import torch

from mebt.draft_revise import CONFIDENCE_SCHEDULES
from mebt.masking import SCHEDULES, length_probabilities, num_masked, split_positions
from tests.golden_checks.recipe import load_case

TIME_SCALES = {"gaussian2": 30_000.0, "gaussian100000_2": 100_000.0}


def check_schedules(case: Path) -> None:
    meta, io = load_case(case)
    assert set(meta["formulas"]) == set(SCHEDULES) - {"root"}  # Ours, for sampling.
    for name in meta["formulas"]:
        ratios = SCHEDULES[name](io["t"].float())
        torch.testing.assert_close(ratios, io[f"{name}.ratio"], atol=1e-7, rtol=1e-6)
        for key, expected in io.items():
            schedule, _, rest = key.partition(".n_masked_")
            if schedule == name and not key.endswith("_INFO"):
                counts = [num_masked(name, t, int(rest)) for t in io["t"].tolist()]
                assert counts == expected.tolist(), key
    steps = meta["ctemp_schedule_n8"]
    for name, factor in CONFIDENCE_SCHEDULES.items():
        found = torch.tensor([factor(i / 8) for i in range(1, 9)])
        torch.testing.assert_close(found, torch.tensor(steps[name]), atol=1e-12, rtol=1e-6)


def check_splits(case: Path) -> None:
    """Where the published code masks nothing (t = 1) it has a fault; ours keeps one target."""
    meta, io = load_case(case)
    for entry in meta["cases"]:
        t, h, w = entry["shape"]
        length = entry["T"] or t
        total = length * h * w
        order = io["x".join(map(str, entry["shape"])) + ".indices"]
        split = split_positions(
            order,
            num_masked=num_masked(entry["schedule"], entry["t"], total),
            budget=entry["budget"],
            frames=(entry["start_t"], length) if entry["training"] else None,
            tokens_per_frame=h * w,
        )
        assert split.num_tokens == entry["seq_len"]
        assert split.num_masked == entry["n_masked"], entry["key"]
        assert torch.equal(split.context, io[f"{entry['key']}.context"]), entry["key"]
        assert torch.equal(split.targets, io[f"{entry['key']}.target"]), entry["key"]
    nothing = split_positions(torch.arange(32)[None], num_masked=meta["bug_t1"]["n_masked"])
    assert nothing.targets.tolist() == [[31]]
    assert nothing.context.tolist() == [list(range(31))]


def check_length_prior(case: Path) -> None:
    _, io = load_case(case)
    for key, expected in io.items():
        name, _, step = key.partition(".")
        found = length_probabilities(
            int(step),
            len(expected),
            prior="gaussian" if name in TIME_SCALES else name,  # type: ignore[arg-type]
            time_scale=TIME_SCALES.get(name, 1.0),
        )
        torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-9)
    late = length_probabilities(20_000_000, 32, prior="gaussian", time_scale=30_000.0)
    assert torch.isfinite(late).all()  # The published weights are all zero here.
    assert late.argmax() == 31


CHECKS = {
    "mask schedules": check_schedules,
    "divide_indices": check_splits,
    "length prior": check_length_prior,
}
