"""A CTM in plain float64 numpy, written from the formulas of arXiv 2505.05522: slow, literal, and not ours.

Synchronisation is the full weighted sum over all past ticks (eq. 10), neurons are a loop, nothing is carried over but
the history itself. Reads the weights of a `ctm.model.CTM` by name and nothing else of it.
"""

import math

import numpy as np

Array = np.ndarray
Weights = dict[str, Array]


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def glu(x: Array) -> Array:
    half = x.shape[-1] // 2
    return x[..., :half] * sigmoid(x[..., half:])


def silu(x: Array) -> Array:
    return x * sigmoid(x)


def softmax(x: Array) -> Array:
    powers = np.exp(x - x.max())
    return powers / powers.sum()


class NumpyCTM:
    """One thought of one row, tick after tick."""

    def __init__(self, weights: Weights, *, heads: int, answer_shape: tuple[int, ...]) -> None:
        self.weights = {name: np.asarray(value, np.float64) for name, value in weights.items()}
        self.heads = heads
        self.answer_shape = answer_shape
        self.pres = list(self.weights["start_trace"].T)
        self.posts = [self.weights["start_post"]]

    def linear(self, name: str, x: Array) -> Array:
        return self.weights[f"{name}.weight"] @ x + self.weights[f"{name}.bias"]

    def norm(self, name: str, x: Array) -> Array:
        centred = x - x.mean()
        scaled = centred / np.sqrt((centred**2).mean() + 1e-5)
        return scaled * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]

    def tokens(self, features: Array) -> list[Array]:
        """One token for each position of the features [C, L]."""
        return [self.norm("embedding.1", self.linear("embedding.0", position)) for position in features.T]

    def tick(self, tokens: list[Array]) -> dict[str, Array]:
        sync_action = self.synchronisation("action_sync")
        found, attention = self.attend(self.linear("query", sync_action), tokens)
        pre = self.synapse(np.concatenate([found, self.posts[-1]]))
        self.pres.append(pre)
        self.posts.append(np.array([self.neuron(index) for index in range(len(pre))]))
        sync_out = self.synchronisation("out_sync")
        prediction = self.linear("readout", sync_out)
        seen = {
            "prediction": prediction,
            "certainty": self.certainty(prediction),
            "attention": attention,
            "sync_action": sync_action,
            "sync_out": sync_out,
            "pre": pre,
            "post": self.posts[-1],
        }
        if "energy.out.weight" in self.weights:
            seen["energy"] = self.linear("energy.out", silu(self.linear("energy.hidden", sync_out)))[0]
        return seen

    def synchronisation(self, which: str) -> Array:
        """sum_t exp(-r (now - t)) z_i^t z_j^t / sqrt(sum_t exp(-r (now - t))), over all post-activations so far."""
        left = self.weights[f"{which}.left"].astype(int)
        right = self.weights[f"{which}.right"].astype(int)
        now, values = len(self.posts) - 1, []
        for i, j, decay in zip(left, right, self.weights[f"{which}.decay"], strict=True):
            shares = [math.exp(-decay * (now - t)) for t in range(now + 1)]
            total = sum(share * z[i] * z[j] for share, z in zip(shares, self.posts, strict=True))
            values.append(total / math.sqrt(sum(shares)))
        return np.array(values)

    def attend(self, query: Array, tokens: list[Array]) -> tuple[Array, Array]:
        """Multi-head attention of one query: softmax(q k / sqrt(width of a head)) v, heads side by side."""
        queries = np.split(self.linear("attention.query", query), self.heads)
        keys = [np.split(self.linear("attention.key", token), self.heads) for token in tokens]
        values = [np.split(self.linear("attention.value", token), self.heads) for token in tokens]
        found, weights = [], []
        for head, q in enumerate(queries):
            weight = softmax(np.array([q @ key[head] / math.sqrt(len(q)) for key in keys]))
            found.append(sum(share * value[head] for share, value in zip(weight, values, strict=True)))
            weights.append(weight)
        return self.linear("attention.out", np.concatenate(found)), np.array(weights)

    def synapse(self, x: Array) -> Array:
        if "synapse.linear.weight" in self.weights:
            return self.norm("synapse.norm", glu(self.linear("synapse.linear", x)))
        depth = sum(name.startswith("synapse.norms") for name in self.weights) // 2
        levels = [self.block("synapse.first", x)]
        for level in range(depth):
            levels.append(self.block(f"synapse.down.{level}", levels[-1]))
        y = levels[depth]
        for level in range(depth - 1, -1, -1):
            y = self.norm(f"synapse.norms.{level}", self.block(f"synapse.up.{level}", y) + levels[level])
        return y

    def block(self, name: str, x: Array) -> Array:
        linear = f"{name}.linear"
        if f"{linear}.base.weight" in self.weights:
            weight = self.weights[f"{linear}.base.weight"]
            weight = weight + self.change(f"{linear}.change", x, weight.shape)
            y = weight @ x + self.weights[f"{linear}.base.bias"]
        else:
            y = self.linear(linear, x)
        return silu(self.norm(f"{name}.norm", y))

    def change(self, name: str, signal: Array, shape: tuple[int, ...]) -> Array:
        """U(φ(z)) V(φ(z))^T, the whole matrix, with the gate tanh(g(φ(z))) where there is one."""
        compressed = silu(self.norm(f"{name}.compressor.1", self.linear(f"{name}.compressor.0", signal)))
        left = self.linear(f"{name}.left", compressed).reshape(shape[0], -1)
        right = self.linear(f"{name}.right", compressed).reshape(shape[1], -1)
        gate = math.tanh(self.linear(f"{name}.gate", compressed)[0]) if f"{name}.gate.weight" in self.weights else 1.0
        return gate * left @ right.T

    def neuron(self, index: int) -> float:
        """The neuron's own model of its last M pre-activations (eq. 3)."""
        memory = self.weights["start_trace"].shape[1]
        x, layer = np.array([pre[index] for pre in self.pres[-memory:]]), 0
        while f"neurons.layers.{layer}.weight" in self.weights:
            name = f"neurons.layers.{layer}"
            if f"{name}.norm.weight" in self.weights:
                x = self.norm(f"{name}.norm", x)
            weight = self.weights[f"{name}.weight"][index]
            if f"{name}.change.left.weight" in self.weights:
                weight = weight + self.change(f"{name}.change", self.posts[-1], weight.shape)
            y = x @ weight + self.weights[f"{name}.bias"][index]
            x, layer = glu(y / self.weights[f"{name}.temperature"]), layer + 1
        return float(x[0])

    def certainty(self, prediction: Array) -> float:
        """1 - entropy / ln(classes), averaged over positions."""
        positions = prediction.reshape(-1, self.answer_shape[-1])
        chances = [softmax(position) for position in positions]
        entropies = [-(p * np.log(p)).sum() / math.log(len(p)) for p in chances]
        return float(1 - np.mean(entropies))
