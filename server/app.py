"""The ASGI application."""

from fastapi import APIRouter, FastAPI

from megainfer import __version__
from megainfer.engine_client import EngineClient
from megainfer.structured.checker import GrammarChecker
from megainfer.tokenizer import Tokenizer
from server.errors import install_error_handlers
from server.generating import Generator
from server.other_apis import OtherApis
from server.routes import Api, build_router
from server.served_model import ServedModel
from server.tokens import Tokens


def create_app(
    engine: EngineClient,
    tokenizer: Tokenizer | None,
    model: ServedModel,
    checker: GrammarChecker | None = None,
) -> FastAPI:
    """The API over a started engine. Without a tokenizer only prompts of token ids are served.

    checker: of grammars; without one structured output is refused.
    """
    app = FastAPI(title="MegaInfer", version=__version__)
    generator = Generator(engine, tokenizer, model, checker)
    app.include_router(_router(engine, tokenizer, model, generator))
    install_error_handlers(app)
    return app


def _router(
    engine: EngineClient, tokenizer: Tokenizer | None, model: ServedModel, generator: Generator
) -> APIRouter:
    return build_router(
        Api(engine, model, generator),
        OtherApis(generator),
        Tokens(tokenizer, model, generator),
        model.shows_tokenizer,
    )
