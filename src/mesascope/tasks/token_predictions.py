"""Tasks that predict tokens, and logarithms of the probabilities that their baselines predict."""

from jaxtyping import Float
from torch import Tensor

from mesascope.tasks.base import Batch, Task

MIN_PROBABILITY = 1e-12  # of tokens that a baseline excludes, so that its logarithm is finite


class TokenTask(Task):
    """A task whose targets are tokens: the model predicts logits."""

    def loss(self, prediction: Float[Tensor, "batch pos d_out"], batch: Batch) -> Float[Tensor, "batch pos"]:
        """Compute the cross-entropy of the target tokens, in nats.

        Args:
            prediction: logits.
            batch: the sequences that were predicted.

        Returns:
            The cross-entropy, (batch, pos).
        """
        return -prediction.log_softmax(-1).gather(-1, batch.targets[..., None])[..., 0]


def log_probabilities(probabilities: Float[Tensor, "*rest token"]) -> Float[Tensor, "*rest token"]:
    """Return the logarithm of probabilities; 0 counts as `MIN_PROBABILITY`.

    Args:
        probabilities: the probabilities.
    """
    return probabilities.clamp_min(MIN_PROBABILITY).log()
