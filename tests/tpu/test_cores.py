"""The strategy of several cores, in the only process that XLA's CPU device has."""

import logging

import pytest
import pytorch_lightning as pl
import torch

from carvision.training.build import build_datamodule, build_lit_classifier
from tests.small_runs import config, demo


def test_the_strategy_of_several_cores_trains_and_tests_in_its_own_process(demo_photos):
    from carvision.training.distributed import tpu

    class Two(tpu.XLAOnCPU):
        """That says so: Lightning takes the strategy for more than one device only."""

        @staticmethod
        def get_parallel_devices(devices: int) -> list[torch.device]:
            return [torch.device("xla", index) for index in range(2)]

    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    cfg = config(*demo(demo_photos), "augment=none")
    values = []
    for arguments in ({"accelerator": tpu.XLAOnCPU()}, {"accelerator": Two(), "strategy": tpu.MultiCoreStrategy()}):
        datamodule = build_datamodule(cfg, None)
        lit = build_lit_classifier(cfg, datamodule.table)
        trainer = pl.Trainer(
            **arguments, devices=1, max_epochs=1, logger=False, enable_checkpointing=False, num_sanity_val_steps=0,
            enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False,
            callbacks=[tpu.Steps()],
        )  # fmt: skip
        trainer.fit(lit, datamodule=datamodule)
        assert trainer.current_epoch == 1  # which Lightning's own launcher would have left behind in another process
        trainer.test(lit, datamodule=datamodule, verbose=False)
        values.append({name: value.item() for name, value in trainer.callback_metrics.items()})
    assert lit.test_metrics.heads[0].distributed_available_fn()
    assert values[1] == pytest.approx(values[0], rel=1e-5)
