"""Every kind of broken or hostile folder gives a result or one line; `run_many` is the full trial."""

import pytest

from cases import spread
from faults.damages import DAMAGES
from faults.hostile_models import save_victims
from faults.inspect_folders import inspect_hostile, report, run_many

RESULTS = ("folder_generation_config_broken", "folder_of_trainer")  # no harm; the checkpoints are opened
FAST = """
config_width_in_quotes config_layers_null config_truncated config_list config_nested config_huge_width
config_huge_positions config_huge_layers config_huge_vocabulary config_huge_labels config_zero_heads config_fewer_layers
config_vocabulary_of_another_size config_llama_for_gpt2 config_type_t5 config_classifier_gpt2
config_activation_unknown config_epsilon_nan config_rope_zero_llama config_gptq config_kernels config_code
config_code_with_known_type weights_truncated weights_nan weights_infinity weights_1e38 weights_header_length
weights_tensor_missing weights_flattened weights_integers weights_swapped weights_pickle index_without_map
index_file_elsewhere index_tensor_missing tokenizer_truncated tokenizer_nested tokenizer_negative_ids
tokenizer_large_ids tokenizer_words_without_unknown tokenizer_pattern_broken tokenizer_config_length
gguf_truncated gguf_huge_array gguf_huge_width gguf_huge_tensor_count folder_of_adapter
folder_given_by_file
""".split()


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    made = tmp_path_factory.mktemp("hostile")
    save_victims(made / "victims")
    return made


@pytest.mark.parametrize("kind", spread(FAST, 25))
def test_a_hostile_folder_is_refused_in_one_line(place, kind):
    outcome = inspect_hostile(place, kind, 0)
    assert outcome.faults == []
    assert outcome.code == 2
    assert outcome.output.startswith("mesascope: ")


@pytest.mark.parametrize("kind", RESULTS)
def test_what_is_not_needed_does_no_harm(place, kind):
    outcome = inspect_hostile(place, kind, 0)
    assert outcome.faults == []
    assert outcome.code == 0


def test_the_subset_has_all_parts_and_the_trial_returns_time_and_memory(tmp_path):
    assert len(DAMAGES) > 100
    assert {kind.split("_")[0] for kind in FAST} == {kind.split("_")[0] for kind in DAMAGES}
    outcomes = list(run_many(tmp_path, range(2), ["weights_empty"]))
    assert [one.seed for one in outcomes] == [0, 1]
    assert all(one.seconds > 0 and one.extra_bytes > 0 for one in outcomes)
    assert all("weights_empty" in line for line in report(outcomes))


@pytest.mark.slow
def test_two_hundred_hostile_folders(tmp_path):
    assert [line for line in report(run_many(tmp_path)) if "[]" not in line] == []
