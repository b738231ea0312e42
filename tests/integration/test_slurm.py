"""docs/train.sbatch under commands that stand for Slurm's: it goes on with what it left, and queues itself again."""

import os
import subprocess
from pathlib import Path

import pytest

SBATCH = Path(__file__).resolve().parents[2] / "docs" / "train.sbatch"
SLURM = {"SLURM_JOB_ID": "70123", "SLURM_JOB_NODELIST": "node[1-2]", "SLURM_NTASKS": "8"}
COMMANDS = {
    "srun": 'SLURM_PROCID=3 SLURM_LOCALID=3 "$@"',
    "flipsearch": 'echo "$RANK $LOCAL_RANK $WORLD_SIZE $MASTER_ADDR $MASTER_PORT $*"; exit "$CODE"',
    "scontrol": 'if [ "$1" = show ]; then echo node1; echo node2; else echo "scontrol $*"; fi',
}


@pytest.mark.parametrize(("code", "is_started"), [(75, False), (75, True), (0, True), (2, False)])
def test_a_job_continues_and_is_queued_again_while_its_code_is_75(code: int, is_started: bool, tmp_path: Path) -> None:
    for name, line in COMMANDS.items():
        (tmp_path / name).write_text(f"#!/bin/bash\nexport SLURM_PROCID SLURM_LOCALID\n{line}\n")
        (tmp_path / name).chmod(0o755)
    if is_started:
        (tmp_path / "checkpoints" / "safer.partial").mkdir(parents=True)
    env = {**SLURM, "PATH": f"{tmp_path}:{os.environ['PATH']}", "CODE": str(code)}
    done = subprocess.run(["bash", str(SBATCH)], cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    resume = " --resume" if is_started else ""
    lines = [f"3 3 8 node1 30123 train --context best.txt --name safer{resume}"]
    assert done.stdout.splitlines() == lines + ["scontrol requeue 70123"] * (code == 75)
    assert (done.returncode, done.stderr) == (code, "")
