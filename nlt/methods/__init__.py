"""One file per method: a frozen settings class with `train(run)`, which reads like its paper."""
