"""A conversation that has to fit into fewer tokens than it has: which messages go."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..errors import ContextOverflow
from .messages import check
from .tokens import Prompt

Messages = list[dict[str, Any]]


def fit(
    render: Callable[[Messages], Prompt], messages: Sequence[Mapping[str, Any]], *, room: int, context: int
) -> Prompt:
    """The ids of a conversation without as many of its oldest messages as have to go.

    render: ids of messages. room: tokens that the prompt should have at most. context: tokens that it may have, with
    one of the answer, where it does not fit into `room` without what stays.

    What stays are system messages and, from the last question on, what the model answers to. What goes, oldest first,
    are rounds, a question with all that follows it, and then calls of tools with their results. So what is left begins
    as a conversation does. Renders about log2(rounds) + 2 times.

    Raises ContextOverflow where what stays leaves no room for an answer, ValueError as `render` does.
    """
    messages = check(messages)
    best = render(messages)
    if len(best) <= room:
        return best
    groups = _groups(messages)

    def without(count: int) -> Prompt:
        gone = {i for group in groups[:count] for i in group}
        return render([message for i, message in enumerate(messages) if i not in gone])

    few, enough = 0, len(groups)  # groups: with `few` fewer it does not fit
    if groups:
        best = without(enough)
    if len(best) > room:
        if len(best) >= context:
            raise ContextOverflow(
                f"the system message, the tools and the last question have {len(best)} tokens and leave no room in a "
                f"context of {context}; shorten them, or load the model with a larger context",
                len(best),
                context,
            )
        return best
    while enough - few > 1:
        middle = (few + enough) // 2
        ids = without(middle)
        if len(ids) <= room:
            best, enough = ids, middle
        else:
            few = middle
    return best


def _groups(messages: Messages) -> list[list[int]]:
    """Indices of the messages that may go, in the order in which they do, together with those of their group."""
    questions = [i for i, message in enumerate(messages) if message["role"] == "user"]
    last = questions[-1] if questions else -1
    rounds: list[list[int]] = []
    calls: list[list[int]] = []
    for i, message in enumerate(messages):
        if message["role"] == "system" or i == last:
            continue
        groups = rounds if i < last else calls
        if i < last:
            begins = message["role"] == "user"
        else:
            begins = message["role"] == "assistant" and not _calls(messages[i - 1])
        if begins or not groups:
            groups.append([])
        groups[-1].append(i)
    return rounds + calls[:-1]


def _calls(message: dict[str, Any]) -> bool:
    return message["role"] == "assistant" and bool(message.get("tool_calls") or message.get("metadata"))
