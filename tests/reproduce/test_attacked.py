"""The tables of adversarial attacks say what the curves say; the settings of the papers."""

import numpy as np
import pytest
import xarray as xr

from bnnzoo.reproduce import Context, bb_alpha_adversarial, mnf_adversarial
from bnnzoo.reproduce.mnf_lenet import METHODS

EPSILONS = np.round(0.05 * np.arange(11), 2)


def curve(dim, sizes, **scores):
    """Two chains, 0.02 apart, with a standard error of 0.02 over images."""
    variables = {}
    for name, values in scores.items():
        values = np.asarray(values, float)
        variables[name] = (("chain", dim), np.stack([values - 0.01, values + 0.01]))
        variables[f"{name}_se"] = (("chain", dim), np.full((2, len(values)), 0.02))
    return xr.Dataset(variables, {"chain": [0, 1], dim: sizes})


def falling(half, floor=0.05):
    """An accuracy of 0.95 that falls to 0.5 at `half`, linearly."""
    return np.maximum(0.95 - 0.45 * EPSILONS / half, floor)


def untargeted(half, entropy):
    return curve("epsilon", EPSILONS, accuracy=falling(half), entropy=np.linspace(0.1, entropy, 11))


def targeted(share, entropy):
    scores = {"accuracy": [0.9, 0.4, 0.1], "target_accuracy": [0.0, share / 2, share], "entropy": [0.1, 1.2, entropy]}
    return curve("step", [0, 20, 40], confidence=[0.9, 0.6, 0.8], **scores)


UNTARGETED = {
    "MLP": untargeted(0.065, 0.2),
    "α = 0": untargeted(0.15, 1.0),
    "α = 0.5": untargeted(0.16, 1.1),
    "α = 1": untargeted(0.2, 1.2),
}
TARGETED = {
    "MLP": targeted(1.0, 0.01),
    "α = 0": targeted(0.9, 0.4),
    "α = 0.5": targeted(0.8, 0.5),
    "α = 1": targeted(0.7, 0.6),
}


class TestTables:
    def test_untargeted(self):
        table = bb_alpha_adversarial.untargeted_table(UNTARGETED, UNTARGETED, 500)
        assert all(len(row) == len(table.header) for row in table.rows)
        row = dict(zip(table.header, table.rows[1], strict=True))
        # Chains of 0.49 and 0.51 where the mean is 0.5: 0.01 / 3 to either side in η.
        assert row["η at 50% accuracy"] == "0.150 ± 0.003"
        assert row["accuracy at η = 0"] == "0.95 ± 0.02"
        assert table.rows[1][4] == f"{0.95 - 3 * 0.1:.2f} ± 0.02"
        assert table.rows[1][-1] == "1.00 ± 0.02"

    def test_targeted(self):
        table = bb_alpha_adversarial.targeted_table(TARGETED, 150)
        row = dict(zip(table.header, table.rows[0], strict=True))
        assert row["step: half are 0"] == "20.0 ± 0.4"
        assert row["after 40: share 0"] == "1.00 ± 0.02"
        assert row["entropy, nats"] == "0.01 ± 0.02"
        assert row["greatest entropy"] == "1.20 (step 20)"

    def test_what_never_happens(self):
        assert bb_alpha_adversarial.over_chains(xr.DataArray([np.nan, 0.1]), ".2f") == "-"
        assert bb_alpha_adversarial.over_chains(xr.DataArray([0.1]), ".2f") == "0.10"


class TestClaims:
    def verdicts(self, untargeted, targeted):
        return [row[-1] for row in bb_alpha_adversarial.claims(untargeted, targeted).rows]

    def test_they_hold_where_they_hold(self):
        assert self.verdicts(UNTARGETED, TARGETED) == ["yes"] * 8

    @pytest.mark.parametrize(
        ("changed", "broken"),
        [
            ({"α = 0": untargeted(0.05, 1.0)}, [0, 3]),
            ({"α = 0.5": untargeted(0.25, 1.1)}, [1]),
            ({"MLP": untargeted(0.14, 0.2)}, [2]),
            ({"MLP": untargeted(0.075, 0.2)}, [2]),  # 2.1 times
            ({"MLP": untargeted(0.055, 0.2)}, [2]),  # 5.5 times
            ({"α = 0": untargeted(0.19999, 1.0)}, [3]),  # as much
            ({"α = 0": untargeted(0.095, 1.0)}, [3]),  # 1.3 times and more
            ({"α = 0": untargeted(0.15, 0.0)}, [4]),
        ],
    )
    def test_each_can_fail(self, changed, broken):
        verdicts = self.verdicts({**UNTARGETED, **changed}, TARGETED)
        assert [place for place, verdict in enumerate(verdicts) if verdict == "no"] == broken

    def test_those_of_targets_can_fail(self):
        verdicts = self.verdicts(UNTARGETED, {**TARGETED, "MLP": targeted(0.5, 0.7)})
        assert verdicts[-2:] == ["no", "no"]

    @pytest.mark.parametrize(
        ("changed", "near"),
        [
            ({"α = 0": untargeted(0.17, 1.0)}, [3]),  # 1.06 times
            ({"α = 0": untargeted(0.15, 0.19)}, [4]),
            ({"α = 0.5": untargeted(0.2, 1.1)}, [1]),
        ],
    )
    def test_what_is_within_error_is_neither(self, changed, near):
        verdicts = self.verdicts({**UNTARGETED, **changed}, TARGETED)
        assert [place for place in near if verdicts[place] != "within error"] == []
        assert "no" not in verdicts

    def test_without_a_breaking_point_there_is_no_verdict(self):
        never = curve("epsilon", EPSILONS, accuracy=np.full(11, 0.9), entropy=np.linspace(0.1, 1.0, 11))
        assert self.verdicts({**UNTARGETED, "α = 0": never}, TARGETED)[:2] == ["-", "-"]

    def test_verdicts(self):
        verdict, about = bb_alpha_adversarial.verdict, bb_alpha_adversarial.about
        assert [verdict([(value, 1.0)]) for value in (2.1, 1.9, -1.9, -2.1)] == ["yes", *["within error"] * 2, "no"]
        assert verdict([(3.0, 1.0), (1.0, 1.0)]) == "within error"
        assert verdict([(3.0, 1.0), (-3.0, 1.0)]) == "no"
        assert verdict([(3.0, np.nan)]) == "-"
        assert about((0.6, 0.01), (0.2, 0.01), 2.5, 3.5) == "yes"
        assert about((0.6, 0.3), (0.2, 0.01), 2.5, 3.5) == "within error"
        assert about((0.6, 0.01), (0.0, 0.0), 2.5, 3.5) == "no"

    def test_of_the_mnf_paper(self):
        def of(accuracy, entropy, confidence):
            flat = np.ones(11)
            return curve("epsilon", EPSILONS, accuracy=accuracy, entropy=entropy * flat, confidence=confidence * flat)

        curves = {METHODS[name].label: of(falling(0.05), 0.5, 0.8) for name in mnf_adversarial.ATTACKED}
        curves[METHODS["dropout"].label] = of(falling(0.2), 0.4, 0.8)
        curves[METHODS["mnf"].label] = of(falling(0.05), 2.2, 0.2)
        assert [row[-1] for row in mnf_adversarial.claims(curves).rows] == ["yes"] * 5
        curves[METHODS["mnf"].label] = of(falling(0.3), 0.3, 0.2)
        curves[METHODS["dropout"].label] = of(falling(0.2), 0.4, 0.6)
        verdicts = [row[-1] for row in mnf_adversarial.claims(curves).rows]
        assert verdicts == ["no: MNF", "no", "no", "no", "no"]
        curves[METHODS["mnf"].label] = of(falling(0.205), 0.41, 0.2)
        verdicts = [row[-1] for row in mnf_adversarial.claims(curves).rows]
        assert (verdicts[0], verdicts[-1]) == ("within error", "within error")


def test_the_settings_of_the_papers(tmp_path):
    paper = bb_alpha_adversarial.setting(Context("paper", tmp_path))
    assert (paper.hidden, paper.rows, paper.draws, paper.steps) == ((1000, 1000, 1000), None, 10, 40)
    assert set(bb_alpha_adversarial.NETWORKS.values()) == {None, 0.0, 0.5, 1.0}
    assert mnf_adversarial.ATTACKED == ("map", "dropout", "mean-field", "fflu", "mnf")
