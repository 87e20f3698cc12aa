"""Write the NVFlare job: `export.py CLIENTS ROUNDS ELEMENTS FOLDER`, under NVFlare's own Python."""

import os
import sys
from pathlib import Path

import numpy as np
from nvflare.app_common.np.recipes.fedavg import NumpyFedAvgRecipe


def main(clients: int, rounds: int, elements: int, folder: Path) -> None:
    """Export a FedAvg over numpy arrays that waits for all clients."""
    folder.mkdir(parents=True)
    first = folder / "first.npy"
    np.save(first, np.random.default_rng(0).standard_normal(elements, dtype=np.float32))
    os.chdir(Path(__file__).parent)  # the script is named relative to the working folder
    recipe = NumpyFedAvgRecipe(
        name="rounds",
        initial_ckpt=str(first),
        min_clients=clients,
        num_rounds=rounds,
        train_script="client.py",
    )
    recipe.export(str(folder))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:4]), Path(sys.argv[4]).absolute())
