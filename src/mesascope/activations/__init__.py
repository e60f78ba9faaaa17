"""Record and edit the activations of a forward pass, with one mechanism for every model."""

from mesascope.activations._layer_view import SUBLAYER_OUTPUTS, SUBLAYERS, LayerReduction, LayerView
from mesascope.activations._memory import NotEnoughMemory
from mesascope.activations.batched_edits import BatchedEdits
from mesascope.activations.capture import attention_layers, capture, estimate_capture_bytes
from mesascope.activations.edits import Edit, EditHadNoEffect
from mesascope.activations.encoder_decoder._captured import EncoderDecoderCapture
from mesascope.activations.encoder_decoder._inputs import SourceAndTarget
from mesascope.activations.encoder_decoder._paired_edits import PairedEdits
from mesascope.activations.encoder_decoder._prepare import prepare_source_and_target
from mesascope.activations.hooks._module_hooks import attach_hooks
from mesascope.activations.readout._readout import Readout
from mesascope.activations.recording._captured import Capture, NotRecorded
from mesascope.activations.recording._micro_batch import Reduction
from mesascope.activations.sites import (
    CROSS_SITES,
    FORWARD_SITES,
    HALTING_SITES,
    MEMORY_SITES,
    SITES,
    Site,
    UnsupportedModel,
    get_site,
)
from mesascope.activations.validation.arguments import validate_model
from mesascope.activations.validation.inputs import InputsLike, prepare_inputs
from mesascope.activations.wrapping._wrapped_module import WrappedModule
from mesascope.activations.wrapping.wrap import wrap

__all__ = [
    "CROSS_SITES",
    "FORWARD_SITES",
    "HALTING_SITES",
    "MEMORY_SITES",
    "SITES",
    "SUBLAYERS",
    "SUBLAYER_OUTPUTS",
    "BatchedEdits",
    "Capture",
    "Edit",
    "EditHadNoEffect",
    "EncoderDecoderCapture",
    "InputsLike",
    "LayerReduction",
    "LayerView",
    "NotEnoughMemory",
    "NotRecorded",
    "PairedEdits",
    "Readout",
    "Reduction",
    "Site",
    "SourceAndTarget",
    "UnsupportedModel",
    "WrappedModule",
    "attach_hooks",
    "attention_layers",
    "capture",
    "estimate_capture_bytes",
    "get_site",
    "prepare_inputs",
    "prepare_source_and_target",
    "validate_model",
    "wrap",
]
