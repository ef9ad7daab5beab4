"""What shapes a computation makes: for tests of what must never be formed."""

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class SeenShapes(TorchDispatchMode):
    """Notes the shape of everything that is computed."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: set[tuple[int, ...]] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        del types
        result = function(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self.shapes.add(tuple(result.shape))
        return result
