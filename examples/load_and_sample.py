"""Load a finished run, sample from it, and look at its probabilities.

Usage: python examples/load_and_sample.py [RUN_FOLDER]
"""

import sys

import bigramlm


def main() -> None:
    """Load the run folder that is given, or the newest run."""
    run = bigramlm.load(sys.argv[1] if len(sys.argv) > 1 else "latest")
    print(run, run.config.model.name, "with", run.model.n_params(), "parameters")
    print(run.sample(max_new_tokens=200, temperature=0.8, seed=1))

    prompt = run.sample(max_new_tokens=5, seed=1)
    probabilities = run.logits(prompt)[-1].softmax(-1)  # (V,): of the token that follows the prompt
    top = probabilities.topk(min(5, len(probabilities)))
    print(f"after {prompt!r}:")
    for p, token in zip(top.values.tolist(), top.indices.tolist(), strict=True):
        print(f"  {run.tokenizer.decode([token])!r}: {p:.3f}")


if __name__ == "__main__":
    main()
