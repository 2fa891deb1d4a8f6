"""Real clients against a running server of both roles, and what the OpenAPI document promises."""
