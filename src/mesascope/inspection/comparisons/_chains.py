"""The comparison of a language model with n-gram counts, on Markov chains of its own tokens."""

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mesascope.inspection._text import check_token_ids, find_text_prefix, non_special_tokens
from mesascope.inspection._token_ids import TokenIdsLike, read_token_ids
from mesascope.inspection._token_text import TokenDecoder
from mesascope.inspection.comparisons._report import AlgorithmReport, compare_algorithms
from mesascope.models.weight_checks import check_forward_pass
from mesascope.store import LogFn
from mesascope.tasks.chains import MarkovChains

NUM_SYMBOLS, CHAIN_LENGTH, FIRST_SCORED = 4, 64, 16  # of Markov chains: symbols, length, first scored position


def compare_on_chains(
    label: str,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    subject: str,
    token_ids: TokenIdsLike | None,
    sequences: int,
    seed: int,
    log: LogFn,
) -> AlgorithmReport:
    """Compare a language model with n-gram counts, on Markov chains of its own tokens.

    Args:
        label: The name of the checkpoint; empty if there is only one.
        model: The model.
        tokenizer: Its tokenizer, if there is one.
        subject: The name of the model, for messages.
        token_ids: Token ids of which four are drawn as symbols; by default tokens of the tokenizer.
        sequences: Number of sequences to sample.
        seed: The seed of the sequences and of the symbols.
        log: Receives lines of text.

    Returns:
        The report.

    Raises:
        ValueError: If there are neither token ids nor a tokenizer, or the context is too short.
    """
    context_length = getattr(model.config.get_text_config(), "max_position_embeddings", None) or CHAIN_LENGTH
    if token_ids is not None:
        ids, source = read_token_ids(token_ids)
        occurring, prefix, decode = ids.unique(), (), str
        if len(occurring) < NUM_SYMBOLS:
            raise ValueError(
                f"token ids must have {NUM_SYMBOLS} different tokens or more, but {source} has "
                f"{len(occurring)}; give others"
            )
        symbols = _sample_symbols(occurring, seed)
    elif tokenizer is not None:
        prefix, decode = find_text_prefix(tokenizer), TokenDecoder(tokenizer).decode_token
        symbols = _sample_symbols(non_special_tokens(tokenizer, model), seed)
    else:
        raise ValueError(
            f"a language model must come with its tokenizer, but {subject} has none; add the tokenizer files, or give "
            "token_ids (--token-ids)"
        )
    if context_length <= 2 * FIRST_SCORED + len(prefix):
        raise ValueError(
            f"the context must be longer than {2 * FIRST_SCORED + len(prefix)} tokens, but that of {subject} has "
            f"{context_length}"
        )
    check_token_ids([*prefix, *symbols], model, subject)
    check_forward_pass(model, torch.tensor([[*prefix, *symbols]]), subject)
    task = MarkovChains(
        num_symbols=NUM_SYMBOLS,
        length=min(CHAIN_LENGTH, context_length - len(prefix)),
        scored_from=FIRST_SCORED,
        tokens=symbols,
        prefix=prefix,
    )
    words = ", ".join(repr(decode(token)) for token in symbols)
    return compare_algorithms(label, None, model, task, sequences, seed, log, f"Markov chains of {words}")


def _sample_symbols(text_tokens: torch.Tensor, seed: int) -> tuple[int, ...]:
    sampled = torch.randperm(len(text_tokens), generator=torch.Generator().manual_seed(seed))[:NUM_SYMBOLS]
    return tuple(int(token) for token in text_tokens[sampled])
