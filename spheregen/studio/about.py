"""What the page must know of a model: its classes, what may be chosen, and what is chosen to begin with."""

from __future__ import annotations

from typing import Any

from spheregen import editing
from spheregen.cli.options import pick_sampler
from spheregen.errors import SpheregenError
from spheregen.generation import conditioner_for
from spheregen.model import SphereModel
from spheregen.registry import registry
from spheregen.studio.requests import IMAGES, STEPS


def about(model: SphereModel, run: str, megapixels: float, megabytes: int) -> dict[str, Any]:
    """Everything as JSON takes it."""
    recipe, spec = model.recipe, model.shape.image
    assert recipe is not None
    conditioner = recipe.conditioner
    return {
        "run": run,
        "name": recipe.name,
        "description": recipe.description,
        "size": spec.size,
        "channels": spec.channels,
        "classes": model.class_names if model.shape.num_classes else [],
        "angle": recipe.noise.range().angle,
        "defaults": {
            "steps": min(recipe.sampling.steps, STEPS),
            "guidance": getattr(conditioner.options, "scale", 1.0),
            "position": str(conditioner.component.name),
            "sampler": str(recipe.sampler.component.name),
        },
        "positions": _positions(model),
        "samplers": _samplers(model),
        "seams": list(editing.SEAMS),
        "limits": {"images": IMAGES, "steps": STEPS, "megapixels": megapixels, "megabytes": megabytes},
    }


def _positions(model: SphereModel) -> list[str]:
    """The conditioners that can take the place of the recipe's."""
    found = []
    for component in registry.components("conditioner") if model.shape.num_classes else []:
        try:
            if component.conditional:  # type: ignore[attr-defined]
                conditioner_for(model, 1.0, str(component.name))
                found.append(str(component.name))
        except (SpheregenError, ValueError):  # a plugin's that cannot be built from the recipe's options
            continue
    return found


def _samplers(model: SphereModel) -> list[dict[str, Any]]:
    """The samplers that can take the place of the recipe's, with the options that a field can hold."""
    found = []
    for component in registry.components("sampler"):
        try:
            values = pick_sampler(model, str(component.name), []).options.model_dump(mode="json")
        except SpheregenError:  # has options without a default: only the command line can give them
            continue
        schema = component.Options.model_json_schema().get("properties", {})
        options = [_option(name, schema[name], value) for name, value in values.items()]
        summary = (component.__doc__ or "").strip().split("\n")[0]
        found.append({"name": component.name, "summary": summary, "options": [o for o in options if o]})
    return found


def _option(name: str, schema: dict[str, Any], value: Any) -> dict[str, Any] | None:
    """A field of the page, or None for what is no single number, choice, text or yes and no."""
    kinds = [kind for kind in schema.get("anyOf", [schema]) if kind.get("type") != "null"]
    if len(kinds) != 1:
        return None
    (kind,) = kinds
    choices = kind.get("enum")
    if choices is None and kind.get("type") not in ("number", "integer", "boolean", "string"):
        return None
    return {
        "name": name,
        "help": " ".join(schema.get("description", "").split()),
        "type": "choice" if choices else kind["type"],
        "choices": choices,
        "min": kind.get("minimum", kind.get("exclusiveMinimum")),
        "max": kind.get("maximum", kind.get("exclusiveMaximum")),
        "value": value,
    }
