"""Stages of an attention node that its device has recorded, and is given again in one call."""

from megainfer.attention_node.graphs.buckets import Bucket, buckets_of, fitting_bucket
from megainfer.attention_node.graphs.fixed import FixedStep
from megainfer.attention_node.graphs.model import GraphedModel
from megainfer.attention_node.graphs.opening import with_graphs

__all__ = ["Bucket", "FixedStep", "GraphedModel", "buckets_of", "fitting_bucket", "with_graphs"]
