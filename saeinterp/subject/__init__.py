"""The model under study: loading, corpora, hookpoints, activations."""

from saeinterp.subject.activations import collect_activations, collect_activations_recipe
from saeinterp.subject.cache import ActivationCache
from saeinterp.subject.contexts import Context, ContextBatch, Contexts, batches, documents, read_contexts
from saeinterp.subject.corpora import build_corpus, build_corpus_recipe, estimate_tokens
from saeinterp.subject.devices import fast_bfloat16, resolve_device, resolve_dtype
from saeinterp.subject.hookpoints import blocks, capture, module_path, resolve, splice
from saeinterp.subject.models import Subject, load_subject, load_tokenizer, subject_info, subject_width
from saeinterp.subject.position_capture import collect_positions, collect_positions_recipe
from saeinterp.subject.positions import Selector, parse_select, site_names
from saeinterp.subject.preparing import prepare_subject, prepare_subject_recipe
from saeinterp.subject.problems import Problems, build_problems, build_problems_recipe, read_problems
from saeinterp.subject.shards import activation_bytes
from saeinterp.subject.streaming import streams
from saeinterp.subject.tokenizers import same_tokenizer

__all__ = [
    "ActivationCache",
    "Context",
    "ContextBatch",
    "Contexts",
    "Problems",
    "Selector",
    "Subject",
    "activation_bytes",
    "batches",
    "blocks",
    "build_corpus",
    "build_corpus_recipe",
    "build_problems",
    "build_problems_recipe",
    "capture",
    "collect_activations",
    "collect_activations_recipe",
    "collect_positions",
    "collect_positions_recipe",
    "documents",
    "estimate_tokens",
    "fast_bfloat16",
    "load_subject",
    "load_tokenizer",
    "module_path",
    "parse_select",
    "prepare_subject",
    "prepare_subject_recipe",
    "read_contexts",
    "read_problems",
    "resolve",
    "resolve_device",
    "resolve_dtype",
    "same_tokenizer",
    "site_names",
    "splice",
    "streams",
    "subject_info",
    "subject_width",
]
