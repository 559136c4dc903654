"""A decoder that learns alone, by `decoder_only`: tokens and all made of them stay valid."""

import json
import math

import pytest
import torch
from click.testing import CliRunner

from stages.__main__ import cli
from stages.editing import Editor
from stages.play import PlayConfig, open_show
from tests.helpers.small import Flow
from tests.stages.test_fit_tokenizer import ADVERSARIAL, LEVELS, STAGE, given, result
from tests.stages.test_train import RESULTS, assert_same_run
from tokenizer import VQGAN, identity, load_tokenizer, save_tokenizer, tokens_identity
from tokenizer.weights import TRAINING_ONLY


def command(*words: str) -> None:
    result = CliRunner().invoke(cli, words)
    assert result.exit_code == 0, result.output


DECODER = given(decoder_only="true", ema_decay=0.75)


@pytest.mark.slow
@pytest.mark.parametrize("levels", [[], LEVELS])
def test_tokens_stay_what_they_are_and_pictures_do_not(flow: Flow, levels: list[str]) -> None:
    if levels:
        flow.ok(STAGE, *levels, out="first")
        (flow.root / "tokenizer.safetensors").write_bytes(result(flow, "first").read_bytes())
        flow.ok("tokenize", "--overwrite")
    before = load_tokenizer(flow.root / "tokenizer.safetensors")
    decode = ("decode", "--tokens", str(flow.root / "tokens"), "--split", "test")
    flow.ok(*decode)
    more = [*levels, *DECODER, *ADVERSARIAL, "--init", str(flow.root / "tokenizer.safetensors")]
    flow.ok(STAGE, *more, out="whole")
    after = load_tokenizer(result(flow, "whole"))
    kept, learned = (
        {
            name.split(".")[0]
            for name, tensor in after.state_dict().items()
            if torch.equal(tensor, before.state_dict()[name]) == same
            and not name.endswith(TRAINING_ONLY)
        }
        for same in (True, False)
    )
    assert kept >= {"encoder", "to_embedding"}
    assert learned == {"from_embedding", "decoder"}
    assert identity(after) != identity(before) == tokens_identity(before)
    assert tokens_identity(after) == identity(before)

    (flow.root / "tokenizer.safetensors").write_bytes(result(flow, "whole").read_bytes())
    assert "nothing to do" in flow.ok("tokenize")
    # Other pictures of the same tokens: they do not go among those that are there unasked.
    line = flow.refused(*decode)
    assert f"was made with tokenizer = '{identity(before)}', not '{identity(after)}'" in line
    flow.ok(*decode, out="better")

    # And once more from there.
    again = [*levels, *DECODER, "--init", str(result(flow, "whole"))]
    flow.ok(STAGE, *again, out="again")
    assert tokens_identity(load_tokenizer(result(flow, "again"))) == identity(before)
    whole = [*again[:-2], "--init", str(result(flow, "whole")), *given(decoder_only="false")]
    flow.ok(STAGE, *whole, out="all")
    assert load_tokenizer(result(flow, "all")).tokens_of is None


def test_a_stop_and_a_resume_change_nothing(flow: Flow) -> None:
    more = [*DECODER, "--init", str(flow.root / "tokenizer.safetensors")]
    flow.ok(STAGE, *more, out="whole")
    flow.ok(STAGE, *more, *given(max_steps=2), out="resumed")
    flow.ok(STAGE, *more, out="resumed")
    assert_same_run(flow.root / "resumed", flow.root / "whole", RESULTS[STAGE])


@pytest.mark.slow
def test_two_processes_train_a_decoder_alone(flow: Flow) -> None:
    init = flow.root / "tokenizer.safetensors"
    words = ("--accelerator", "cpu", "--devices", "2", "--strategy", "ddp", "--init", str(init))
    process = flow.start(STAGE, *DECODER, *words, out="two")
    assert process.wait(300) == 0
    assert tokens_identity(load_tokenizer(result(flow, "two"))) == identity(load_tokenizer(init))


def test_a_decoder_needs_an_encoder_and_rounding_must_not_change_it(flow: Flow) -> None:
    line = flow.refused(STAGE, *DECODER, out="alone")
    assert "decoder_only trains the decoder of a tokenizer that there is: give it as" in line
    init = flow.root / "tokenizer.safetensors"
    line = flow.refused(STAGE, *DECODER, *given(half="true"), "--init", str(init), out="half")
    assert "fit_tokenizer.half would round the encoder too, and tokens would change" in line
    assert not any((flow.root / name).exists() for name in ("alone", "half"))
    save_tokenizer(init, load_tokenizer(init), half=True)
    flow.ok(STAGE, *DECODER, *given(half="true"), "--init", str(init), out="half")
    assert tokens_identity(load_tokenizer(result(flow, "half"))) == identity(load_tokenizer(init))


@pytest.mark.slow
def test_every_command_takes_it_for_the_tokenizer_of_the_tokens(flow: Flow) -> None:
    tokenizer = flow.root / "tokenizer.safetensors"
    model = load_tokenizer(tokenizer)
    assert isinstance(model, VQGAN)
    model.tokens_of = identity(model)
    model.decoder.head.bias.add_(0.05)
    save_tokenizer(tokenizer, model)

    data = ("--tokens", "tokens", "--tokenizer", "tokenizer.safetensors", "--frames", "frames")
    data = tuple(word if word.startswith("--") else str(flow.root / word) for word in data)
    both = (*data, "--samples", str(flow.root / "samples"), "--run", str(flow.root / "run"))
    metrics = flow.root / "metrics.json"
    command("evaluate", *both, "--out", str(metrics))
    measured = json.loads(metrics.read_text())
    assert measured["protocol"]["identities"]["tokenizer"] == identity(model)
    assert math.isfinite(measured["metrics"]["frechet_samples"])
    report = ("--metrics", str(metrics), "--out", str(flow.root / "report.html"))
    command("report", *both, *report)
    page = (flow.root / "report.html").read_text("utf-8")
    assert "tokens of" in page and model.tokens_of in page
    push = ("--run", str(flow.root / "run"), "--tokenizer", str(tokenizer))
    push += ("--metrics", str(metrics), "--params", str(flow.root / "params.yaml"))
    command("push", *push, "--out", str(flow.root / "shared"))
    pulled = flow.root / "pulled"
    command("pull", "--from", str(flow.root / "shared"), "--out", str(pulled))
    Editor.open(pulled, pulled / "tokenizer.safetensors")
    open_show(pulled, pulled / "tokenizer.safetensors", PlayConfig(), device="cpu")
