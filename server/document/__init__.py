"""The OpenAPI document: what every address takes and answers, errors included."""
