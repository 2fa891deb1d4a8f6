"""Whole nodes over the road between GPUs, on the host: what kernels compute at once, they compute
at once here too."""

from megainfer.m2n.geometry import Geometry
from tests.support.local_cluster import LocalCluster
from tests.support.twin_hub import TwinHub


class TwinCluster(LocalCluster):
    """`LocalCluster` whose payloads are filled and replies added by the backend's own kernels."""

    def _hub(self, geometry: Geometry) -> TwinHub:
        return TwinHub(geometry, self._backend().packing)
