"""Balance: how several terms make one direction. By their losses, by the Gramian of their gradients, or by these.

>>> balance = lossary.balance.pcgrad()
>>> step = lossary.step(model, optimizer, balance=balance)
>>> step(lambda: {"depth": depth_loss, "normals": normals_loss})
"""

from functools import partial

from lossary.balance.by_gramian import (
    aligned_mtl,
    cagrad,
    conflict_free,
    dual_proj,
    fairgrad,
    gradnorm,
    gradvac,
    imtl_g,
    mgda,
    pcgrad,
    upgrad,
)
from lossary.balance.by_jacobian import conflict_free_momentum
from lossary.balance.by_losses import (
    average,
    coba,
    dwa,
    famo,
    fixed,
    gls,
    igb,
    igb_rl,
    imtl_l,
    mft_convergence,
    mft_self_paced,
    rlw,
    stch,
    total,
    uncertainty,
)
from lossary.balance.compose import torchjd
from lossary.balance.gramian import record
from lossary.balance.terms import Balance, Gramian, Jacobian, Losses, State, Terms
from lossary.methods import alias_in

__getattr__ = partial(alias_in, "balance")
__all__ = [
    "Balance",
    "Gramian",
    "Jacobian",
    "Losses",
    "State",
    "Terms",
    "aligned_mtl",
    "average",
    "cagrad",
    "coba",
    "conflict_free",
    "conflict_free_momentum",
    "dual_proj",
    "dwa",
    "fairgrad",
    "famo",
    "fixed",
    "gls",
    "gradnorm",
    "gradvac",
    "igb",
    "igb_rl",
    "imtl_g",
    "imtl_l",
    "mft_convergence",
    "mft_self_paced",
    "mgda",
    "pcgrad",
    "record",
    "rlw",
    "stch",
    "torchjd",
    "total",
    "uncertainty",
    "upgrad",
]
