"""How Ray Serve chooses a replica for a request. Named to Serve by its path, since it is the only module that needs
Ray to be imported."""

from __future__ import annotations

from ray.serve.request_router import PendingRequest, RequestRouter, RunningReplica

from .routing import ranked

__all__ = ["Router"]


class Router(RequestRouter):
    """The replica that a conversation's key prefers, while it has a free place; otherwise the least busy other one.

    The key comes as the handle's `session_id`. All routers agree on the order, and none keeps anything.
    """

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        if pending_request is None or not candidate_replicas:
            return [candidate_replicas]
        pending_request.routing_context.should_backoff = True  # where all are full, look again soon, not at once
        key = pending_request.metadata.session_id
        if not key:
            return [candidate_replicas]
        best, *others = ranked(key, candidate_replicas, lambda replica: replica.replica_id.unique_id)
        return [[best], others] if others else [[best]]
