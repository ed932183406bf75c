"""Recipes of public data sets, small files in ``conf/data/recipes``: list, load and apply them.

They describe the sets as released; where a copy differs, ``find_files`` says which pattern finds
nothing.
"""

import importlib.util
import logging
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from spadnet.data.recipe_files import Source, find_files, frame_weights
from spadnet.data.recipe_schema import Recipe, read_recipe
from spadnet.near_names import suggest

__all__ = [
    "Recipe",
    "Source",
    "find_files",
    "format_recipes",
    "frame_weights",
    "list_recipes",
    "load_recipe",
    "published_weights",
]

_log = logging.getLogger(__name__)


def recipe_folder() -> Path:
    """Folder of the packaged recipes, also in a checkout that is not installed."""
    spec = importlib.util.find_spec("spadnet.conf")
    if spec is not None and spec.submodule_search_locations:
        return Path(next(iter(spec.submodule_search_locations)), "data", "recipes")
    return Path(__file__).resolve().parents[2] / "conf" / "data" / "recipes"


def load_recipe(name: str) -> Recipe:
    """Load one recipe.

    Args:
        name: The data set's name in any spelling, such as ``ixi`` or ``MSD-Task03_Liver``; or the
            path of a YAML file of your own.

    Raises:
        ValueError: If there is no such recipe or it does not make sense.
    """
    if name.endswith((".yaml", ".yml")):
        return read_recipe(Path(name).expanduser())
    path = recipe_folder() / f"{_slug(name)}.yaml"
    if not path.is_file():
        known = [file.stem for file in sorted(recipe_folder().glob("*.yaml"))]
        raise ValueError(f"unknown recipe {name!r}{suggest(_slug(name), known)}")
    return read_recipe(path)


def list_recipes() -> list[Recipe]:
    """All packaged recipes, sorted by name."""
    recipes = [read_recipe(path) for path in recipe_folder().glob("*.yaml")]
    return sorted(recipes, key=lambda recipe: recipe.name.lower())


def published_weights(sets: Iterable[str]) -> dict[str, float]:
    """Sampling weights of data sets in the published run.

    Args:
        sets: Names in any spelling.

    Returns:
        Weight of each; 1 for a set without a recipe, which is logged as a warning.
    """
    known = {_slug(recipe.name): recipe.weight for recipe in list_recipes()}
    names = sorted(set(sets))
    for name in names:
        if _slug(name) not in known:
            _log.warning("no recipe of data set %r: its weight is 1; set_weights changes it", name)
    return {name: known.get(_slug(name), 1.0) for name in names}


def format_recipes(recipes: Sequence[Recipe] | None = None) -> str:
    """A table of recipes as text, one line each.

    Args:
        recipes: All packaged ones by default.
    """
    rows = [("recipe", "weight", "run", "licence", "modalities", "home")]
    for recipe in list_recipes() if recipes is None else recipes:
        rows.append(
            (
                _slug(recipe.name),
                f"{recipe.weight:g}",
                "yes" if recipe.branch == "run" else "no",
                recipe.licence or "-",
                ", ".join(recipe.modalities),
                recipe.home or "-",
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)]
    lines = [
        "  ".join(
            [*(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=False)), row[-1]]
        )
        for row in rows
    ]
    return "\n".join(line.rstrip() for line in lines) + "\n"


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")
