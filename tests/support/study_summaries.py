"""summary.json of a study, as `prvr tune` puts it."""

SPREAD = {"count": 3, "mean": 150.04, "sd": 2.51}
GAIN = {"count": 3, "mean": 4.96, "low": -0.31, "high": 10.2}


def trial(number, state="finished", lr=0.001, decay="exp", sumr=100.0):
    curve = {} if state == "failed" else {"1": sumr / 2, "2": sumr}
    point = {"train.lr": lr, "train.decay": decay}
    best = max(curve.values(), default=None)
    return {"name": f"{number:04d}", "point": point, "state": state, "curve": curve, "best": best}


def summary(trials, **changes):
    space = {"train.lr": {"loguniform": [1e-4, 1e-2]}, "train.decay": {"choice": ["exp", "none"]}}
    row = {"point": {}, "failures": [], "validation": SPREAD, "test": None}
    proof = [
        {**row, "name": "base", "validation_gain": None, "test_gain": None},
        {**row, "name": "trial-0001", "validation_gain": GAIN, "test_gain": {**GAIN, "low": None, "high": None}},
    ]
    states = {"finished": len(trials)}
    standing = {
        "kind": "study",
        "verdict": "Nothing beat the base.",
        "states": states,
        "trials": trials,
        "space": space,
        "seeds": [1, 2, 3],
    }
    return standing | {"importance": {"train.lr": 0.7, "train.decay": 0.3}, "proof": proof} | changes
