"""A page that lists the addresses of the API, from its OpenAPI document; it loads nothing."""

from html import escape
from typing import Any

STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:50rem;margin:2rem auto;padding:0 1rem}"
    "code{font-size:1em}td{padding:.2rem 1rem .2rem 0;vertical-align:top}"
    "@media(prefers-color-scheme:dark){body{background:#111;color:#ddd}a{color:#8bf}}"
)


def docs_page(document: dict[str, Any]) -> str:
    """The page as HTML."""
    title = escape(f"{document['info']['title']} {document['info']['version']}")
    rows = "".join(
        f"<tr><td><code>{escape(method.upper())}</code></td><td><code>{escape(path)}</code></td>"
        f"<td>{escape(operation.get('description') or operation.get('summary') or '')}</td></tr>"
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
    )
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<style>{STYLE}</style><h1>{title}</h1><p>The fields of each request and answer are in "
        '<a href="/openapi.json">/openapi.json</a>.</p>'
        f"<table>{rows}</table></html>"
    )
