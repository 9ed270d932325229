"""Train from Python, with the overrides, run folders and bits of the shell."""

import bigramlm


def main() -> None:
    """Train a bigram, show its results, and sweep two learning rates."""
    run = bigramlm.train("data=bundled", "trainer.steps=1000", "optim.lr=1e-2")
    print(run)
    print("val loss:", run.final["val/loss"])
    for record in run.metrics():
        if "val/loss" in record:
            print(f"step {record['step']}: val loss {record['val/loss']:.4f}")
    print(run.sample("The ", max_new_tokens=100))

    sweep = bigramlm.sweep("data=bundled", "trainer.steps=500", "optim.lr=1e-3,1e-2", "seed=1,2")
    print(sweep.table())
    print("best:", sweep.best)

    try:
        bigramlm.train("optim.lr=-1")
    except bigramlm.UserError as error:  # one line with the value, the reason and the fix
        print("refused:", error)


if __name__ == "__main__":
    main()
