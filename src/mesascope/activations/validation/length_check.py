"""The checks of a new length, made in the pass of the capture itself."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from mesascope.activations._model_structure import ModelStructure
from mesascope.activations.hooks._attention_patterns import SiteHook
from mesascope.activations.hooks._block_counter import BlockCounter
from mesascope.activations.validation.identities import (
    IdentityChecker,
    check_output_unchanged,
    record_streams,
    run_recording_streams,
    spread_queries,
)

LengthKey = tuple[int, bool, bool, bool]


class LengthCheck:
    """The checks of `check_hooked_forward` for a sequence that the capture runs by itself, with all hooks attached.

    The capture's own pass is compared with a pass without hooks, so that neither has to run twice.

    Args:
        model: the model, which calls each of its blocks once.
        structure: its structure, which holds what has been validated.
        layers_by_site: the hook points of the capture.
        row: the index of the sequence that is checked.
        mask: 1 where an input of this sequence is not padding.
        key: the length and what else is validated with it.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        structure: ModelStructure,
        layers_by_site: Mapping[str, Sequence[int]],
        row: int,
        mask: Int[Tensor, "1 pos"] | None,
        key: LengthKey,
    ) -> None:
        self._model, self._structure, self._key, self.row = model, structure, key, row
        self._requested = {site: tuple(chosen) for site, chosen in layers_by_site.items()}
        self._hook_points = {(site, layer) for site, chosen in layers_by_site.items() for layer in chosen}
        masks = [mask] * len(structure.layers)
        self._checker = IdentityChecker(layers_by_site, structure.layers, masks, spread_queries(key[0], mask))
        self._last_block = structure.layers[-1].block
        self._streams: Mapping[str, Tensor] = {}

    @property
    def layers_by_site(self) -> Mapping[str, Sequence[int]]:
        """The hook points of the capture, and those that are compared with them."""
        return self._checker.layers_by_site

    def join(self, record: SiteHook) -> SiteHook:
        """Return a hook function that checks all activations, and passes those of the capture on.

        Args:
            record: the hook function of the capture, which replaces nothing.
        """

        def check_and_record(site: str, layer: int, value: Tensor) -> Tensor | None:
            self._checker(site, layer, value)
            return record(site, layer, value) if (site, layer) in self._hook_points else None

        return check_and_record

    @contextmanager
    def record(self) -> Iterator[None]:
        """Context manager: record the residual stream after the last layer; enter it after hooks have been attached."""
        with record_streams(self._model, [self._last_block]) as self._streams:
            yield

    def compare(
        self, output: Float[Tensor, "batch predicted d_out"], counter: BlockCounter, run: Callable[[], Tensor]
    ) -> None:
        """Compare the pass of the capture with a pass without hooks, and note what has been validated.

        Args:
            output: the output of the capture's pass.
            counter: the counter of the calls of blocks in it.
            run: runs the model on the same inputs and returns its output.

        Raises:
            UnsupportedModel: a condition of `check_hooked_forward` is violated.
        """
        name = type(self._model).__name__
        expected_output, expected_stream = run_recording_streams(self._model, [self._last_block], run)
        check_output_unchanged(name, expected_output, output)
        check_output_unchanged(name, expected_stream, self._streams[self._last_block])
        self._checker.check_counts(name, self._requested, counter)
        self._structure.note_length(self._key)
        self._structure.validated.update(self._hook_points)
