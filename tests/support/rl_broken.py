"""A module that can't be imported, as a user's may be."""

raise ZeroDivisionError("as it is imported")
