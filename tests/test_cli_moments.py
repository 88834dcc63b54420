"""The command line without draws: moment-propagation, moment-elbo and --method moments; what it refuses before work."""

import json

import pandas as pd
import pytest
from typer.testing import CliRunner

from bnnzoo import load
from bnnzoo.cli.app import app
from bnnzoo.moment_prediction import MomentPrediction

QUICK = ("--epochs", "2", "--chains", "1", "--hidden", "5", "--quiet")


def run(*arguments):
    return CliRunner().invoke(app, [str(each) for each in arguments], env={"COLUMNS": "200"})


def fitted(folder, *arguments):
    result = run("fit", *QUICK, "--out", folder, *arguments)
    assert result.exit_code == 0, result.output + str(result.exception)
    return json.loads((folder / "metrics.json").read_text())


def test_a_guide_that_draws_nothing(tmp_path):
    folder = tmp_path / "run"
    record = fitted(folder, "--guide", "moment-propagation:0.05")
    assert record["objective"].startswith("MomentELBO(alpha=0.0")
    assert record["run"]["method"] == "moments"
    posterior = load(folder / "posterior.bnn")
    assert posterior.guide.init_scale == 0.05
    assert isinstance(posterior.predict([[0.0] * 10]), MomentPrediction)
    scored = tmp_path / "scores.json"
    for arguments, same in (((), True), (("--method", "draws"), False), (("--samples", "50"), False)):
        assert run("score", folder, "--out", scored, *arguments).exit_code == 0
        again = json.loads(scored.read_text())["scores"]["pll"]["value"]
        assert (again == record["scores"]["moment-propagation"]["pll"]["value"]) is same
    inputs = pd.DataFrame([[0.1] * 10, [0.2] * 10], columns=record["run"]["data"]["feature_names"])
    inputs.to_csv(tmp_path / "in.csv", index=False)
    result = run("predict", folder, "--csv", tmp_path / "in.csv", "--out", tmp_path / "out.csv")
    assert result.exit_code == 0, result.output
    table = pd.read_csv(tmp_path / "out.csv")
    found = posterior.predict(inputs.to_numpy().copy())
    assert table["mean"].to_numpy() == pytest.approx(found.mean.numpy(), rel=1e-5)
    assert table["std_epistemic"].to_numpy() == pytest.approx(found.epistemic.sqrt().numpy(), rel=1e-4)


def test_moment_elbo_for_other_guides(tmp_path):
    record = fitted(tmp_path / "a", "--guide", "dropout:0.1", "--objective", "moment-elbo:0.5")
    assert record["objective"].startswith("MomentELBO(alpha=0.5")
    assert record["run"]["method"] == "draws"
    record = fitted(tmp_path / "b", "--objective", "moment-elbo", "--alpha", "1", "--method", "moments")
    assert record["objective"].startswith("MomentELBO(alpha=1.0")
    assert record["run"]["method"] == "moments"
    assert fitted(tmp_path / "c", "--guide", "moment-propagation", "--objective", "elbo")["objective"].startswith(
        "ELBO("
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--objective", "moment-elbo", "--guide", "mnf"), "guides.MNF has no mean and variance"),
        (("--objective", "moment-elbo", "--guide", "low-rank"), "guides.LowRank has no mean and variance"),
        (("--guide", "mnf", "--method", "moments"), "guides.MNF has no mean and variance"),
        (("--guide", "nuts", "--method", "moments"), "predicts by draws"),
        (("--method", "magic"), "there is no 'magic'"),
        (("--method", "moments", "--samples", "9"), "means nothing with --method moments"),
        (("--objective", "moment-elbo", "--particles", "4"), "moment-elbo takes no particles"),
        (("--objective", "moment-elbo:nan"), "alpha must be a finite number"),
        (("--guide", "moment-propagation", "--sampling", "local"), "draws no pre-activations"),
    ],
)
def test_refusals(arguments, message, tmp_path):
    quick = ("--hidden", "5", "--quiet") if "nuts" in arguments else QUICK
    result = run("fit", *quick, "--out", tmp_path / "run", *arguments)
    assert result.exit_code == 2, result.output
    assert message in " ".join(result.output.replace("│", " ").split())
    assert not (tmp_path / "run").exists()
