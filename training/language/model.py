"""A LLaMA that can learn. Its parameters carry the published names, so that its state is a checkpoint's.

The product's native engine computes the same from a cache and cannot be trained; a test holds both together. Rows are
read packed, one after the other in one long line, so that nothing is filled up.
"""

from collections.abc import Callable, Sequence
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
    dropout: float = 0.0  # of what is embedded and of what each branch adds, in training

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


@dataclass(frozen=True, eq=False)
class Packing:
    """Where the rows of a packed line lie. Each position sees itself and those before it in its row."""

    rows: Tensor  # int64 [n], the row of each position
    positions: Tensor  # int64 [n], within its row
    bounds: Tensor  # int32 [rows + 1], where each row begins, and the end of the last
    longest: int  # of the rows


Attend = Callable[[Tensor, Tensor, Tensor, Packing], Tensor]
Turn = tuple[Tensor, Tensor]  # cosine and sine of each position's angles, [n, 1, head size / 2]


def attend_by_rows(q: Tensor, k: Tensor, v: Tensor, packing: Packing) -> Tensor:
    """Attend within each row, with rows filled up to the longest; for any device. q, k, v: [n, heads, head size]."""

    def spread(x: Tensor) -> Tensor:
        filled = x.new_zeros(len(packing.bounds) - 1, packing.longest, *x.shape[1:])
        filled = filled.index_put((packing.rows, packing.positions), x)
        return filled.transpose(1, 2)  # [rows, heads, longest, head size]

    attended = F.scaled_dot_product_attention(spread(q), spread(k), spread(v), is_causal=True)
    return attended.transpose(1, 2)[packing.rows, packing.positions]


def attend_packed(q: Tensor, k: Tensor, v: Tensor, packing: Packing) -> Tensor:
    """Do what `attend_by_rows` does with the kernel of FlashAttention for rows of any length: CUDA, bfloat16 only."""
    bounds, longest = packing.bounds, packing.longest
    attended: Tensor = torch.ops.aten._flash_attention_forward(
        q, k, v, bounds, bounds, longest, longest, 0.0, True, False
    )[0]
    return attended


def choose_attention(device: torch.device, dtype: torch.dtype, heads: int, head_size: int) -> Attend:
    """Take the packed kernel where it works and agrees, gradients included, on a small example."""
    if device.type != "cuda" or dtype != torch.bfloat16:
        return attend_by_rows
    lengths = torch.tensor([70, 130, 1])
    rows = torch.repeat_interleave(torch.arange(3), lengths)
    bounds = F.pad(lengths.cumsum(0), (1, 0))
    packing = Packing(
        rows.to(device), (torch.arange(201) - bounds[rows]).to(device), bounds.int().to(device), int(lengths.max())
    )
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(201, heads, head_size, generator=generator).to(device, dtype) for _ in range(4)]
    results = []
    try:
        for attend in (attend_by_rows, attend_packed):
            q, k, v = (x.clone().requires_grad_() for x in inputs[:3])
            attended = attend(q, k, v, packing)
            results.append([attended, *torch.autograd.grad((attended * inputs[3]).sum(), (q, k, v))])
        for expected, found in zip(*results, strict=True):
            torch.testing.assert_close(found, expected, atol=0.05, rtol=0.05)
    except (RuntimeError, NotImplementedError, TypeError, AssertionError) as error:
        print(f"packed attention is not used, and training slower: {error}", flush=True)
        return attend_by_rows
    return attend_packed


class Linear(nn.Linear):
    """A linear map without bias that computes in its input's precision, whatever its weights are kept in."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype))


class Norm(nn.Module):
    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight.to(x.dtype), NORM_EPSILON)


class Attention(nn.Module):
    def __init__(self, size: Size) -> None:
        super().__init__()
        self.size = size
        shared = size.key_value_heads * size.head_size
        self.q_proj = Linear(size.hidden, size.hidden)
        self.k_proj = Linear(size.hidden, shared)
        self.v_proj = Linear(size.hidden, shared)
        self.o_proj = Linear(size.hidden, size.hidden)

    def forward(self, x: Tensor, turn: Turn, packing: Packing, attend: Attend) -> Tensor:
        """x: [n, hidden]."""
        q, k, v = (
            project(x).unflatten(-1, (-1, self.size.head_size)) for project in (self.q_proj, self.k_proj, self.v_proj)
        )  # [n, heads, head size]
        repeats = self.size.heads // self.size.key_value_heads
        q, k = _rotate(q, *turn), _rotate(k, *turn).repeat_interleave(repeats, dim=1)
        y: Tensor = self.o_proj(attend(q, k, v.repeat_interleave(repeats, dim=1), packing).flatten(1))
        return y

    def look(self, x: Tensor, turn: Turn, packing: Packing, attend: Attend, marks: Tensor) -> Tensor:
        """Let the first head read marks beside its values, so that it says where it looks.

        marks: [n, parts, head size]. Returns the mean of the marks that each position sees, weighted by attention, and
        after them that of the values of what is marked: [n, parts + 1, head size].
        """
        size = self.size.head_size
        q, k = (
            _rotate(F.linear(x, project.weight[:size].to(x.dtype))[:, None], *turn)
            for project in (self.q_proj, self.k_proj)
        )
        values = F.linear(x, self.v_proj.weight[:size].to(x.dtype))[:, None]
        read = torch.cat([marks, values * marks.amax(dim=(1, 2), keepdim=True)], dim=1)
        return attend(q.repeat(1, read.shape[1], 1), k.repeat(1, read.shape[1], 1), read, packing)


class FeedForward(nn.Module):
    def __init__(self, size: Size) -> None:
        super().__init__()
        self.gate_proj = Linear(size.hidden, size.inner)
        self.up_proj = Linear(size.hidden, size.inner)
        self.down_proj = Linear(size.inner, size.hidden)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return y


class Layer(nn.Module):
    def __init__(self, size: Size) -> None:
        super().__init__()
        self.input_layernorm = Norm(size.hidden)
        self.self_attn = Attention(size)
        self.post_attention_layernorm = Norm(size.hidden)
        self.mlp = FeedForward(size)
        self._dropout = size.dropout

    def forward(self, x: Tensor, turn: Turn, packing: Packing, attend: Attend) -> Tensor:
        x = x + self._drop(self.self_attn(self.input_layernorm(x), turn, packing, attend))
        y: Tensor = x + self._drop(self.mlp(self.post_attention_layernorm(x)))
        return y

    def look(self, x: Tensor, turn: Turn, packing: Packing, attend: Attend, marks: Tensor) -> Tensor:
        seen: Tensor = self.self_attn.look(self.input_layernorm(x), turn, packing, attend, marks)
        return seen

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self._dropout, self.training)


class Decoder(nn.Module):
    def __init__(self, size: Size, vocabulary_size: int) -> None:
        super().__init__()
        self.size = size
        self.embed_tokens = nn.Embedding(vocabulary_size, size.hidden)
        self.layers = nn.ModuleList(Layer(size) for _ in range(size.layers))
        self.norm = Norm(size.hidden)
        exponents = torch.arange(0, size.head_size, 2, dtype=torch.float64) / size.head_size
        angles = torch.outer(torch.arange(size.length, dtype=torch.float64), ROPE_THETA**-exponents)
        self.register_buffer("cosine", angles.cos().float(), persistent=False)
        self.register_buffer("sine", angles.sin().float(), persistent=False)

    def forward(
        self,
        ids: Tensor,
        packing: Packing,
        attend: Attend,
        dtype: torch.dtype,
        watched: Sequence[int] = (),
        marks: Tensor | None = None,
    ) -> tuple[Tensor, list[Tensor]]:
        x: Tensor = F.dropout(self.embed_tokens(ids).to(dtype), self.size.dropout, self.training)
        cosine, sine = (self.get_buffer(name)[packing.positions][:, None].to(dtype) for name in ("cosine", "sine"))
        looks = []
        for number, layer in enumerate(self.layers):
            assert isinstance(layer, Layer)
            if marks is not None and number in watched:
                looks.append(layer.look(x, (cosine, sine), packing, attend, marks))
            x = layer(x, (cosine, sine), packing, attend)
        return self.norm(x), looks


class LanguageModel(nn.Module):
    def __init__(self, size: Size, vocabulary_size: int) -> None:
        super().__init__()
        self.size = size
        self.model = Decoder(size, vocabulary_size)
        self.lm_head = Linear(size.hidden, vocabulary_size)
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                # Branches that add to the residual start smaller, the deeper the model. Source: GPT-2.
                is_branch_end = name.endswith(("o_proj.weight", "down_proj.weight"))
                nn.init.normal_(parameter, std=0.02 / (2 * size.layers) ** 0.5 if is_branch_end else 0.02)

    def forward(
        self, ids: Tensor, packing: Packing, attend: Attend = attend_by_rows, dtype: torch.dtype = torch.float32
    ) -> Tensor:
        """Compute what the head reads, [n, hidden], for packed ids, int64 [n].

        The head is left to the caller, who knows which of its rows are asked for.
        """
        hidden: Tensor = self.model(ids, packing, attend, dtype)[0]
        return hidden

    def watch(
        self, ids: Tensor, packing: Packing, attend: Attend, dtype: torch.dtype, layers: Sequence[int], marks: Tensor
    ) -> tuple[Tensor, list[Tensor]]:
        """Do what `forward` does, and say where the first heads of some layers look; see `Attention.look`."""
        watched: tuple[Tensor, list[Tensor]] = self.model(ids, packing, attend, dtype, layers, marks)
        return watched


def _rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Turn each pair (first half, second half) of a head by its position's angle. x: [n, heads, size]."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cosine - second * sine, second * cosine + first * sine), dim=-1)
