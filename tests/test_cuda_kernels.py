"""The CUDA kernels against their twins and against each other.

With a GPU and glmlite._cuda the kernels run there. Without, they run on the emulator of tests/native/cuda_host, if it
is built: that checks their arithmetic, their indexing and their barriers on a CPU, and is no test on a GPU.
"""

import cuda_module
import numpy as np
import pytest
import twins
import twins_cuda
from test_linear import EXTREMES, assert_same, assert_within, random_rows, random_x

cuda, emulated = cuda_module.load()
pytestmark = pytest.mark.skipif(cuda is None, reason=str(emulated))

QUANTIZED = [f for f in twins.FORMATS if f not in twins.FLOATS]
# A form that is packed as it is stored, of each kind: what all formats need not repeat.
FORMS = ["F16", "F32", "Q8_0", "Q4_0", "Q5_1", "Q2_K", "Q4_K", "Q6_K", "IQ4_XS"]


@pytest.fixture(autouse=True)
def shuffled(request):
    """Threads of the emulator run in a random order between barriers, another one for each test."""
    cuda_module.shuffle(request.node.name)


def linear(format, rows, x, **more):
    return cuda.kernel_linear([(format, rows, None)], x, **more)


# ---- activations


def quantized(x):
    """(q, d, products, products of halves), as the twin has them."""
    q, d, sums = twins.quantize(x)
    halves = np.repeat(d, 2, axis=1) * sums.astype(np.float32)
    return q, d, d * sums.reshape(len(x), -1, 2).sum(-1).astype(np.float32), halves


def test_quantize():
    x = random_x(9, 544)
    x[1] = 0
    x[2, :32] = np.linspace(-127, 127, 32)  # d = 1: halves stay halves
    x[2, 32:64] = np.r_[127, np.arange(31) - 15.5]
    x[2, 64:96] = np.r_[127, np.nextafter(np.arange(31, dtype=np.float32) - 15.5, np.float32(0))]
    x[3] *= 1e-32
    x[4] *= 1e-37
    x[5] *= 1e37
    x[6] = np.float32(2.0**-149)
    x[7] = -x[0]
    for got, want in zip(cuda.kernel_quantize(x), quantized(x)):
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_stays_visible(value):
    x = random_x(2, 96)
    x[1, 40] = value
    for got, want in zip(cuda.kernel_quantize(x), quantized(x)):
        np.testing.assert_array_equal(got, want)
    y = linear("Q4_0", random_rows("Q4_0", 5, 96, 4), x)
    assert np.isfinite(y[0]).all()
    assert np.isnan(y[1]).all()


# ---- linear


@pytest.mark.parametrize("n, k, tokens", [(1, 256, 1), (15, 512, 2), (17, 2304, 9), (49, 2560, 3), (16, 768, 65)])
@pytest.mark.parametrize("format", twins.FORMATS)
def test_linear(format, n, k, tokens):
    rows, x = random_rows(format, n, k, 1), random_x(tokens, k)
    got = linear(format, rows, x)
    assert_within(got, *twins.linear(format, rows, x))
    assert_same(got, twins_cuda.linear(format, rows, x))


@pytest.mark.parametrize("n, k, tokens", [(16, 32, 1), (33, 96, 7), (18, 4160, 2)])
@pytest.mark.parametrize("format", [f for f in twins.FORMATS if twins.FORMATS[f][0] <= 32])
def test_linear_of_blocks_of_32(format, n, k, tokens):
    rows, x = random_rows(format, n, k, 1), random_x(tokens, k)
    assert_same(linear(format, rows, x), twins_cuda.linear(format, rows, x))


@pytest.mark.parametrize("k", [1, 7, 20])
@pytest.mark.parametrize("format", twins.FLOATS)
def test_float_weights_of_any_width(format, k):
    rows, x = random_rows(format, 35, k, 1), random_x(5, k)
    assert_same(linear(format, rows, x), twins_cuda.linear(format, rows, x))


@pytest.mark.parametrize("format", QUANTIZED)
def test_extreme_scales(format):
    rows, x = random_rows(format, 20, 512, 7, EXTREMES), random_x(3, 512)
    x[1] *= 1e-20
    assert_same(linear(format, rows, x), twins_cuda.linear(format, rows, x))


@pytest.mark.parametrize("format", FORMS)
def test_a_row_does_not_depend_on_the_others(format):
    rows, x = random_rows(format, 150, 512, 5), random_x(70, 512)
    all_at_once = linear(format, rows, x)
    for tokens in (1, 2, 4, 5, 8, 9, 16, 17, 33):
        assert_same(linear(format, rows, x[-tokens:]), all_at_once[-tokens:])


@pytest.mark.parametrize("tokens", [1, 20])
def test_stacked_matrices(tokens):
    formats = ["Q4_K", "Q6_K", "F16", "Q4_K", "Q3_K"]
    x, bias, parts, want = random_x(tokens, 512), {}, [], []
    for i, (format, n) in enumerate(zip(formats, [16, 20, 33, 5, 17])):
        rows = random_rows(format, n, 512, i)
        bias = random_x(1, n, i)[0] if i % 2 else None
        parts.append((format, rows, bias))
        want.append(twins_cuda.epilogue(twins_cuda.linear(format, rows, x), bias, None, 1))
    add = random_x(tokens, 91, 9)
    want = np.concatenate(want, 1)
    assert_same(cuda.kernel_linear(parts, x), want)
    assert_same(cuda.kernel_linear(parts, x, add=add, alpha=0.7), twins_cuda.epilogue(want, None, add, 0.7))


@pytest.mark.parametrize("n, k, tokens", [(32, 256, 1), (352, 2304, 1), (64, 768, 3), (288, 512, 8), (288, 512, 9)])
@pytest.mark.parametrize("format", twins.FORMATS)
def test_gated(format, n, k, tokens):
    x, launches = random_x(tokens, k), 2 if tokens <= 8 and format not in twins.FLOATS else 3
    rows, bias = random_rows(format, 2 * n, k, 1), random_x(1, 2 * n)[0]
    both = twins_cuda.epilogue(twins_cuda.linear(format, rows, x), bias, None, 1)
    for parts in [[(format, rows, bias)], [(format, rows[:n], bias[:n]), (format, rows[n:], bias[n:])]]:
        before = cuda.launches() if emulated else 0
        y, blocks = cuda.kernel_linear(parts, x, gated=True)
        assert not emulated or cuda.launches() - before == launches
        assert_within(y, *twins_cuda.swiglu(both.astype(np.float64)))
        want, want_blocks = cuda.kernel_swiglu(both, quantized=True)
        assert_same(y, want)
        for got, expected in zip(blocks, want_blocks):
            np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("format", FORMS)
def test_packing_in_pieces(format):
    rows, x = random_rows(format, 150, 512, 5), random_x(1, 512)
    assert_same(linear(format, rows, x, piece=64), linear(format, rows, x, piece=1024))


@pytest.mark.parametrize("format", twins.FORMATS)
def test_embed(format):
    n, k = 70, 512
    rows, tokens = random_rows(format, n, k, 3, EXTREMES), np.array([0, 69, 31, 32, 8, 40], np.int32)
    none = np.zeros((2, len(tokens)), np.int32)
    want = twins.weights(format, rows)[tokens]
    assert_same(cuda.kernel_embed(format, rows, tokens, [], none) + np.float32(0), want + np.float32(0))


def test_embed_with_positions():
    table, first, second = random_rows("Q6_K", 9, 256, 1), random_rows("F16", 7, 256, 2), random_rows("F32", 5, 256, 3)
    tokens, positions = np.array([1, 8], np.int32), np.array([[6, 2], [0, 4]], np.int32)
    y, blocks = cuda.kernel_embed("Q6_K", table, tokens, [("F16", first), ("F32", second)], positions, quantized=True)
    want = twins.weights("Q6_K", table)[tokens] + twins.weights("F16", first)[positions[0]]
    want = want + twins.weights("F32", second)[positions[1]]
    assert_same(y, want)
    for got, want in zip(blocks, quantized(y)):
        np.testing.assert_array_equal(got, want)


# ---- rows


@pytest.mark.parametrize("n", [1, 31, 256, 1000, 4096])
def test_rows(n):
    x, w, b, add = (random_x(3, n, seed) for seed in range(4))
    x[1] *= 1e-10
    f64 = [a.astype(np.float64) for a in (x, w[0], b[0], add)]
    assert_within(
        cuda.kernel_rms_norm(x, w[0], None, 1e-5), *twins_cuda.rms_norm(f64[0], f64[1], None, np.float32(1e-5))
    )
    assert_within(
        cuda.kernel_rms_norm(x, w[0], add, 1e-5), *twins_cuda.rms_norm(f64[0], f64[1], f64[3], np.float32(1e-5))
    )
    assert_within(
        cuda.kernel_layer_norm(x, w[0], b[0], 1e-5), *twins_cuda.layer_norm(f64[0], f64[1], f64[2], np.float32(1e-5))
    )
    both = np.concatenate([x * 30, add], 1).astype(np.float32)
    assert_within(cuda.kernel_swiglu(both), *twins_cuda.swiglu(both.astype(np.float64)))
    with np.errstate(divide="ignore"):  # in the twin, where e^z is 0
        assert_within(cuda.kernel_gelu(x * 9), *twins_cuda.gelu((x * np.float32(9)).astype(np.float64)))
    far = np.concatenate([x * 5, [[-3e38] * n, [3e38] * n]]).astype(np.float32)
    assert_within(cuda.kernel_gelu(far, exact=True), *twins_cuda.gelu_erf(far.astype(np.float64)))
    assert_same(cuda.kernel_select(x, np.array([2, 0, 2, 1], np.int32)), x[[2, 0, 2, 1]])


@pytest.mark.parametrize("n", [32, 544, 2048])
def test_rows_are_quantized_as_they_are_stored(n):
    x, w, b = (random_x(3, n, seed) for seed in range(3))
    for y, blocks in (
        cuda.kernel_rms_norm(x, w[0], b, 1e-5, quantized=True),
        cuda.kernel_layer_norm(x, w[0], b[0], 1e-5, quantized=True),
        cuda.kernel_swiglu(np.concatenate([x, b], 1), quantized=True),
        cuda.kernel_gelu(x, quantized=True),
        cuda.kernel_select(x, np.array([2, 1], np.int32), quantized=True),
    ):
        for got, want in zip(blocks, quantized(y)):
            np.testing.assert_array_equal(got, want)


def test_check_finite():
    x = random_x(5, 3000)
    x[3] = -np.inf
    x[0, 2998] = np.nan
    bad = cuda.kernel_check_finite(x, np.array([4, 0, 1, 6, 2], np.int32), 8)
    np.testing.assert_array_equal(bad, [0, 0, 0, 0, 1, 0, 1, 0])


# ---- draws: the CPU's sampler is the twin

DRAWS = [
    {},
    {"temperature": 1.0},
    {"temperature": 0.8, "top_p": 0.8},
    {"temperature": 0.7, "top_k": 40},
    {"temperature": 1.0, "min_p": 0.05},
    {"temperature": 1.3, "top_k": 200, "top_p": 0.9, "min_p": 0.02},
    {"temperature": 0.6, "top_p": 0.9, "min_p": 0.1},
    {"temperature": 1e-3, "top_p": 0.5},
    {"temperature": 1e-300, "top_k": 3},
    {"temperature": 2.0, "top_k": 2000},
    {"repetition_penalty": 1.4, "presence_penalty": 0.5},
    {"temperature": 0.9, "top_p": 0.95, "frequency_penalty": 0.3, "logit_bias": {5: 12.0, 0: -np.inf, 17: 1.0}},
]


def sampler(options, seed=0):
    """After some tokens; twice the same for the same seed."""
    made = cuda.Sampler(seed=seed, **options)
    made.accept(np.random.default_rng(seed).integers(0, 50, 300).tolist())
    return made


def random_logits(rows, vocab, seed=0):
    """A few likely tokens, and many that are not."""
    rng = np.random.default_rng([rows, vocab, seed])
    x = 2 * rng.standard_normal((rows, vocab))
    x[:, rng.integers(0, vocab, 20)] += rng.uniform(3, 12, (rows, 20))
    return x.astype(np.float32)


def assert_draws(logits, samplers, rows, *, listed=True):
    """What the GPU draws is what the CPU draws, or nothing, where too many would have to be put in order."""
    got = cuda.kernel_draw(logits, samplers, rows)
    want = [s.sample(logits[row]).token for s, row in zip(samplers, rows)]
    assert got.tolist() == (want if listed else [-1] * len(want))
    return got


@pytest.mark.parametrize("options", DRAWS, ids=str)
def test_draw(options):
    for vocab in (1, 50, 9001):
        samplers = [sampler({**options, "logit_bias": {}} if vocab == 1 else options, seed) for seed in range(5)]
        for step in range(3):
            assert_draws(random_logits(3, vocab, step), samplers, [0, 1, 2, 2, 0])


def test_draw_from_a_vocabulary_of_the_usual_size():
    logits = random_logits(2, 151552)
    assert_draws(logits, [sampler({"temperature": 1.0}), sampler({"temperature": 0.8, "top_p": 0.5})], [0, 1])


def test_draws_of_a_batch_are_those_alone():
    logits, options = random_logits(len(DRAWS), 4097), list(enumerate(DRAWS))
    together = assert_draws(logits, [sampler(o, i) for i, o in options], range(len(DRAWS)))
    alone = [cuda.kernel_draw(logits[i : i + 1], [sampler(o, i)], [0])[0] for i, o in options]
    np.testing.assert_array_equal(together, alone)


@pytest.mark.parametrize("options", DRAWS, ids=str)
def test_draw_from_special_rows(options):
    rng = np.random.default_rng(7)
    rows = [
        rng.integers(-2, 3, 100),  # ties
        np.where(np.arange(100) % 3, -0.0, 0.0),
        np.full(100, 7.5),
        1000.0 * (np.arange(100) == 17),
        1e-30 * rng.standard_normal(100),
        3e38 * rng.uniform(-1, 1, 100),
    ]
    logits = np.array(rows, np.float32)
    for seed in range(4):
        samplers = [sampler(options, seed + i) for i in range(len(rows))]
        assert_draws(logits, samplers, range(len(rows)))


@pytest.mark.parametrize(
    "options, width, listed",
    [
        ({"temperature": 1.0, "top_p": 0.5}, 0.0, False),
        ({"temperature": 1.0, "top_k": 2100}, 1.0, False),
        ({"temperature": 1.0, "min_p": 0.5}, 0.1, False),
        ({"temperature": 1e4}, 1.0, False),
        ({"temperature": 1.0}, 3.0, True),
        ({"temperature": 1.0, "top_k": 1900}, 3.0, True),
    ],
    ids=str,
)
def test_more_tokens_than_a_block_can_sort_are_left_to_the_cpu(options, width, listed):
    logits = (width * np.random.default_rng(1).standard_normal((2, 5000))).astype(np.float32)
    assert_draws(logits, [sampler(options, seed) for seed in range(2)], [1, 0], listed=listed)


# ---- attention

MMA = twins_cuda.MMA_EMULATED if emulated else twins_cuda.MMA_GPU


class Sequences:
    """KV pages with sequences that are read in steps, and what they should hold."""

    def __init__(self, heads, kv_heads, head_dim, kv_type, lengths, seed=0):
        self.heads, self.kv_heads, self.head_dim, self.kv_type = heads, kv_heads, head_dim, kv_type
        self.lengths = lengths
        rng = np.random.default_rng([seed, heads, head_dim])
        count = sum(-(-n // 64) for n in lengths)
        order = iter(rng.permutation(count + 2))  # pages lie anywhere
        self.pages = np.zeros((len(lengths), max(-(-n // 64) for n in lengths)), np.int32)
        for run, n in enumerate(lengths):
            for i in range(-(-n // 64)):
                self.pages[run, i] = next(order)
        self.cache = cuda.KvPages(heads, kv_heads, head_dim, kv_type, count + 2)
        width = (heads + 2 * kv_heads) * head_dim
        self.qkv = [rng.standard_normal((n, width)).astype(np.float32) for n in lengths]
        self.half = None

    def step(self, tokens, visible=None, quantized=False, split=None, room=70):
        """tokens: [(run, begin, end)], entries of each sequence that are read now -> y (T, heads * head_dim).

        split: tokens of a tile; room: by how much contexts might be longer."""
        qkv = np.concatenate([self.qkv[run][a:b] for run, a, b in tokens])
        entry = np.concatenate([np.arange(a, b) for _, a, b in tokens]).astype(np.int32)
        run = np.concatenate([np.full(b - a, run) for run, a, b in tokens]).astype(np.int32)
        sees = entry + 1 if visible is None else np.full_like(entry, visible)
        most = cuda.attention_tile_tokens(self.heads, self.kv_heads, len(entry)) if split is None else split
        tiles, at = [], 0
        for _, a, b in tokens:
            tiles += [(at + i, at + min(i + most, b - a)) for i in range(0, b - a, most)]
            at += b - a
        positions = np.zeros((2, len(entry)), np.int32)
        state = positions, entry, sees, run, self.pages
        turned, bad = self.cache.append(qkv, *state)
        assert not bad.any()
        context = int(sees.max())
        return self.cache.attend(
            turned, *state, np.array(tiles, np.int32), context + room, self.scale, quantized=quantized
        )

    @property
    def scale(self):
        return self.head_dim**-0.5

    def expected(self, run, begin, end, visible=None):
        """(value, bound) of the entries begin..end of a sequence."""
        dim, group = self.head_dim, self.heads // self.kv_heads
        heads = self.qkv[run].reshape(self.lengths[run], -1, dim)
        sees = np.arange(begin, end) + 1 if visible is None else np.full(end - begin, visible)
        value, bound = np.empty((2, end - begin, self.heads, dim))
        for h in range(self.heads):
            k, v = heads[:, self.heads + h // group], heads[:, self.heads + self.kv_heads + h // group]
            most = int(sees.max())
            value[:, h], bound[:, h] = twins_cuda.attend(
                heads[begin:end, h], k[:most], v[:most], sees, self.scale, self.kv_type, MMA
            )
        return value.reshape(end - begin, -1), bound.reshape(end - begin, -1)


@pytest.mark.parametrize("kv_type", ["f16", "q8"])
@pytest.mark.parametrize(
    "heads, kv_heads, head_dim, n",
    [(1, 1, 8, 1), (2, 2, 64, 65), (4, 1, 20, 70), (16, 1, 128, 66), (8, 2, 96, 130), (40, 1, 16, 64)],
)
def test_attention(heads, kv_heads, head_dim, n, kv_type):
    s = Sequences(heads, kv_heads, head_dim, kv_type, [n])
    at_once = s.step([(0, 0, n)])
    assert_within(at_once, *s.expected(0, 0, n))
    # The last tokens one by one, in twos, and the context in chunks.
    s = Sequences(heads, kv_heads, head_dim, kv_type, [n])
    parts, begin = [], 0
    while begin < n:
        step = 1 if begin >= n - 3 else min(n - 3, 40) - begin % 40 or 40
        step = min(step, max(n - 3 - begin, 1))
        parts.append(s.step([(0, begin, begin + step)]))
        begin += step
    assert_same(np.concatenate(parts), at_once)


@pytest.mark.parametrize("kv_type", ["f16", "q8"])
def test_attention_of_several_sequences(kv_type):
    lengths = [70, 3, 129]
    alone = [Sequences(4, 2, 32, kv_type, lengths).step([(run, 0, n)]) for run, n in enumerate(lengths)]
    s = Sequences(4, 2, 32, kv_type, lengths)
    y = s.step([(run, 0, n - 1) for run, n in enumerate(lengths)])
    assert_same(y, np.concatenate([part[:-1] for part in alone]))
    y = s.step([(run, n - 1, n) for run, n in enumerate(lengths)])
    assert_same(y, np.concatenate([part[-1:] for part in alone]))


@pytest.mark.parametrize("n", [5, 66, 130])
def test_bidirectional_context(n):
    s = Sequences(4, 4, 32, "f16", [n])
    y = s.step([(0, 0, n)], visible=n)
    assert_within(y, *s.expected(0, 0, n, visible=n))


@pytest.mark.parametrize("split", [1, 2, 4])
def test_tiles_do_not_matter(split):
    s, t = (Sequences(8, 2, 32, "f16", [70]) for _ in range(2))
    assert_same(s.step([(0, 0, 70)]), t.step([(0, 0, 70)], split=split))


@pytest.mark.parametrize("kv_type", ["f16", "q8"])
def test_attention_over_groups_of_pages(kv_type):
    """Contexts of up to 19 pages, that is, three groups: read at once, and the last tokens alone."""
    n = 1170
    s, t = (Sequences(4, 1, 16, kv_type, [n]) for _ in range(2))
    keys = np.ascontiguousarray(s.qkv[0][: n - 260, 64:80]), np.ascontiguousarray(s.qkv[0][: n - 260, 80:])
    for cache in (s.cache, t.cache):
        assert cache.store(*keys, s.pages[0])
    at_once = s.step([(0, n - 260, n)])
    assert_within(at_once[-3:], *s.expected(0, n - 3, n))
    assert_within(at_once[:3], *s.expected(0, n - 260, n - 257))
    t.step([(0, n - 260, n - 3)])
    assert_same(t.step([(0, n - 3, n - 1)]), at_once[-3:-1])
    assert_same(t.step([(0, n - 1, n)]), at_once[-1:])


def test_attention_over_a_long_context():
    """More pages than there are blocks for, and more groups of them than are merged at once."""
    n = 16500
    s = Sequences(2, 1, 16, "q8", [n])
    keys = np.ascontiguousarray(s.qkv[0][: n - 1, 32:48]), np.ascontiguousarray(s.qkv[0][: n - 1, 48:])
    assert s.cache.store(*keys, s.pages[0])
    assert_within(s.step([(0, n - 1, n)]), *s.expected(0, n - 1, n))


def test_attention_in_rounds():
    """Where contexts might be so long that there is no room for all partial results at once."""
    lengths = [5, 66, 5]
    steps = [(0, 0, 5), (1, 61, 66), (2, 0, 5)]
    one, many = (Sequences(4, 4, 32, "f16", lengths) for _ in range(2))
    for s in (one, many):
        s.step([(1, 0, 61)])
    assert_same(many.step(steps, room=200_000), one.step(steps))


@pytest.mark.parametrize("kv_type", ["f16", "q8"])
def test_keys_queries_and_values_of_any_size(kv_type):
    """Queries are scaled by powers of two on their way to f16, and so are q8's values."""
    for size in (1e-30, 1e-6, 1e4):
        s = Sequences(4, 2, 32, kv_type, [70])
        s.qkv[0][:, : 4 * 32] *= size
        s.qkv[0][:, 4 * 32 : 6 * 32] *= 1 / size if kv_type == "q8" else 1
        if kv_type == "q8":
            s.qkv[0][:, 6 * 32 :] *= np.logspace(-20, -12, 70, dtype=np.float32)[:, None]
        assert_within(s.step([(0, 0, 70)]), *s.expected(0, 0, 70))


@pytest.mark.parametrize("heads, n", [(4, 3), (8, 40), (8, 140)])
def test_attention_is_quantized_as_it_is_stored(heads, n):
    y, blocks = Sequences(heads, 2, 32, "f16", [n]).step([(0, 0, n)], quantized=True)
    for got, want in zip(blocks, quantized(y)):
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("normed", [False, True])
def test_norms_and_turns(normed):
    heads, kv_heads, dim, tokens = 3, 1, 24, 5
    rng = np.random.default_rng(3)
    qkv = rng.standard_normal((tokens, (heads + 2 * kv_heads) * dim)).astype(np.float32)
    first, second = np.arange(0, 16, 2, dtype=np.int32), np.arange(1, 17, 2, dtype=np.int32)
    axis, freq = np.array([0, 1] * 4, np.int32), 10000.0 ** -(np.arange(8) / 8)
    positions = rng.integers(0, 100000, (2, tokens)).astype(np.int32)
    norms = [rng.standard_normal(dim).astype(np.float32) for _ in range(2)] if normed else [None, None]
    entry, zero = np.arange(tokens, dtype=np.int32), np.zeros(tokens, np.int32)
    cache = cuda.KvPages(heads, kv_heads, dim, "f16", 1)
    got, bad = cache.append(
        qkv,
        positions,
        entry,
        entry + 1,
        zero,
        np.zeros((1, 1), np.int32),
        (first, second, axis, freq, 1.5),
        *norms,
        1e-5,
    )
    assert not bad.any()
    angle = freq * positions[axis].T
    cos, sin = 1.5 * np.cos(angle)[:, None], 1.5 * np.sin(angle)[:, None]
    given, got = qkv.reshape(tokens, -1, dim), got.reshape(tokens, -1, dim)
    for part, norm in (slice(0, heads), norms[0]), (slice(heads, heads + kv_heads), norms[1]):
        want, bound = twins_cuda.turned(given[:, part], norm, np.float32(1e-5), (first, second), cos, sin)
        assert_within(got[:, part], want, bound)
    assert_same(got[:, heads + kv_heads :], np.ascontiguousarray(given[:, heads + kv_heads :]))


@pytest.mark.parametrize("kv_type", ["f16", "q8"])
def test_keys_and_values_that_are_not_finite(kv_type):
    qkv = random_x(4, 3 * 32)
    qkv[1, 40] = np.inf  # a key
    qkv[2, 95] = np.nan  # a value
    qkv[3, 5] = np.nan  # a query
    entry, zero = np.arange(4, dtype=np.int32), np.zeros(4, np.int32)
    cache = cuda.KvPages(1, 1, 32, kv_type, 1)
    positions = np.zeros((2, 4), np.int32)
    _, bad = cache.append(qkv, positions, entry, entry + 1, zero, np.zeros((1, 1), np.int32))
    np.testing.assert_array_equal(bad, [0, 1, 1, 0])


@pytest.mark.parametrize("kv_type", ["f16", "q8"])
def test_prefix(kv_type):
    """The prefix's entries come first; stored as they are, they are what appended ones are."""
    n, prefix = 9, 67
    whole, s = (Sequences(2, 1, 32, kv_type, [prefix + n]) for _ in range(2))
    want = whole.step([(0, 0, prefix + n)])[prefix:]
    rows = s.qkv[0][:prefix]
    assert s.cache.store(np.ascontiguousarray(rows[:, 64:96]), np.ascontiguousarray(rows[:, 96:]), s.pages[0])
    assert_same(s.step([(0, prefix, prefix + n)]), want)
    assert not s.cache.store(np.full((1, 32), np.inf, np.float32), rows[:1, 96:].copy(), s.pages[0])
