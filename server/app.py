"""The ASGI application."""

from fastapi import FastAPI

from megainfer import __version__
from megainfer.engine_client import EngineClient
from megainfer.tokenizer import Tokenizer
from server.errors import install_error_handlers
from server.routes import Api, build_router
from server.served_model import ServedModel


def create_app(engine: EngineClient, tokenizer: Tokenizer | None, model: ServedModel) -> FastAPI:
    """The API over a started engine. Without a tokenizer only prompts of token ids are served."""
    app = FastAPI(title="MegaInfer", version=__version__)
    app.include_router(build_router(Api(engine, tokenizer, model)))
    install_error_handlers(app)
    return app
