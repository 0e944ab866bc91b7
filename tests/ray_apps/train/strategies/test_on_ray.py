from collections.abc import Callable

import pytest

from ray_apps.local_ray import local_cluster
from ray_apps.train.config import TrainConfig
from ray_apps.train.launch import train
from tests.ray_apps.train.ranks import Ranks, losses


@pytest.mark.filterwarnings("ignore")
@pytest.mark.ray
@pytest.mark.slow
def test_deepspeed_starts_in_the_process_group_of_ray_s_workers(
    make: Callable[..., TrainConfig], two_ranks: Ranks
) -> None:
    zero_3 = {"strategy": "deepspeed", "deepspeed": {"stage": 3}, "num_workers": 2, "precision": "bf16"}
    on_ray, expected = make("ray", **zero_3), make("ranks", **zero_3)
    two_ranks.train(expected)
    with local_cluster(num_cpus=2):
        train(on_ray)
    assert losses(on_ray) == losses(expected)
