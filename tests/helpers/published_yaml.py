"""The published experiments' YAML configs, in the form in which they were published."""

from dataclasses import dataclass
from pathlib import Path

ENCODERS, DECODERS = ("latent_enc", "latent_self"), ("lt2l", "latent_dec")
MODES = (*ENCODERS * 6, "latent_enc", "latent_dec", *DECODERS * 5)

FORM = """\
model:
    target: mebt.transformer.Net2NetTransformer
    params:
        unconditional: True
        vocab_size: 16384 # of the 3d VQGAN
        first_stage_vocab_size: 16384
        block_size: {tokens}
        n_layer: 24
        n_head: 16
        n_embd: 1024
        n_unmasked: 0
        embd_pdrop: {dropout}
        resid_pdrop: {dropout}
        attn_pdrop: {dropout}
        sample_every_n_latent_frames: 0
        first_stage_key: video
        cond_stage_key: label
        vtokens: False
        vtokens_pos: False
        vis_epoch: 100
        sos_emb: 256
        avg_loss: True
        mode:
{modes}
        class_cond_dim: null
        t_prior: {prior}
    mask:
        target: mebt.mask_sampler.MaskGen
        params:
            iid: False
            schedule: linear
            max_token: {tokens}
            method: 'mlm'
            shape: [{latent_frames}, 16, 16]
            t_range: [0.0, 1.0]
            budget: {tokens}

    vqvae:
        params:
            ckpt_path: 'ckpts/vqgan_{vqgan}_128_488.ckpt'
            ignore_keys: ['loss']

data:
    data_path: 'datasets/vqgan_data/{data}_128'
    sequence_length: {frames}
    resolution: 128
    batch_size: {batch}
    num_workers: 8
    image_channels: 3
    smap_cond: 0
    smap_only: False
    text_cond: False
    vtokens: False
    vtokens_pos: False
    spatial_length: 0
    sample_every_n_frames: {stride}
    image_folder: True
    stft_data: False

exp:
    exact_lr: {rate}{decay}
"""


@dataclass(frozen=True)
class Experiment:
    """What sets one published experiment apart."""

    data: str
    vqgan: str
    frames: int
    rate: str
    decay: str | None
    batch: int
    dropout: float
    prior: str
    stride: int

    def write(self, path: Path) -> Path:
        latent_frames = self.frames // 4
        fields = {
            **vars(self),
            "latent_frames": latent_frames,
            "tokens": latent_frames * 256,
            "modes": "\n".join(f"            - {mode}" for mode in MODES),
            "decay": f"\n    weight_decay: {self.decay}" if self.decay else "",
        }
        path.write_text(FORM.format(**fields))
        return path


EXPERIMENTS = {
    "sky_16f": Experiment("stl", "sky", 16, "1.08e-05", None, 6, 0.1, "longest", 1),
    "sky_128f": Experiment("stl", "sky", 128, "1.8e-05", None, 5, 0.1, "gaussian2", 1),
    "taichi_16f": Experiment("taichi", "taichi", 16, "3e-05", "1e-4", 32, 0.0, "longest", 4),
    "taichi_128f": Experiment(
        "taichi", "taichi", 128, "3e-05", "1e-4", 4, 0.0, "gaussian100000_2", 1
    ),
    "ucf_16f": Experiment("ucf", "ucf", 16, "3e-05", "1e-4", 32, 0.0, "longest", 1),
    "ucf_128f": Experiment("ucf", "ucf", 128, "3e-05", "1e-4", 6, 0.0, "gaussian100000_2", 1),
}
