"""Numbers of every dtype of torch become numpy's, in our analyses and in those of a user."""

import warnings

import numpy as np
import pytest
import torch

from mesascope import api
from mesascope.axes import to_data_array
from saved import save_tiny


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn, torch.float16, torch.int32, torch.bool])
def test_a_tensor_of_any_dtype_is_labelled(dtype):
    values = torch.tensor([0.0, 1.0, 2.0]).to(dtype)
    labelled = to_data_array(values, "pos", units="1", description="some")
    assert labelled.values.tolist() == values.float().tolist()
    if dtype in (torch.bfloat16, torch.float8_e4m3fn):
        assert labelled.dtype == np.float32
    rows = to_data_array([values, values], "layer", "pos", units="1", description="some")
    assert rows.values.tolist() == [values.float().tolist()] * 2


def test_views_that_numpy_does_not_know_are_labelled():
    values = torch.tensor([1 + 2j, 3 - 1j], requires_grad=True)
    assert to_data_array(values.conj(), "pos", units="1", description="some").values.tolist() == [1 - 2j, 3 + 1j]
    assert to_data_array(values.conj().imag, "pos", units="1", description="some").values.tolist() == [-2, 1]
    with warnings.catch_warnings(action="ignore"):  # torch warns that the dtype is experimental
        half = torch.tensor([1 + 2j]).to(torch.complex32)
    assert to_data_array(half, "pos", units="1", description="some").dtype == np.complex64
    sparse = torch.eye(2).to_sparse()
    assert np.array_equal(to_data_array(sparse, "d_in", "d_out", units="1", description="some"), np.eye(2))


@pytest.mark.parametrize(("dtype", "analysis"), [("bfloat16", "token_attribution"), ("float16", "top_tokens")])
def test_inspection_in_half_precision_gives_a_report(tmp_path, dtype, analysis):
    """numpy has no bfloat16, and netCDF has no float16."""
    folder = save_tiny(tmp_path)
    run = api.inspect(
        str(folder), tokens=16, sequences=1, out=tmp_path / "out", dtype=dtype, analyses=[analysis, "top_tokens"]
    )
    assert (run.path / "report.html").is_file()
    assert run.read_json("model")["skipped"] == {}
    assert run.read_results("top_tokens")["top_logit"].dtype == np.float32
