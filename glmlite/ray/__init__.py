"""glmlite on many machines, by Ray: `app` answers requests (Ray Serve).

    serve.run(glmlite.ray.app("model.gguf", replicas=(1, 8)))

The extra `ray` installs what this needs; docs/scale.md has a cluster file, and what such a cluster can do.
"""

from .serving import app

__all__ = ["app"]
