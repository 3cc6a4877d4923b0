"""A table of many models for tests of pairs."""

import numpy as np
from thriftroute.research.model_pairs import ModelMatrix


def matrix_of(n: int = 120, models: int = 8, seed: int = 0) -> ModelMatrix:
    """Prompt i is the harder the larger its number; model j the better the larger j."""
    rng = np.random.default_rng(seed)
    hard = rng.random(n)
    ability = np.linspace(0.2, 0.9, models)
    scores = (rng.random((n, models)) < 1 / (1 + np.exp(8 * (hard[:, None] - ability)))) * 1.0
    prompts = [f"{value:.9f}{' ' * (i % 5)}?" for i, value in enumerate(hard)]
    return ModelMatrix(prompts, tuple(f"m{j}" for j in range(models)), scores)
