"""The published models, once more: what the makers' configs say, typed from them and not from the table."""

import pytest

from glmlite import families

# layers, dim, heads, vocab; eps; columns that turn; base of RoPE; tied; scale of the experts
WANT = {
    "ChatGLM-6B": ((28, 4096, 32, 130528), 1e-5, None, None, False, None),
    "ChatGLM-6B, first release": ((28, 4096, 32, 150528), 1e-5, None, None, False, None),
    "ChatGLM2-6B, ChatGLM3-6B, CodeGeeX2": ((28, 4096, 32, 65024), 1e-5, 64, None, False, None),
    "GLM-4-9B, CodeGeeX4": ((40, 4096, 32, 151552), 1.5625e-07, 64, None, False, None),
    "GLM-Edge 1.5B": ((28, 2048, 16, 59264), 1e-5, 128, 10000.0, True, None),
    "GLM-4-9B-0414, GLM-Z1-9B": ((40, 4096, 32, 151552), 1e-5, 64, 10000.0, False, None),
    "GLM-4-32B-0414, GLM-Z1-32B": ((61, 6144, 48, 151552), 1e-5, 64, 10000.0, False, None),
    "GLM-OCR": ((16, 1536, 16, 59392), 1e-5, 128, None, False, None),
    "GLM-4.5-Air": ((46, 4096, 96, 151552), 1e-5, 64, 1000000.0, False, 1.0),
    "GLM-4.5, GLM-4.6, GLM-4.7": ((92, 5120, 96, 151552), 1e-5, 64, 1000000.0, False, 2.5),
    "GLM-4.7-Flash": ((47, 2048, 20, 154880), 1e-5, 64, 1000000.0, False, 1.8),
}


def test_every_row():
    got = {
        p.name: (tuple(vars(p.sizes).values()), p.eps, p.rope_dim, p.base, p.tied, p.scale) for p in families.PUBLISHED
    }
    assert got == WANT


@pytest.mark.parametrize("published", families.PUBLISHED, ids=lambda p: p.name)
def test_a_model_is_recognised_by_its_sizes(published):
    assert families.recognise(published.architecture, published.sizes) is published
