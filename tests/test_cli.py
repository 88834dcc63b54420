"""The command line: every command end to end on small runs, and every option's check before any work."""

import json
import re
import runpy
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import bnnzoo
from bnnzoo import cli, data, evaluation, guides, likelihoods, models
from bnnzoo.cli import options as parsing
from bnnzoo.cli import plan as planning
from bnnzoo.cli.plan import FitOptions, resolve
from bnnzoo.evaluation.inference_data import import_arviz

QUICK = ["--epochs", "2", "--samples", "5"]


def run(*arguments: object, code: int = 0) -> None:
    with pytest.raises(SystemExit) as exit_:
        cli.main([str(argument) for argument in arguments])
    assert (exit_.value.code or 0) == code


def words(text: str) -> str:
    """Text without the frames and line breaks that depend on the terminal's width."""
    return re.sub(r"[\s│╭╮╰╯─]+", " ", text)


def fails(capsys: pytest.CaptureFixture, *arguments: object, code: int = 2) -> str:
    run(*arguments, code=code)
    output = capsys.readouterr()
    assert output.out == ""
    assert "Traceback" not in output.err
    return words(output.err)


@pytest.fixture(autouse=True)
def _wide(monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")  # long paths stay in one piece


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def no_work(here, monkeypatch) -> None:
    """No command may train, sample or make a folder."""

    def refuse(*_, **__):
        raise AssertionError("work was done before the check")

    for name in ("fit", "sample"):
        monkeypatch.setattr(bnnzoo, name, refuse)
    monkeypatch.setattr(Path, "mkdir", refuse)


@pytest.fixture(scope="session")
def diabetes_run(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "diabetes"
    run("fit", *QUICK, "--chains", "2", "--seed", "3", "--out", out, "--quiet")
    return out


def classes_csv(path: Path, rows: int = 60, seed: int = 0) -> Path:
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame(rng.normal(size=(rows, 2)), columns=["a", "b"])
    frame["kind"] = np.where(frame.a + frame.b > 0, "up", np.where(frame.a > 0, "mid", "down"))
    frame.to_csv(path, index=False)
    return path


def held_out() -> data.Dataset:
    return data.load("diabetes").split(seed=3).test


def test_as_a_module(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr("sys.argv", ["bnnzoo", "--version"])
    with pytest.raises(SystemExit):
        runpy.run_module("bnnzoo", run_name="__main__")
    assert bnnzoo.__version__ in capsys.readouterr().out


# fit


def test_fit_reports_and_writes_what_it_says(here, capsys):
    run("fit", *QUICK)
    output = capsys.readouterr()
    folder = here / "runs" / "diabetes-mean-field"
    for name in ("posterior.bnn", "posterior.nc", "metrics.json", "plots/fit.png"):
        assert (folder / name).stat().st_size > 0
        assert f"wrote runs/diabetes-mean-field/{name}" in output.out
    for word in ("mean-field", "ridge", "constant", "RMSE (progression)", "398 training and 44 test rows"):
        assert word in output.out
    assert "\x1b" not in output.out + output.err, "not on a terminal: no colors"
    assert output.err == "", "not on a terminal: no progress bar"
    record = json.loads((folder / "metrics.json").read_text())
    assert list(record["scores"]) == ["mean-field", "ridge", "constant"]
    assert len(record["loss"]) == 4
    assert record["bnnzoo"] == bnnzoo.__version__
    assert (folder / "plots/fit.png").read_bytes().startswith(b"\x89PNG")


def test_fit_scores_are_those_of_the_saved_posterior(diabetes_run):
    record = json.loads((diabetes_run / "metrics.json").read_text())
    test = held_out()
    prediction = bnnzoo.load(diabetes_run / "posterior.bnn").predict(test.x, num_samples=5, seed=3)
    scores = evaluation.score(prediction.pooled, test.y, seed=3)
    recorded = record["scores"]["mean-field"]
    assert list(recorded) == [name for name in scores if not name.endswith("_se")]
    for name, entry in recorded.items():
        assert entry == pytest.approx({"value": scores[name].item(), "standard_error": scores[f"{name}_se"].item()})


def test_fit_exports_the_rows_of_the_fit(diabetes_run):
    idata = import_arviz().from_netcdf(diabetes_run / "posterior.nc")
    assert idata["log_likelihood"]["y"].shape == (2, 5, 398)
    assert idata["predictions"]["y"].shape == (2, 5, 44)
    test = held_out()
    np.testing.assert_allclose(idata["predictions_constant_data"]["x"].values, test.x.numpy(), rtol=1e-5)


def test_seed_fixes_a_run_and_another_changes_it(here):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        run("fit", "--data", "cubic", *QUICK, "--test-size", "4", "--seed", seed, "--out", name, "--quiet")
    draws = [bnnzoo.load(f"{name}/posterior.bnn").sample(3)["layers.0.weight"] for name in "abc"]
    torch.testing.assert_close(draws[0], draws[1], rtol=0, atol=0)
    assert not torch.equal(draws[0], draws[2])


def test_default_folder_is_never_overwritten_unasked(here, capsys):
    arguments = ["fit", "--data", "cubic", *QUICK, "--chains", "1"]
    run(*arguments)
    first = Path("runs/cubic-mean-field/posterior.bnn").read_bytes()
    capsys.readouterr()
    run(*arguments, "--seed", "1")
    assert "runs/cubic-mean-field exists and is kept; this run goes to runs/cubic-mean-field-2" in (
        capsys.readouterr().out
    )
    assert Path("runs/cubic-mean-field/posterior.bnn").read_bytes() == first
    assert Path("runs/cubic-mean-field-2/posterior.bnn").is_file()
    run(*arguments, "--seed", "1", "--overwrite")
    assert "the files that a fit writes are replaced" in capsys.readouterr().out
    assert Path("runs/cubic-mean-field/posterior.bnn").read_bytes() != first


def test_quiet_is_silent(here, capsys):
    run("fit", "--data", "cubic", *QUICK, "--quiet")
    assert tuple(capsys.readouterr()) == ("", "")


@pytest.mark.parametrize(
    ("extra", "guide", "scores"),
    [
        (["--target", "kind"], "mean-field", ["mean-field", "logistic", "constant"]),
        (["--target", "kind", "--guide", "map", "--hidden", "none"], "map", ["map", "logistic", "constant"]),
        (["--target", "b", "--likelihood", "heteroscedastic"], "mean-field", None),
    ],
)
def test_own_csv(here, extra, guide, scores):
    csv = classes_csv(here / "own.csv")
    if scores is None:
        pd.read_csv(csv).drop(columns="kind").to_csv(csv, index=False)
    run("fit", "--csv", csv, *extra, *QUICK, "--quiet")
    record = json.loads((here / f"runs/own-{guide}/metrics.json").read_text())
    assert list(record["scores"]) == (scores or ["mean-field", "ridge", "constant"])


def test_counts_and_nuts(here):
    run("fit", "--data", "counts", *QUICK, "--out", "counts", "--quiet")
    record = json.loads(Path("counts/metrics.json").read_text())
    assert list(record["scores"]) == ["mean-field", "poisson", "constant"]
    nuts = ["--guide", "nuts", "--hidden", "2", "--chains", "1", "--samples", "4", "--warmup", "2"]
    run("fit", "--data", "cubic", *nuts, "--out", "nuts", "--quiet")
    assert bnnzoo.load("nuts/posterior.bnn").sample(4)["layers.0.weight"].shape == (1, 4, 2, 1)


def test_fit_says_and_records_its_objective(here, capsys):
    objective = ["--objective", "bb-alpha", "--alpha", "-0.5", "--particles", "3", "--annealing", "0.5"]
    run("fit", "--data", "cubic", "--guide", "dropout", *objective, *QUICK, "--chains", "1", "--out", "there")
    said = words(capsys.readouterr().out)
    assert "guide dropout objective BB-α -0.5, 3 particles, KL weight rising to 1 until epoch 1 settings" in said
    record = json.loads(Path("there/metrics.json").read_text())
    own = "BBAlpha(alpha=-0.5, num_particles=3, kl_weight=KLAnnealing(epochs=1.0, final=1.0), exact=False)"
    assert record["objective"] == own == bnnzoo.load("there/posterior.bnn").info["objective"]
    options = {"objective": "bb-alpha", "alpha": "-0.5", "particles": "3", "annealing": "0.5"}
    assert record["options"].items() >= options.items()


def test_failure_is_a_sentence_and_exit_code_1(here, capsys, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(bnnzoo.Posterior, "save", full)
    run("fit", "--data", "cubic", *QUICK, code=1)
    output = capsys.readouterr()
    assert "error: [Errno 28] No space left on device" in output.err
    assert "Traceback" not in output.err


@pytest.mark.filterwarnings("default::bnnzoo.chains.DivergenceWarning")
def test_diverged_fit_is_a_failure(here, capsys):
    run("fit", "--data", "cubic", "--epochs", "3", "--lr", "1e30", "--chains", "1", code=1)
    error = capsys.readouterr().err
    assert "warning: chain 0 diverged" in error
    assert "error: FloatingPointError:" in error


@pytest.mark.slow
def test_the_main_job_beats_the_constant(here):
    run("fit", "--quiet")
    scores = json.loads(Path("runs/diabetes-mean-field/metrics.json").read_text())["scores"]
    for name, sign in (("rmse", 1), ("pll", -1), ("crps", 1)):
        assert sign * scores["mean-field"][name]["value"] < sign * scores["constant"][name]["value"]
    # The data are near linear: no worse than the linear model, within what 44 rows can tell.
    assert scores["mean-field"]["rmse"]["value"] < 1.1 * scores["ridge"]["rmse"]["value"]


# options become the model


def built(**options: object):
    return resolve(FitOptions(**options)).built


def test_no_options_are_the_diabetes_entry(here):
    plan = resolve(FitOptions())
    assert plan.entry == models.catalogue["mean-field/diabetes"]
    assert plan.out == Path("runs/diabetes-mean-field")
    assert plan.built.training["chains"] == 4


@pytest.mark.parametrize(
    ("prior", "site"),
    [
        ("normal:0.5", "Normal(loc: 0.0, scale: 0.5)"),
        ("normal", "Normal(loc: 0.0, scale: 1.0)"),
        ("laplace:2", "Laplace(loc: 0.0, scale: 2.0)"),
        ("student-t:4,0.5", "StudentT(df: 4.0, loc: 0.0, scale: 0.5)"),
        ("cauchy:3", "Cauchy(loc: 0.0, scale: 3.0)"),
    ],
)
def test_prior_option(here, prior, site):
    assert str(built(data="cubic", prior=prior).bnn.priors["layers.0.weight"]) == site


@pytest.mark.parametrize("prior", ["scale-mixture", "scale-mixture:0.3,2,0.1", "log-uniform", "fan-in:2", "he"])
def test_every_other_prior_builds(here, prior):
    assert len(built(data="cubic", prior=prior).bnn.sites) == 4


def test_model_options(here):
    made = built(data="cubic", guide="map", objective="elbo:3", hidden="7,5", noise="2.5", chains=3, epochs=9, lr=0.5)
    assert isinstance(made.guide, guides.Map)
    assert made.objective.num_particles == 3
    assert made.bnn.network.hidden == (7, 5)
    assert made.training.pop("scheduler") is not None
    assert made.training == {"epochs": 9, "batch_size": 18, "lr": 0.5, "chains": 3}
    unit = data.load("cubic").split().train.standardization.y_scale
    assert made.bnn.likelihood.scale.item() == pytest.approx(2.5 / unit.item())
    assert built(data="cubic", sampling="flipout").guide.sampling == "flipout"
    assert set(built(data="cubic", noise="prior").bnn.sites) >= {"noise"}


@pytest.mark.parametrize("name", parsing.GUIDES)
@pytest.mark.parametrize("dataset", ["cubic", "digits"])
def test_every_guide_builds(here, name, dataset):
    plan = resolve(FitOptions(data=dataset, guide=name))
    chosen = parsing.GUIDES[name].make
    assert type(plan.built.guide) is getattr(chosen, "func", chosen)
    for option, value in getattr(chosen, "keywords", {}).items():
        assert getattr(plan.built.guide, option) == value
    assert plan.out == Path(f"runs/{dataset}-{name}")


@pytest.mark.parametrize(
    ("guide", "expected"),
    [
        ("dropout:0.1", {"rate": 0.1, "learn_rate": False}),
        ("dropout-learned:0.2", {"rate": 0.2, "learn_rate": True}),
        ("mnf-iaf:1,20", {"flow": "iaf", "flow_length": 1, "hidden": 20}),
        ("low-rank:3", {"rank": 3}),
        ("mcbn:7", {"num_statistics": 7, "statistics": "batches"}),
        ("mean-field:0.5", {"init_scale": 0.5, "sampling": "local"}),
    ],
)
def test_numbers_of_a_guide(here, guide, expected):
    made = built(data="diabetes", guide=guide).guide
    assert {name: getattr(made, name) for name in expected} == expected


def test_a_guide_keeps_what_the_entry_says_of_it(here):
    assert built(data="cubic", guide="mean-field").guide.init_scale == 0.03
    assert built(data="cubic", guide="mean-field:0.2").guide.init_scale == 0.2
    assert built(entry="dropout/uci-mlp", data="cubic", guide="dropout").guide.rate == 0.05


def test_mcbn_gets_a_network_with_batch_normalization(here):
    for options in ({"data": "diabetes"}, {"data": "cubic", "hidden": "9"}, {"data": "digits"}):
        network = built(**options, guide="mcbn").bnn.network
        assert any(isinstance(module, torch.nn.BatchNorm1d) for module in network.modules())


def test_adversarial_training(here):
    assert built(data="cubic", guide="map", adversarial=0.02).training["adversarial"] == 0.02


@pytest.mark.parametrize(
    ("options", "likelihood", "network"),
    [
        ({"data": "digits"}, likelihoods.Categorical, models.MLP),
        ({"data": "moons", "likelihood": "bernoulli"}, likelihoods.Bernoulli, models.MLP),
        ({"data": "counts"}, likelihoods.Poisson, models.MLP),
        ({"data": "gap", "likelihood": "heteroscedastic"}, likelihoods.HeteroscedasticGaussian, models.MLP),
    ],
)
def test_defaults_follow_the_data(here, options, likelihood, network):
    made = built(**options)
    assert isinstance(made.bnn.likelihood, likelihood)
    assert isinstance(made.bnn.network, network)


def test_images_get_a_lenet(here, monkeypatch):
    images = data.Dataset(torch.rand(40, 1, 20, 20), torch.arange(40) % 2, name="mnist", task="classification")
    monkeypatch.setattr(planning.data, "load", lambda name: images)
    assert isinstance(built(data="mnist").bnn.network, models.LeNet)
    assert isinstance(built(data="mnist", hidden="5").bnn.network, models.MLP)


def test_nuts_samples_a_noise_that_others_learn(here):
    plan = resolve(FitOptions(data="gap", guide="nuts", samples=7, warmup=3))
    assert plan.built.guide is None
    assert "noise" in plan.built.bnn.sites
    assert plan.built.training == {"num_samples": 7, "warmup_steps": 3, "chains": 2}
    assert plan.samples == 7


def test_entry_with_changes(here):
    plan = resolve(FitOptions(entry="ensemble/digits", chains=3, test_size=0.3))
    assert plan.guide == "map" or plan.out == Path("runs/digits-ensemble")
    assert plan.built.training["chains"] == 3
    assert len(plan.split.test) == round(0.3 * 1797)


def test_large_data_get_no_more_steps_than_the_entry_s_own(here, tmp_path):
    rng = np.random.default_rng(0)
    pd.DataFrame(rng.normal(size=(20_000, 2)), columns=["x", "y"]).to_csv(tmp_path / "big.csv", index=False)
    training = resolve(FitOptions(csv=tmp_path / "big.csv", target="y")).built.training
    steps = training["epochs"] * 18_000 / training["batch_size"]
    entry = models.catalogue["mean-field/uci-mlp"].training
    assert steps == pytest.approx(entry["epochs"] * 927 / entry["batch_size"], rel=0.05)
    assert resolve(FitOptions(csv=tmp_path / "big.csv", target="y", epochs=400)).built.training["epochs"] == 400


# every option is checked before any work


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "concret"], r"--data: there is no data set 'concret'\. Did you mean 'concrete'\? Known: boston,"),
        (["--guide", "meanfield"], r"--guide: there is no 'meanfield'\. Did you mean 'mean-field'\?"),
        (["--entry", "mean-field/uci"], r"--entry: there is no .* Did you mean 'mean-field/uci-mlp'\?"),
        (["--prior", "norml:1"], r"--prior: there is no 'norml'\. Did you mean 'normal'\?"),
        (["--prior", "normal:x"], r"--prior: 'x' is no number"),
        (["--prior", "normal:-1"], r"--prior: scale of normal must be a number above 0; given: -1"),
        (["--prior", "normal:nan"], r"--prior: scale of normal must be a number above 0; given: nan"),
        (["--prior", "normal:1,2"], r"--prior: normal takes scale; given: 1,2"),
        (["--prior", "he:2"], r"--prior: he takes no numbers; given: 2"),
        (["--prior", "scale-mixture:2"], r"--prior: .*weight"),
        (["--objective", "elob"], r"--objective: there is no 'elob'\. Did you mean 'elbo'\?"),
        (["--objective", "elbo:1.5"], r"--objective: num_particles of elbo must be a whole number; given: 1\.5"),
        (["--objective", "elbo:0"], r"--objective: num_particles of elbo must be a number above 0; given: 0"),
        (["--objective", "elbo:3,0.5"], r"--objective: elbo takes num_particles; given: 3,0\.5"),
        (["--objective", "bb-alpha:1,2,3"], r"--objective: bb-alpha takes alpha, num_particles; given: 1,2,3"),
        (["--objective", "bb-alpha:half"], r"--objective: 'half' is no number"),
        (["--objective", "bb-alpha:nan"], r"--objective: alpha must be a finite number, not nan"),
        (["--objective", "bb-alpha", "--alpha", "-inf"], r"--alpha: alpha must be a finite number, not -inf"),
        (
            ["--alpha", "0.5"],
            r"--alpha: objective ELBO takes no alpha; bb-alpha, bb-alpha-exact, renyi, moment-elbo do",
        ),
        (
            ["--objective", "iw", "--alpha", "0.5"],
            r"--alpha: objective iw takes no alpha; bb-alpha, bb-alpha-exact, renyi",
        ),
        (["--objective", "bb-alpha:0.5", "--alpha", "0.5"], r"--alpha: --objective bb-alpha:0\.5 says it already"),
        (["--objective", "elbo:5", "--particles", "5"], r"--particles: --objective elbo:5 says it already"),
        (["--particles", "0"], r"'--particles': Input should be greater than or equal to 1"),
        (["--kl-weight", "-1"], r"--kl-weight: must be a finite number of at least 0; given: -1"),
        (["--kl-weight", "nan"], r"--kl-weight: must be a finite number of at least 0; given: nan"),
        (["--annealing", "1.5"], r"--annealing: must be a share of the training, from 0 to 1; given: 1\.5"),
        (["--objective", "renyi", "--guide", "map"], r"--objective: Renyi\(.* guides\.Map trains has no density"),
        (
            ["--objective", "bb-alpha-exact", "--guide", "dropout"],
            r"--objective: .* guides\.Dropout trains has no density",
        ),
        (["--objective", "iw", "--prior", "log-uniform"], r"--objective: the prior of .* is LogUniform"),
        (
            ["--objective", "bb-alpha", "--entry", "mcbn/digits"],
            r"--objective: .* guides\.BatchNorm is the batch itself",
        ),
        (["--objective", "elbo", "--guide", "nuts"], r"--objective: means nothing with --guide nuts"),
        (["--objective", "elbo", "--entry", "nuts/cubic"], r"--objective: means nothing with entry nuts/cubic"),
        (["--kl-weight", "1", "--entry", "nuts/cubic"], r"--kl-weight: means nothing with entry nuts/cubic"),
        (["--likelihood", "gausian"], r"--likelihood: there is no 'gausian'\. Did you mean 'gaussian'\?"),
        (["--likelihood", "categorical"], r"--likelihood: is for classification; diabetes is regression"),
        (["--noise", "lerned"], r"--noise: must be learned, prior or a number above 0; .* Did you mean 'learned'\?"),
        (["--noise", "-2"], r"--noise: must be a number above 0; given: -2"),
        (["--noise", "1", "--likelihood", "heteroscedastic"], r"--noise: belongs to --likelihood gaussian"),
        (["--noise", "1", "--data", "digits"], r"--noise: is for regression; digits is classification"),
        (["--noise", "learned", "--guide", "nuts"], r"--noise: NUTS samples the noise or holds it fixed"),
        (["--sampling", "locale"], r"--sampling: there is no 'locale'\. Did you mean 'local'\?"),
        (["--sampling", "local", "--guide", "map"], r"--sampling: guide map draws no pre-activations"),
        (["--sampling", "local", "--guide", "dropout"], r"--sampling: guide dropout draws no pre-activations"),
        (["--guide", "dropout:x"], r"--guide: 'x' is no number"),
        (["--guide", "dropout:1"], r"rate must be in \[0, 1\), not 1"),
        (["--guide", "mnf:2,10,3"], r"--guide: mnf takes flow_length, hidden; given: 2,10,3"),
        (["--guide", "laplace:2"], r"--guide: laplace takes no numbers; given: 2"),
        (["--entry", "mean-field/uci-mlp", "--data", "diabetes", "--guide", "mcbn"], r"batch norm"),
        (["--adversarial", "2"], r"--adversarial: must be a fraction above 0 and at most 1; given: 2"),
        (["--guide", "nuts", "--adversarial", "0.1"], r"--adversarial: means nothing with --guide nuts"),
        (["--hidden", "50,x"], r"--hidden: 'x' is no number"),
        (["--hidden", "0"], r"--hidden: must be a number above 0; given: 0"),
        (["--hidden", "2.5"], r"--hidden: layer sizes are whole numbers, such as 50,50; given: 2\.5"),
        (["--chains", "0"], r"'--chains': Input should be greater than or equal to 1"),
        (["--epochs", "0"], r"'--epochs': Input should be greater than or equal to 1"),
        (["--epochs", "many"], r"'--epochs': Input should be a valid integer"),
        (["--batch-size", "0"], r"'--batch-size': Input should be greater than or equal to 1"),
        (["--batch-size", "1000"], r"--batch-size: must be at most 398, the number of training rows; given: 1000"),
        (["--lr", "-1"], r"--lr: must be a number above 0; given: -1"),
        (["--lr", "nan"], r"--lr: must be a number above 0; given: nan"),
        (["--seed", "-1"], r"'--seed': Input should be greater than or equal to 0"),
        (["--samples", "0"], r"'--samples': Input should be greater than or equal to 1"),
        (["--test-size", "0"], r"--test-size: must be a number above 0; given: 0"),
        (["--test-size", "442"], r"--test-size: test_size=442 rows: .* between 1 and 441"),
        (["--test-size", "1.5"], r"--test-size: must be a fraction below 1 or a whole number of rows; given: 1\.5"),
        (["--target", "y"], r"--target: names a column of --csv, and there is no --csv"),
        (["--csv", "a.csv"], r"--target: a CSV file needs the name of its target column"),
        (["--csv", "a.csv", "--target", "y", "--data", "diabetes"], r"--csv: --data diabetes is given too"),
        (["--csv", "a.csv", "--target", "y"], r"--csv: there is no file"),
        (["--warmup", "5"], r"--warmup: belongs to --guide nuts"),
        (["--guide", "nuts", "--epochs", "5"], r"--epochs: means nothing with --guide nuts"),
        (["--entry", "nuts/cubic", "--lr", "1"], r"--lr: means nothing with entry nuts/cubic"),
        (["--epoch", "5"], r"No such option: --epoch"),
    ],
)
def test_bad_option_of_fit(here, capsys, arguments, message):
    assert re.search(message, fails(capsys, "fit", *arguments))
    assert list(here.iterdir()) == []


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"'.*bad\.csv' is empty"),
        ("a,price\n", r"has no rows"),
        ("a,b\n1,2\n3,4\n5,6\n", r"target 'price' is not a column of .* Its columns: 'a', 'b'"),
        ("a,prize\n1,2\n3,4\n5,6\n", r"Did you mean 'prize'\?"),
        ("a,city,price\n1,Ulm,2\n3,Bonn,4\n", r"columns that are not numbers: 'city'"),
        ("a,b,price\n1,,2\n3,4,5\n", r"missing values in column 'b' \(1 of 2 rows\)"),
        ("a,price\n1,2\n3,\n", r"target column 'price' .* missing values \(1 of 2 rows\)"),
        ("a,price\n1,2\ninf,4\n5,6\n", r"infinite"),
        ("price\n1\n2\n", r"has no column but the target"),
    ],
)
def test_bad_csv(here, capsys, text, message):
    (here / "bad.csv").write_text(text)
    error = fails(capsys, "fit", "--csv", "bad.csv", "--target", "price")
    assert re.search(message, error)
    assert "--csv" in error


@pytest.mark.usefixtures("no_work")
def test_bad_out(here, capsys):
    (here / "file").write_text("")
    assert "--out: file is a file: give a folder" in fails(capsys, "fit", "--out", "file")
    assert "--out: . is not empty: give another folder, or --overwrite" in fails(capsys, "fit", "--out", ".")


def test_no_permission_is_found_before_work(here, capsys, no_work, monkeypatch):
    monkeypatch.setattr(planning.os, "access", lambda *_: False)  # root may write anywhere
    assert "--out: no permission to write in" in fails(capsys, "fit", "--out", "there")


@pytest.mark.parametrize("command", ["", "fit", "score", "predict", "export", "list"])
def test_help_teaches(capsys, command):
    run(*command.split(), "--help")
    output = words(capsys.readouterr().out)
    assert "bnnzoo fit" in output if command in ("", "fit") else f"bnnzoo {command}" in output


def test_version_and_unknown_command(capsys):
    run("--version")
    assert capsys.readouterr().out == f"bnnzoo {bnnzoo.__version__}\n"
    assert "No such command 'ftt'. Did you mean 'fit'?" in fails(capsys, "ftt")


# score


def test_score_repeats_the_fit_s_scores(diabetes_run, here, capsys):
    run("score", diabetes_run, "--seed", "3", "--out", "scores.json")
    assert "the 44 held-out rows of diabetes" in capsys.readouterr().out
    again = json.loads(Path("scores.json").read_text())["scores"]
    assert again == json.loads((diabetes_run / "metrics.json").read_text())["scores"]["mean-field"]


def test_score_of_a_csv_with_the_same_rows_is_the_same(diabetes_run, here):
    test = held_out()
    frame = pd.DataFrame(test.x.numpy(), columns=test.feature_names)
    frame = frame[sorted(frame.columns)].assign(progression=test.y.numpy(), note="text that no one asked for")
    frame.to_csv("test.csv", index=False)
    run("score", diabetes_run / "posterior.bnn", "--csv", "test.csv", "--seed", "3", "--out", "csv.json", "-q")
    run("score", diabetes_run, "--seed", "3", "--out", "own.json", "-q")
    own, csv = (json.loads(Path(name).read_text())["scores"] for name in ("own.json", "csv.json"))
    assert {k: v["value"] for k, v in csv.items()} == pytest.approx({k: v["value"] for k, v in own.items()}, rel=1e-4)


def test_classes_keep_their_numbers_in_another_file(here):
    csv = classes_csv(here / "own.csv", rows=200)
    # Scale learned well enough that a mix-up of the three classes shows.
    run("fit", "--csv", csv, "--target", "kind", "--epochs", "60", "--guide", "map", "--samples", "2", "-q")
    frame = pd.read_csv(csv)
    frame[frame.kind != "down"].to_csv("two.csv", index=False)  # "mid" and "up" would be 0 and 1 alone
    run("score", "runs/own-map", "--csv", "two.csv", "--out", "two.json", "-q")
    assert json.loads(Path("two.json").read_text())["scores"]["accuracy"]["value"] > 0.8


def test_bad_input_of_score(diabetes_run, here, capsys):
    assert "RUN: there is no folder nowhere" in fails(capsys, "score", "nowhere")
    assert "has no posterior.bnn and no metrics.json" in fails(capsys, "score", ".")
    assert "Did you mean 'wine'?" in fails(capsys, "score", diabetes_run, "--data", "wines")
    error = fails(capsys, "score", diabetes_run, "--data", "digits")
    assert "digits is classification with inputs [1, 8, 8]; the run was fitted to regression with inputs [10]" in error
    assert "--data digits is given too" in fails(capsys, "score", diabetes_run, "--data", "digits", "--csv", "x.csv")
    assert "there is no file" in fails(capsys, "score", diabetes_run, "--csv", "x.csv")
    Path("x.csv").write_text("age,progression\n1,2\n")
    assert "'sex' is not a column" in fails(capsys, "score", diabetes_run, "--csv", "x.csv")
    assert "--out: there is no folder" in fails(capsys, "score", diabetes_run, "--out", "no/where.json")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("posterior.bnn", b"not a posterior", r"RUN: .*posterior\.bnn is not a bnnzoo"),
        ("metrics.json", b"{", r"metrics\.json is damaged"),
        ("metrics.json", b"[]", r"metrics\.json is damaged"),
        ("metrics.json", b'{"run": {}}', r"metrics\.json is damaged"),
    ],
)
def test_damaged_run(diabetes_run, here, capsys, name, content, message):
    for file in ("posterior.bnn", "metrics.json"):
        Path(file).write_bytes((diabetes_run / file).read_bytes())
    Path(name).write_bytes(content)
    assert re.search(message, fails(capsys, "score", "."))


# predict


def test_predict_writes_what_the_posterior_predicts(diabetes_run, here, capsys):
    test = held_out()
    frame = pd.DataFrame(test.x.numpy(), columns=test.feature_names)
    frame[sorted(frame.columns)].assign(other=1.0).to_csv("new.csv", index=False)
    run("predict", diabetes_run, "--csv", "new.csv", "--level", "0.9", "--samples", "20", "--seed", "5")
    assert "wrote predictions.csv" in capsys.readouterr().out
    written = pd.read_csv("predictions.csv")
    prediction = bnnzoo.load(diabetes_run / "posterior.bnn").predict(test.x, num_samples=20, seed=5)
    low, high = prediction.interval(0.9)
    expected = {
        "mean": prediction.mean,
        "std": prediction.std,
        "std_epistemic": prediction.epistemic.sqrt(),
        "std_aleatoric": prediction.aleatoric.sqrt(),
        "low_90": low,
        "high_90": high,
    }
    assert list(written.columns) == list(expected)
    for name, values in expected.items():
        np.testing.assert_allclose(written[name], values.numpy(), rtol=1e-4)


def test_predict_classes(here):
    csv = classes_csv(here / "own.csv")
    run("fit", "--csv", csv, "--target", "kind", *QUICK, "-q")
    run("predict", "runs/own-mean-field", "--csv", csv, "--out", "p.csv", "-q")
    table = pd.read_csv("p.csv")
    assert list(table.columns) == ["class", "p_down", "p_mid", "p_up", "entropy", "mutual_information"]
    probabilities = table[["p_down", "p_mid", "p_up"]]
    np.testing.assert_allclose(probabilities.sum(axis=1), 1.0, rtol=1e-5)
    assert (probabilities.idxmax(axis=1) == "p_" + table["class"]).all()


def test_bad_input_of_predict(diabetes_run, here, capsys):
    predict = ("predict", diabetes_run, "--csv", "new.csv")
    assert "--csv: new.csv cannot be read as CSV" in fails(capsys, *predict) or not Path("new.csv").exists()
    columns = list(data.load("diabetes").feature_names)
    Path("new.csv").write_text(",".join(columns) + "\n")
    assert "has no rows" in fails(capsys, *predict)
    Path("new.csv").write_text(",".join(columns[1:]) + "\n" + ",".join("1" * 9) + "\n")
    assert "has no column 'age', which the run was fitted with" in fails(capsys, *predict)
    Path("new.csv").write_text(",".join(columns) + "\n" + ",".join(["old"] + ["1"] * 9) + "\n")
    assert "columns that are not numbers: 'age'" in fails(capsys, *predict)
    assert "--level: must be between 0 and 1; given: 95" in fails(capsys, *predict, "--level", "95")
    Path("new.csv").write_text(";".join(columns) + "\n" + ";".join("1" * 10) + "\n")
    run(*predict, "-q")
    assert "predictions.csv exists: give another file, or --overwrite" in fails(capsys, *predict)


# export, list


def test_export(diabetes_run, here, capsys):
    run("export", diabetes_run, "--to", "netcdf", "--out", "big.nc", "--samples", "30")
    assert "wrote big.nc" in capsys.readouterr().out
    idata = import_arviz().from_netcdf("big.nc")
    assert idata["posterior"]["layers.0.weight"].shape == (2, 30, 20, 10)
    assert "--to: there is no 'netcfd'. Did you mean 'netcdf'?" in fails(
        capsys, "export", diabetes_run, "--to", "netcfd"
    )
    assert "big.nc exists" in fails(capsys, "export", diabetes_run, "--out", "big.nc")


def test_list_names_everything(capsys):
    run("list", "all")
    output = capsys.readouterr().out
    named = [*models.catalogue, *data.names(), "student-t", "heteroscedastic", "nuts", *parsing.OBJECTIVES]
    assert [name for name in named if name not in output] == []
    assert "Did you mean 'priors'?" in fails(capsys, "list", "prior")
