"""In which bundle an actor is."""


class PlacementGroupSchedulingStrategy:
    def __init__(self, group: object, bundle: int) -> None:
        self.bundle = bundle
