"""The example of a method's page: written from its row, run when the site is built, shown with what it printed."""

from __future__ import annotations

import contextlib
import inspect
import io
from typing import Any

from lossary.catalogue.schema import Row
from lossary.catalogue.source import REQUIRED, methods
from lossary.methods import all_listed

LOGITS = """logits = torch.tensor(
    [[2.0, 0.5, -1.0], [0.2, 1.2, 0.3], [-0.5, 0.1, 2.0], [1.5, 1.0, 0.0]]
)
target = torch.tensor([0, 1, 2, 1])  # the last label looks wrong"""
INPUTS = {
    "Classes": LOGITS,
    "Labels": """logits = torch.tensor([[2.0, -0.5, -1.5], [0.5, 0.4, -1.0]])
target = torch.tensor([[1.0, 0.0, 0.0], [1.0, 1.0, 0.0]])  # a column a label""",
    "Residual": """prediction = torch.tensor([1.0, 2.5, 2.0, 0.0])
target = torch.tensor([1.2, 2.0, 2.0, 5.0])  # the last one is an outlier""",
}
INPUTS["Items"] = LOGITS
INPUTS["Pairs"] = """embeddings = torch.tensor([[1.0, 0.2], [0.9, 0.4], [-0.2, 1.0], [0.3, 0.8]])
target = torch.tensor([0, 0, 1, 1])  # which belong together"""
FIRST = {"Residual": "prediction", "Pairs": "embeddings"}
COSINES = """logits = torch.tensor(  # cosines of features and class vectors
    [[0.62, 0.58, 0.45], [0.55, 0.60, 0.52], [0.40, 0.47, 0.56], [0.52, 0.50, 0.49]]
)
target = torch.tensor([0, 1, 2, 2])"""
#: what only data can tell, for the inputs above; `weight` by view
GIVEN: dict[str, Any] = {"counts": [900, 90, 10], "size": 4, "level": [0.2, 0.5, 1.0]}
WEIGHT = {"Classes": [0.5, 1.0, 4.0], "Labels": [1.0, 5.0, 20.0]}
#: where the default makes no sense of four items, or of three steps
SMALL = {
    "top_k": {"k": 2},
    "dwa": {"every": 1},
    "igb": {"every": 1},
    "coba": {"window": 3, "warmup": 1},
    "mft_self_paced": {"window": 3},
}
LEARNED = "lossary.memory.LearnedReal(0.0, size=2)"
BASE = {"Classes": "cross_entropy", "Labels": "bce", "Residual": "mse", "Items": "cross_entropy", "Pairs": "supcon"}


def call(row: Row, *, small: bool = False) -> str:
    """The method written out with its hyperparameters: `lossary.focal(gamma=2.0)`. small: as the example has it."""
    code = methods().get(row.alias_of or row.key)
    if row.alias_of or code is None:
        given = {name: h.default for name, h in row.hyper.items()}
        path = (methods()[row.alias_of].path.removesuffix(row.alias_of) if row.alias_of else "") + row.key
    else:
        given, path = code.hyper, code.path
    given = {**given, **(SMALL.get(row.key, {}) if small else {})}
    told = {**GIVEN, "weight": WEIGHT.get(row.view, [1.0, 2.0]), "s": LEARNED}
    if row.role in ("formula", "weight", "reduce", "track"):
        values = {k: told[k] if v is REQUIRED or v is None else v for k, v in given.items()}
    else:  # what is None stays out, and what only the user knows is left open, if no example says it
        values = {k: told.get(k, ...) if v is REQUIRED else v for k, v in given.items() if v is not None}
    said = (f"{k}={'...' if v is ... else LEARNED if v == LEARNED else repr(v)}" for k, v in values.items())
    return f"lossary.{path}({', '.join(said)})"


def cosines(row: Row) -> bool:
    """Whether the logits of a loss for classes are cosines."""
    return row.view == "Classes" and (row.key == "ldam" or row.family.startswith("metric/"))


STEPPED = """

def closure():
    optimizer.zero_grad()
    loss = (torch.tensor([1.0, 10.0]) * w**2).sum()
    loss.backward()
    return loss


for step in range(3):
    print(optimizer.step(closure).item(), w.tolist())"""


def _of_steps(row: Row) -> list[str]:
    """Examples of what is no function of a batch: balancers, optimizers, ascents, schedules."""
    made = call(row, small=True)
    if row.role == "balance" and row.view == "Losses":
        held = ", held=losses" if row.key in HELD else ""
        lines = [
            f"balance = {made}",
            "for step in range(3):",
            "    losses = torch.tensor([0.9 - 0.1 * step, 0.3], requires_grad=True)",
            f"    total = balance(losses{held})",
            "    total.backward()",
            "    print(total.item(), losses.grad)  # the weights of the terms",
        ]
    elif row.role == "balance":
        lines = [
            "gradients = torch.tensor([[1.0, 0.0, 2.0], [-2.0, 1.0, 0.5]])  # of two terms, which conflict",
            f"balance = {made}",
            "for step in range(2):",
            "    losses = torch.tensor([0.9 - 0.1 * step, 0.3])",
            "    print(balance(losses, jacobian=gradients))"
            + ("  # weights" if row.view == "Gramian" else "  # a direction"),
        ]
    elif row.role == "ascent":
        lines = [
            "model = torch.nn.Linear(2, 1)",
            "optimizer = torch.optim.SGD(model.parameters(), lr=0.1)",
            f"step = lossary.step(model, optimizer, ascent={made})",
            "x, y = torch.randn(8, 2), torch.randn(8, 1)",
            "for epoch in range(3):",
            "    print(step(lambda: torch.nn.functional.mse_loss(model(x), y)))",
        ]
    else:
        lines = SPECIAL.get(row.key, "").split("\n")
    if row.role == "optimizer" and row.key not in SPECIAL:
        around = "optimizer" in inspect.signature(all_listed()[row.key].made).parameters
        start = ["w = torch.nn.Parameter(torch.tensor([2.0, -1.0]))"]
        plain = ["optimizer = torch.optim.AdamW([w], lr=0.01)"] if around else []
        given = made.partition("(")[0] + ("(optimizer)" if around else "([w])")
        lines = [*start, *plain, given if around else f"optimizer = {given}", *STEPPED.split("\n")]
    return ["import torch", "", "import lossary", "", "torch.manual_seed(0)", *lines]


#: balancers that watch losses on held-out data
HELD = ("coba", "mft_convergence", "mft_self_paced")
#: examples of what is called in a way of its own
SPECIAL: dict[str, str] = {
    "dot": """w = torch.nn.Parameter(torch.tensor([2.0, -1.0]))
optimizer = lossary.step.optim.DOT([w], lr=0.05)
for step in range(3):
    ((w - 1) ** 2).sum().backward()  # of the teacher
    optimizer.take_distillation()
    (w**2).sum().backward()  # of the labels
    optimizer.step()
    optimizer.zero_grad()
    print(w.tolist())""",
    "mt_adamw": """w = torch.nn.Parameter(torch.tensor([2.0, -1.0]))
optimizer = lossary.step.optim.MTAdamW([w], shares={"common": 0.75, "rare": 0.25}, lr=0.1)
for task in ("common", "common", "rare"):
    loss = (w**2).sum() if task == "common" else 100 * ((w - 1) ** 2).sum()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step(task=task)
    print(task, w.tolist())""",
    "normalized_gd": """x, y = torch.tensor([[1.0, 0.2], [-0.5, 1.0], [-1.0, -0.3]]), torch.tensor([1.0, 1.0, -1.0])
w = torch.nn.Parameter(torch.zeros(2))
optimizer = lossary.step.optim.NormalizedGD([w], lr=1.0)
for step in range(3):
    items = torch.nn.functional.softplus(-y * (x @ w))
    optimizer.zero_grad()
    items.mean().backward()
    optimizer.step(items=items)
    print(items.mean().item())""",
    "normalized_decay": """decay = lossary.step.optim.normalized_decay(0.05, batch=128, samples=50_000, epochs=100)
print(decay)  # for AdamW's weight_decay / lr, or decoupled_decay""",
    "lawn": """w = torch.nn.Parameter(torch.tensor([[2.0, -1.0]]))
optimizer = torch.optim.Adam([w], lr=0.1)
lossary.step.optim.lawn(optimizer, free_steps=1, params=[w])


def closure():
    optimizer.zero_grad()
    loss = (torch.tensor([1.0, 10.0]) * w**2).sum()
    loss.backward()
    return loss


for step in range(3):
    optimizer.step(closure)
    print(w.norm().item())  # held after the first step""",
    "decoupled_decay": """w = torch.nn.Parameter(torch.tensor([2.0, -1.0]))
optimizer = torch.optim.SGD([w], lr=0.1)
lossary.step.optim.decoupled_decay(optimizer, decay=0.01)
w.grad = torch.zeros(2)
optimizer.step()
print(w.tolist())  # 1 % shorter, whatever the gradient""",
    "ghost_batch_norm": """norm = lossary.step.schedules.GhostBatchNorm(4, size=8)
x = torch.randn(32, 4)
print(norm(x)[:8].mean(0), norm(x)[8:16].mean(0))  # each part by its own statistics""",
    "scaled_rate": """for rule in ("sqrt", "linear"):
    print(rule, lossary.step.schedules.scaled_rate(0.1, batch=1024, base=128, rule=rule))""",
    "adapted_regime": "print(lossary.step.schedules.adapted_regime([80, 120], batch=1024, base=128))",
    "range_test": """model = torch.nn.Linear(4, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
x, y = torch.randn(64, 4), torch.randn(64, 1)


def closure():
    loss = torch.nn.functional.mse_loss(model(x), y)
    loss.backward()
    return loss


found = lossary.step.schedules.range_test(model, optimizer, closure, low=1e-4)
print(found.steepest, found.tenth, found.stopped)
# found.save("range.html") is the picture""",
    "wsd": """optimizer = torch.optim.SGD(torch.nn.Linear(2, 1).parameters(), lr=0.1)
shape = lossary.step.schedules.wsd(10, warmup=2, decay=4)
scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, shape)
for step in range(10):
    print(round(scheduler.get_last_lr()[0], 4), end=" ")
    optimizer.step()
    scheduler.step()""",
    "one_cycle": """optimizer = torch.optim.SGD(torch.nn.Linear(2, 1).parameters(), lr=0.1, momentum=0.9)
scheduler = lossary.step.schedules.one_cycle(optimizer, peak=0.5, steps=10)
for step in range(9):
    print(round(scheduler.get_last_lr()[0], 4), end=" ")
    optimizer.step()
    scheduler.step()""",
    "shift_lr": """optimizer = torch.optim.SGD(torch.nn.Linear(2, 1).parameters(), lr=0.1)
scheduler = lossary.step.schedules.ShiftLR(optimizer, distance=1.0, noise=0.5)
for step in range(6):
    print(round(scheduler.get_last_lr()[0], 4), end=" ")
    optimizer.step()
    scheduler.step(shift=1.0 if step == 3 else 0.0)""",
}


def code(row: Row) -> str:
    """The example as Python."""
    if row.role == "batch":
        calls = [f"print({made[:-1].replace('(', '(embeddings, target, ')}))" for made in [call(row)]]
        return "\n".join(["import torch", "", "import lossary", "", INPUTS["Pairs"], "", *calls])
    if row.role in ("balance", "ascent", "optimizer", "schedule"):
        return "\n".join(_of_steps(row))
    base, made = f"lossary.{BASE[row.view]}()", call(row, small=True)
    first = FIRST.get(row.view, "logits")
    inputs = COSINES if cosines(row) else INPUTS[row.view]
    lines = ["import torch", "", "import lossary", "", inputs, ""]
    if row.role == "formula":
        lines += [
            f"criterion = {made}",
            f"print(criterion({first}, target))",
            f"print(criterion.items({first}, target).loss)",
        ]
    elif row.role == "weight":
        lines += [
            *_fit(f"objective = {base}.weigh(", made),
            f"print(objective({first}, target))",
            f"print(objective.items({first}, target).weight)",
        ]
    elif row.role == "reduce":
        lines += [
            *_fit(f"objective = {base}.reduce(", made),
            f"print(objective.items({first}, target).loss)",
            f"print(objective({first}, target))",
        ]
    else:
        lines += [
            f"objective = {base}.watching({made})",
            "for epoch in range(3):  # a model would learn in between",
            "    objective(logits, target, ids=torch.tensor([0, 1, 2, 3]))",
            "print(objective.trackers[0].value())  # one number a sample",
        ]
    return "\n".join(lines)


def _fit(start: str, inner: str) -> list[str]:
    """start + inner + ")", on three lines where one is too long for the page."""
    line = f"{start}{inner})"
    return [line] if len(line) <= 78 else [start, f"    {inner}", ")"]


def run(source: str) -> str:
    """What a piece of Python prints."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(source, "<example>", "exec"), {"__name__": "__main__"})
    return out.getvalue().rstrip()
