"""Where experts should be by what they are asked: measured loads, a model of what they cost, and
steps from the placement that there is to one that takes less time.
"""

from megainfer.planner.balancing.balancer import Balancer
from megainfer.planner.balancing.cost import ReadCost

__all__ = ["Balancer", "ReadCost"]
