"""The model's promises beyond the golden numbers, and its file."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Generator
from torch.nn import functional

from mebt import MeBT, MeBTConfig, load_model, model_metadata, save_model, weights_identity
from mebt.config import LAYERS
from mebt.loss import held_out_loss, masked_token_loss, summed_cross_entropy
from mebt.masking import MaskSplit, draw_order, draw_split, length_probabilities, split_positions
from mebt.positions import places_of, sines, spread_places

GRID = (2, 3, 4)
FIELDS = {"width": 12, "num_heads": 2, "num_latents": 5, "codebook_size": 11, "grid": GRID}


def make(*layers: str, **fields) -> MeBT:
    torch.manual_seed(0)
    layers = layers or ("encode", "process", "decode", "refresh", "decode")
    if set(layers) == {"dense"}:
        fields = {"num_latents": 0, **fields}
    return MeBT(MeBTConfig(layers=layers, **{**FIELDS, **fields}))


def inputs(num_context: int = 10, num_targets: int = 7, batch: int = 2):
    order = torch.stack([torch.randperm(24) for _ in range(batch)])
    tokens = torch.randint(11, (batch, num_context))
    return tokens, order[:, :num_context], order[:, num_context : num_context + num_targets]


@pytest.mark.parametrize(
    "layers",
    [("encode", "decode"), ("dense",), ("encode", "process", "decode", "refresh", "decode")],
)
def test_the_order_of_context_does_not_matter(layers: tuple[str, ...]) -> None:
    model = make(*layers).eval()
    tokens, context, targets = inputs()
    shuffled = torch.randperm(10)
    torch.testing.assert_close(
        model(tokens[:, shuffled], context[:, shuffled], targets), model(tokens, context, targets)
    )
    turned = torch.randperm(7)
    torch.testing.assert_close(
        model(tokens, context, targets[:, turned]), model(tokens, context, targets)[:, turned]
    )


def test_rows_do_not_see_each_other() -> None:
    model = make().eval()
    tokens, context, targets = inputs(batch=3)
    alone = torch.cat(
        [model(*(x[row : row + 1] for x in (tokens, context, targets))) for row in range(3)]
    )
    torch.testing.assert_close(model(tokens, context, targets), alone)


def test_predictions_depend_on_the_context() -> None:
    model = make().eval()
    for parameter in model.parameters():
        parameter.data *= 10  # Fresh weights are too small for tokens to reach far.
    tokens, context, targets = inputs()
    other = (tokens + 1) % 11
    assert (model(tokens, context, targets) - model(other, context, targets)).abs().max() > 1e-4


def test_a_block_adds_to_its_stream_or_as_published_to_its_norm() -> None:
    stream, published = (make("encode", "decode", block=kind) for kind in ("stream", "published"))
    query, memory = torch.randn(2, 2, 6, 12)
    for model, begin in ((stream, query), (published, published.blocks[0].norm(query))):
        block = model.blocks[0]
        for layer in (block.attention.out, block.mlp[2]):
            torch.nn.init.zeros_(layer.weight)  # Nothing is added, so the beginning is left.
        torch.testing.assert_close(block(query, memory), begin)


def test_a_file_from_before_blocks_could_be_chosen_is_of_the_published_kind(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_model(path, make(block="published"))
    header = json.loads(safe_open(path, framework="pt").metadata()["mebt"])
    config = json.loads(header["config"])
    assert config.pop("block") == "published"
    del header["header"]  # Nor were headers sealed then.
    header["config"] = json.dumps(config)
    save_file(load_file(path), path, {"mebt": json.dumps(header)})
    assert load_model(path).config.block == "published"


@pytest.mark.parametrize("width", [1, 5, 8, 29, 128])
def test_sines_put_positions_next_to_their_neighbours(width: int) -> None:
    table = sines(places_of((3, 5, 7)), width)
    assert table.shape == (105, width)
    if width < 29:
        return
    torch.testing.assert_close(table.square().sum(1), torch.full((105,), float(width // 2 * 2)))
    alike = (table @ table.T / width).reshape(3, 5, 7, 3, 5, 7)[1, 2, 3]
    assert alike.argmax() == (1 * 5 + 2) * 7 + 3
    for neighbour in (alike[0, 2, 3], alike[1, 1, 3], alike[1, 2, 4]):
        assert neighbour > alike[2, 4, 6] + 0.2


@pytest.mark.parametrize("count", [1, 7, 32, 300])
def test_places_of_latents_fill_the_grid_evenly(count: int) -> None:
    places = spread_places((4, 8, 16), count)
    assert places.shape == (count, 3)
    shares = (places + 0.5) / torch.tensor([4, 8, 16])
    assert shares.min() >= 0 and shares.max() < 1
    for share in (0.25, 0.5, 0.75):  # As many of them below as is fair, but for a few.
        assert ((shares < share).double().mean(0) - share).abs().max() < 6 / count


def test_layers_begin_by_reading_what_is_near() -> None:
    torch.manual_seed(0)
    fields = {**FIELDS, "width": 128, "num_heads": 4, "num_latents": 32, "grid": (8, 8, 8)}
    model = MeBT(MeBTConfig(layers=("encode", "decode"), **fields))
    far = torch.cdist(spread_places((8, 8, 8), 32), places_of((8, 8, 8)))
    tokens, positions = torch.randint(11, (1, 512)), torch.arange(512)[None]
    means = {}
    for kind in ("sines", "local"):
        model.initialize(128**-0.5, positions=kind)
        block = model.blocks[0]
        keys, _ = block.keys_values(model.embed_context(tokens, positions))
        queries = block.attention.query(block.norm(model.embed_latents(1)))
        query, key = (x.detach().unflatten(2, (4, 32)).transpose(1, 2) for x in (queries, keys))
        shares = functional.softmax(query @ key.mT / 32**0.5, dim=-1)
        means[kind] = float((shares * far).sum(-1).mean())
    assert abs(means["sines"] - float(far.mean())) < 0.5
    assert means["local"] < 0.7 * means["sines"]


def test_fresh_weights_are_as_wide_as_asked_for() -> None:
    model = make(width=96)
    model.initialize(0.5, positions="sines")
    assert abs(float(model.head.weight.detach().std()) - 0.5) < 0.05
    places = sines(places_of(model.config.grid), model.config.width)
    torch.testing.assert_close(model.position_embedding.data, 0.5 * places)


@pytest.mark.parametrize("num_latents", [0, 5])
@pytest.mark.parametrize("kinds", [(*LAYERS[:4], "decode"), ("dense",)])
def test_no_context_still_reaches_every_parameter(kinds: tuple[str, ...], num_latents: int) -> None:
    model = make(*kinds, *kinds, num_latents=num_latents)
    tokens, context, targets = inputs(num_context=0, num_targets=24)
    model(tokens, context, targets).sum().backward()
    without = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not without  # DDP waits for the gradient of each parameter.


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
@pytest.mark.parametrize("rows", [1, 5, 100])
def test_the_loss_and_its_gradient_are_those_of_whole_logits(
    monkeypatch: pytest.MonkeyPatch, smoothing: float, rows: int
) -> None:
    monkeypatch.setattr("mebt.loss.LOGIT_CHUNK", rows)
    hidden, weight = torch.randn(2, 9, 6), torch.randn(11, 6)
    tokens = torch.randint(11, (2, 9))

    def gradients(loss: Callable) -> list[torch.Tensor]:
        inputs = [tensor.clone().requires_grad_() for tensor in (hidden, weight)]
        total, right = loss(*inputs)
        return [total.detach(), right, *torch.autograd.grad(total / 18, inputs)]

    def plainly(hidden: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logits = (hidden @ weight.T).flatten(0, 1)
        total = functional.cross_entropy(
            logits, tokens.flatten(), reduction="sum", label_smoothing=smoothing
        )
        return total, (logits.argmax(1) == tokens.flatten()).sum()

    found = gradients(lambda *inputs: summed_cross_entropy(*inputs, tokens, smoothing))
    for one, two in zip(found, gradients(plainly), strict=True):
        torch.testing.assert_close(one, two)


def test_the_loss_never_holds_all_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mebt.loss.LOGIT_CHUNK", 4)
    seen = []

    def spy(rows: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        seen.append(len(rows))
        return rows @ weight.T

    monkeypatch.setattr("mebt.loss.linear", spy)
    summed_cross_entropy(torch.randn(2, 5, 6), torch.randn(11, 6), torch.zeros(2, 5).long())
    assert seen == [4, 4, 2]


def test_the_loss_of_half_precision_logits_is_computed_in_float32() -> None:
    hidden, weight = torch.randn(2, 9, 6), torch.randn(500, 6, requires_grad=True)
    tokens = torch.randint(500, (2, 9))
    with torch.autocast("cpu", torch.bfloat16):
        logits = functional.linear(hidden, weight)
        total, _ = summed_cross_entropy(hidden, weight, tokens)
    assert logits.dtype == torch.bfloat16
    chosen = logits.double().log_softmax(-1).gather(2, tokens[..., None])
    assert total.dtype == torch.float32
    torch.testing.assert_close(total, -chosen.sum().float(), rtol=1e-6, atol=0)
    (gradient,) = torch.autograd.grad(total, weight)
    errors = logits.double().softmax(-1) - functional.one_hot(tokens, 500)
    exact = errors.flatten(0, 1).T @ hidden.flatten(0, 1).double()
    torch.testing.assert_close(gradient.double(), exact, atol=0.05, rtol=0.02)


def test_layers_keep_no_more_than_they_need() -> None:
    """Of a stream: itself, its query, what it read, their sum, and what enters GELU."""
    kept: dict[int, int] = {}
    model = make("encode", "decode", width=64)
    weights = {parameter.data_ptr() for parameter in model.parameters()}

    def count(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.data_ptr()] = tensor.nbytes if tensor.data_ptr() not in weights else 0
        return tensor

    targets = torch.randn(3, 500, 64, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        model.blocks[1](targets, torch.randn(3, 5, 64))
    assert sum(kept.values()) < 8.5 * targets.nbytes


def test_computing_layers_again_saves_memory_and_changes_no_bit() -> None:
    def train(activation_checkpointing: bool) -> tuple[int, list[torch.Tensor]]:
        torch.manual_seed(0)
        dropout = {f"{where}_dropout": 0.2 for where in ("residual", "attention", "embedding")}
        layers = ("encode", "process", "decode", "refresh", "decode")
        config = MeBTConfig(layers=layers, **FIELDS, **dropout)
        model = MeBT(config, activation_checkpointing=activation_checkpointing)
        kept = 0

        def count(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal kept
            kept += tensor.nbytes
            return tensor

        torch.manual_seed(1)
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            logits = model(*inputs(batch=3))
        logits.square().sum().backward()
        return kept, [logits, *(parameter.grad for parameter in model.parameters())]

    plain, again = train(False), train(True)
    assert again[0] < plain[0] / 2
    for one, two in zip(plain[1], again[1], strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize(
    ("width", "heads"),
    [(1024, 16), (512, 8), (192, 6), (128, 4), (100, 2), (40, 1), (6, 1), (511, 7), (576, 9)],
)
def test_as_many_heads_as_usual_divide_the_width(width: int, heads: int) -> None:
    fields = {"codebook_size": 3, "grid": GRID, "layers": ("dense",)}
    made = MeBTConfig(width=width, **fields)
    assert made.num_heads == heads
    assert made == MeBTConfig(width=width, num_heads=heads, **fields)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"layers": ()}, "at least one layer"),
        ({"layers": ("encode", "attend")}, "unknown layer 'attend'"),
        ({"layers": ("encode", "decode", "refresh")}, "changes no prediction"),
        ({"layers": ("encode", "decode"), "width": 13}, "multiple of num_heads"),
        ({"layers": ("decode",), "residual_dropout": 1.0}, "residual_dropout"),
        ({"layers": ("decode",), "codebook_size": 0}, "codebook_size must be a whole number 1"),
        ({"layers": ("decode",), "codebook_size": 2**31 + 1}, "codebook_size must be a whole"),
        ({"layers": ("decode",), "width": 12.0}, "width must be a whole number"),
        ({"layers": ("decode",), "width": 2**17}, "width must be a whole number"),
        ({"layers": ("decode",), "num_latents": 2.5}, "num_latents must be a whole number 0"),
        ({"layers": ("decode",), "grid": (2, 3)}, r"grid must be \(t, h, w\)"),
        ({"layers": ("decode",), "grid": (2, 3, "4")}, "grid must be a whole number"),
        ({"layers": ("decode",), "grid": (2**20, 2**20, 1)}, "the number of tokens must be"),
    ],
)
def test_impossible_shapes_are_refused(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MeBTConfig(**{"layers": ("encode",), **FIELDS, **fields})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_latents": 0, "layers": ("encode", "dense")}, "layer 'encode' needs latent tokens"),
        ({"layers": ("decode",)}, "depend on the context"),
        ({"layers": ("process", "decode", "refresh", "decode")}, "depend on the context"),
        ({"layers": ("decode", "encode", "dense")}, "layer 'encode' changes no prediction"),
        ({"layers": ("encode", "decode")}, None),
        ({"layers": ("decode", "encode", "decode")}, None),
        ({"layers": ("decode", "dense")}, None),
        ({"num_latents": 0, "layers": ("dense",)}, None),
    ],
)
def test_what_cannot_learn_is_not_trained(fields: dict, message: str | None) -> None:
    config = MeBTConfig(**{**FIELDS, **fields})
    if message is None:
        config.check_trainable()
        return
    with pytest.raises(ValueError, match=message):
        config.check_trainable()


def test_a_model_comes_back_and_its_file_is_always_the_same(tmp_path: Path) -> None:
    model = make()
    for name in "ab":
        save_model(tmp_path / name, model, extra={"step": "3", "zebra": "1", "ant": "2"})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert weights_identity(tmp_path / "a") == weights_identity(tmp_path / "b")
    loaded = load_model(tmp_path / "a")
    assert loaded.config == model.config
    assert not loaded.training
    assert model_metadata(tmp_path / "a")["step"] == "3"
    arguments = inputs()
    assert torch.equal(loaded(*arguments), model.eval()(*arguments))


def test_files_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_model(path, make())
    about = json.loads(_header(path))
    del about["header"]  # Its hash, which somebody who means harm would have made to fit.
    tensors, header = load_file(path), {"mebt": json.dumps(about)}
    name = "position_embedding"

    def refuses(changed: dict, message: str, header: dict = header) -> None:
        save_file(changed, path, header)
        with pytest.raises(ValueError, match=message):
            load_model(path)

    refuses({k: v for k, v in tensors.items() if k != name}, f"lacks tensor '{name}'")
    refuses({**tensors, "virus": torch.zeros(1)}, "unknown tensor 'virus'")
    refuses({**tensors, name: tensors[name][:1].clone()}, "has shape")
    refuses({**tensors, name: tensors[name] * torch.nan}, "not finite")
    refuses(tensors, "has format None", {})
    refuses(tensors, "not a readable", {"mebt": "{"})
    refuses(tensors, "no usable config", {"mebt": '{"format": "mebt-model-1", "config": "[]"}'})
    huge = header["mebt"].replace('\\"width\\": 12', '\\"width\\": 12000')
    assert huge != header["mebt"]
    refuses(tensors, "has shape", {"mebt": huge})  # Before any of it is allocated.


def _header(path: Path) -> str:
    with safe_open(path, framework="pt") as file:
        return file.metadata()["mebt"]


def test_the_loss_of_a_guess_is_ln_k() -> None:
    class Guess(torch.nn.Module):
        def forward(self, tokens, context, targets, wanted, conditions):
            return summed_cross_entropy(torch.zeros(*targets.shape, 2), torch.zeros(11, 2), wanted)

    tokens = torch.randint(11, (5, 24))
    loss, right = held_out_loss(Guess(), tokens, mask_ratio=0.5, generator=Generator())
    assert loss == pytest.approx(torch.tensor(11.0).log().item())
    assert 0 <= right <= 1


def test_average_loss_weighs_batches_by_their_masks() -> None:
    total = torch.tensor(60.0)
    mean = masked_token_loss(total, 2, num_masked=6, num_tokens=24)
    weighed = masked_token_loss(total, 2, num_masked=6, num_tokens=24, average=0.0)
    assert float(mean) == 60 / (2 * 6)
    torch.testing.assert_close(weighed, mean * 6 / 24)


def test_splits_are_disjoint_and_inside_their_clip() -> None:
    for step in range(200):
        order = draw_order(range(3), 24, step_seed=lambda row, step=step: step * 10 + row)
        split = draw_split(
            order,
            grid=GRID,
            step=step,
            generator=Generator().manual_seed(step),
            length_prior="uniform",
            budget=5,
        )
        assert 1 <= split.targets.shape[1] <= 5
        assert split.context.shape[1] + split.num_masked == split.num_tokens
        for context, targets in zip(split.context.tolist(), split.targets.tolist(), strict=True):
            every = context + targets
            assert len(set(every)) == len(every)
            assert max(every) // 12 - min(every) // 12 < split.num_tokens // 12


def test_everything_is_masked_in_a_share_of_the_steps() -> None:
    order = draw_order(range(3), 24, step_seed=lambda row: row)

    def split(seed: int, share: float) -> MaskSplit:
        generator = Generator().manual_seed(seed)
        return draw_split(order, grid=GRID, step=0, generator=generator, empty_share=share)

    whole = [split(seed, 0.25).num_masked == 24 for seed in range(400)]
    assert 60 < sum(whole) < 160
    for seed, all_masked in enumerate(whole):  # The other steps are as they were.
        if not all_masked:
            assert split(seed, 0.25).num_masked == split(seed, 0.0).num_masked


def test_nothing_masked_still_leaves_a_target() -> None:
    split = split_positions(torch.arange(6)[None], num_masked=0)
    assert split.context.shape == (1, 5)
    assert split.targets.shape == (1, 1)


def test_clip_lengths_grow_with_training() -> None:
    def mean(step: int) -> float:
        chances = length_probabilities(step, 32, prior="gaussian", time_scale=1000.0)
        assert float(chances.sum()) == pytest.approx(1)
        return float((chances * torch.arange(1, 33)).sum())

    means = [mean(step) for step in (0, 5_000, 20_000, 31_000, 10**9)]
    assert means == sorted(means)
    assert means[0] < 3
    assert means[-1] == pytest.approx(32)
    assert length_probabilities(5, 4, prior="longest", time_scale=1.0).tolist() == [0, 0, 0, 1]


def test_gradients_are_the_same_every_time_on_several_threads() -> None:
    """Large enough for torch to share its sums out over threads, whose order is drawn by chance."""
    torch.manual_seed(0)
    model = MeBT(
        MeBTConfig(
            layers=("dense", "encode", "decode"),
            width=64,
            num_heads=2,
            num_latents=8,
            codebook_size=11,
            grid=(4, 8, 8),
        )
    )
    order = torch.rand(16, 256).argsort(1)
    context, targets = order[:, :128], order[:, 128:]
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        seen = []
        for _ in range(6):
            model.zero_grad()
            model(context % 11, context, targets).square().mean().backward()
            seen.append({name: p.grad.clone() for name, p in model.named_parameters()})
    finally:
        torch.set_num_threads(threads)
    for name, first in seen[0].items():
        assert all(torch.equal(first, other[name]) for other in seen[1:]), name


def test_a_flipped_bit_anywhere_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_model(path, make(), extra={"step": "3"})
    data = path.read_bytes()
    step = data.index(b'\\"step\\": \\"3') + len(b'\\"step\\": \\"')
    path.write_bytes(data[:step] + b"2" + data[step + 1 :])
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged: its header is not"):
        model_metadata(path)
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert model_metadata(path)["step"] == "3"
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged: its tensors are not"):
        load_model(path)
