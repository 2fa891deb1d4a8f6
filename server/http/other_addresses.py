"""Addresses of OpenAI's API and of other servers that aren't offered here.

Whoever asks for one is told so by name, rather than that there is no such address.
"""

NOT_OFFERED = {
    "/v1/embeddings": "embeddings",
    "/v1/rerank": "reranking",
    "/v2/rerank": "reranking",
    "/rerank": "reranking",
    "/v1/score": "scoring",
    "/score": "scoring",
    "/pooling": "pooling models",
    "/classify": "classification",
    "/v1/audio": "audio",
    "/v1/images": "images",
    "/v1/videos": "videos",
    "/v1/realtime": "the realtime API",
    "/v1/moderations": "moderations",
    "/v1/files": "files",
    "/v1/uploads": "files",
    "/v1/batches": "batches",
    "/v1/messages/batches": "batches",
    "/v1/fine_tuning": "fine-tuning",
    "/v1/vector_stores": "vector stores",
    "/v1/assistants": "assistants",
    "/v1/threads": "assistants",
    "/v1/conversations": "stored conversations",
    "/v1/load_lora_adapter": "LoRA adapters",
    "/v1/unload_lora_adapter": "LoRA adapters",
}


def not_offered(path: str) -> str | None:
    """What an address, or one above it, would offer elsewhere."""
    while path:
        if path in NOT_OFFERED:
            return NOT_OFFERED[path]
        path = path.rpartition("/")[0]
    return None
