"""Stages of an attention node that its device has recorded, and is given again in one call."""

from megainfer.attention_node.graphs.buckets import Bucket, buckets_of
from megainfer.attention_node.graphs.model import GraphedModel
from megainfer.attention_node.graphs.opening import with_graphs

__all__ = ["Bucket", "GraphedModel", "buckets_of", "with_graphs"]
