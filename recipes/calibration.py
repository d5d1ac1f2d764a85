"""Calibration of confidence logits: Sequential Temperature Scaling and its figures (dspark.md 4). numpy alone."""
import numpy as np

GRID = 10.0 ** (-1 + np.arange(41) / 20)
FIT_BINS, REPORT_BINS = 15, 20


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def calibration_error(predicted, labels, bins):
    """Expected calibration error over equal-width bins."""
    index = np.minimum(bins - 1, (predicted * bins).astype(int))
    count = np.bincount(index, minlength=bins)
    gap = np.abs(np.bincount(index, predicted, bins) - np.bincount(index, labels, bins))
    return float(gap.sum() / max(1, count.sum()))


def ranking_quality(scores, labels):
    """Area under the ROC curve, ties counted half; None if all labels are equal."""
    positive = int(labels.sum())
    if positive in (0, len(labels)):
        return None
    values, inverse, count = np.unique(scores, return_inverse=True, return_counts=True)
    rank = np.cumsum(count) - (count - 1) / 2
    return float((rank[inverse][labels > 0].sum() - positive * (positive + 1) / 2) / (positive * (len(labels) - positive)))


def fit(logits, accepted, verified):
    """logits [N,g]; accepted, verified [N]: how many drafted tokens were accepted and verified -> g temperatures."""
    slots, survival, temperatures = logits.shape[1], np.ones(len(logits)), []
    for k in range(slots):
        rows = verified > k
        label = (accepted > k).astype(float)
        best = None
        for t in sorted(GRID, key=lambda t: abs(np.log(t))):         # ties: the closest to 1
            error = calibration_error(survival[rows] * sigmoid(logits[rows, k] / t), label[rows], FIT_BINS)
            if best is None or error < best[0]:
                best = (error, float(t))
        temperatures.append(best[1])
        survival = survival * sigmoid(logits[:, k] / best[1])
    return temperatures


def report(logits, accepted, verified, temperatures):
    """Figures by position, of the survival of the whole prefix and of each slot given that it is reached."""
    out = {key: [] for key in ("ece", "auroc", "auroc_if_reached", "brier", "mean_predicted", "mean_observed")}
    survival = np.ones(len(logits))
    for k, t in enumerate(temperatures):
        survival = survival * sigmoid(logits[:, k] / t)
        rows = verified > k
        label, guess = (accepted > k).astype(float)[rows], survival[rows]
        reached = rows & (accepted >= k)
        out["ece"].append(calibration_error(guess, label, REPORT_BINS))
        out["auroc"].append(ranking_quality(guess, label))
        out["auroc_if_reached"].append(ranking_quality(logits[reached, k], (accepted > k)[reached].astype(float)))
        out["brier"].append(float(((guess - label) ** 2).mean()))
        out["mean_predicted"].append(float(guess.mean()))
        out["mean_observed"].append(float(label.mean()))
    return out


def test():
    """dspark.md 4.3."""
    logits = np.concatenate([np.full(100, 2.0), np.full(100, -2.0)])[:, None]
    accepted = np.concatenate([np.arange(100) < 70, np.arange(100) < 30]).astype(int)
    verified = np.ones(200, int)
    assert abs(calibration_error(sigmoid(logits[:, 0]), accepted, FIT_BINS) - 0.1808) < 1e-4
    (t,) = fit(logits, accepted, verified)
    assert abs(t - 2.2387) < 1e-4
    assert abs(calibration_error(sigmoid(logits[:, 0] / t), accepted, FIT_BINS) - 0.0096) < 1e-4
    assert ranking_quality(np.array([0.1, 0.4, 0.35, 0.8]), np.array([0.0, 0, 1, 1])) == 0.75


if __name__ == "__main__":
    test()
    print("all well")
