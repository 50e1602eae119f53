"""Turn a library step into a task that can also be planned.

`@step(recipe)` makes a Prefect task cached by recipe. Inside `planning()` submitting one records its
recipe instead of running it, so that `plan` walks the very flow that `run` executes: there is one DAG.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, TypeVar

from prefect import allow_failure, task
from prefect.futures import PrefectFuture
from prefect.tasks import Task

from saeinterp.artifacts import Artifact, ArtifactStore, Recipe
from saeinterp.errors import DamagedArtifactError, SaeinterpError
from saeinterp.report import Failure
from tasks.caching import ByRecipe, recipe_for
from tasks.site import admitted

Pending = PrefectFuture[Artifact] | Recipe
"""What `Step.submit` returns: a future, or a recipe while planning."""
K = TypeVar("K")


@dataclass
class Plan:
    """The steps a flow would run, in order, each with the inputs it was given."""

    steps: list[tuple[Recipe, dict[str, Any]]] = field(default_factory=list)
    stand_in: Callable[[Mapping[str, Any], SaeinterpError], Recipe | None] | None = None
    """What stands for a step whose recipe cannot be known here, by its inputs; None lets the error through."""

    def recipe(self, recipe: Callable[..., Recipe], inputs: dict[str, Any]) -> Recipe:
        """The recipe of a step, or its stand-in."""
        try:
            return recipe_for(recipe, inputs)
        except SaeinterpError as error:
            found = self.stand_in(inputs, error) if self.stand_in is not None else None
            if found is None:
                raise
            return found


_PLAN: ContextVar[Plan | None] = ContextVar("plan", default=None)


@contextlib.contextmanager
def planning(
    stand_in: Callable[[Mapping[str, Any], SaeinterpError], Recipe | None] | None = None,
) -> Iterator[Plan]:
    """Within this context submitted steps are recorded, not run; `stand_in` gives recipes that cannot be known here."""
    plan = Plan(stand_in=stand_in)
    token = _PLAN.set(plan)
    try:
        yield plan
    finally:
        _PLAN.reset(token)


def is_planning() -> bool:
    """Whether steps are recorded, not run."""
    return _PLAN.get() is not None


@dataclass(frozen=True)
class Step:
    """A library step as a Prefect task."""

    recipe: Callable[..., Recipe]
    task: Task[..., Artifact]

    def submit(self, *, after: Sequence[PrefectFuture[Any]] = (), **inputs: Any) -> Pending:
        """Submit to the flow's task runner (or record, while planning); inputs may be futures.

        `after` is awaited, however it ends.
        """
        plan = _PLAN.get()
        if plan is None:
            return self.task.submit(**inputs, wait_for=_tolerated(after))
        recipe = plan.recipe(self.recipe, inputs)
        if all(recipe.folder != known.folder for known, _ in plan.steps):
            plan.steps.append((recipe, inputs))
        return recipe

    def planned(self, **inputs: Any) -> Recipe:
        """The recipe of what the step would make; inputs may be recipes."""
        return recipe_for(self.recipe, inputs)

    def built(self, **inputs: Any) -> bool:
        """Whether the artifact is there; inputs may be recipes, and damage shows when the step runs."""
        return self._found(inputs, verify=False)

    def intact(self, **inputs: Any) -> bool:
        """Whether the artifact is there and undamaged, so that the step has nothing to do; inputs may be recipes."""
        return self._found(inputs, verify=True)

    def _found(self, inputs: Mapping[str, Any], *, verify: bool) -> bool:
        try:
            return ArtifactStore().find(self.planned(**inputs), verify=verify) is not None
        except DamagedArtifactError:
            return False


def step(recipe: Callable[..., Recipe]) -> Callable[[Callable[..., Artifact]], Step]:
    """Make a step from a thin function; its `label` argument names the task run."""

    def decorate(function: Callable[..., Artifact]) -> Step:
        name = function.__name__.replace("_", "-")
        signature = inspect.signature(function)

        @functools.wraps(function)
        def unless_there(*args: Any, **inputs: Any) -> Artifact:
            admitted()
            # What is there, made ahead or by another run, waits for no turn and no card.
            with contextlib.suppress(DamagedArtifactError):
                found = ArtifactStore().find(recipe_for(recipe, signature.bind(*args, **inputs).arguments))
                if found is not None:
                    return found
            return function(*args, **inputs)

        # Found under this name, it goes to other processes by reference and runs as their own code.
        unless_there.__qualname__ = f"{function.__name__}.task.fn"
        make = task(
            name=name,
            task_run_name=name + " {label}",
            cache_policy=ByRecipe(recipe=recipe),
            persist_result=True,
            result_serializer="json",
        )
        return Step(recipe=recipe, task=make(unless_there))

    return decorate


@dataclass(frozen=True)
class Ahead:
    """A task that makes the artifacts of later steps ahead of them; it has no artifact of its own."""

    task: Task[..., None]

    def submit(self, **inputs: Any) -> list[PrefectFuture[Any]]:
        """Submit to the flow's task runner; nothing while planning.

        Inputs may be lists of futures: one that failed arrives as its error, since its own task reports it.
        """
        if _PLAN.get() is not None:
            return []
        return [self.task.submit(**{name: _tolerated(value) for name, value in inputs.items()})]


def ahead(function: Callable[..., None]) -> Ahead:
    """Make such a task from a thin function; its `label` argument names the task run."""
    name = function.__name__.replace("_", "-")

    @functools.wraps(function)
    def where_admitted(*args: Any, **inputs: Any) -> None:
        admitted()
        function(*args, **inputs)

    where_admitted.__qualname__ = f"{function.__name__}.task.fn"
    return Ahead(task(name=name, task_run_name=name + " {label}")(where_admitted))


def _tolerated(value: Any) -> Any:
    """Futures in a list, marked so that their failure stops nothing."""
    if not isinstance(value, list | tuple) or not any(isinstance(item, PrefectFuture) for item in value):
        return value
    return [allow_failure(item) if isinstance(item, PrefectFuture) else item for item in value]


def finished(pending: Pending) -> Artifact | Recipe:
    """Wait for one step that the whole flow needs; its error ends the flow."""
    if isinstance(pending, Recipe):
        return pending
    return pending.result()


def wait_for(pending: Iterable[Pending]) -> None:
    """Wait until all have ended, however they end."""
    for item in pending:
        if not isinstance(item, Recipe):
            item.wait()


def results(pending: Mapping[K, Pending]) -> dict[K, Artifact | Recipe]:
    """Wait for all and give those that finished."""
    wait_for(pending.values())
    return {
        key: item if isinstance(item, Recipe) else item.result()
        for key, item in pending.items()
        if isinstance(item, Recipe) or item.state.is_completed()
    }


def settle(stage: str, side: str, pending: Mapping[K, Pending]) -> tuple[dict[K, Any], list[Failure]]:
    """Wait for one step per layer (or SAE: keys print as such) and part the finished from the failed.

    A layer whose input failed is in neither: its failure is reported once, at the stage where it arose.
    """
    done: dict[K, Any] = {}
    failures: list[Failure] = []
    for key, item in pending.items():
        if isinstance(item, Recipe):
            done[key] = item
            continue
        item.wait()
        if item.state.is_completed():
            done[key] = item.result()
        elif not item.state.is_pending():
            error = item.result(raise_on_failure=False)
            text = str(error) or type(error).__name__
            failures.append(Failure(stage=stage, hookpoint=str(key), side=side, error=text))
    return done, failures
