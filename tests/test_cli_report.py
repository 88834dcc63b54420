"""`bnnzoo report`, and the page that it writes: whole, self-contained, true to the scores, of any kind of run."""

import base64
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pyro.distributions as dist
import pytest
import torch
from torch import nn

from bnnzoo import BayesianNetwork, cli, data, evaluation, fit, guides, likelihoods, sample
from bnnzoo.cli.page import command
from bnnzoo.evaluation.metrics import plus_minus
from bnnzoo.evaluation.page import html_report

SECTIONS = ["scores", "figures", "diagnostics", "settings", "reproduce"]


class Page(HTMLParser):
    """What a page holds: its text, tables, attributes; fails on tags that are not closed."""

    VOID = ("meta", "img", "link", "br", "hr", "input")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open, self.tags, self.cells, self.texts, self.section = [], [], {}, [], None
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag == "section":
            self.section = dict(attrs)["id"]
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "tr":
            self.row = []
        if tag in ("td", "th"):
            self.row.append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
        if tag == "tr":
            self.cells.setdefault(self.section, {})[self.row[0]] = self.row[1:]

    def handle_data(self, text):
        self.texts.append(text)
        if "tr" in self.open and self.open[-1] in ("td", "th"):
            self.row[-1] += text

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.texts))

    def sections(self) -> list[str]:
        return [attributes["id"] for tag, attributes in self.tags if tag == "section"]

    def images(self) -> list[dict]:
        return [attributes for tag, attributes in self.tags if tag == "img"]


def split(task: str, rows: int = 60) -> data.Split:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, 2, generator=generator)
    y = {
        "regression": x.sum(1) + 0.3 * torch.randn(rows, generator=generator),
        "classification": (x[:, 0] > 0).long() + (x[:, 1] > 0).long(),
        "counts": torch.poisson(x[:, 0].exp(), generator=generator),
    }[task]
    return data.Dataset(x, y, task=task, name=f"some {task}").split(0.3, seed=0)


def network(out: int = 1) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, out))


def model(task: str) -> BayesianNetwork:
    likelihood = {
        "regression": likelihoods.Gaussian(0.3),
        "classification": likelihoods.Categorical(),
        "counts": likelihoods.Poisson(),
    }[task]
    return BayesianNetwork(network(3 if task == "classification" else 1), likelihood, dist.Normal(0.0, 1 / 3))


def fitted(task: str, guide=guides.MeanField, **settings):
    bnn, parts = model(task), split(task)
    return fit(bnn, guide(bnn), parts.train, **{"epochs": 3, "chains": 2, **settings}), parts


@pytest.mark.parametrize("task", ["regression", "classification", "counts"])
def test_a_page_has_every_section_and_the_scores(task):
    posterior, parts = fitted(task)
    page = Page(html_report(posterior, parts, name="ours", num_samples=20))
    assert page.sections() == SECTIONS
    assert len(page.images()) == (4 if task == "regression" else 3)
    for image in page.images():
        kind, _, content = image["src"].partition(",")
        assert kind == "data:image/png;base64"
        assert base64.b64decode(content).startswith(b"\x89PNG")
        assert image["alt"]
    prediction = posterior.predict(parts.test.x, num_samples=20)
    assert page.cells["scores"]["score"][:2] == ["single chains", "ours"]
    assert "constant" in page.cells["scores"]["score"]
    pooled, single = (evaluation.score(each, parts.test.y) for each in (prediction.pooled, prediction))
    pll = next(cells for name, cells in page.cells["scores"].items() if name.startswith("predictive log likelihood"))
    assert pll[1] == plus_minus(pooled["pll"].item(), pooled["pll_se"].item())
    assert pll[0] == f"{single['pll'].min():.4g} to {single['pll'].max():.4g}"
    rhat = evaluation.convergence(posterior.predict(parts.test.x, num_samples=20))
    found = page.cells["diagnostics"]["R-hat of predictions, worst and median"][0]
    assert found == f"{rhat.worst_rhat:.3f}, {float(rhat['rhat'].median()):.3f}"
    khat = evaluation.psis(posterior, parts.train)["khat"].values
    assert page.cells["diagnostics"]["k̂"][0] == ", ".join(f"{value:.2f}" for value in khat)
    assert ("noise standard deviation" in page.cells["diagnostics"]) == (task == "regression")
    assert page.cells["settings"]["prior"][0].startswith("Normal(loc: 0.0, scale: 0.3333): 0.weight, 0.bias")
    assert page.cells["settings"]["epochs"] == ["3"]


def test_a_page_needs_nothing_from_elsewhere():
    posterior, parts = fitted("regression")
    text = html_report(posterior, parts, num_samples=20)
    page = Page(text)
    for tag, attributes in page.tags:
        assert tag not in ("script", "link", "iframe", "object"), tag
        for name in ("src", "href", "srcset", "style"):
            assert str(attributes.get(name, "data:")).startswith("data:")
        assert not any(name.startswith("on") for name in attributes)
    style = text[text.index("<style>") : text.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style
    assert "@media print" in style


def test_names_are_shown_as_they_are_and_make_no_markup():
    posterior, parts = fitted("regression")
    nasty = '<script>alert("&")</script>'
    page = Page(
        html_report(
            posterior, parts, title=nasty, name=nasty, settings={nasty: nasty}, command=nasty, reference=nasty,
            num_samples=8,
        )
    )  # fmt: skip
    assert not any(tag == "script" for tag, _ in page.tags)
    assert page.text.count(nasty) >= 6
    assert page.cells["settings"][nasty] == [nasty]


def test_a_page_of_points_says_what_there_is_not():
    posterior, parts = fitted("regression", guides.Map)
    page = Page(html_report(posterior, parts, num_samples=8))
    assert page.cells["diagnostics"]["R-hat of predictions"][1].endswith("points have nothing to converge")
    assert page.cells["diagnostics"]["R-hat of weights"][0] == "none"
    assert "guides.Map has no density" in page.cells["diagnostics"]["k̂"][1]


def test_a_page_of_one_chain_by_moments():
    posterior, parts = fitted("regression", guides.MomentPropagation, chains=1)
    page = Page(html_report(posterior, parts, num_samples=8, method="moments"))
    assert page.sections() == SECTIONS
    assert page.cells["scores"]["score"][0] == "MomentPropagation"
    prediction = posterior.predict(parts.test.x, method="moments")
    scores = evaluation.score(prediction, parts.test.y)
    crps = next(cells for name, cells in page.cells["scores"].items() if name.startswith("CRPS"))
    assert crps[0] == plus_minus(scores["crps"].item(), scores["crps_se"].item())
    assert "given 1 of 8" in page.cells["diagnostics"]["R-hat of predictions"][1]


def test_a_page_of_a_pair_of_data_sets_and_names_that_are_taken(monkeypatch):
    posterior, parts = fitted("counts", guides.Map, epochs=1)
    monkeypatch.setattr("bnnzoo.evaluation.page.MOST_WORK", 0)
    assert html_report(posterior, tuple(parts), num_samples=8) == html_report(posterior, parts, num_samples=8)
    with pytest.raises(ValueError, match="name: 'poisson' is a baseline in the table of scores"):
        html_report(posterior, parts, name="poisson", num_samples=8)


def test_a_page_of_nuts():
    parts = split("regression", 20)
    posterior = sample(model("regression"), parts.train, num_samples=12, warmup_steps=5, chains=2, max_tree_depth=3)
    page = Page(html_report(posterior, parts, num_samples=500))  # it holds 12
    assert page.sections() == SECTIONS
    assert len(page.images()) == 3  # no loss
    assert page.cells["settings"]["guide"] == ["none: draws by NUTS"]
    assert page.cells["diagnostics"]["divergences"][0] == ", ".join(map(str, posterior.info["divergences"]))
    assert "acceptance rate" in page.cells["diagnostics"]
    assert "guides.Empirical has no density" in page.cells["diagnostics"]["k̂"][1]


def test_large_importance_sampling_is_left_out(monkeypatch):
    posterior, parts = fitted("regression")
    monkeypatch.setattr("bnnzoo.evaluation.page.MOST_WORK", 10.0)
    page = Page(html_report(posterior, parts, num_samples=8))
    assert page.cells["diagnostics"]["k̂"][0] == "not computed"
    with pytest.raises(ValueError, match="num_samples must be at least 4, given 3"):
        html_report(posterior, parts, num_samples=3)


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (49.3217, 4.2038, "49.3 ± 4.2"),
        (-5.33699, 0.06552, "-5.337 ± 0.066"),
        (12345.6, 99.6, "12346 ± 100"),
        (0.5, 0.0, "0.5"),
        (216.3732119, 2e-6, "216.4"),
        (1.5, float("nan"), "1.5"),
        (float("-inf"), float("nan"), "-inf"),
    ],
)
def test_values_with_errors(value, error, text):
    assert plus_minus(value, error) == text


# the command


def run(*arguments: object, code: int = 0) -> None:
    with pytest.raises(SystemExit) as exit_:
        cli.main([str(argument) for argument in arguments])
    assert (exit_.value.code or 0) == code


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "a <run>"
    run("fit", "--data", "cubic", "--epochs", 2, "--samples", 8, "--chains", 2, "--test-size", 6, "--seed", 3,
        "--out", out, "--quiet")  # fmt: skip
    return out


def test_the_command_writes_the_run_s_page(folder, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    run("report", folder, "--seed", 3)
    assert "report.html" in capsys.readouterr().out
    page = Page((folder / "report.html").read_text())
    assert "cubic: a <run>" in page.text
    record = json.loads((folder / "metrics.json").read_text())
    (rmse,) = (cells for name, cells in page.cells["scores"].items() if name.startswith("RMSE"))
    own = record["scores"]["mean-field"]["rmse"]
    assert rmse[1] == plus_minus(own["value"], own["standard_error"])  # the same draws as the fit's scores
    assert "bnnzoo fit --data cubic --test-size 6.0 --chains 2 --epochs 2 --samples 8 --seed 3" in page.text
    assert page.cells["settings"]["fitted in"][0].endswith(" s")
    written = (folder / "report.html").read_text()
    run("report", folder, code=2)
    assert "report.html exists: give another file, or --overwrite" in re.sub(r"[\s│]+", " ", capsys.readouterr().err)
    assert (folder / "report.html").read_text() == written
    other = folder / "other.html"
    run("report", folder, "--out", other, "--samples", 5, "--seed", 4, "--quiet")
    assert capsys.readouterr().out == ""
    assert Page(other.read_text()).sections() == SECTIONS


def test_what_the_command_refuses(folder, tmp_path, capsys):
    for arguments, message in (
        ((tmp_path / "no",), "there is no folder"),
        ((folder, "--samples", 3), "equal to 4"),
        ((folder, "--method", "magic", "--out", tmp_path / "a.html"), "--method"),
        ((folder, "--out", tmp_path / "no" / "a.html"), "there is no folder"),
    ):
        run("report", *arguments, code=2)
        assert message in re.sub(r"[\s│]+", " ", capsys.readouterr().err)
    assert list(tmp_path.iterdir()) == []


def test_commands_are_quoted_for_a_shell():
    assert command({"csv": "my file.csv", "test_size": "0.2"}) == "bnnzoo fit --csv 'my file.csv' --test-size 0.2"
    assert command({}) == "bnnzoo fit"
