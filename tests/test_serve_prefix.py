"""A conversation of eight rounds with tools and thoughts on the real engine: what of its prompts is read again."""

import pytest
import tiny
from serving import ask
from test_serve_thoughts import NEW

import glmlite
from glmlite.model import Model
from glmlite.serve import Settings, app

pytest.importorskip("llguidance", reason="llguidance is not installed: pip install 'glmlite[grammar]'")

MARKS = ["<think>", "</think>", "<tool_call>", "</tool_call>", "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"]
PARAMETERS = {"type": "object", "properties": {"at": {"type": "string"}}, "required": ["at"]}
TOOLS = [{"type": "function", "function": {"name": "look", "parameters": PARAMETERS}}]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    model = tiny.model("glm4", context=4096)
    tokens, kinds = list(model.metadata["tokenizer.ggml.tokens"]), model.metadata["tokenizer.ggml.token_type"].copy()
    unused = [i for i, kind in enumerate(kinds) if kind == tiny.UNUSED][: len(MARKS)]
    for i, mark in zip(unused, MARKS, strict=True):
        tokens[i], kinds[i] = mark, tiny.USER_DEFINED
    model.metadata.update({"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": kinds})
    model.metadata["tokenizer.chat_template"] = NEW
    path = tmp_path_factory.mktemp("model") / "model.gguf"
    tiny.write(path, model)
    return path


NUMBER = "/[0-9]{12}/"  # drawn by the model; its tokens are the digits
THOUGHT = [NUMBER, "</think>"]
CALL = [*THOUGHT, "<tool_call>look<arg_key>at</arg_key><arg_value>", NUMBER, "</arg_value></tool_call>"]
ANSWER = [*THOUGHT, NUMBER]
FORCED = 3  # tokens at the end of a call that need no step, and one that needs none after it


def grammar_of(parts, tokenizer):
    """Of answers in the tokens that a prompt has for them."""
    return "start: " + " ".join(
        part if part == NUMBER else " ".join(f"<[{i}]>" for i in tokenizer.encode(part, special=True)) for part in parts
    )


@pytest.mark.parametrize("keeps", [True, False], ids=["keeps thoughts", "drops thoughts"])
@pytest.mark.parametrize("clear", [True, False], ids=["template clears", "keep_thinking"])
def test_a_conversation_reads_only_what_is_new(path, monkeypatch, keeps, clear):
    form = [CALL]
    monkeypatch.setattr(
        Model, "_calls", lambda self, *offered: self._vocabulary.grammar(grammar_of(form[-1], self.tokenizer))
    )
    messages = []

    def ask_for(parts):
        """The usage of a request that is answered in this form: tokens of the prompt, read before, and written."""
        form.append(parts)
        answer = ask(application, "/v1/chat/completions", {"messages": messages, "tools": TOOLS}).json
        message = answer["choices"][0]["message"]
        assert len(message["reasoning_content"]) == 12
        if not keeps:
            del message["reasoning_content"]
        messages.append(message)
        usage = answer["usage"]
        return usage["prompt_tokens"], usage["prompt_tokens_details"]["cached_tokens"], usage["completion_tokens"]

    with glmlite.load(path) as model:
        assert model.dialect.name == "glm47"
        application = app(model, Settings(keep_thinking=not clear))
        before = asked = 0
        for turn in range(8):
            messages.append({"role": "user", "content": f"Where is it now, the {turn}. time?"})
            prompt, cached, new = ask_for(CALL)
            # At a question the template rewrites the answers to the last one, if it clears their thoughts.
            assert cached >= (asked if clear else before - 1)
            (call,) = messages[-1]["tool_calls"]
            asked = prompt - 1
            before = prompt + new
            messages.append({"role": "tool", "tool_call_id": call["id"], "content": "there"})
            prompt, cached, new = ask_for(ANSWER)
            assert before - FORCED <= cached <= before
            before = prompt + new
