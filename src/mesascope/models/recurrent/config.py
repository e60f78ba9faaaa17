"""The configuration of a recurrent transformer."""

from typing import Any, Literal

from mesascope.argument_types import validate_arguments
from mesascope.models.config import DecoderConfig, raise_unless

_FIXED = {"attention": "softmax", "norm_position": "pre", "share_layers": False}


class RecurrentConfig(DecoderConfig):
    """The configuration of a :class:`~mesascope.models.recurrent.model.RecurrentTransformer`.

    The models of Ray Chowdhury and Caragea (2024, arXiv 2402.00976) are settings of these fields:

    - universal transformer: the defaults;
    - gated universal transformer (GUT): ``gate=True, halt="global", transition=True``; its ablations are
      ``gate=False``, ``halt="token"`` and ``transition=False``;
    - temporal latent bottleneck (TLB): ``chunk_length`` and ``memory_slots``, ``halt="none", max_iterations=1`` and
      two or more ``num_hidden_layers``;
    - GUTLB: the fields of GUT with ``chunk_length`` and ``memory_slots``.

    Fields that are not listed are those of :class:`~mesascope.models.config.DecoderConfig`. Norms are before the
    sublayers. Invalid values are rejected when the configuration is created.

    Args:
        vocab_size: number of tokens; ``None`` for vectors.
        num_hidden_layers: number of different blocks in one step; the same blocks are used in every step.
        hidden_size: width of the residual stream, a multiple of the number of heads.
        num_attention_heads: number of query heads.
        intermediate_size: width of the MLP, and of the MLP that computes the gate.
        max_iterations: maximum number of steps, at least 1; at least 2 with halting.
        gate: mix the output of a block with its input, by a gate for every coordinate.
        halt: ``none``: always take ``max_iterations`` steps. ``token``: every position halts by its own state.
            ``global``: positions halt by the mean state; with a causal mask, by the mean up to the position.
        transition: halting probabilities are computed from the states before and after a step, instead of the state
            before it alone.
        halting_threshold: a position halts in the step in which its total probability of having halted reaches this
            value, above 0 and at most 1.
        halting_penalty: factor of the mean expected number of steps in the auxiliary loss, which training adds to the
            loss of the task.
        chunk_length: positions of a chunk; chunks are processed one after the other. ``None`` for no chunks.
        memory_slots: vectors that one chunk passes to the next; needed if there are chunks.
        mask: ``causal``, or ``full``: a position attends to all positions of its sequence or chunk.
        pad_token_id: token that is padding wherever no attention mask is given; ``None`` if no token is.
        norm: ``none``, ``layer`` or ``rms``.
        positions: ``none``, ``learned``, ``sinusoidal`` or ``rotary``. Positions are counted from the first one that is
            not padding, throughout all chunks. Attention to and from memory uses none.
        **kwargs: further fields of the decoder's configuration.

    Raises:
        ValueError: a value is out of range, or values are inconsistent.

    >>> RecurrentConfig(vocab_size=5, halt="none", transition=True)
    Traceback (most recent call last):
    ...
    ValueError: transition=True needs halting, but halt is 'none'; set halt to token or global
    """

    model_type = "mesascope_recurrent"

    @validate_arguments
    def __init__(
        self,
        *,
        vocab_size: int | None = None,
        num_hidden_layers: int = 1,
        hidden_size: int = 64,
        num_attention_heads: int = 4,
        intermediate_size: int = 128,
        max_iterations: int = 10,
        gate: bool = False,
        halt: Literal["none", "token", "global"] = "token",
        transition: bool = False,
        halting_threshold: float = 0.999,
        halting_penalty: float = 0.0,
        chunk_length: int | None = None,
        memory_slots: int | None = None,
        mask: Literal["causal", "full"] = "causal",
        pad_token_id: int | None = None,
        norm: str = "layer",
        positions: str = "rotary",
        **kwargs: Any,
    ) -> None:
        self.max_iterations = max_iterations
        self.gate = gate
        self.halt = halt
        self.transition = transition
        self.halting_threshold = halting_threshold
        self.halting_penalty = halting_penalty
        self.chunk_length = chunk_length
        self.memory_slots = memory_slots
        for name, value in _FIXED.items():
            given = kwargs.pop(name, value)
            raise_unless(given == value, f"{name} of a recurrent transformer must be {value!r}, but got {given!r}")
        super().__init__(
            vocab_size=vocab_size,
            num_hidden_layers=num_hidden_layers,
            hidden_size=hidden_size,
            num_attention_heads=num_attention_heads,
            intermediate_size=intermediate_size,
            mask=mask,
            norm=norm,
            positions=positions,
            **_FIXED,
            **kwargs,
        )
        self.pad_token_id = pad_token_id
        self._validate_halting()
        self._validate_chunks()
        raise_unless(
            pad_token_id is None or (vocab_size is not None and 0 <= pad_token_id < vocab_size),
            f"pad_token_id must be a token below vocab_size, but got {pad_token_id} and {vocab_size}",
        )

    def _validate_halting(self) -> None:
        halts = self.halt != "none"
        least = 2 if halts else 1
        raise_unless(
            self.max_iterations >= least,
            f"max_iterations must be at least {least} with halt={self.halt!r}, but got {self.max_iterations}",
        )
        raise_unless(
            0 < self.halting_threshold <= 1,
            f"halting_threshold must be above 0 and at most 1, but got {self.halting_threshold}",
        )
        raise_unless(self.halting_penalty >= 0, f"halting_penalty must be at least 0, but got {self.halting_penalty}")
        for name in ("transition", "halting_penalty"):
            value = getattr(self, name)
            raise_unless(
                halts or not value,
                f"{name}={value} needs halting, but halt is 'none'; set halt to token or global",
            )
        raise_unless(
            not self.gate or self.intermediate_size > 0,
            "gate=True needs an MLP, but intermediate_size is 0; set it to its width",
        )

    def _validate_chunks(self) -> None:
        given = self.chunk_length, self.memory_slots
        raise_unless(
            None not in given or given == (None, None),
            "chunk_length and memory_slots must be given together, but got "
            f"chunk_length={given[0]} and memory_slots={given[1]}",
        )
        for name, value in zip(("chunk_length", "memory_slots"), given, strict=True):
            raise_unless(value is None or value >= 1, f"{name} must be at least 1, but got {value}")
