"""`adaptmedseg submit`: a training as a Slurm job, refused here and now where it could only fail there."""

import shlex
from pathlib import Path
from typing import Annotated, cast

import typer
import yaml

from adaptmedseg.checkpoints.store import model_path
from adaptmedseg.cli.common import config_path, console, parse_overrides, split_names
from adaptmedseg.data.files import write_atomic
from adaptmedseg.errors import UserError
from adaptmedseg.launch.requeue import MAX_REQUEUES
from adaptmedseg.launch.script import Resources
from adaptmedseg.launch.submit import Order, Script, Step, check_sbatch, write_scripts
from adaptmedseg.launch.submit import submit as hand_in
from adaptmedseg.training.config import TrainConfig, load_config
from adaptmedseg.training.run import training_cases
