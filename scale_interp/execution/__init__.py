"""How long work is run: batches in one loop, a journal that a killed run resumes from, a Ray cluster."""

from .execution import resumable as resumable
from .ray_cluster import cluster as cluster
