"""A LLaMA that can learn. Its parameters carry the published names, so that its state is a checkpoint's.

The product's native engine computes the same from a cache and cannot be trained; a test holds both together.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NORM_EPSILON = 1e-5
ROPE_THETA = 10000.0


@dataclass(frozen=True)
class Size:
    """How large a model is. Heads are 64 wide, as its users' kernels like them."""

    hidden: int
    inner: int  # width of the feed-forward part
    layers: int
    heads: int
    key_value_heads: int
    length: int  # ids that it is trained to read

    @property
    def head_size(self) -> int:
        return self.hidden // self.heads

    def config(self, vocabulary_size: int) -> dict[str, object]:
        """Write the size down as the config.json of a published LLaMA does."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": self.hidden,
            "intermediate_size": self.inner,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.key_value_heads,
            "vocab_size": vocabulary_size,
            "max_position_embeddings": self.length,
            "rms_norm_eps": NORM_EPSILON,
            "rope_theta": ROPE_THETA,
            "tie_word_embeddings": False,
            "torch_dtype": "float32",
        }


class Attention(nn.Module):
    def __init__(self, size: Size) -> None:
        super().__init__()
        self.size = size
        shared = size.key_value_heads * size.head_size
        self.q_proj = nn.Linear(size.hidden, size.hidden, bias=False)
        self.k_proj = nn.Linear(size.hidden, shared, bias=False)
        self.v_proj = nn.Linear(size.hidden, shared, bias=False)
        self.o_proj = nn.Linear(size.hidden, size.hidden, bias=False)

    def forward(self, x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        """x: [B, n, hidden]. Each position sees itself and those before it."""

        def split(y: Tensor) -> Tensor:
            return y.unflatten(-1, (-1, self.size.head_size)).transpose(1, 2)  # [B, heads, n, head size]

        q, k, v = split(self.q_proj(x)), split(self.k_proj(x)), split(self.v_proj(x))
        q, k = _rotate(q, cosine, sine), _rotate(k, cosine, sine)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        y: Tensor = self.o_proj(attended.transpose(1, 2).flatten(2))
        return y


class FeedForward(nn.Module):
    def __init__(self, size: Size) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(size.hidden, size.inner, bias=False)
        self.up_proj = nn.Linear(size.hidden, size.inner, bias=False)
        self.down_proj = nn.Linear(size.inner, size.hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return y


class Layer(nn.Module):
    def __init__(self, size: Size) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(size.hidden, NORM_EPSILON)
        self.self_attn = Attention(size)
        self.post_attention_layernorm = nn.RMSNorm(size.hidden, NORM_EPSILON)
        self.mlp = FeedForward(size)

    def forward(self, x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cosine, sine)
        y: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return y


class Decoder(nn.Module):
    def __init__(self, size: Size, vocabulary_size: int) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(vocabulary_size, size.hidden)
        self.layers = nn.ModuleList(Layer(size) for _ in range(size.layers))
        self.norm = nn.RMSNorm(size.hidden, NORM_EPSILON)
        exponents = torch.arange(0, size.head_size, 2, dtype=torch.float64) / size.head_size
        angles = torch.outer(torch.arange(size.length, dtype=torch.float64), ROPE_THETA**-exponents)
        self.register_buffer("cosine", angles.cos().float(), persistent=False)
        self.register_buffer("sine", angles.sin().float(), persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        cosine, sine = self.get_buffer("cosine")[: ids.shape[1]], self.get_buffer("sine")[: ids.shape[1]]
        x: Tensor = self.embed_tokens(ids)
        for layer in self.layers:
            x = layer(x, cosine, sine)
        y: Tensor = self.norm(x)
        return y


class LanguageModel(nn.Module):
    def __init__(self, size: Size, vocabulary_size: int) -> None:
        super().__init__()
        self.size = size
        self.model = Decoder(size, vocabulary_size)
        self.lm_head = nn.Linear(size.hidden, vocabulary_size, bias=False)
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                # Branches that add to the residual start smaller, the deeper the model. Source: GPT-2.
                is_branch_end = name.endswith(("o_proj.weight", "down_proj.weight"))
                nn.init.normal_(parameter, std=0.02 / (2 * size.layers) ** 0.5 if is_branch_end else 0.02)

    def forward(self, ids: Tensor, wanted: Tensor) -> Tensor:
        """Compute the logits after the wanted positions only.

        ids: int64 [B, n]; rows are filled up at their ends, which nothing before can see. wanted: bool [B, n].
        Returns [W, vocabulary], row after row.
        """
        logits: Tensor = self.lm_head(self.model(ids)[wanted])
        return logits


def _rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Turn each pair (first half, second half) of a head by its position's angle. x: [B, heads, n, size]."""
    first, second = x.float().chunk(2, dim=-1)
    return torch.cat((first * cosine - second * sine, second * cosine + first * sine), dim=-1).to(x.dtype)
