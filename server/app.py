"""The ASGI application."""

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

from megainfer import __version__
from megainfer.frontend.engine_client import EngineClient
from megainfer.sharing.budgets import JSON_WORK, Budgets
from megainfer.structured.checker import GrammarChecker
from megainfer.text.template_renderer import TemplateRenderer
from megainfer.text.tokenizer import Tokenizer
from server.document.describe import describe
from server.http.access import AccessControl
from server.http.body import BodyLimits
from server.http.envelope import REQUEST_ID, Envelope
from server.http.errors import install_error_handlers
from server.http.json_route import Shortcuts
from server.http.occupancy import Entrance
from server.http.writing import Writing
from server.openai.generating import Generator
from server.openai.served_model import ServedModel
from server.openai.tokens import TokenizerApi
from server.operate.instance import Instance
from server.operate.opening import Opening
from server.operate.operations import Operations, operations_router
from server.other_apis import OtherApis
from server.page.assets import PAGE
from server.page.routes import Page, page_router
from server.routes import Api, add_routes


def create_app(
    engine: EngineClient,
    tokenizer: Tokenizer | None,
    model: ServedModel,
    instance: Instance,
    checker: GrammarChecker | None = None,
    renderer: TemplateRenderer | None = None,
) -> FastAPI:
    """The API over a started engine. Without a tokenizer only prompts of token ids are served.

    checker: of grammars; without one structured output is refused. renderer: of chats, needed where
    there is a tokenizer. Only what `guarded` gives may face clients.
    """
    # The pages that FastAPI has for these load scripts from elsewhere; its document is made on the
    # event loop.
    app = FastAPI(title="MegaInfer", version=__version__, openapi_url=None)
    budgets = Budgets.of(instance.options.budgets, model.max_model_len)
    app.state.shares = engine.shares
    app.state.writing = Writing()
    app.state.beginnings = instance.beginnings
    app.state.body_limits = BodyLimits(budgets.body_bytes, budgets.json_values, JSON_WORK)
    generator = Generator(engine, tokenizer, model, budgets, checker, renderer)
    # First what is asked for most: addresses are tried one after another.
    add_routes(
        app.router,
        Api(model, generator),
        OtherApis(generator),
        TokenizerApi(tokenizer, model, generator),
        model.shows_tokenizer,
    )
    app.include_router(operations_router(Operations(instance)))
    app.include_router(page_router(Page(instance)))
    install_error_handlers(app)
    describe(app, model.vocab_size)
    return app


def guarded(application: FastAPI, instance: Instance) -> ASGIApp:
    """An application behind everything that a request has to pass first, outermost last."""
    app: ASGIApp = Shortcuts(application)
    if instance.spans is not None:
        from server.operate.spans.parent import CallersContext

        app = CallersContext(app)
    app = Entrance(app, instance.occupancy, instance.beginnings)
    app = AccessControl(app, instance.options, instance.keys, PAGE)
    app = Opening(app, instance.engine_problem)
    if instance.options.allowed_origins:
        app = CORSMiddleware(
            app,
            allow_origins=instance.options.allowed_origins,
            allow_methods=["GET", "POST", "OPTIONS"],
            allow_headers=["*"],
            expose_headers=[REQUEST_ID, "Retry-After"],
        )
    return Envelope(app, instance.counted.statuses, instance.options.access_log)
