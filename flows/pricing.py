"""What each kind of step takes, by the formulas of `saeinterp.estimates` and the sizes in `deployments/sizes.yaml`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from pydantic import BaseModel

from saeinterp.artifacts import Recipe, read_json
from saeinterp.config import (
    CorpusConfig,
    CorpusSource,
    ExamplesConfig,
    ExplainerConfig,
    LLMConfig,
    ProblemsConfig,
    ScorerConfig,
    SubjectConfig,
    TrainingConfig,
)
from saeinterp.errors import ConfigError, SaeinterpError
from saeinterp.estimates import Architecture, asking_flops, encoding_flops, forward_flops, training_flops
from saeinterp.ids import layer_of, parse_site
from saeinterp.subject import activation_bytes, estimate_tokens, site_names

CHARACTERS = 4
"""Characters a token, as everywhere in `plan`."""
GATED = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2")
PLAIN = ("gpt2", "gpt_neox")
"""Kinds of models by their MLP: with a gate (three matrices), or without (two)."""
WITHOUT_PRODUCTS = ("subject", "corpus", "problems", "concepts", "examples", "grades", "report")
"""Kinds of steps that multiply nothing worth counting; so are comparisons."""


class Line(NamedTuple):
    """What one step takes."""

    kind: str
    name: str
    layer: str
    """Its hookpoint; empty for steps of all layers."""
    tokens: float = 0
    """Tokens (rows, for SAEs) that the step goes through, epochs included."""
    size: float = 0
    """Bytes of activations to write."""
    flops: float = 0
    requests: int = 0
    llm_tokens: float = 0
    """Tokens that LLMs read and write."""


def known_sizes() -> dict[str, Any]:
    """The table of sizes that ships with the package."""
    import deployments

    text = (Path(deployments.__file__).parent / "sizes.yaml").read_text(encoding="utf-8")
    found = yaml.safe_load(text)
    assert isinstance(found, dict)
    return found


class Pricing:
    """Formulas by kind of step, and what they had to assume."""

    def __init__(self, sizes: dict[str, Any]) -> None:
        self.sizes = sizes
        self.assumed: dict[str, None] = {}
        self.made: dict[str, dict[str, Any]] = {}
        self.shared: set[Any] = set()

    def assume(self, text: str) -> None:
        self.assumed.setdefault(text)

    def without_absent_saes(self, config: BaseModel) -> BaseModel:
        """SAEs that are not here count as trained to the shape that the configuration gives."""
        training = getattr(config, "training", None)
        absent = [path for path in getattr(training, "saes", {}).values() if not Path(path).exists()]
        if not absent:
            return config
        self.assume(f"{', '.join(absent)} is not here: its SAE counts as trained, with the settings of `training`")
        return config.model_copy(update={"training": training.model_copy(update={"saes": {}})})  # type: ignore[union-attr]

    def stand_in(self, inputs: Mapping[str, Any], error: SaeinterpError) -> Recipe | None:
        """The recipe of a model or a checkpoint that is not here, for the walk alone; None for any other step.

        Raises:
            ConfigError: A model of which no sizes are known.
        """
        if "positions" in inputs:
            name = inputs["positions"].thoughts.checkpoint
            self.assume(f"{name} is not here: a checkpoint of the model's own size")
            values = {"assumed": name, "positions": inputs["positions"].model_dump(mode="json")}
            inner = (inputs["subject"], inputs["problems"])
            return Recipe(
                kind="activations", name=str(name).split("/")[-1].lower(), version=0, config=values, inputs=inner
            )
        subject = inputs.get("config")
        if not isinstance(subject, SubjectConfig):
            return None
        if subject.model not in self.sizes["models"]:
            raise self._unknown(subject) from error
        shape = self.sizes["models"][subject.model]
        values = {
            "assumed": subject.model,
            "weights": subject.weights,
            "fingerprint": shape["tokenizer"],
            "d_model": shape["d_model"],
        }
        return Recipe(kind="subject", name=subject.model.split("/")[-1].lower(), version=0, config=values)

    def lines(self, recipe: Recipe, inputs: dict[str, Any]) -> list[Line]:
        """What a step takes: its own, and what it shares with other layers; nothing where there is no formula."""
        price = getattr(self, "_" + recipe.kind.replace("-", "_"), None)
        found = None if price is None else price(inputs)
        if found is None:
            return []
        kind, name = recipe.kind, recipe.name
        shared, each = found.pop("shared", 0.0), found.pop("each", {})
        lines = [Line(kind, name, self._layer(inputs), **found)]
        lines += [Line(kind, name, parse_site(site).hookpoint, size=size) for site, size in each.items()]
        return [*lines, Line(kind, name, "", flops=shared)] if shared else lines

    def _layer(self, inputs: dict[str, Any]) -> str:
        site = inputs.get("hookpoint") or self._inputs(inputs.get("examples")).get("hookpoint")
        site = site or next(iter(inputs.get("saes", ())), "")
        return parse_site(site).hookpoint if site else ""

    def shape(self, subject: Any) -> Architecture:
        config = self._inputs(subject)["config"]
        file = Path(config.model) / "config.json"
        if config.model in self.sizes["models"]:
            self.assume(f"sizes of {config.model} from deployments/sizes.yaml")
            values = dict(self.sizes["models"][config.model])
            del values["tokenizer"]
            return Architecture(**values)
        if file.is_file():
            return described(read_json(file), where=str(file))
        raise self._unknown(config)

    def _unknown(self, config: SubjectConfig) -> ConfigError:
        return ConfigError(
            "sizes are not known",
            field="subject.model",
            got=config.model,
            expected=f"a folder with a config.json, or one of {', '.join(self.sizes['models'])}",
            next_step="add its sizes to deployments/sizes.yaml",
        )

    def _inputs(self, ref: Any) -> dict[str, Any]:
        return self.made.get(getattr(ref, "folder", ""), {})

    def tokens(self, corpus: Any, *splits: str) -> float:
        """Tokens of splits of a corpus, from its limits and sizes."""
        config = self._inputs(corpus)["config"]
        assert isinstance(config, CorpusConfig)
        known = estimate_tokens(config, splits=splits)  # type: ignore[arg-type]
        sizes = [self._characters(source) for source in config.sources]
        if None in sizes:
            if known is None:
                names = ", ".join(source.name for source in config.sources)
                raise ConfigError(
                    "length is not known",
                    field="corpus.sources",
                    got=names,
                    expected="a split of deployments/sizes.yaml, or corpus.max_tokens",
                )
            self.assume("token limits count as reached, where a text's length is not known")
            return known
        total = sum(size for size in sizes if size is not None) / CHARACTERS
        caps = {split: getattr(config.max_tokens, split) for split in splits}
        shares = {split: total * getattr(config.fractions, split) for split in splits}
        return sum(min(shares[split], caps[split] or math.inf) for split in splits)

    def _characters(self, source: CorpusSource) -> float | None:
        split, _, part = (source.split or "").partition("[")
        key = ":".join(part for part in (source.name, source.hub_config, split) if part)
        if key not in self.sizes["characters"]:
            return None
        whole = float(self.sizes["characters"][key])
        share = float(part.removeprefix(":").removesuffix("%]")) / 100 if part else 1.0
        self.assume(f"{key} has {whole:.3g} characters; {CHARACTERS} characters count as a token")
        return whole * share

    def problems(self, ref: Any, *, training: bool = False) -> float:
        """How many problems are read, or how many of them SAEs train on."""
        config = self._inputs(ref)["config"]
        assert isinstance(config, ProblemsConfig)
        if config.training is not None:
            return config.training + (0 if training else config.samples)
        key = ":".join(part for part in (config.source.name, config.source.hub_config, config.source.split) if part)
        count = config.source.limit or self.sizes["problems"].get(key)
        if count is None:
            raise ConfigError("number of problems is not known", field="corpus.source", got=key, expected="a limit")
        return float(count) - (config.samples if training else 0)

    def _activations(self, inputs: dict[str, Any]) -> dict[str, Any]:
        shape = self.shape(inputs["subject"])
        if "positions" in inputs:
            count = self.problems(inputs["problems"])
            length = int(self.sizes["tokens"]["problem"])
            self.assume(f"{length} tokens a problem; thoughts and reasoning are read once, not generated")
            sites = site_names(inputs["capture"].hookpoints, inputs["positions"].select)
            blocks = _depth(inputs["capture"].hookpoints)
            flops = forward_flops(shape, count * length, context=length, blocks=blocks, head=False)
            each = {site: activation_bytes(int(count), shape.d_model, (site,)) for site in sites}
            return {"tokens": count * length, "each": each, "flops": flops}
        corpus, hookpoints = inputs["corpus"], inputs["config"].hookpoints
        tokens = self.tokens(corpus, *inputs["splits"])
        context = self._inputs(corpus)["config"].context_length
        flops = forward_flops(shape, tokens, context=context, blocks=_depth(hookpoints), head=False)
        each = {name: activation_bytes(int(tokens), shape.d_model, (name,)) for name in hookpoints}
        return {"tokens": tokens, "each": each, "flops": flops}

    def _sae(self, inputs: dict[str, Any]) -> dict[str, Any] | None:
        if "folder" in inputs:
            return None
        training: TrainingConfig = inputs["config"].at(inputs["hookpoint"])
        given = self._inputs(inputs["activations"])
        shape = self.shape(given["subject"])
        streamed = inputs.get("subject") is not None
        extra = 0.0
        if "positions" in given:
            rows = self.problems(given["problems"], training=True)
        else:
            rows = self.tokens(given["corpus"], "train")
            if streamed:
                extra = self._streaming(inputs, shape, rows * training.epochs)
        import torch

        from saeinterp.sae.kernels import choose_method

        road = choose_method(
            k=training.k,
            num_latents=training.num_latents,
            device=torch.device("cuda"),
            compute=torch.bfloat16,
        )
        seen = rows * training.epochs
        flops = training_flops(
            seen, d_in=shape.d_model, num_latents=training.num_latents, k=training.k, dense=road.dense
        )
        self.assume("no dead latents in training: AuxK is left out")
        return {"tokens": seen, "flops": flops, "shared": extra}

    def _streaming(self, inputs: dict[str, Any], shape: Architecture, tokens: float) -> float:
        """The model's pass over the text, counted with the first of the SAEs that share it."""
        hookpoints = list(inputs["capture"].hookpoints)
        together = inputs["launch"].together or len(hookpoints)
        group = hookpoints.index(inputs["hookpoint"]) // together
        shared = (inputs["subject"].folder, inputs["corpus"].folder, inputs["config"].model_dump_json(), group)
        if shared in self.shared:
            return 0.0
        self.shared.add(shared)
        self.assume("activations exceed capture.disk_budget_gb: rows come from the running model, in every epoch again")
        some = hookpoints[group * together : (group + 1) * together]
        context = self._inputs(inputs["corpus"])["config"].context_length
        return forward_flops(shape, tokens, context=context, blocks=_depth(some), head=False)

    def _trained(self, sae: Any) -> tuple[Architecture, int, int]:
        """Shape of the subject, M and k of an SAE."""
        inputs = self._inputs(sae)
        training = inputs["config"].at(inputs["hookpoint"])
        shape = self.shape(self._inputs(inputs["activations"])["subject"])
        return shape, training.num_latents, training.k

    def _health(self, inputs: dict[str, Any]) -> dict[str, Any]:
        shape, width, k = self._trained(inputs["sae"])
        corpus = inputs["corpus"]
        tokens = self.tokens(corpus, "health")
        context = self._inputs(corpus)["config"].context_length
        after = shape.layers - _depth([inputs["hookpoint"]])
        passes = 3 if inputs["config"].splice == "unmasked" else 1
        flops = passes * forward_flops(shape, tokens, context=context, blocks=after, head=True)
        flops += encoding_flops(tokens, d_in=shape.d_model, num_latents=width, k=k, decode=True)
        shared = 0.0
        clean = (inputs["subject"].folder, corpus.folder, inputs["config"].model_dump_json())
        if clean not in self.shared:  # one clean pass serves all SAEs
            self.shared.add(clean)
            shared = forward_flops(shape, tokens, context=context, head=True)
        return {"tokens": tokens, "flops": flops, "shared": shared}

    def _letter_probes(self, inputs: dict[str, Any]) -> dict[str, Any]:
        settings = inputs["config"]
        shape = self.shape(inputs["subject"])
        length = int(self.sizes["tokens"]["letter_prompt"]) + 8 * settings.context_examples
        self.assume(f"{length} tokens a first-letter prompt; probes themselves are left out")
        tokens = settings.words * (1 + settings.test_fraction) * length
        key = (inputs["subject"].folder, settings.model_dump_json())
        if key in self.shared:  # all layers share one pass
            return {}
        self.shared.add(key)
        return {"tokens": tokens, "shared": forward_flops(shape, tokens, context=length, head=False)}

    def _latents(self, inputs: dict[str, Any]) -> dict[str, Any]:
        shape, width, k = self._trained(inputs["sae"])
        tokens = self.tokens(self._inputs(inputs["activations"])["corpus"], "explain", "score")
        # 2 bytes a value and 2 or 4 an index.
        size = tokens * k * (4 if width <= 65536 else 6)
        flops = encoding_flops(tokens, d_in=shape.d_model, num_latents=width, k=k, decode=False)
        return {"tokens": tokens, "size": size, "flops": flops}

    def _chosen(self, inputs: dict[str, Any]) -> tuple[ExamplesConfig, int]:
        config: ExamplesConfig = inputs["config"]
        if config.named_latents is not None:
            return config, len(config.named_latents)
        if config.latents != "all":
            return config, int(str(config.latents).removeprefix("sample:"))
        return config, self._trained(inputs["sae"])[1]

    def _explanations(self, inputs: dict[str, Any]) -> dict[str, Any]:
        config = inputs.get("config")
        if not isinstance(config, ExplainerConfig) or config.kind == "top-tokens":
            return {}
        examples, count = self._chosen(self._inputs(inputs["examples"]))
        shown = examples.explain_activating + (examples.explain_silent if config.kind == "contrastive" else 0)
        prompt = shown * examples.window + self.sizes["tokens"]["explanation_prompt"]
        return self._asked(config.llm, count * config.samples, prompt)

    def _scores(self, inputs: dict[str, Any]) -> dict[str, Any]:
        config: ScorerConfig = inputs["config"]
        examples, count = self._chosen(self._inputs(inputs["examples"]))
        judged = examples.score_activating + examples.score_random + examples.score_similar + examples.score_near_miss
        together = 1 if config.kind == "simulation" else config.together
        written = self._inputs(inputs["explanations"]).get("config")
        samples = written.samples if isinstance(written, ExplainerConfig) else 1
        prompt = together * examples.window + self.sizes["tokens"]["scoring_prompt"]
        return self._asked(config.llm, count * samples * math.ceil(judged / together), prompt)

    def _asked(self, llm: LLMConfig, requests: int, prompt: float) -> dict[str, Any]:
        name = llm.model
        if name not in self.sizes["parameters"]:
            raise ConfigError(
                "parameters are not known",
                field="llm.model",
                got=name,
                expected=", ".join(self.sizes["parameters"]),
                next_step="add it to deployments/sizes.yaml",
            )
        parameters = float(self.sizes["parameters"][name])
        self.assume(f"{name} has {parameters:.3g} parameters; a token of the subject counts as one of its own")
        self.assume("LLM replies are as long as max_tokens, and every latent is alive: at most so much")
        flops = requests * asking_flops(parameters, prompt=prompt, completion=llm.max_tokens)
        return {"requests": requests, "llm_tokens": requests * (prompt + llm.max_tokens), "flops": flops}

    def _activity(self, inputs: dict[str, Any]) -> dict[str, Any]:
        count = self.problems(self._inputs(inputs["activations"])["problems"])
        flops = 0.0
        for sae in inputs["saes"].values():
            shape, width, k = self._trained(sae)
            flops += encoding_flops(count, d_in=shape.d_model, num_latents=width, k=k, decode=False)
        return {"tokens": count * len(inputs["saes"]), "flops": flops}


def _depth(hookpoints: Any) -> int:
    """Blocks that run until the deepest of these hookpoints has been seen."""
    return max(layer_of(name) for name in hookpoints) + 1


def described(values: Mapping[str, Any], *, where: str) -> Architecture:
    """The sizes in a checkpoint's `config.json`."""
    values = values.get("text_config", values)
    kind = values.get("model_type")
    if kind not in (*GATED, *PLAIN):
        raise ConfigError(
            "sizes are not known",
            field=where,
            got=f"model_type {kind}",
            expected=f"one of {', '.join((*GATED, *PLAIN))}",
            next_step="add the model to deployments/sizes.yaml",
        )
    width = values.get("hidden_size", values.get("n_embd"))
    heads = values.get("num_attention_heads", values.get("n_head"))
    per_head = values.get("head_dim") or width // heads
    return Architecture(
        layers=values.get("num_hidden_layers", values.get("n_layer")),
        d_model=width,
        d_query=heads * per_head,
        d_key=(values.get("num_key_value_heads") or heads) * per_head,
        d_mlp=values.get("intermediate_size") or values.get("n_inner") or 4 * width,
        mlp_matrices=3 if kind in GATED else 2,
        vocabulary=values["vocab_size"],
        tied=bool(values.get("tie_word_embeddings", kind == "gpt2")),
    )
