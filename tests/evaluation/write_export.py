"""Write a real export to netCDF, for `test_inference_data.py` to analyze on ArviZ 1.x, where there is no torch.

`python tests/evaluation/write_export.py FOLDER` writes `InferenceData.nc` and `DataTree.nc` there.
"""

import sys
from pathlib import Path

from bnnzoo import BayesianNetwork, data, evaluation, fit, guides, likelihoods, models


def main(folder: str) -> None:
    """Fit a small network to the diabetes data for a moment and export it."""
    split = data.load("diabetes").split(seed=0)
    bnn = BayesianNetwork(models.MLP(10, 1, hidden=(8,)), likelihoods.Gaussian())
    posterior = fit(bnn, guides.MeanField(bnn), split.train, epochs=60, batch_size=50, lr=1e-2, chains=2, seed=0)
    for container in ("InferenceData", "DataTree"):
        idata = posterior.to_arviz(split.train, x=split.test.x, container=container)
        evaluation.save_netcdf(idata, Path(folder) / f"{container}.nc")


if __name__ == "__main__":
    main(sys.argv[1])
