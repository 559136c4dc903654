"""`mebt train --init` and `import-model --optimizer`: runs that begin with another's state."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from torch import Generator

from mebt import MeBT, MeBTConfig, load_model, model_metadata
from mebt.loss import masked_token_loss
from mebt.masking import draw_order, draw_split
from pipeline.seeds import step_seed
from pipeline.store.batches import Batches
from pipeline.store.reader import TokenStore
from stages.__main__ import cli
from stages.held_out import MASK_DRAW
from stages.mebt_task import ORDER_DRAW
from tests.helpers.foreign_files import (
    CONFIG,
    TRANSFORMER,
    lightning_state,
    mebt_model,
    mebt_state,
    published_adamw,
    vqgan_model,
    write_mebt,
)
from tests.helpers.small import PARAMS, Flow, make_tokenizer
from tests.stages.test_train import assert_same_run, last_state
from tokenizer import load_tokenizer

DONE, GOAL = 4, 7
PLAIN = ("--set", "model.residual_dropout=0.0", "--set", "train.ema_decay=0.0")
PLAIN += ("--set", "model.block=published", "--set", "train.optimizer=adamw")


def trained(model: MeBT, optimizer: torch.optim.Optimizer, tokens: Path, start: int) -> MeBT:
    """Trains up to GOAL in the plainest way."""
    store, size = TokenStore(tokens), PARAMS["train"]["batch_size"]
    stream = Batches(store, "train", batch_size=size, seed=0, memory_gb=1.0)
    model.train()
    for step in range(start, GOAL):
        batch = stream.tokens(step)
        seeds = {row: step_seed(0, step, ORDER_DRAW - row) for row in range(size)}
        order = draw_order(range(size), batch.shape[1], step_seed=seeds.__getitem__)
        split = draw_split(
            order,
            grid=model.config.grid,
            step=step,
            generator=Generator().manual_seed(step_seed(0, step, MASK_DRAW)),
        )
        wanted = batch.gather(1, split.targets)
        loss = masked_token_loss(
            model(batch.gather(1, split.context), split.context, split.targets, wanted)[0],
            len(batch),
            num_masked=split.num_masked,
            num_tokens=split.num_tokens,
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


@pytest.fixture
def published(flow: Flow) -> tuple[Path, MeBT, torch.optim.AdamW]:
    """A published checkpoint for the flow's tokens, and what was saved in it."""
    shape = {**PARAMS["model"], "layers": tuple(PARAMS["model"]["layers"]), "residual_dropout": 0.0}
    shape["block"] = "published"
    torch.manual_seed(1)
    model = MeBT(MeBTConfig(**shape, codebook_size=24, grid=(2, 4, 4)))
    optimizer = published_adamw(model, learning_rate=1e-3, weight_decay=0.01)
    for _ in range(DONE):
        for parameter in model.parameters():
            parameter.grad = torch.randn_like(parameter)
        optimizer.step()
    modes = ["latent_enc", "latent_self", "latent_dec", "lt2l", "latent_dec"]
    params = {**TRANSFORMER, "n_layer": 5, "n_embd": 16, "sos_emb": 4, "mode": modes}
    config = {
        "model": {
            **CONFIG["model"],
            "params": params,
            "mask": {"params": {"shape": [2, 4, 4]}},
        },
        "data": {"sequence_length": 4, "resolution": 16, "sample_every_n_frames": 1},
    }
    path = write_mebt(
        flow.root / "mebt.ckpt",
        mebt_state(model, load_tokenizer(flow.root / "tokenizer.safetensors")),
        config,
        optimizer_states=[lightning_state(model, optimizer)],
    )
    return path, model, optimizer


def imported(source: Path, *more: str) -> Result:
    out = source.parent / "imported"
    return CliRunner().invoke(cli, ["import-model", str(source), "--out", str(out), *more])


def test_an_imported_run_goes_on_as_plain_adamw_does(flow: Flow, published: Any) -> None:
    source, model, optimizer = published
    imported(source)
    result = imported(source, "--optimizer", "--overwrite")
    assert "AdamW's state of 87 parameters after 4 updates" in result.output
    more = (*PLAIN, "--init", str(flow.root / "imported"), "--set", f"train.max_steps={GOAL}")
    assert "3 steps" in flow.ok("train", *more, out="new")
    plain = trained(model, optimizer, flow.root / "tokens", DONE)
    state = last_state(flow.root / "new")
    for name, parameter in plain.state_dict().items():
        torch.testing.assert_close(state[f"model.{name}"], parameter, atol=1e-6, rtol=1e-5)
    assert model_metadata(flow.root / "new" / "model.safetensors")["step"] == str(GOAL)
    assert "nothing to do" in flow.ok("train", *more, out="new")
    assert 'init = {"step": 4, "sha256": ' in flow.refused("train", *PLAIN, out="new")


def test_the_state_of_another_optimizer_is_refused(flow: Flow) -> None:
    more = ("--set", "train.max_steps=9", "--set", "train.optimizer=adamw")
    message = "holds the state of muon, but train.optimizer is adamw; make them agree"
    assert message in flow.refused("train", *more, "--init", str(flow.root / "run"), out="new")


def test_a_run_that_begins_with_another_is_that_run_resumed(flow: Flow) -> None:
    more = ("--set", "train.max_steps=9")
    flow.ok("train", *more, "--init", str(flow.root / "run"), out="new")
    flow.ok("train", *more)
    assert_same_run(flow.root / "new", flow.root / "run", "model.safetensors")


def test_an_average_that_is_not_followed_is_not_saved(flow: Flow) -> None:
    more = ("--set", "train.max_steps=8", "--set", "train.ema_decay=0.0")
    flow.ok("train", *more, "--init", str(flow.root / "run"), out="new")
    state = last_state(flow.root / "new")
    assert not any(name.startswith("average.") for name in state)
    for name, tensor in load_model(flow.root / "new" / "model.safetensors").state_dict().items():
        assert torch.equal(state[f"model.{name}"], tensor)


def test_fine_tuning_begins_with_weights_alone(flow: Flow) -> None:
    weights = flow.root / "run" / "model.safetensors"
    more = ("--init", str(weights), "--set", "train.learning_rate=1.0e-9")
    flow.ok("train", *more, "--set", "train.max_steps=1", out="tuned")
    tuned, given = load_model(flow.root / "tuned" / "model.safetensors"), load_model(weights)
    assert model_metadata(flow.root / "tuned" / "model.safetensors")["step"] == "1"
    for one, two in zip(tuned.parameters(), given.parameters(), strict=True):
        torch.testing.assert_close(one, two, atol=1e-8, rtol=0)


def test_what_does_not_fit_is_no_beginning(flow: Flow, published: Any) -> None:
    imported(published[0])
    run, folder = str(flow.root / "run"), str(flow.root / "imported")
    for init, more, saying in (
        (folder, PLAIN, "imported has no checkpoint to go on from; give --init"),
        (str(flow.root / "tokens"), (), "model.safetensors is missing"),
        (run, (), "has done 6 steps already: train.max_steps must be above that, got 6"),
        (run, ("--set", "model.width=32"), "has width 16, but this run has 32"),
        (run, ("--set", "model.layers=[encode,encode,decode,refresh,decode]"), "has layers ["),
        (str(flow.root / "params.yaml"), (), "params.yaml is not a readable safetensors file"),
    ):
        assert saying in flow.refused("train", "--init", init, *more, out="new")
        assert not (flow.root / "new" / "run.json").exists()
    shutil.copytree(flow.root / "run", flow.root / "other")
    make_tokenizer(flow.root / "tokenizer.safetensors", seed=5)
    flow.ok("tokenize", "--overwrite")
    more = ("--init", str(flow.root / "other"), "--set", "train.max_steps=8")
    assert "model.safetensors has tokenizer" in flow.refused("train", *more, out="new")


def lightning() -> dict[str, Any]:
    """The optimizer's part of a checkpoint of `mebt_model`."""
    model = mebt_model()
    optimizer = published_adamw(model, learning_rate=1e-3, weight_decay=0.01)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return {"optimizer_states": [lightning_state(model, optimizer)]}


MASK, POSITIONS = 19, 54
"""Where the published order has these two."""
Spoil = Callable[[dict[str, Any], list[dict[str, Any]], dict[int, dict[str, Any]]], Any]
SPOILED: dict[str, Spoil] = {
    "holds no state of one optimizer": lambda content, groups, state: content.pop(
        "optimizer_states"
    ),
    "the state of its optimizer is empty": lambda content, groups, state: state.clear(),
    "global_step is -3": lambda content, groups, state: content.update(global_step=-3),
    "entry 99 of its optimizer belongs to no parameter": lambda content, groups, state: (
        state.update({99: {}})
    ),
    "has betas [0.9, 0.999], but ours [0.9, 0.95]": lambda content, groups, state: groups[1].update(
        betas=(0.9, 0.999)
    ),
    "have [18, 3, 33, 1] parameters, but those of this model [19, 3, 32, 1]": (
        lambda content, groups, state: groups[2]["params"].append(groups[0]["params"].pop())
    ),
    "does not number its parameters": lambda content, groups, state: groups[3].update(params=[0]),
    "of mask_emb its optimizer holds ['exp_avg', 'exp_avg_sq', 'more', 'step']": (
        lambda content, groups, state: state[MASK].update(more=torch.zeros(1))
    ),
    "the optimizer's step of mask_emb is 0.5": lambda content, groups, state: state[MASK].update(
        step=torch.tensor(0.5)
    ),
    "pos_emb.exp_avg_sq is a mean of squares": lambda content, groups, state: state[POSITIONS][
        "exp_avg_sq"
    ].neg_(),
    "position_embedding.exp_avg: ours [18, 12], theirs [18] (pos_emb.exp_avg)": (
        lambda content, groups, state: state[POSITIONS].update(exp_avg=torch.zeros(18))
    ),
    "pos_emb.exp_avg: holds values that are not finite": lambda content, groups, state: state[
        POSITIONS
    ]["exp_avg"].fill_(torch.nan),
    "'pos_emb.exp_avg' of its state is no tensor": lambda content, groups, state: state[
        POSITIONS
    ].update(exp_avg=5),
    "pos_emb.exp_avg: shares its memory with position_embedding": lambda *_: None,
    "'pos_emb.exp_avg' claims": lambda content, groups, state: state[POSITIONS].update(
        exp_avg=torch.zeros(1).expand(1 << 40, 12)
    ),
}


@pytest.mark.parametrize("saying", SPOILED)
def test_a_spoiled_optimizer_is_refused(tmp_path: Path, saying: str) -> None:
    content = lightning()
    (optimizer,) = content["optimizer_states"]
    SPOILED[saying](content, optimizer["param_groups"], optimizer["state"])
    state = mebt_state(mebt_model(), vqgan_model())
    if "shares its memory" in saying:
        optimizer["state"][POSITIONS]["exp_avg"] = state["pos_emb"]
    source = write_mebt(tmp_path / "m.ckpt", state, **content)
    result = imported(source, "--optimizer")
    assert result.exit_code == 1
    assert isinstance(result.exception, SystemExit), repr(result.exception)
    assert saying in result.output
    assert str(source) in result.output
    assert not (tmp_path / "imported").exists()


def test_a_parameter_without_a_gradient_has_no_state(tmp_path: Path) -> None:
    content = lightning()
    del content["optimizer_states"][0]["state"][MASK]
    state = mebt_state(mebt_model(), vqgan_model())
    output = imported(write_mebt(tmp_path / "m.ckpt", state, **content), "--optimizer").output
    assert "AdamW's state of 54 parameters" in output
