"""One model on several machines: each process keeps its part of weights and KV.

Rank 0 serves and decides. It sends the others each of its decisions, and they carry
out the same calls on their part. mlx adds up what the parts compute.
"""

from mlxlab.engine.ranks.follower import Follower
from mlxlab.engine.ranks.leader import LeadingExecutor, LeadingLoader
from mlxlab.engine.ranks.ranks import Ranks

__all__ = ["Follower", "LeadingExecutor", "LeadingLoader", "Ranks"]
