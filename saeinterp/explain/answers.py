"""What explainers and scorers do with a model's answers: count them, and refuse to publish where too many lack."""

from __future__ import annotations

from saeinterp.errors import LLMError
from saeinterp.explain.llm import Completions


def require_answers(completions: Completions, *, share: float, what: str) -> None:
    """Refuse to publish when a failing server left more than `share` of the requests unanswered.

    Such a gap is the server's, not the model's, and the next run can close it.

    Raises:
        LLMError: Saying how many, and the last error.
    """
    failed = [reply for reply in completions.replies if reply.status == "failed"]
    total = len(completions.replies)
    if len(failed) > share * total:
        raise LLMError(
            f"{len(failed)} of {total} {what} were not answered, the last with: {failed[-1].error}",
            field="llm",
            next_step=f"run again: {total - len(failed)} replies are kept and only the rest is sent",
        )


def request_counts(completions: Completions) -> dict[str, int | float]:
    """What an artifact records of the requests behind it; tokens and cost are of those sent now."""
    spent = completions.spent
    counts: dict[str, int | float] = {
        "requests_sent": completions.sent,
        "requests_cached": completions.cached,
        "prompt_tokens": spent.prompt,
        "reply_tokens": spent.reply,
    }
    return counts if spent.cost is None else {**counts, "cost": spent.cost}
