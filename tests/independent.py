"""The models of the family that exist nowhere as a library, written a second time: ChatGLM, ChatGLM-6B and GLM.

Written from the papers' and the published models' description, token by token and head by head, in f64, without
a cache and with explicit masks; nothing of glmlite is imported. Each takes a `tiny.Tiny` and all the tokens, and
returns logits (T, vocab).
"""

import cmath
import math

import numpy as np


def chatglm(model, tokens):
    get = _getter(model, "chatglm")
    heads, kv_heads, width = get("attention.head_count"), get("attention.head_count_kv"), get("attention.key_length")
    turned, base = get("rope.dimension_count"), get("rope.freq_base")
    eps = get("attention.layer_norm_rms_epsilon")
    divisor = model.metadata.get("chatglm.rope.scaling.factor", 1)  # of positions
    w = _Weights(model)

    def norm(x, name):
        return np.array([row / math.sqrt(sum(row**2) / len(row) + eps) for row in x]) * w[name]

    def rotate(head, position):
        """Columns i and i+1 are a complex number, which turns by position / divisor * base^(-i/turned)."""
        head = head.copy()
        for i in range(0, turned, 2):
            angle = position / divisor * base ** (-i / turned)
            z = complex(head[i], head[i + 1]) * cmath.exp(1j * angle)
            head[i], head[i + 1] = z.real, z.imag
        return head

    n = len(tokens)
    mask = np.array([[j <= i for j in range(n)] for i in range(n)])
    x = w["token_embd.weight"][tokens]
    for layer in range(get("block_count")):
        b = f"blk.{layer}."
        qkv = norm(x, b + "attn_norm.weight") @ w[b + "attn_qkv.weight"].T + w.get(b + "attn_qkv.bias", 0)
        q, k, v = np.split(qkv, [heads * width, (heads + kv_heads) * width], axis=1)
        q = [[rotate(q[t, h * width : (h + 1) * width], t) for h in range(heads)] for t in range(n)]
        k = [[rotate(k[t, h * width : (h + 1) * width], t) for h in range(kv_heads)] for t in range(n)]
        v = [[v[t, h * width : (h + 1) * width] for h in range(kv_heads)] for t in range(n)]
        att = _attend(q, k, v, mask, *_prefix(w, b, kv_heads, width))
        x = x + att @ w[b + "attn_output.weight"].T
        gate_up = norm(x, b + "ffn_norm.weight") @ w[b + "ffn_up.weight"].T
        half = gate_up.shape[1] // 2
        gate, up = gate_up[:, :half], gate_up[:, half:]
        x = x + (gate * (1 / (1 + np.exp(-gate))) * up) @ w[b + "ffn_down.weight"].T
    return norm(x, "output_norm.weight") @ w.get("output.weight", w["token_embd.weight"]).T


def chatglm1(model, tokens, mask_token, start_token):
    get = _getter(model, "chatglm1")
    heads, width, eps = get("attention.head_count"), get("attention.key_length"), get("attention.layer_norm_epsilon")
    alpha = math.sqrt(2 * 28)
    w = _Weights(model)
    n = len(tokens)
    context = tokens.index(start_token)
    mask_position = tokens.index(mask_token)
    positions = [t if t < context else mask_position for t in range(n)]
    block_positions = [0 if t < context else t - context + 1 for t in range(n)]

    def rotate_half_head(part, position):
        """cos · x + sin · [-x2, x1], x1 and x2 the halves of x."""
        size = len(part)
        frequencies = [10000.0 ** (-2 * i / size) for i in range(size // 2)]
        cos = np.array([math.cos(position * f) for f in frequencies] * 2)
        sin = np.array([math.sin(position * f) for f in frequencies] * 2)
        return cos * part + sin * np.concatenate([-part[size // 2 :], part[: size // 2]])

    def rotate(head, t):
        first, second = head[: width // 2], head[width // 2 :]
        turned = [rotate_half_head(first, positions[t]), rotate_half_head(second, block_positions[t])]
        return np.concatenate(turned)

    mask = _infilling_mask(n, context)
    x = w["token_embd.weight"][tokens]
    for layer in range(get("block_count")):
        b = f"blk.{layer}."
        a = _layer_norm(x, w[b + "attn_norm.weight"], w[b + "attn_norm.bias"], eps)
        q, k, v = _split_heads(_linear(a, w, b + "attn_qkv"), heads, width)
        q = [[rotate(q[t][h], t) for h in range(heads)] for t in range(n)]
        k = [[rotate(k[t][h], t) for h in range(heads)] for t in range(n)]
        att = _attend(q, k, v, mask, *_prefix(w, b, heads, width))
        x = a * alpha + _linear(att, w, b + "attn_output")
        a = _layer_norm(x, w[b + "ffn_norm.weight"], w[b + "ffn_norm.bias"], eps)
        x = a * alpha + _linear(_gelu(_linear(a, w, b + "ffn_up")), w, b + "ffn_down")
    x = _layer_norm(x, w["output_norm.weight"], w["output_norm.bias"], eps)
    return x @ w["output.weight"].T


def glm(model, tokens, mask_tokens, start_token):
    get = _getter(model, "glm")
    heads, width, eps = get("attention.head_count"), get("attention.key_length"), get("attention.layer_norm_epsilon")
    w = _Weights(model)
    n = len(tokens)
    context = tokens.index(start_token)
    masks = [t for t in range(context) if tokens[t] in mask_tokens]
    positions, block_positions, piece, block = list(range(context)), [0] * context, -1, 0
    for token in tokens[context:]:
        piece, block = (piece + 1, 1) if token == start_token else (piece, block + 1)
        positions.append(masks[piece])
        block_positions.append(block)

    mask = _infilling_mask(n, context)
    x = w["token_embd.weight"][tokens] + w["position_embd.weight"][positions]
    x = x + w["block_position_embd.weight"][block_positions]
    for layer in range(get("block_count")):
        b = f"blk.{layer}."
        a = _layer_norm(x, w[b + "attn_norm.weight"], w[b + "attn_norm.bias"], eps)
        q, k, v = _split_heads(_linear(a, w, b + "attn_qkv"), heads, width)
        x = x + _linear(_attend(q, k, v, mask), w, b + "attn_output")
        a = _layer_norm(x, w[b + "ffn_norm.weight"], w[b + "ffn_norm.bias"], eps)
        x = x + _linear(_gelu(_linear(a, w, b + "ffn_up")), w, b + "ffn_down")
    return _layer_norm(x, w["output_norm.weight"], w["output_norm.bias"], eps) @ w["token_embd.weight"].T


class _Weights(dict):
    def __init__(self, model):
        super().__init__({name: x.astype(np.float64) for name, x in model.tensors.items()})


def _getter(model, architecture):
    return lambda key: model.metadata[f"{architecture}.{key}"]


def _infilling_mask(n, context):
    """(n, n): row i sees column j if j is in the context or not after i."""
    return np.array([[j < context or j <= i for j in range(n)] for i in range(n)])


def _prefix(w, b, kv_heads, width):
    """Trained keys and values as lists [token][head]."""
    if b + "prefix_k.weight" not in w:
        return [], []
    return tuple(
        [[row[h * width : (h + 1) * width] for h in range(kv_heads)] for row in w[f"{b}prefix_{x}.weight"]]
        for x in "kv"
    )


def _split_heads(qkv, heads, width):
    """[Q | K | V] columns as three lists [token][head]."""
    size = heads * width
    return tuple(
        [[row[part * size + h * width : part * size + (h + 1) * width] for h in range(heads)] for row in qkv]
        for part in range(3)
    )


def _attend(q, k, v, mask, prefix_k=(), prefix_v=()):
    """q, k, v: [token][head] vectors; row t sees the prefix and the tokens that mask[t] allows."""
    out = []
    for t in range(len(q)):
        seen = [i for i in range(len(k)) if mask[t][i]]
        row = []
        for h in range(len(q[0])):
            g = h * len(k[0]) // len(q[0])  # the key head of query head h
            keys = [p[g] for p in prefix_k] + [k[i][g] for i in seen]
            values = [p[g] for p in prefix_v] + [v[i][g] for i in seen]
            scores = [math.fsum(q[t][h] * key) / math.sqrt(len(key)) for key in keys]
            weights = [math.exp(s - max(scores)) for s in scores]
            row.append(sum(weight / math.fsum(weights) * value for weight, value in zip(weights, values)))
        out.append(np.concatenate(row))
    return np.array(out)


def _linear(x, w, name):
    return x @ w[name + ".weight"].T + w[name + ".bias"]


def _layer_norm(x, weight, bias, eps):
    rows = []
    for row in x:
        mean = sum(row) / len(row)
        variance = sum((row - mean) ** 2) / len(row)
        rows.append((row - mean) / math.sqrt(variance + eps))
    return np.array(rows) * weight + bias


def _gelu(x):
    return 0.5 * x * (1 + np.tanh(0.7978845608028654 * x * (1 + 0.044715 * x * x)))
