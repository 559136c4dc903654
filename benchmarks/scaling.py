"""Expected times on H100s, from operations and bytes alone: `python -m benchmarks.scaling`.

Writes the tables of docs/scaling.md, which says what they mean and what they assume.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import operations
from benchmarks.pages import replace_between
from mebt import MeBTConfig, MeBTShape
from pipeline.config import load_section
from stages.mebt_task import TrainConfig
from stages.sample import SampleStageConfig
from tokenizer import VQGANConfig

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "scaling.md"
BEGIN, END = "<!-- made by python -m benchmarks.scaling -->\n", "<!-- end -->\n"
EXPERIMENTS = ("sky_16f", "sky_128f", "taichi_16f", "taichi_128f", "ucf_16f", "ucf_128f")

# An NVIDIA H100 SXM5, by its data sheet: operations and bytes a second.
BF16_PRODUCTS, FLOAT_PRODUCTS, MEMORY = 989e12, 67e12, 3.35e12
NVLINK, NETWORK = 900e9 / 2, 400e9 / 8
"""To the other GPUs of the machine, one way, and to other machines."""
USE_OF_PRODUCTS, USE_OF_MEMORY, USE_OF_LINKS = 0.5, 0.8, 0.8
"""Shares of these that are taken to be reached."""
GPUS_PER_MACHINE = 8
KERNELS_PER_LAYER, LAUNCH_SECONDS = 12, 4e-6
"""Kernels of a layer, and what a CPU needs to launch one."""
BF16, FLOAT = 2, 4
VALUES_PER_QUERY, VALUES_PER_MEMORY = 16, 3
"""Vectors that a layer writes for each query (norms, projections, sums, and an MLP four times as
wide before and after its GELU) and each memory token (norm, key, value)."""
READ_AGAIN = {"forward": 2, "training": 5}
"""How often each of these is written or read: once each, and in training its gradient as well, with
the value read once more."""
OPTIMIZER_BYTES = 7 * FLOAT + 2 * (FLOAT + BF16)
"""Of each weight: AdamW's, and a copy in bf16 made for each direction of a step."""
BATCH = 32
"""Samples that are drawn at once."""


@dataclass(frozen=True)
class Experiment:
    """A published experiment, as configs/ has it."""

    name: str
    model: MeBTConfig
    train: TrainConfig
    sample: SampleStageConfig


def load(name: str) -> Experiment:
    """Reads an experiment's params file."""
    file = ROOT / "configs" / f"{name}.yaml"
    shape = load_section(file, "model", MeBTShape)
    vqgan = load_section(file, "tokenizer", VQGANConfig)
    fields = {**vars(shape), "codebook_size": vqgan.codebook_size}
    model = MeBTConfig(**fields, grid=vqgan.grid(num_frames(name), 128, 128))
    train = load_section(file, "train", TrainConfig)
    return Experiment(name, model, train, load_section(file, "sample", SampleStageConfig))


def num_frames(name: str) -> int:
    """Returns the frames of a window."""
    return int(name.partition("_")[2].removesuffix("f"))


def parameters(config: MeBTConfig) -> int:
    """Counts the weights: of layers with their biases and norms, of tables, and of what is left."""
    width = config.width
    layers = len(config.layers) * (12 * width**2 + 13 * width)
    tables = 2 * config.codebook_size + config.num_tokens + config.num_latents
    return layers + tables * width + 3 * width


def values(config: MeBTConfig, context: int, targets: int) -> int:
    """Counts the numbers that one pass over a window writes, logits included."""
    latents, both = config.num_latents, context + targets
    of = {
        "encode": (latents, context),
        "process": (latents, latents),
        "decode": (targets, latents),
        "refresh": (latents, latents + targets),
        "dense": (both, both),
    }
    vectors = sum(
        VALUES_PER_QUERY * queries + VALUES_PER_MEMORY * memory
        for queries, memory in (of[kind] for kind in config.layers)
    )
    return vectors * config.width + targets * config.codebook_size


def products_seconds(count: float) -> float:
    """Returns how long so many operations in bf16 take."""
    return count / (BF16_PRODUCTS * USE_OF_PRODUCTS)


def memory_seconds(count: float) -> float:
    """Returns how long so many bytes take."""
    return count / (MEMORY * USE_OF_MEMORY)


def all_reduce_seconds(count: int, gpus: int) -> float:
    """Returns how long the sum of so many bytes over all GPUs takes: a ring within each machine,
    and beside it one for each GPU of a machine, with its share, across machines."""
    inside = min(gpus, GPUS_PER_MACHINE)
    machines = gpus // inside
    within = 2 * (inside - 1) / inside * count / NVLINK
    across = 2 * (machines - 1) / machines * count / inside / NETWORK
    return (within + across) / USE_OF_LINKS


@dataclass(frozen=True)
class Step:
    """A training step of one GPU, half masked, which is its mean: cost is linear in the mask."""

    operations: float
    bytes: float
    optimizer: float
    """Seconds, as `compute` and `memory`."""
    compute: float
    memory: float
    gradient_bytes: int

    def seconds(self, gpus: int) -> float:
        """Products hide what memory moves, or are hidden by it; gradients are summed meanwhile, but
        not before the backward pass, two thirds of the whole, has begun."""
        passes = max(self.compute, self.memory)
        exposed = max(0.0, all_reduce_seconds(self.gradient_bytes, gpus) - 2 / 3 * passes)
        return passes + exposed + self.optimizer

    def limit(self, gpus: int) -> str:
        """Names what takes longest."""
        reduced = all_reduce_seconds(self.gradient_bytes, gpus)
        parts = {
            "products": self.compute,
            "memory": self.memory,
            "links": 3 / 2 * reduced,
        }
        return max(parts, key=lambda name: parts[name])


def step(experiment: Experiment) -> Step:
    """Counts a training step with the published batch of one GPU."""
    config, batch = experiment.model, experiment.train.batch_size
    half, weights = config.num_tokens // 2, parameters(config)
    count = 2 * operations.TRAINING * batch * operations.forward(config, half, half)
    moved = READ_AGAIN["training"] * BF16 * batch * values(config, half, half)
    return Step(
        operations=count,
        bytes=moved + OPTIMIZER_BYTES * weights,
        optimizer=memory_seconds(OPTIMIZER_BYTES * weights),
        compute=products_seconds(count),
        memory=memory_seconds(moved),
        gradient_bytes=FLOAT * weights,
    )


def passes(experiment: Experiment) -> list[operations.Pass]:
    """Lists the passes that draw one sample, as published."""
    size, how = experiment.model.num_tokens, experiment.sample
    found = operations.bootstrap_passes(size, how.bootstrap_steps)
    found += operations.draft_passes(size, how.draft_steps, how.bootstrap_steps)
    return found + how.revise_rounds * operations.revise_passes(size, how.revise_groups)


@dataclass(frozen=True)
class Drawing:
    """Drawing samples on one GPU, so many at once."""

    compute: float
    memory: float
    launches: float

    def seconds(self, *, graphs: bool) -> float:
        """Without CUDA graphs, kernels cannot begin faster than they are launched."""
        return max(self.compute, self.memory, 0.0 if graphs else self.launches)

    def limit(self) -> str:
        """Names what takes longest, without CUDA graphs."""
        return max(("compute", "products"), ("memory", "memory"), ("launches", "launches"),
                   key=lambda pair: getattr(self, pair[0]))[1]  # fmt: skip


def drawing(experiment: Experiment, batch: int) -> Drawing:
    """Counts what a batch of samples takes. Every pass reads all weights."""
    config, made = experiment.model, passes(experiment)
    count = 2 * batch * operations.total(config, made)
    written = batch * sum(values(config, *counts) for counts in made)
    moved = READ_AGAIN["forward"] * BF16 * written + len(made) * BF16 * parameters(config)
    kernels = len(made) * len(config.layers) * KERNELS_PER_LAYER
    return Drawing(products_seconds(count), memory_seconds(moved), kernels * LAUNCH_SECONDS)


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Writes a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines)


def training_table(experiments: Sequence[Experiment]) -> str:
    """One row for each experiment: a step on 1, 8 and 64 GPUs."""
    head = (
        *("training step", "batch of a GPU", "TFLOP", "products, ms", "GB moved", "memory, ms"),
        *("AdamW, ms", "gradients on 8 / 64, ms", "step on 1 / 8 / 64, ms"),
        *("windows/s on 1 / 8 / 64", "limit"),
    )
    rows = []
    for experiment in experiments:
        found, batch = step(experiment), experiment.train.batch_size
        seconds = [found.seconds(gpus) for gpus in (1, 8, 64)]
        reduced = [all_reduce_seconds(found.gradient_bytes, gpus) for gpus in (8, 64)]
        speeds = [gpus * batch / s for gpus, s in zip((1, 8, 64), seconds, strict=True)]
        rows.append(
            (
                *(experiment.name, batch, f"{found.operations / 1e12:.1f}"),
                *(f"{found.compute * 1e3:.0f}", f"{found.bytes / 1e9:.0f}"),
                *(f"{found.memory * 1e3:.0f}", f"{found.optimizer * 1e3:.1f}"),
                " / ".join(f"{s * 1e3:.0f}" for s in reduced),
                " / ".join(f"{s * 1e3:.0f}" for s in seconds),
                " / ".join(f"{speed:,.0f}" for speed in speeds),
                found.limit(1) if found.limit(1) == found.limit(64) else
                f"{found.limit(1)}; {found.limit(64)} on 64",
            )
        )  # fmt: skip
    return table(head, rows)


def sampling_table(experiments: Sequence[Experiment]) -> str:
    """One row for each experiment: a sample alone, and in a batch on 1, 8 and 64 GPUs."""
    head = (
        *("one sample", "passes", "TFLOP", "alone, s", "alone with CUDA graphs, s"),
        *(f"in a batch of {BATCH}, s", "samples/min on 1 / 8 / 64", "limit alone / in a batch"),
    )
    rows = []
    for experiment in experiments:
        made = passes(experiment)
        alone, many = drawing(experiment, 1), drawing(experiment, BATCH)
        each = many.seconds(graphs=True) / BATCH
        count = 2 * operations.total(experiment.model, made)
        rows.append(
            (
                *(experiment.name, len(made), f"{count / 1e12:.1f}"),
                *(f"{alone.seconds(graphs=graphs):.2f}" for graphs in (False, True)),
                f"{each:.3f}",
                " / ".join(f"{gpus * 60 / each:,.0f}" for gpus in (1, 8, 64)),
                f"{alone.limit()} / {many.limit()}",
            )
        )
    return table(head, rows)


def tokenizer_table() -> str:
    """One row for each direction of the VQGAN, in float32 as its tokens are made."""
    config = VQGANConfig(norm="batch")
    head = ("16 frames of 128x128", "GFLOP", "ms", "frames/s on 1 / 8 / 64")
    rows = []
    for name, count in (("encode", operations.encode), ("decode", operations.decode)):
        operation_count = 2 * count(config, 16, 128)
        seconds = operation_count / (FLOAT_PRODUCTS * USE_OF_PRODUCTS)
        speeds = " / ".join(f"{gpus * 16 / seconds:,.0f}" for gpus in (1, 8, 64))
        rows.append((name, f"{operation_count / 1e9:.1f}", f"{seconds * 1e3:.1f}", speeds))
    return table(head, rows)


def tables() -> str:
    """Returns all tables of docs/scaling.md."""
    experiments = [load(name) for name in EXPERIMENTS]
    parts = (training_table(experiments), sampling_table(experiments), tokenizer_table())
    return "\n".join(parts)


def main() -> None:
    """Writes the tables into docs/scaling.md."""
    replace_between(PAGE, BEGIN, END, f"\n{tables()}\n")


if __name__ == "__main__":
    main()
