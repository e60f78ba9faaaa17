"""The map from the residual stream to the output, and the contributions of residual updates to it."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from mesascope.activations.readout._deferred import Deferred
from mesascope.activations.readout._norm import Norm, refit_norm
from mesascope.activations.readout._output_head import OutputHead
from mesascope.activations.readout._unembedding import Unembedding
from mesascope.activations.sites import FINAL_NORM, UnsupportedModel
from mesascope.activations.validation.fingerprint import Fingerprint, Offloaded, fingerprint_tensors


@dataclass(frozen=True, kw_only=True, eq=False)
class OutputReadout:
    """Final norm and output head of the model that was recorded.

    Attributes:
        output_head: final norm, unembedding and soft cap, or the reason why there is none.
        final_norm_search: finds `traced_final_norm`.
        resid_vector: one vector of the residual stream, which gives its width, dtype and device.
        additivity_check: finds `non_additive_reason`.
        weights: fingerprint of the weights of the model when it was captured, by which a later change is detected.
        head_weights: the same of the output head.
    """

    output_head: OutputHead | str
    final_norm_search: Deferred[Norm | str | None]
    resid_vector: Float[Tensor, " d_model"]
    additivity_check: Deferred[str]
    weights: Fingerprint
    head_weights: Fingerprint

    def get_unembedding_rows(self, tokens: Int[Tensor, " token"]) -> Float[Tensor, "token d_model"]:
        """Return the rows of the unembedding for some tokens, scales included, before any soft cap.

        Args:
            tokens: token ids.

        Returns:
            The direction after the final norm along which each token's logit is read.

        Raises:
            UnsupportedModel: If the output is not a linear function of the final norm's output.
        """
        return self._unembedding.get_rows(tokens)

    @property
    def unembedding_mean(self) -> Float[Tensor, " d_model"]:
        """The mean row of the unembedding over all tokens, on which no probability depends.

        Raises:
            UnsupportedModel: If the output is not a linear function of the final norm's output.
        """
        return self._unembedding.compute_mean_row()

    def compute_output(self, resid: Float[Tensor, "*rest d_model"]) -> Float[Tensor, "*rest d_out"]:
        """Compute the output from a residual stream (logit lens): final norm, unembedding, scale and soft cap.

        Args:
            resid: residual stream of any layer.

        Returns:
            Logits, or predicted vectors.

        Raises:
            UnsupportedModel: If the output is not computed from the last layer by a chain of modules.
        """
        return self._require_output_head().apply_softcap(self.compute_uncapped_output(resid))

    def compute_uncapped_output(self, resid: Float[Tensor, "*rest d_model"]) -> Float[Tensor, "*rest d_out"]:
        """Compute the output from a residual stream before the soft cap.

        Args:
            resid: residual stream of any layer.

        Returns:
            Logits, or predicted vectors, before the soft cap.

        Raises:
            UnsupportedModel: If the output is not computed from the last layer by a chain of modules.
        """
        return self._require_output_head()(resid)

    def attribute_logits(
        self, update: Float[Tensor, "*parts batch pos d_model"], resid_final: Float[Tensor, "batch pos d_model"]
    ) -> Float[Tensor, "*parts batch pos d_out"]:
        """Compute the direct contribution of residual updates to the output (direct logit attribution).

        The final norm is frozen at ``resid_final``, so that the map is linear: the contributions of the embedding
        (``resid_pre[0]``) and of all updates, plus `readout_bias`, sum to the output before the soft cap.

        Args:
            update: parts of the final residual stream.
            resid_final: residual stream after the last layer.

        Returns:
            The contribution of each part to the output.

        Raises:
            UnsupportedModel: If the identity does not hold in this model.
        """
        return self._unembedding(self.apply_frozen_norm(update, resid_final))

    def apply_frozen_norm(
        self, update: Float[Tensor, "*parts batch pos d_model"], resid_final: Float[Tensor, "batch pos d_model"]
    ) -> Float[Tensor, "*parts batch pos d_model"]:
        """Apply the final norm, frozen at ``resid_final``, to residual updates.

        Args:
            update: parts of the final residual stream.
            resid_final: residual stream after the last layer.

        Returns:
            The parts after the norm, before the unembedding.

        Raises:
            UnsupportedModel: If the output of this model is not a sum of residual updates.
        """
        output_head, norm = self._require_additive()
        if norm is None:
            return update
        return norm.linear_part(update * output_head.scales[0]) / _norm_scale(output_head, norm, resid_final)

    def logit_directions(
        self, rows: Float[Tensor, "place d_model"], resid_final: Float[Tensor, "place d_model"]
    ) -> Float[Tensor, "place d_model"]:
        """Compute directions of the residual stream whose dot product with an update is its logit contribution.

        The transpose of `attribute_logits`: for few logits at few positions, it needs no tensor of vocabulary size.

        Args:
            rows: rows of the unembedding, one per position, as `get_unembedding_rows` returns them.
            resid_final: residual stream after the last layer, at these positions.

        Returns:
            One direction per position.

        Raises:
            UnsupportedModel: If the output of this model is not a sum of residual updates.
        """
        output_head, norm = self._require_additive()
        return rows if norm is None else self.fold_norm(rows) / _norm_scale(output_head, norm, resid_final)

    def fold_norm(self, rows: Float[Tensor, "*rest d_model"]) -> Float[Tensor, "*rest d_model"]:
        """Fold the linear part of the final norm into rows of the unembedding.

        Args:
            rows: rows of the unembedding.

        Returns:
            Directions before the final norm, without the division by its scale.

        Raises:
            UnsupportedModel: If the final norm is of an unknown kind.
        """
        output_head = self._require_output_head()
        if isinstance(self.final_norm, str):
            raise UnsupportedModel(self.final_norm)
        return rows if self.final_norm is None else self.final_norm.apply_transposed(rows) * output_head.scales[0]

    @property
    def traced_final_norm(self) -> Norm | str | None:
        """The final norm when it was first read, ``None`` without one, or the reason why it is not known.

        Raises:
            RuntimeError: parameters of the output head were modified after the capture.
        """
        if isinstance(self.output_head, str):
            return self.output_head
        self._require_output_head()
        return self.final_norm_search.get()

    @property
    def non_additive_reason(self) -> str:
        """Why the output is not a sum of residual updates; empty where it is.

        Raises:
            RuntimeError: parameters of the output head were modified after the capture.
        """
        if isinstance(self.output_head, OutputHead):
            self._require_output_head()
        return self.additivity_check.get()

    @cached_property
    def final_norm(self) -> Norm | str | None:
        """The final norm in closed form, ``None`` without one, or the reason why it is not known."""
        traced = self.traced_final_norm
        if not isinstance(traced, Norm):
            return traced
        return refit_norm(self._require_output_head().modules[0], traced, "the final norm")

    @cached_property
    def readout_bias(self) -> Float[Tensor, " d_out"]:
        """The output before the soft cap that no part of the residual stream contributes.

        Raises:
            UnsupportedModel: If the output of this model is not a sum of residual updates.
        """
        output_head, norm = self._require_additive()
        zeros = self._make_zero_stream()
        if norm is None:
            return output_head(zeros[None, None])[0, 0]
        return output_head(norm.bias[None, None], 1)[0, 0]

    @cached_property
    def _unembedding(self) -> Unembedding:
        """The map after the final norm, if it is linear."""
        output_head, norm = self._require_output_head(), self.final_norm
        if isinstance(norm, str):
            raise UnsupportedModel(norm)
        return Unembedding(output_head, 0 if norm is None else 1, self.resid_vector if norm is None else norm.bias)

    def _make_zero_stream(self) -> Float[Tensor, " d_model"]:
        return torch.zeros_like(self.resid_vector)

    def _require_output_head(self) -> OutputHead:
        if isinstance(self.output_head, str):
            raise UnsupportedModel(self.output_head)
        check_same_weights(self.head_weights, self.output_head.tensors())
        return self.output_head

    def _require_additive(self) -> tuple[OutputHead, Norm | None]:
        """Return output head and final norm, if the output is a sum of residual updates."""
        output_head = self._require_output_head()
        if self.non_additive_reason or isinstance(self.final_norm, str):
            raise UnsupportedModel(self.non_additive_reason or str(self.final_norm))
        return output_head, self.final_norm


def check_same_weights(captured: Fingerprint, tensors: Iterable[Tensor]) -> None:
    """Check that weights are those of the capture; those that are offloaded cannot be compared.

    Args:
        captured: the fingerprint of the weights at the capture.
        tensors: the present parameters and buffers.

    Raises:
        RuntimeError: they differ.
    """
    if captured and not isinstance(captured[0], Offloaded) and fingerprint_tensors(tensors) != captured:
        raise RuntimeError(
            "a readout needs unchanged parameters, but they were modified after the capture; capture again"
        )


def _norm_scale(
    output_head: OutputHead, norm: Norm, resid_final: Float[Tensor, "*rest d_model"]
) -> Float[Tensor, "*rest _"]:
    scaled = resid_final * output_head.scales[0]
    with torch.no_grad():
        return norm.scale(scaled, output_head.modules[0](scaled))


def find_final_norm_module(model_name: str, readout: OutputReadout) -> nn.Module:
    """Return the module of the final norm.

    Args:
        model_name: the class name of the model.
        readout: its readout.

    Raises:
        UnsupportedModel: the unembedding does not read the output of a norm.
    """
    reason = explain_missing_final_norm(readout)
    if isinstance(readout.output_head, OutputHead) and not reason:
        return readout.output_head.modules[0]
    raise UnsupportedModel(
        f"{FINAL_NORM} must be the output of a norm that the unembedding reads, but {model_name} has none ({reason}); "
        "omit the site"
    )


def explain_missing_final_norm(readout: OutputReadout) -> str:
    """Return why the unembedding does not read the output of a norm; empty if it does.

    Args:
        readout: the readout of the model.
    """
    if isinstance(readout.output_head, str):
        return readout.output_head
    if readout.traced_final_norm is None:
        return "the unembedding reads the residual stream"
    return readout.traced_final_norm if isinstance(readout.traced_final_norm, str) else ""
