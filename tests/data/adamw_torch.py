"""Makes adamw_torch.json: a trajectory of torch.optim.AdamW in float32.

    python3 tests/data/adamw_torch.py > tests/data/adamw_torch.json

Two parameter groups, gradients of widely different sizes, clipping off. Values are printed with nine
significant digits, which is exact for float32.
"""

import json

import torch

torch.manual_seed(11)
torch.set_num_threads(1)

STEPS, ELEMS = 25, 12
GROUPS = [
    dict(lr=1e-2, betas=(0.9, 0.999), eps=1e-8, weight_decay=1e-2),
    dict(lr=3e-3, betas=(0.8, 0.95), eps=1e-6, weight_decay=0.0),
]


def exact(tensor):
    return [float(f"{value:.9g}") for value in tensor.tolist()]


groups = []
for hyper in GROUPS:
    parameter = torch.nn.Parameter(torch.randn(ELEMS))
    optimizer = torch.optim.AdamW([parameter], **hyper)
    group = dict(hyper, initial=exact(parameter.data), steps=[])
    for _ in range(STEPS):
        parameter.grad = torch.randn(ELEMS) * 10 ** torch.linspace(-6, 3, ELEMS)
        optimizer.step()
        state = optimizer.state[parameter]
        group["steps"].append(
            dict(
                grad=exact(parameter.grad),
                master=exact(parameter.data),
                exp_avg=exact(state["exp_avg"]),
                exp_avg_sq=exact(state["exp_avg_sq"]),
            )
        )
    groups.append(group)
print(json.dumps(dict(torch=torch.__version__, groups=groups), separators=(",", ":")))
