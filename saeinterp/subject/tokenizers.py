"""Whether two subjects read text alike, so that one tokenised corpus serves both.

The surprising choice: the tokenizers themselves are compared, not the files they come from: checkpoints that were
fine-tuned or converted store the same tokenizer in other bytes.
"""

from __future__ import annotations

import json
from typing import Any

from saeinterp.artifacts import Artifact
from saeinterp.subject.contexts import bos_prefix, special_ids
from saeinterp.subject.models import load_tokenizer


def same_tokenizer(a: Artifact, b: Artifact) -> bool:
    """Whether every text gives both prepared subjects the same tokens."""
    return a.hash == b.hash or _description(load_tokenizer(a)) == _description(load_tokenizer(b))


def _description(tokenizer: Any) -> dict[str, Any]:
    """All that tokens depend on: vocabulary, rules, special tokens, chat template."""
    if getattr(tokenizer, "is_fast", False):
        rules = json.loads(tokenizer.backend_tokenizer.to_str())
        # State of the last call, not part of the tokenizer.
        content = {key: value for key, value in rules.items() if key not in ("truncation", "padding")}
    else:
        content = {"class": type(tokenizer).__name__, "vocabulary": tokenizer.get_vocab()}
    return {
        "content": content,
        "prefix": bos_prefix(tokenizer),
        "special": special_ids(tokenizer),
        "end": tokenizer.eos_token_id,
        "chat_template": getattr(tokenizer, "chat_template", None),
    }
