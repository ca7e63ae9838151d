"""glmlite on many machines, by Ray.

    glmlite.batch("model.gguf", "in.parquet", "out.parquet", cluster=glmlite.ray.Cluster("auto"))
    ds.map_batches(glmlite.ray.Generate, ...)                               # Ray Data
    serve.run(glmlite.ray.app("model.gguf", replicas=(1, 8)))               # Ray Serve

The extra `ray` installs what this needs; docs/scale.md has a cluster file, and what such a cluster can do.
"""

from .batches import Cluster, Generate
from .serving import app

__all__ = ["Cluster", "Generate", "app"]
