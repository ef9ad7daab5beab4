"""What a model is, in the words of the Open Inference Protocol."""

from collections.abc import Iterable
from importlib.metadata import version

from protos import open_inference_pb2 as oip
from serving.inference.asked import inputs_of
from serving.inference.outputs import outputs_of
from serving.inference.parameters import DEFAULT_PRIORITY, PRIORITY_LEVELS
from serving.models import Served
from serving.store import newest

EXTENSIONS = ("model_configuration", "model_repository", "parameters", "schedule_policy", "statistics")
"""By the names that Triton gave them."""


def server_metadata() -> oip.ServerMetadataResponse:
    """What the server is."""
    return oip.ServerMetadataResponse(name="ctm-serving", version=version("ctm-serving"), extensions=EXTENSIONS)


def model_metadata(served: Served, versions: Iterable[int]) -> oip.ModelMetadataResponse:
    """Names, datatypes and shapes of what goes in and comes out.

    Args:
        versions: all that are served of this model.
    """
    bundle = served.bundle
    message = oip.ModelMetadataResponse(name=bundle.name, platform=_platform(served))
    message.versions.extend(str(number) for number in sorted(versions))
    for target, tensors in ((message.inputs, inputs_of(bundle)), (message.outputs, outputs_of(bundle))):
        for name, (datatype, shape) in tensors.items():
            target.add(name=name, datatype=datatype, shape=[-1, *shape])
    return message


def model_config(served: Served, *, max_rows: int, version_policy: str) -> oip.ModelConfig:
    """How the model is served, in so far as Triton's settings have words for it."""
    bundle, stop = served.bundle, served.bundle.stop
    config = oip.ModelConfig(
        name=bundle.name,
        platform=_platform(served),
        backend=served.backend,
        max_batch_size=max_rows,
        input=[
            oip.ModelInput(name=name, data_type=_data_type(datatype), dims=shape)
            for name, (datatype, shape) in inputs_of(bundle).items()
        ],
        output=[
            oip.ModelOutput(name=name, data_type=_data_type(datatype), dims=shape)
            for name, (datatype, shape) in outputs_of(bundle).items()
        ],
        dynamic_batching=oip.ModelDynamicBatching(
            priority_levels=PRIORITY_LEVELS, default_priority_level=DEFAULT_PRIORITY
        ),
        model_transaction_policy=oip.ModelTransactionPolicy(decoupled=False),
    )
    if (most := newest(version_policy)) is None:
        config.version_policy.all.SetInParent()
    else:
        config.version_policy.latest.num_versions = most
    said = {
        "ticks": stop.max_ticks,
        "tick_cap": bundle.tick_cap,
        "certainty_threshold": stop.certainty_threshold,  # inf: certainty stops nothing
        "abstain_below": bundle.abstain_below,
        "family": bundle.manifest.family,
        "task": bundle.manifest.task,
    }
    for name, value in said.items():
        config.parameters[name].string_value = str(value)
    return config


def _platform(served: Served) -> str:
    return f"ctm_{served.backend}"


def _data_type(datatype: str) -> oip.DataType.ValueType:
    return oip.DataType.Value("TYPE_STRING" if datatype == "BYTES" else f"TYPE_{datatype}")
