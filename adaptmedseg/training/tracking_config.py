"""Where a training is followed, beside its files of rows."""

from adaptmedseg.training.strict import Strict


class TrackingConfig(Strict):
    """Trackers, over Accelerate, under the name of the run within `project`; CSV and JSON are written in any case.

    One whose package is missing, or that cannot start, is told of and left out: training goes on. With
    ADAPTMEDSEG_OFFLINE set, W&B keeps its files for `wandb sync`; MLflow's are always local.
    """

    project: str = "adaptmedseg"
    tensorboard: bool = True
    wandb: bool = False
    mlflow: bool = False
