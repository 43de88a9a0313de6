"""How long work runs: batches in one loop, a journal from which a killed run resumes, a Ray cluster."""

from .execution import resumable as resumable
from .ray_cluster import cluster as cluster
