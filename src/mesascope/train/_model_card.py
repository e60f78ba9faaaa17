"""The model card of a checkpoint, which the Hugging Face Hub shows."""

from mesascope.checksums import read_record
from mesascope.store import TRAINING_FILE, Run

MODEL_CARD = "README.md"
CARD_HEADER = "---\nlibrary_name: mesascope\nlicense: mit\ntags:\n- mesascope\n- interpretability\n---\n"  # of the code


def format_model_card(run: Run, seed: int, step: int) -> str:
    """Return the model card of a checkpoint.

    Args:
        run: The run, with access to the models of a condition.
        seed: The training replicate.
        step: Updates taken.

    Returns:
        Markdown with the metadata of the Hub: study, scale, condition, seed, step, task and how to load the model.
    """
    folder = run.seed_path(seed)
    settings = read_record(folder / f"{TRAINING_FILE}.json", "training", f"delete {folder} and run again")
    named = {"study": run.record.get("study"), "scale": run.record.get("scale"), "cell": run.record.get("cell")}
    facts = {**named, "condition": run.condition, "seed": seed, "training steps": step}
    lines = [f"- {name}: {value}" for name, value in facts.items() if value not in (None, "")]
    return "\n".join(
        [
            f"{CARD_HEADER}\n# {run.record.get('study') or 'A model'}, seed {seed}, step {step}\n",
            "A small transformer that mesascope trained from random weights on a controlled task, to study the",
            "algorithm that it learns. It is no model for general use.\n",
            *lines,
            "- license: MIT (of the code that trained it)\n",
            f"Task and training:\n\n```text\n{settings['task']}\n{settings['training']}\n```\n",
            "Loading it in the folder of this file:\n",
            "```python\nimport mesascope  # registers the model class\nfrom transformers import AutoModelForCausalLM\n",
            'model = AutoModelForCausalLM.from_pretrained(".")\n```\n',
        ]
    )
