"""The one table of the documentation's commands: what each does when a test types it, or why no test can.

A command that is in neither class fails `tests/docs`, and so does an entry whose command is gone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class Real(NamedTuple):
    """A command that is typed in a folder of its page, after those above it on the page.

    Attributes:
        shows: Pattern of what it must print.
        instead: Stand-ins for what the documentation cannot know, text for text. In a stand-in `{kind}` is an artifact
            of that kind in the page's artifact folder. Names of the form kind/name-1a2b3c4d are replaced by themselves.
        code: Its exit code.
        answer: What is typed when it asks.
        stays: It does not end by itself: it is interrupted once it has shown what it should.
        kept: It goes on in the background until the page ends.
        on: The pages where it is typed, if it stands on others too, which would only repeat it; empty for all.
    """

    shows: str = ""
    instead: Mapping[str, str] = {}
    code: int = 0
    answer: str = ""
    stays: bool = False
    kept: bool = False
    on: tuple[str, ...] = ()


class Elsewhere(NamedTuple):
    """A command that cannot be typed here; its words are checked nevertheless.

    Attributes:
        why: What it needs.
        test: The test that runs it with the same words or on stand-ins, as FILE::NAME, or a file that names it.
    """

    why: str
    test: str | None = None


FLOWS = "tests/flows/"
DOWNLOADS = Elsewhere("installs from a package index")
COMPOSE = Elsewhere("needs a container engine", f"{FLOWS}test_compose_lab.py")
CLUSTER = Elsewhere("needs a cluster", "tests/test_kubernetes.py")
PODS = Elsewhere("would change the pools of the other pages", f"{FLOWS}test_kubernetes_pools.py")
NODES = Elsewhere(
    "needs two machines",
    f"{FLOWS}test_training_nodes.py::test_two_nodes_of_which_one_is_replaced_train_what_two_processes_of_one_machine_train",
)
OPERATE = ("docs/how-to/operate.md",)
RESTORED = f"{FLOWS}test_postgres.py::test_a_back_up_is_restored_into_another_database"
AGAIN = Elsewhere(
    "is the command of README with another file",
    f"{FLOWS}test_compare_explainers.py::test_a_third_run_does_nothing_twice",
)

COMMANDS: dict[str, Real | Elsewhere] = {
    # README and tutorial
    "make demo": Elsewhere("takes minutes; every change runs it", ".ci/run"),
    "make test": Elsewhere("is the suite itself; every change runs it", ".ci/run"),
    "make check": Elsewhere("is checks of the sources; every change runs it", ".ci/run"),
    ". .venv/bin/activate": Real(),
    "saeinterp plan compare-explainers --config run.yaml": Real("0 of [0-9]+ steps to do"),
    "saeinterp run compare-explainers --config run.yaml --set training.k=64": Real(
        r"report\.html", {"training.k=64": "training.k=1"}
    ),
    "saeinterp doctor": Real("torch", on=("README.md", "docs/how-to/object-storage.md")),
    "saeinterp view report/...": Real(r"http://127\.0\.0\.1:\d+/", {"report/...": "{report}"}, stays=True),
    "saeinterp plan compare-explainers --config preset:demo --set training.k=16": Real("LLM requests"),
    "saeinterp run compare-explainers --config preset:demo --set training.k=16": AGAIN,
    "SAEINTERP_FAULT=layers.10@50 saeinterp run compare-explainers --config preset:demo "
    "--set training.seed=1": Elsewhere(
        "takes minutes",
        f"{FLOWS}test_compare_explainers.py::test_a_layer_that_fails_fails_alone_and_the_report_names_it",
    ),
    # how-to/compare-explainers.md
    "saeinterp run compare-explainers --config mine.yaml": AGAIN,
    "saeinterp run compare-explainers --config preset:qwen-7b-vs-72b-designed": Elsewhere(
        "needs two GPUs, vLLM and models of the hub"
    ),
    "saeinterp import scores report.md --metric accuracy --negatives 5": Real("accuracy"),
    "saeinterp import scores big.csv small.csv --metric f1 --explainer 70B --explainer 7B": Real("70B and 7B|70B .*7B"),
    # how-to/compare-models.md
    "saeinterp run compare-models --config preset:compare-models-small": Elsewhere(
        "takes minutes", f"{FLOWS}test_compare_models.py::test_smollm2_is_told_from_its_random_weights_on_two_texts"
    ),
    # how-to/containers.md
    "(umask 077; cp docker/env.example docker/.env)": Real(
        "", {"cp docker/env.example": "mkdir docker; cp {repository}/docker/env.example"}
    ),
    "docker compose -f docker/compose.yaml up -d --build worker": COMPOSE,
    "docker compose -f docker/compose.yaml ps": COMPOSE,
    "docker compose -f docker/compose.yaml --profile llm up -d": COMPOSE,
    "export PREFECT_API_URL=http://127.0.0.1:4200/api PREFECT_API_AUTH_STRING=NAME:PASSWORD": Real(
        "", {"http://127.0.0.1:4200/api": "$PREFECT_API_URL", "NAME:PASSWORD": "$PREFECT_API_AUTH_STRING"}
    ),
    "saeinterp submit train-saes --watch": Elsewhere(
        "trains at full size", f"{FLOWS}test_operations.py::test_a_bare_name_from_another_folder_runs_to_the_report"
    ),
    "saeinterp submit compare-explainers --config docker/compare-explainers.yaml --watch": Elsewhere(
        "needs three vLLM servers with cards",
        "tests/test_containers.py::test_the_packaged_run_is_the_preset_with_other_servers",
    ),
    # how-to/disk.md
    "saeinterp artifacts list": Real("explainer-comparison"),
    "saeinterp artifacts list --kind activations --larger-than 10GB --older-than 30d": Real(),
    "saeinterp artifacts show activations/subject-layers.9-1a2b3c4d": Real("activations"),
    "saeinterp artifacts gc --dry-run": Real("Nothing to remove"),
    "saeinterp artifacts gc": Real("Nothing to remove", answer="y\n"),
    "saeinterp artifacts gc --keep-reports 10 --older-than 30d --yes": Real("Nothing to remove"),
    "saeinterp artifacts rm sae/layers.9-1a2b3c4d": Real("made from", code=1),
    "saeinterp artifacts rm activations/subject-layers.9-1a2b3c4d --force": Real("Removed 1 item", answer="y\n"),
    # how-to/fan-out.md
    "pip install 'saeinterp[dask]'": DOWNLOADS,
    "export SAEINTERP_TASK_RUNNER=dask": Real(),
    "saeinterp run train-saes --config preset:train-saes-small --set launch.parallel=4": Elsewhere(
        "takes minutes",
        f"{FLOWS}test_fan_out.py::test_health_on_processes_that_the_flow_starts_makes_the_same_bytes_as_on_threads",
    ),
    "dask scheduler --no-dashboard": Real(
        "Scheduler at", {"--no-dashboard": "--no-dashboard --host 127.0.0.1 --port {port}"}, kept=True
    ),
    "SAEINTERP_ROOT=/shared/saeinterp OMP_NUM_THREADS=8 dask worker tcp://10.0.0.5:8786 --nworkers 2 --nthreads 1 "
    "--memory-limit 0 --no-dashboard": Real(
        "Registered to", {"SAEINTERP_ROOT": "env SAEINTERP_ROOT", "10.0.0.5:8786": "127.0.0.1:{port}"}, stays=True
    ),
    "export SAEINTERP_TASK_RUNNER=dask SAEINTERP_DASK_ADDRESS=tcp://10.0.0.5:8786 SAEINTERP_ROOT=/shared/saeinterp": (
        Real()
    ),
    "export DASK_DISTRIBUTED__COMM__REQUIRE_ENCRYPTION=true DASK_DISTRIBUTED__COMM__TLS__CA_FILE=ca.pem": Real(),
    "export DASK_DISTRIBUTED__COMM__TLS__SCHEDULER__CERT=me.pem "
    "DASK_DISTRIBUTED__COMM__TLS__SCHEDULER__KEY=me.key": Real(),
    # how-to/fine-tuned.md, gpu-slots.md, import-health.md, large-subjects.md
    "pip install 'saeinterp[adapters]'": DOWNLOADS,
    "saeinterp run compare-models --set subject_a.model=demo:smollm2-135m --set subject_b.model=demo:smollm2-135m "
    "--set subject_b.weights=pretrained --set subject_b.adapter=./my-lora": Elsewhere(
        "takes minutes", f"{FLOWS}test_fine_tuned.py::test_base_against_fine_tuned_on_the_text_it_was_tuned_for"
    ),
    "saeinterp ops setup": Real("vllm"),
    "prefect gcl create gpu-0 --limit 1": Real("gpu-0"),
    "prefect gcl create gpu-1 --limit 1": Real("gpu-1"),
    "prefect gcl create vllm --limit 1": Real("vllm", {"create vllm": "create vllm-by-hand"}),
    "export SAEINTERP_GPU_SLOTS=2": Real(),
    "export PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE=prefect.server.concurrency.lease_storage.filesystem": Real(),
    "saeinterp import health report.md": Real("[Hh]ealthy"),
    "saeinterp import health table.csv --model my-model --latents 400 --k 32": Real("my-model"),
    "pip install 'saeinterp[quantized]'": DOWNLOADS,
    # how-to/kubernetes.md
    "saeinterp ops setup --kubernetes REGISTRY/saeinterp-worker-vllm:TAG --gpus 1": PODS,
    "prefect work-pool create gpu --type kubernetes --base-job-template deployments/kubernetes/job-template.json": PODS,
    "kubectl create namespace saeinterp": CLUSTER,
    "kubectl -n saeinterp create secret generic saeinterp-prefect --from-env-file=prefect.env": CLUSTER,
    "kubectl -n saeinterp create secret generic saeinterp-keys --from-env-file=keys.env": CLUSTER,
    "kubectl -n saeinterp create configmap saeinterp-training --from-file=run.yaml": CLUSTER,
    "kubectl -n saeinterp delete job saeinterp-training --ignore-not-found": CLUSTER,
    "kubectl apply -f deployments/kubernetes/training-nodes.yaml": CLUSTER,
    "kubectl -n saeinterp logs -f -l batch.kubernetes.io/job-name=saeinterp-training": CLUSTER,
    "python -m saeinterp.sae.nodes run --calls CALLS -- saeinterp run train-saes --config run.yaml": NODES,
    "python -m saeinterp.sae.nodes follow --calls CALLS": NODES,
    # how-to/object-storage.md
    "pip install 'saeinterp[s3]'": DOWNLOADS,
    "export SAEINTERP_ROOT=s3://my-bucket/saeinterp": Real(),
    "saeinterp run compare-explainers --config lab.yaml": Elsewhere(
        "takes minutes",
        f"{FLOWS}test_object_storage.py::test_a_flow_leaves_in_the_bucket_what_it_leaves_in_a_folder",
    ),
    # how-to/operate.md
    "umask 077": Real(),
    "git clone <this repository> saeinterp && cd saeinterp": Real(
        "", {"<this repository>": "{repository}", "cd saeinterp": "cd saeinterp && ln -s {folder}/.venv .venv"}
    ),
    "make install": Elsewhere("installs from a package index; every change runs it", ".ci/run"),
    "saeinterp ops server": Real(
        r"password in .*server\.env.*dashboard at", {"ops server": "ops server --port {port}"}, kept=True, on=OPERATE
    ),
    "set -a; . ~/.prefect/server.env; set +a": Real(on=OPERATE),
    "sudo apt-get install postgresql": Elsewhere("needs root and a package index"),
    "sudo -u postgres createuser --pwprompt prefect": Elsewhere("needs root", f"{FLOWS}test_postgres.py"),
    "sudo -u postgres createdb --owner prefect prefect": Elsewhere("needs root", f"{FLOWS}test_postgres.py"),
    "read -rs PREFECT_SERVER_DATABASE_PASSWORD && export PREFECT_SERVER_DATABASE_PASSWORD": Real(answer="planted\n"),
    "saeinterp ops server --database postgresql+asyncpg://prefect@127.0.0.1:5432/prefect": Elsewhere(
        "takes a database for itself",
        f"{FLOWS}test_postgres.py::test_a_flow_of_five_hundred_tasks_completes_and_every_task_is_on_record",
    ),
    "pg_dump --host 127.0.0.1 --username prefect --format custom --file prefect.dump prefect": Elsewhere(
        "needs the database", RESTORED
    ),
    "pg_restore --host 127.0.0.1 --username prefect --no-owner --dbname restored prefect.dump": Elsewhere(
        "needs the database", RESTORED
    ),
    "saeinterp ops setup --root /data/saeinterp": Real("next: prefect", {"/data/saeinterp": "{folder}/data"}),
    "prefect --no-prompt deploy --prefect-file deployments/prefect.yaml --all": Real(
        "compare-explainers/gpu",
        {"--all": "-n compare-explainers/gpu -n train-saes/gpu -n compare-models/gpu"},
        on=OPERATE,
    ),
    "saeinterp ops worker --pool gpu": Real("Worker .* started", stays=True),
    "(umask 077; ssh lab grep ^PREFECT_API_ .prefect/server.env > ~/.saeinterp-lab.env)": Real(
        "", {"ssh lab grep ^PREFECT_API_ ": "grep ^PREFECT_API_ ~/"}
    ),
    "ssh -N -L 4200:127.0.0.1:4200 lab &": Elsewhere("needs a second machine"),
    "set -a; . ~/.saeinterp-lab.env; set +a": Real(),
    "saeinterp submit compare-explainers": Real("compare-explainers/gpu"),
    "saeinterp submit compare-explainers/small --watch": Elsewhere(
        "takes minutes", f"{FLOWS}test_operations.py::test_a_bare_name_from_another_folder_runs_to_the_report"
    ),
    "saeinterp submit train-saes --preset llama2-layers -p training.k=64": Real("train-saes/gpu"),
    "saeinterp submit compare-models --config mine.yaml": Real(
        "compare-models/gpu", {"mine.yaml": "{folder}/mine.yaml"}
    ),
    "prefect deployment run compare-explainers/gpu": Real("Created flow run"),
    "prefect flow-run retry ID": Elsewhere(
        "needs a run that failed on a worker", f"{FLOWS}test_operations_retry.py::test_retried_from_a_terminal"
    ),
    "python -c \"import os, sqlite3; h = os.path.expanduser('~/.prefect/'); "
    "sqlite3.connect(h + 'prefect.db').backup(sqlite3.connect(h + 'backup.db'))\"": Real(),
    # how-to/own-data.md, own-saes.md
    "saeinterp plan train-saes --config run.yaml": Real("steps to do"),
    "saeinterp plan train-saes -c run.yaml --set 'training.saes={layers.4: /data/llama2-run/layers.4}'": Real(
        "adopted: trained elsewhere", {"{layers.4: /data/llama2-run/layers.4}": "{layers.1: {folder}/runs/{sae}}"}
    ),
    # how-to/reports.md
    "saeinterp report report/layer-health-1a2b3c4d": Real("report"),
    "saeinterp report runs/report/layer-health-1a2b3c4d --out fresh": Real("fresh"),
    "saeinterp report runs/explainer-comparison/explainers-1a2b3c4d runs/model-comparison/a-vs-b-5e6f7a8b": Real(
        r"report\.html"
    ),
    'saeinterp report runs/health/* runs/grades/* --title "Ten layers"': Real(r"report\.html"),
    "saeinterp view report/layer-health-1a2b3c4d": Real(r"http://127\.0\.0\.1:\d+/", stays=True),
    "saeinterp export DIR --format csv --out FOLDER": Real("", {"DIR": "{report}", "FOLDER": "csv"}),
    "saeinterp export DIR --format json --out FOLDER": Real("", {"DIR": "{report}", "FOLDER": "json"}),
    "saeinterp export DIR --format neuronpedia --out FOLDER --model-id gpt2-small --source-set res-mine "
    "--author-id ID": Real(
        "", {"DIR": "report/explainers-1a2b3c4d", "FOLDER": "neuronpedia", "author-id ID": "author-id me"}
    ),
    "saeinterp export DIR... --format model-card --out FOLDER --license apache-2.0 --repo me/my-saes": Real(
        "", {"DIR...": "{sae}", "FOLDER": "card"}
    ),
    # how-to/sparse-probing.md, tokens.md
    "saeinterp probe reviews.csv --config train.yaml": Elsewhere(
        "trains SAEs", f"{FLOWS}test_probe.py::test_a_table_is_probed_on_trained_saes_and_a_second_run_does_nothing"
    ),
    "saeinterp run correlate-tokens --set 'corpus.source={name: gsm8k-train.jsonl}'": Elsewhere(
        "takes minutes",
        f"{FLOWS}test_correlate_tokens.py::test_latents_go_with_the_planted_tokens_of_their_own_position",
    ),
    "saeinterp run compare-interpretability --config preset:interpretability-small": Elsewhere(
        "takes minutes", f"{FLOWS}test_correlate_tokens.py::test_two_models_are_compared_on_their_shared_problems"
    ),
    # method/scale.md
    "saeinterp plan compare-models --config preset:llama2-finance --scale": Real("layers.28"),
    "saeinterp plan compare-explainers --config preset:qwen-7b-vs-72b --scale --gpu A100 --utilisation 0.4": Real(
        "one A100 by data sheet x 0.4"
    ),
    "saeinterp plan compare-interpretability --config preset:gsm8k-llama-1b-vs-gpt2 --scale --json": Real(
        '"gpu_hours"'
    ),
    # how-to/training.md
    "saeinterp run train-saes -c run.yaml --set 'training.overrides={layers.15: {k: 64}}'": Real(
        r"report\.md", {"{layers.15: {k: 64}}": "{layers.1: {k: 2}}"}
    ),
    "torchrun --nnodes 2 --nproc_per_node 8 --rdzv-backend c10d --rdzv-endpoint HOST:29500 "
    "-m saeinterp.sae.training --job ROOT/.work/sae/layers.5-1a2b3c4d/job.json": Elsewhere("needs two machines"),
    "saeinterp sae show sae/layers.9-1a2b3c4d": Real("FVU"),
    "pip install tensorboard": DOWNLOADS,
    "saeinterp sae export-curves runs/sae/* --to tensorboard --out curves": Real("tensorboard --logdir"),
    "tensorboard --logdir curves": Real(
        r"TensorBoard [0-9.]+ at http", {"--logdir curves": "--logdir curves --port {port}"}, stays=True
    ),
    "pip install wandb": DOWNLOADS,
    "saeinterp sae export-curves runs/sae/* --to wandb --out curves --project layers": Real("wandb sync"),
    "wandb sync curves/wandb/offline-run-*": Elsewhere("needs an account of Weights & Biases"),
    "saeinterp sae convert sae/layers.9-1a2b3c4d out/lens --to sae-lens --model gpt2": Real("out/lens"),
    "saeinterp sae convert out/lens out/sparsify --to sparsify": Real("out/sparsify"),
}


def typed(page: str, text: str) -> Real | None:
    """What a command does where it is typed on this page; None where it is not."""
    entry = COMMANDS.get(text)
    return entry if isinstance(entry, Real) and (not entry.on or page in entry.on) else None
