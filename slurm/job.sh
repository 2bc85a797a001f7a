# What every script here ends with; adaptmedseg/launch/job.py is the program. Another environment than .venv is named by
# ADAPTMEDSEG_PYTHON.
trap '' USR1 TERM # Slurm's signals: lost here, listened to by the program
cd "${SLURM_SUBMIT_DIR:?submit this script with sbatch}" || exit
exec "${ADAPTMEDSEG_PYTHON:-.venv/bin/python}" -m adaptmedseg.launch.job "$@"
