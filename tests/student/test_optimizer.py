import numpy as np
import torch

from prvr_ray.student.model import Student
from prvr_ray.student.optimizer import BertAdam, group_by_decay


def test_twenty_steps_are_the_published_ones(golden):
    w = torch.nn.Parameter(torch.tensor(golden["bertadam/w0"]))
    b = torch.nn.Parameter(torch.tensor(golden["bertadam/b0"]))
    groups = [{"params": [w], "weight_decay": 0.01}, {"params": [b], "weight_decay": 0.0}]
    optimizer = BertAdam(groups, lr=0.01, warmup=0.1, total_steps=20)
    for i in range(20):
        w.grad, b.grad = (torch.tensor(golden[f"bertadam/{i}/grad_{name}"]) for name in "wb")
        optimizer.step()
        np.testing.assert_allclose(w.detach(), golden[f"bertadam/{i}/w"], rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(b.detach(), golden[f"bertadam/{i}/b"], rtol=1e-5, atol=1e-7)


def test_a_resumed_optimizer_goes_on_bit_for_bit():
    def steps(optimizer, p, first, last):
        for i in range(first, last):
            p.grad = torch.randn(5, generator=torch.Generator().manual_seed(i))
            optimizer.step()

    p = torch.nn.Parameter(torch.ones(5))
    whole = BertAdam([p], 0.01, 0.1, 10)
    steps(whole, p, 0, 10)

    q = torch.nn.Parameter(torch.ones(5))
    first = BertAdam([q], 0.01, 0.1, 10)
    steps(first, q, 0, 4)
    second = BertAdam([q], 0.01, 0.1, 10)
    second.load_state_dict(first.state_dict())
    steps(second, q, 4, 10)
    assert torch.equal(p, q)


def test_only_biases_and_layer_norms_do_not_decay():
    model = Student(12, 10, hidden_dim=16)
    moving, still = group_by_decay(model, 0.01)
    assert (moving["weight_decay"], still["weight_decay"]) == (0.01, 0.0)
    names = {id(p): name for name, p in model.named_parameters()}
    still_names = {names[id(p)] for p in still["params"]}
    assert still_names == {name for name in names.values() if name.endswith("bias") or "norm" in name}
    assert len(still["params"]) + len(moving["params"]) == len(names)


def test_parameters_without_a_gradient_stay():
    p, q = torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(2))
    optimizer = BertAdam([p, q], 0.1, 0.0, 10)
    p.grad = torch.ones(2)
    optimizer.step()
    assert (q == 1).all()
    assert (p < 1).all()
