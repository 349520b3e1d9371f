"""GET /models and /models/{id}: what the key may call. Ids may hold `/` and `:`."""

from __future__ import annotations

from typing import Any

import orjson
from django.http import HttpResponse
from ninja import Router

from apiv1.limits import rates_of
from apiv1.requests import ApiRequest
from gateway import pipeline, routing, snapshots
from gateway.catalogue.snapshot import ModelFacts
from gateway.errors import ModelNotFound

router = Router(tags=["Models"])


@router.get("/models", summary="List models", operation_id="listModels")
async def list_models(request: ApiRequest) -> HttpResponse:
    """The models that this key may call, by id. Not paginated."""
    caller = await pipeline.ensure_fresh(request.auth, request.reload)
    models = routing.permitted(await snapshots.catalogue(), caller)
    body = {"object": "list", "data": [model_object(facts) for facts in models]}
    return _answer(body, await rates_of(caller))


@router.get("/models/{path:model}", summary="Retrieve model", operation_id="retrieveModel")
async def retrieve_model(request: ApiRequest, model: str) -> HttpResponse:
    """One model, by its id or an alias of it."""
    caller = await pipeline.ensure_fresh(request.auth, request.reload)
    catalogue = await snapshots.catalogue()
    try:
        facts = routing.find_model(catalogue, caller, model)
    except ModelNotFound as exc:
        raise ModelNotFound(exc.message, param="model") from None
    if not routing.served(catalogue, caller, facts):  # nowhere: the list leaves it out too
        raise ModelNotFound(routing.NO_SUCH_MODEL.format(model), param="model")
    return _answer(model_object(facts), await rates_of(caller))


def model_object(facts: ModelFacts) -> dict[str, Any]:
    return {"id": facts.public_id, "object": "model", "created": facts.created, "owned_by": facts.owned_by}


def _answer(value: dict[str, Any], headers: dict[str, str]) -> HttpResponse:
    return HttpResponse(orjson.dumps(value), content_type="application/json", headers=headers)
