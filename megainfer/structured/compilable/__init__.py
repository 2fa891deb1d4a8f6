"""JSON schemas in the form that the grammar library compiles exactly, or a word why there is none.

The library reads numbers as doubles, refuses keywords that it doesn't know even where they demand
nothing, and takes a `oneOf` or `propertyNames` for more than they mostly are.
"""
