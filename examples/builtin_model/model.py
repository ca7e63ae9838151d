"""ChatGLM-6B in torch, small. The modules are named so that `state_dict` has the names of the published checkpoint.

A layer, from x of shape (B, L, dim): a = LN(x); x = alpha a + attention(a); b = LN(x); x = alpha b + mlp(b).
ChatGLM-6B's alpha is sqrt(2 * 28), too much for a few layers: their outputs would hardly count beside it. But a norm
does not see the size of its input, so a model trained with another alpha becomes one with ChatGLM-6B's by scaling what
is added to alpha * a (`exported`).
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ALPHA = math.sqrt(2 * 28)  # of ChatGLM-6B
EPS = 1e-5


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x: (B, heads, L, head_dim). cos, sin: (B, 1, L, 2, head_dim / 4): the angles of the two positions, one turning
    each half of a head."""
    x = x.unflatten(-1, (2, 2, -1))
    first, second = x[..., 0, :], x[..., 1, :]
    return torch.stack([first * cos - second * sin, second * cos + first * sin], -2).flatten(-3)


class Attention(nn.Module):
    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.query_key_value = nn.Linear(dim, 3 * dim)
        self.dense = nn.Linear(dim, dim)

    def forward(self, x: Tensor, turns: tuple[Tensor, Tensor], mask: Tensor) -> Tensor:
        q, k, v = self.query_key_value(x).unflatten(-1, (self.heads, -1)).transpose(1, 2).chunk(3, -1)
        # Written out: on a CPU, the gradient of torch's fused attention takes four times as long at these sizes.
        scores = rotate(q, *turns) @ rotate(k, *turns).transpose(2, 3) * q.shape[-1] ** -0.5
        y = scores.float().masked_fill(~mask, -torch.inf).softmax(-1).to(v.dtype) @ v
        return self.dense(y.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    def __init__(self, dim: int):
        super().__init__()
        self.dense_h_to_4h = nn.Linear(dim, 4 * dim)
        self.dense_4h_to_h = nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.dense_4h_to_h(F.gelu(self.dense_h_to_4h(x), approximate="tanh"))


class Layer(nn.Module):
    def __init__(self, dim: int, heads: int, alpha: float):
        super().__init__()
        self.alpha = alpha
        eps = EPS * (alpha / ALPHA) ** 2
        self.input_layernorm = nn.LayerNorm(dim, eps)
        self.attention = Attention(dim, heads)
        self.post_attention_layernorm = nn.LayerNorm(dim, eps)
        self.mlp = MLP(dim)

    def forward(self, x: Tensor, turns: tuple[Tensor, Tensor], mask: Tensor) -> Tensor:
        a = self.input_layernorm(x)
        x = self.alpha * a + self.attention(a, turns, mask)
        b = self.post_attention_layernorm(x)
        return self.alpha * b + self.mlp(b)


class GLM(nn.Module):
    def __init__(self, vocab: int, dim: int, heads: int, layers: int, alpha: float):
        super().__init__()
        self.sizes = {"vocab": vocab, "dim": dim, "heads": heads, "layers": layers}
        self.transformer = nn.ModuleDict(
            {
                "word_embeddings": nn.Embedding(vocab, dim),
                "layers": nn.ModuleList(Layer(dim, heads, alpha) for _ in range(layers)),
                "final_layernorm": nn.LayerNorm(dim, EPS * (alpha / ALPHA) ** 2),
            }
        )
        self.lm_head = nn.Linear(dim, vocab, bias=False)
        quarter = dim // heads // 4
        self.register_buffer("frequencies", 10000.0 ** (-torch.arange(quarter) / quarter), persistent=False)
        for name, p in self.named_parameters():
            if p.dim() == 2:
                nn.init.normal_(p, std=1.0 if "embeddings" in name else dim**-0.5)
            elif name.endswith("bias"):
                nn.init.zeros_(p)

    def forward(self, ids: Tensor, positions: Tensor, context: Tensor, wanted: Tensor) -> Tensor:
        """Logits (n, vocab) of the n places where `wanted` is true.

        ids, wanted: (B, L). positions: (B, L, 2). context: (B,), how many tokens of a row see each other.
        """
        angles = (positions.float()[..., None] * self.frequencies)[:, None]
        at = torch.arange(ids.shape[1])
        mask = (at[None, :] <= at[:, None]) | (at[None, None, :] < context[:, None, None])
        x = self.transformer["word_embeddings"](ids)
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
        turns = angles.cos().to(dtype), angles.sin().to(dtype)
        for layer in self.transformer["layers"]:
            x = layer(x, turns, mask[:, None])
        return self.lm_head(self.transformer["final_layernorm"](x[wanted]))

    def exported(self) -> dict[str, Tensor]:
        """The weights of ChatGLM-6B's form: the same function with its alpha."""
        tensors = dict(self.state_dict())
        for i, layer in enumerate(self.transformer["layers"]):
            for name in ("attention.dense", "mlp.dense_4h_to_h"):
                for kind in ("weight", "bias"):
                    tensors[f"transformer.layers.{i}.{name}.{kind}"] *= ALPHA / layer.alpha
        # The first layer is fed the embeddings, whose size its norm does not see either.
        return tensors
