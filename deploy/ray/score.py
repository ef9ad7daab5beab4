"""Score a data set on a Ray cluster: `python -m deploy.ray.score --model NAME --input TABLE --output FOLDER ...`.

blocks of Parquet --> actors, one engine each (the function that `ctm-think --input` uses) --> Parquet files
"""

import argparse

import ray
from ray.data import ActorPoolStrategy, Dataset

from serving.scoring import BatchScorer
from serving.settings import BackendConfig


def score_dataset(
    rows: Dataset, *, store: str, model: str, column: str, actors: int, batch_size: int = 256, logits: bool = False
) -> Dataset:
    """Every row with its outcome beside its columns, but for the input's; lazily, as Ray Data does."""
    return rows.map_batches(
        BatchScorer,
        fn_constructor_args=(store, model),
        # One processor an actor: so many threads in each.
        fn_constructor_kwargs={"column": column, "logits": logits, "backend": BackendConfig(intra_op_threads=1)},
        batch_size=batch_size,
        batch_format="numpy",
        num_cpus=1,
        compute=ActorPoolStrategy(size=actors),
    )


def main() -> None:
    asked = argparse.ArgumentParser(description="Score a Parquet data set on a Ray cluster.")
    asked.add_argument("--store", required=True, help="folder of published models, at the same path on every node")
    asked.add_argument("--model", required=True)
    asked.add_argument(
        "--input", required=True, nargs="+", help="Parquet files or folders, or what else Ray reads from"
    )
    asked.add_argument("--column", required=True, help="which holds the input: numbers, encoded pictures, or paths")
    asked.add_argument("--output", required=True, help="folder of Parquet files")
    asked.add_argument("--actors", type=int, default=1, help="models that think at once, one processor each")
    asked.add_argument("--logits", action="store_true", help="write whole predictions")
    options = asked.parse_args()
    ray.init(include_dashboard=False)
    scored = score_dataset(
        ray.data.read_parquet(options.input),
        store=options.store,
        model=options.model,
        column=options.column,
        actors=options.actors,
        logits=options.logits,
    )
    scored.write_parquet(options.output)


if __name__ == "__main__":
    main()
