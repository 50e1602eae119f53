"""What servers were asked in this process, and the caps that stop it.

A ledger per model and servers, shared by every task's thread. The surprising choice: a request is paid for before
it is sent, with the most it can cost, and given change when the reply says what it cost; so a cap holds whatever
comes back. What may have been computed without an answer (a timeout, a lost connection) stays paid in full.
"""

from __future__ import annotations

import itertools
import threading
from typing import NamedTuple

from saeinterp.config import BudgetConfig, LLMConfig

_MILLION = 1_000_000


class Spent(NamedTuple):
    """Requests and tokens asked of a server.

    Attributes:
        requests: Requests sent, retries included.
        prompt: Prompt tokens.
        reply: Reply tokens.
        cached: Of the prompt's, those that the server had from an earlier request.
        cost: In the unit of the prices; None where they are not known.
    """

    requests: int = 0
    prompt: int = 0
    reply: int = 0
    cached: int = 0
    cost: float | None = None

    @property
    def tokens(self) -> int:
        """Of prompts and replies together."""
        return self.prompt + self.reply

    def plus(self, other: Spent) -> Spent:
        """The sum; its cost is None only where neither is known."""
        cost = None if self.cost is None and other.cost is None else (self.cost or 0.0) + (other.cost or 0.0)
        return Spent(
            self.requests + other.requests,
            self.prompt + other.prompt,
            self.reply + other.reply,
            self.cached + other.cached,
            cost,
        )

    def describe(self) -> str:
        """In words, as in `12 requests, 3,400 tokens, cost 0.02`."""
        text = f"{self.requests:,} requests, {self.tokens:,} tokens"
        return text if self.cost is None else f"{text}, cost {self.cost:.4g}"


class Ledger:
    """Counts for one model; safe to share between threads."""

    def __init__(self, title: str) -> None:
        self.title = title
        self._lock = threading.Lock()
        self._settled = Spent()
        self._held: dict[int, Spent] = {}
        self._numbers = itertools.count()

    @property
    def total(self) -> Spent:
        """What was spent so far, requests in flight left out."""
        with self._lock:
            return self._settled

    @property
    def in_flight(self) -> bool:
        """Whether requests are held that have yet to settle."""
        with self._lock:
            return bool(self._held)

    def reserve(self, worst: Spent, *, budget: BudgetConfig) -> int | None:
        """Hold the most that one request can cost, under a number; None where a cap leaves no room."""
        with self._lock:
            total = self._settled.plus(worst)
            for held in self._held.values():
                total = total.plus(held)
            if exceeded(total, budget):
                return None
            number = next(self._numbers)
            self._held[number] = worst
            return number

    def settle(self, number: int, actual: Spent) -> None:
        """Replace what was held by what it came to."""
        with self._lock:
            del self._held[number]
            self._settled = self._settled.plus(actual)


def cost_of(prompt: int, reply: int, budget: BudgetConfig) -> float | None:
    """Cost of so many tokens; None without prices."""
    if budget.prompt_price is None and budget.reply_price is None:
        return None
    return (prompt * (budget.prompt_price or 0.0) + reply * (budget.reply_price or 0.0)) / _MILLION


def exceeded(total: Spent, budget: BudgetConfig) -> str | None:
    """The first cap that a total is over, by its field's name."""
    if budget.max_requests is not None and total.requests > budget.max_requests:
        return "max_requests"
    if budget.max_tokens is not None and total.tokens > budget.max_tokens:
        return "max_tokens"
    # Sums of floats: a cap that is met exactly must not be missed by the last digit.
    if budget.max_cost is not None and (total.cost or 0.0) > budget.max_cost * (1 + 1e-9):
        return "max_cost"
    return None


_LEDGERS: dict[tuple[str, str, str], Ledger] = {}
_LEDGERS_LOCK = threading.Lock()


def ledger_of(config: LLMConfig) -> Ledger:
    """The ledger of a model on its servers, one per process.

    A server that the run starts itself may get another port each time and keeps its ledger.
    """
    servers = str(config.base_url) if config.provider == "openai" else ""
    with _LEDGERS_LOCK:
        return _LEDGERS.setdefault((config.model, config.revision or "", servers), Ledger(config.model))


def spending() -> dict[str, Spent]:
    """What this process has asked of servers so far, per model."""
    with _LEDGERS_LOCK:
        ledgers = list(_LEDGERS.values())
    totals: dict[str, Spent] = {}
    for ledger in ledgers:
        totals[ledger.title] = totals.get(ledger.title, Spent()).plus(ledger.total)
    return totals
