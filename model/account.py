"""An account read from one class's side."""

import numpy as np
import numpy.typing as npt


def toward(account: npt.NDArray[np.floating], answer: int) -> npt.NDArray[np.floating]:
    """Each token's share in a class's logit less the mean of its shares in the others', [S] of
    evidence or contributions [S, C]; `answer` is the class's number."""
    own = account[:, answer]
    others = (account.sum(axis=1) - own) / (account.shape[1] - 1)
    return np.asarray(own - others)
