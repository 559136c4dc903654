"""One published training step of the VQGAN with its discriminators."""

import argparse
import re
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.golden_checks.recipe import load_case
from tokenizer import VQGAN
from tokenizer.adversarial import gan_losses
from tokenizer.discriminator import Discriminator
from tokenizer.losses import (
    discriminator_loss,
    drawn_frames,
    feature_matching_loss,
    generator_loss,
    reconstruction_loss,
)
from tokenizer.published import config_from_args, convert_state

PUBLISHED_NAMES = {"embeddings": "embeddings", "N": "counts"}


def discriminator_state(state: Mapping[str, Tensor], which: str) -> dict[str, Tensor]:
    """Returns the tensors of our `Discriminator`; `which` is `image` or `video`."""
    start = rf"{which}_discriminator\.model(\d+)\."
    return {re.sub(start, r"layers.\1.", k): v for k, v in state.items() if re.match(start, k)}


def starting_with(tensors: dict[str, Tensor], start: str) -> dict[str, Tensor]:
    return {k.removeprefix(start): v for k, v in tensors.items() if k.startswith(start)}


def load_models(case: Path, weights: str) -> tuple[VQGAN, dict[str, Discriminator]]:
    """Reads the checkpoint of the neighbouring case that the meta names."""
    path = case.parent / weights.partition(" ")[0].rpartition("/")[2] / weights.split()[-1]
    with torch.serialization.safe_globals([argparse.Namespace]):
        checkpoint = torch.load(path, weights_only=True)
    args, state = vars(checkpoint["hyper_parameters"]["args"]), checkpoint["state_dict"]
    model = VQGAN(config_from_args(args))
    model.load_state_dict(convert_state(state)[0], strict=False)
    model.codebook.initialized.fill_(True)
    assert args["no_random_restart"]
    judges = {}
    for which, axes in (("image", 2), ("video", 3)):
        judges[which] = Discriminator(
            axes,
            in_channels=model.config.in_channels,
            width=args["disc_channels"],
            num_layers=args["disc_layers"],
        )
        judges[which].load_state_dict(discriminator_state(state, which))
    return model, judges


def assert_all_near(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """To rounding: a bias in front of a batch norm has no gradient but that of rounding."""
    assert expected and expected.keys() <= actual.keys()
    largest = max(tensor.abs().max().item() for tensor in expected.values())
    for name, tensor in expected.items():
        atol = 1e-4 * tensor.abs().max().item() + 1e-5 * largest
        torch.testing.assert_close(actual[name], tensor, atol=atol, rtol=1e-3)


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def check_step(case: Path) -> None:
    meta, io = load_case(case)
    hparams, video = meta["hparams"], io["video"]
    assert hparams["perceptual_weight"] == 0
    for kind, expected in meta["results"].items():
        model, judges = load_models(case, meta["weights"])
        logs = expected["logs"]
        found = model(video)
        seen = {
            "image": (
                drawn_frames(found.reconstruction, io["frame_idx"]),
                drawn_frames(video, io["frame_idx"]),
            ),
            "video": (found.reconstruction, video),
        }
        likeness = hparams["l1_weight"] * reconstruction_loss(found.reconstruction, video)
        assert likeness.item() == pytest.approx(logs["train/recon_loss"], rel=1e-5)
        assert found.commitment_loss.item() == pytest.approx(
            logs["train/commitment_loss"], rel=1e-4
        )
        assert found.perplexity.item() == pytest.approx(logs["train/perplexity"], rel=1e-5)
        total = likeness + found.commitment_loss
        for which, (fake, real) in seen.items():
            scores, features = judges[which](fake)
            _, real_features = judges[which](real)
            fooled = generator_loss(scores)
            matched = feature_matching_loss(features, real_features)
            losses = gan_losses(deepcopy(judges[which]), real, fake, kind=kind)
            assert (losses.generator.item(), losses.feature_matching.item()) == pytest.approx(
                (fooled.item(), matched.item()), rel=1e-5, abs=1e-6
            )
            assert fooled.item() == pytest.approx(logs[f"train/g_{which}_loss"], rel=1e-4, abs=1e-6)
            assert matched.item() == pytest.approx(logs[f"train/{which}_gan_feat_loss"], rel=1e-4)
            weight = hparams[f"{which}_gan_weight"] * fooled
            total = total + hparams["disc_factor"] * (weight + hparams["gan_feat_weight"] * matched)
        assert total.item() == pytest.approx(expected["generator_loss"], rel=1e-5)
        total.backward()
        codebook = {k: getattr(model.codebook, v) for k, v in PUBLISHED_NAMES.items()}
        assert_all_near(gradients(model), convert_state(starting_with(io, "grad_gen."))[0])
        assert_all_near(codebook, starting_with(io, "codebook_after_gen."))
        check_judges(model, judges, meta, io, kind=kind)
        assert_all_near(codebook, starting_with(io, "codebook_after_disc."))
        after = starting_with(io, "buffers_after_both.")
        for which, judge in judges.items():
            assert_all_near(dict(judge.named_buffers()), discriminator_state(after, which))
        ours = {k: v for k, v in after.items() if "discriminator" not in k}
        assert_all_near(dict(model.named_buffers()), convert_state(ours)[0])


def check_judges(
    model: VQGAN, judges: dict[str, Discriminator], meta: dict, io: dict[str, Tensor], *, kind: str
) -> None:
    """The discriminators' step, for which the published code runs the whole VQGAN again."""
    expected, hparams, video = meta["results"][kind], meta["hparams"], io["video"]
    logs = expected["logs"]
    again = model(video).reconstruction.detach()
    total = torch.zeros(())
    for which, judge in judges.items():
        judge.zero_grad()
        real, fake = video, again
        if which == "image":
            real, fake = (drawn_frames(clip, io["frame_idx"]) for clip in (video, again))
        real_scores, fake_scores = judge(real)[0], judge(fake)[0]
        loss = discriminator_loss(real_scores, fake_scores, kind=kind)
        assert loss.item() == pytest.approx(logs[f"train/d_{which}_loss"], rel=1e-5)
        for name, scores in (("real", real_scores), ("fake", fake_scores)):
            mean = logs[f"train/logits_{which}_{name}"]
            assert scores.mean().item() == pytest.approx(mean, rel=1e-4, abs=1e-6)
        total = total + hparams["disc_factor"] * hparams[f"{which}_gan_weight"] * loss
    assert total.item() == pytest.approx(expected["discriminator_loss"], rel=1e-5)
    if kind != "hinge":
        return  # The recorded gradients are those of the first kind.
    total.backward()
    recorded = starting_with(io, "grad_disc.")
    for which, judge in judges.items():
        assert_all_near(gradients(judge), discriminator_state(recorded, which))


CHECKS = {"vqgan training step": check_step}
