"""One cache policy: a task's key is the recipe of the artifact it makes.

Prefect's default policy includes the run id, and hashing inputs would read tensors; the recipe is known
beforehand and says exactly what the result depends on. The surprising part: a stored result is only a
reference, so the policy forgets it when the artifact behind it is gone or damaged. The task then runs
and the library makes the artifact again, instead of the run reporting "Cached" over nothing.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from prefect.cache_policies import CachePolicy
from prefect.context import TaskRunContext
from prefect.settings import get_current_settings

from saeinterp.artifacts import ArtifactStore, Recipe
from saeinterp.errors import DamagedArtifactError


def recipe_for(recipe: Callable[..., Recipe], inputs: dict[str, Any]) -> Recipe:
    """Call a recipe function with those of a task's inputs that it names."""
    names = inspect.signature(recipe).parameters
    return recipe(**{name: value for name, value in inputs.items() if name in names})


@dataclass
class ByRecipe(CachePolicy):
    """Cache by the recipe that `recipe` computes from the task's inputs."""

    recipe: Callable[..., Recipe] | None = None

    def compute_key(
        self,
        task_ctx: TaskRunContext,
        inputs: dict[str, Any],
        flow_parameters: dict[str, Any],
        **kwargs: Any,
    ) -> str | None:
        """The key `<kind>/<name>-<recipe>-<root>` below the result storage.

        A stored reference holds the artifact's path, so a root that was moved or copied must not find those of
        its former place.
        """
        assert self.recipe is not None
        recipe = recipe_for(self.recipe, inputs)
        store = ArtifactStore()
        store.hold(recipe)
        place = hashlib.sha256(str(store.root).encode()).hexdigest()[:8]
        key = f"{recipe.kind}/{recipe.name}-{recipe.hash}-{place}"
        try:
            artifact = store.find(recipe)
        except DamagedArtifactError:
            artifact = None
        if artifact is None:
            (get_current_settings().results.local_storage_path / key).unlink(missing_ok=True)
        return key
