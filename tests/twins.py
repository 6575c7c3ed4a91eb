"""Random twins: the same small model in transformers and here, with the oracle's own weights."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers

from trocr_jax.checkpoints import names, store
from trocr_jax.config import VisionEncoderDecoderConfig
from trocr_jax.modeling.decoder import sinusoidal_table
from trocr_jax.modeling.model import VisionEncoderDecoder, prepare
from trocr_jax.modeling.policy import get_policy

ENCODER: dict[str, Any] = {
    "model_type": "vit",
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "image_size": [24, 40],
    "patch_size": 8,
    "initializer_range": 0.3,
}
DECODER: dict[str, Any] = {
    "model_type": "trocr",
    "vocab_size": 41,
    "d_model": 32,
    "decoder_layers": 2,
    "decoder_attention_heads": 4,
    "decoder_ffn_dim": 48,
    "max_position_embeddings": 48,
    "cross_attention_hidden_size": 24,
    "init_std": 0.3,
    "dropout": 0.0,
    "is_decoder": True,
    "add_cross_attention": True,
}
# Every switch of the architecture and the values it is tried at; the first is the default above.
SWITCHES: dict[str, tuple[Any, ...]] = {
    "encoder": ("vit", "deit"),
    "qkv_bias": (True, False),
    "shape": ("wide", "square", "tall"),
    "positions": ("learned", "sinusoidal"),
    "layernorm_embedding": (True, False),
    "scale_embedding": (False, True),
    "tied": (True, False),
    "activation": ("gelu", "relu"),
    "cross": ("cross", "bridge", "same"),
    "eps": (1e-12, 1e-6, 1e-3),
}
_SHAPES = {
    "wide": {"image_size": [24, 40], "patch_size": 8},
    "square": {"image_size": 32, "patch_size": 8},
    "tall": {"image_size": [40, 20], "patch_size": [8, 4]},
}


def config_dict(encoder: dict[str, Any] | None = None, decoder: dict[str, Any] | None = None) -> dict[str, Any]:
    """A config.json with the given changes to the small default."""
    return {
        "model_type": "vision-encoder-decoder",
        "encoder": {**ENCODER, **(encoder or {})},
        "decoder": {**DECODER, **(decoder or {})},
        "decoder_start_token_id": 2,
        "pad_token_id": 1,
        "eos_token_id": 2,
    }


def switched(std: float = 0.3, **switches: Any) -> dict[str, Any]:
    """A config.json with the architecture's switches set as `SWITCHES` names them, and the weights' deviation."""
    chosen = {name: values[0] for name, values in SWITCHES.items()} | switches
    encoder = {
        "model_type": chosen["encoder"],
        "qkv_bias": chosen["qkv_bias"],
        "layer_norm_eps": chosen["eps"],
        "initializer_range": std,
        "hidden_act": chosen["activation"],
        **_SHAPES[chosen["shape"]],
    }
    decoder: dict[str, Any] = {
        "use_learned_position_embeddings": chosen["positions"] == "learned",
        "layernorm_embedding": chosen["layernorm_embedding"],
        "scale_embedding": chosen["scale_embedding"],
        "tie_word_embeddings": chosen["tied"],
        "activation_function": chosen["activation"],
        "init_std": std,
    }
    if chosen["cross"] == "bridge":
        decoder["cross_attention_hidden_size"] = None
    elif chosen["cross"] == "same":
        encoder |= {"hidden_size": 32, "num_attention_heads": 4}
        decoder["cross_attention_hidden_size"] = None
    return config_dict(encoder, decoder)


@dataclasses.dataclass
class Twin:
    """The oracle and, from its weights, our configuration and canonical tree."""

    oracle: Any
    config: VisionEncoderDecoderConfig
    params: dict[str, Any]

    def ours(self, dtype: str = "float32") -> tuple[VisionEncoderDecoder, Any]:
        """Our model and canonical tree in a dtype."""
        policy = get_policy(dtype)
        params = jax.tree.map(lambda leaf: jnp.asarray(leaf, policy.param_dtype), self.params)
        return VisionEncoderDecoder(self.config, policy), params

    def prepared(self, dtype: str = "float32") -> tuple[VisionEncoderDecoder, Any]:
        """Our model and run-time tree in a dtype."""
        model, params = self.ours(dtype)
        return prepare(params, model)

    def pixels(self, batch: int, seed: int = 0, dtype: str = "float32") -> np.ndarray:
        """Random images [B, 3, height, width]."""
        shape = (batch, 3, *self.config.encoder.image_shape)
        return np.random.default_rng(seed).uniform(-1, 1, shape).astype(dtype)


def make_oracle(content: dict[str, Any], seed: int = 0) -> Any:
    """A transformers model with random weights, biases and norms included, and our sinusoidal table if it has one."""
    torch.manual_seed(seed)
    encoder_class = transformers.DeiTConfig if content["encoder"]["model_type"] == "deit" else transformers.ViTConfig
    encoder = encoder_class(**{k: v for k, v in content["encoder"].items() if k != "model_type"})
    decoder = transformers.TrOCRConfig(**{k: v for k, v in content["decoder"].items() if k != "model_type"})
    config = transformers.VisionEncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder)
    for name in ("decoder_start_token_id", "pad_token_id", "eos_token_id"):
        setattr(config, name, content[name])
    model = transformers.VisionEncoderDecoderModel(config=config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1 or parameter.shape[0] == 1:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    if not decoder.use_learned_position_embeddings:
        positions = model.decoder.model.decoder.embed_positions
        positions.weights = torch.from_numpy(sinusoidal_table(*positions.weights.shape, positions.padding_idx))
    model.generation_config.update(decoder_start_token_id=2, pad_token_id=1, eos_token_id=2, bos_token_id=0)
    return model


def make_twin(content: dict[str, Any] | None = None, seed: int = 0) -> Twin:
    """The twin of a config.json; the oracle is in float32."""
    content = content or config_dict()
    oracle = make_oracle(content, seed)
    config = VisionEncoderDecoderConfig.from_dict(content)
    tensors = {name: tensor.numpy() for name, tensor in oracle.state_dict().items()}
    return Twin(oracle, config, store.from_torch(tensors, names.table(config), "the oracle"))


def make_reader(content: dict[str, Any] | None = None, seed: int = 0, end_rate: float = 0.12) -> Twin:
    """A twin whose texts end at many different steps.

    Random weights as they are repeat a few tokens for ever. Here the image and the position weigh more than the last
    token, and the last norm's bias leans towards the end token so far that it wins in `end_rate` of random contexts.
    """
    twin = make_twin(content or config_dict(), seed)
    oracle, decoder = twin.oracle, twin.oracle.decoder.model.decoder
    with torch.no_grad():
        decoder.embed_tokens.weight.mul_(0.5)
        if twin.config.decoder.use_learned_position_embeddings:
            decoder.embed_positions.weight.mul_(3.0)
        for layer in decoder.layers:
            layer.encoder_attn.out_proj.weight.mul_(4.0)
            layer.encoder_attn.q_proj.weight.mul_(2.0)
        generator = torch.Generator().manual_seed(seed)
        ids = torch.randint(3, twin.config.decoder.vocab_size, (32, 24), generator=generator)
        logits = oracle(torch.from_numpy(twin.pixels(32, seed)), decoder_input_ids=ids).logits
        end = logits[..., 2].clone()
        logits[..., 2] = -torch.inf
        lead = torch.quantile((logits.max(-1).values - end).flatten(), end_rate)
        row = oracle.decoder.output_projection.weight[2]
        decoder.layers[-1].final_layer_norm.bias.add_(lead * row / row.square().sum())
    tensors = {name: tensor.numpy() for name, tensor in oracle.state_dict().items()}
    return dataclasses.replace(twin, params=store.from_torch(tensors, names.table(twin.config), "the oracle"))


def torch_tensors(params: dict[str, Any], config: VisionEncoderDecoderConfig) -> dict[str, np.ndarray]:
    """The tensors of a torch file by v4's names, contiguous, as other packages want them."""
    tensors = store.to_torch(params, names.table(config))
    return {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}


@functools.cache
def default_twin(seed: int = 0) -> Twin:
    """The twin of the small default, made once."""
    return make_twin(seed=seed)


def oracle_generate(oracle: Any, pixel_values: np.ndarray, **options: Any) -> tuple[np.ndarray, np.ndarray | None]:
    """(sequences, sequences_scores) of transformers' generate."""
    with torch.inference_mode():
        output = oracle.generate(
            torch.from_numpy(pixel_values), return_dict_in_generate=True, output_scores=True, **options
        )
    scores = getattr(output, "sequences_scores", None)
    return output.sequences.numpy(), None if scores is None else scores.numpy()
