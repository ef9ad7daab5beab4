"""The card's front matter: what Hugging Face lists a model by."""

import json

from protos.ctm_bundle_pb2 import Manifest, Quality, TensorSpec


def render_front(manifest: Manifest) -> str:
    lines = ["library_name: ctm-serving"]
    if kind := pipeline(manifest):
        lines.append(f"pipeline_tag: {kind}")
    lines += ["tags:", "- continuous-thought-machine", "- adaptive-compute", "- early-stopping", "- onnx"]
    if manifest.chain == "diffusion":
        lines.append("- diffusion")
    if manifest.HasField("quality"):
        quality = manifest.quality
        task, metric = json.dumps(manifest.task), json.dumps(quality.metric)
        lines += [f"datasets:\n- {task}", f"metrics:\n- {metric}"]
        lines += ["model-index:", f"- name: {json.dumps(manifest.name)}", "  results:", "  - task:"]
        lines += [f"      type: {pipeline(manifest) or 'other'}", "    dataset:", f"      name: {task}"]
        lines += [f"      type: {task}", f"      split: {quality.split}", "    metrics:", f"    - type: {metric}"]
        name, value = _headline(quality)
        lines += [f"      value: {value:.4f}", f"      name: {name} at the most certain tick"]
    return "\n".join(["---", *lines, "---"])


def _headline(quality: Quality) -> tuple[str, float]:
    """The number that a model is known by."""
    if quality.HasField("diffusion"):
        return "error of the noise", quality.diffusion.guided
    if quality.bits_per_byte:
        return "bits per byte", quality.bits_per_byte_most_certain
    return "accuracy", quality.accuracy_most_certain


def pipeline(manifest: Manifest) -> str:
    """What Hugging Face calls such a task; empty where it has no word for it."""
    prediction = next(spec for spec in manifest.outputs if spec.role == TensorSpec.PREDICTION)
    if manifest.chain == "text":
        return "text-generation"
    image = len(manifest.inputs) == 1 and len(manifest.inputs[0].shape) == 3
    return "image-classification" if image and len(prediction.shape) == 1 else ""
