//! The array script of a Slurm cluster: one task a run.

/// What the script asks for.
pub struct Job<'a> {
    /// The command line of the sweep, as a shell takes it: `fedllava sweep CONFIG --set …`.
    pub command: &'a str,
    /// Runs.
    pub runs: usize,
    /// The job's name.
    pub name: &'a str,
    /// Cores a task.
    pub cores: usize,
    /// Memory a task, in MiB.
    pub memory: u64,
    /// The time limit, `HH:MM:SS`.
    pub limit: &'a str,
}

/// The script. Two minutes before the limit a task gets SIGUSR1 and stops after its round with exit code 75; the script then puts
/// it back into the queue, where it goes on from its checkpoint. Any other failure stays one.
pub fn script(job: &Job<'_>) -> String {
    let Job { command, runs, name, cores, memory, limit } = job;
    let last = runs.saturating_sub(1);
    format!(
        "#!/bin/bash
#SBATCH --job-name={name}
#SBATCH --array=0-{last}
#SBATCH --cpus-per-task={cores}
#SBATCH --mem={memory}M
#SBATCH --time={limit}
#SBATCH --signal=USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output={name}-%a.log

# srun passes the signal on to the program, and gives its exit code.
srun {command} --threads \"$SLURM_CPUS_PER_TASK\" --run \"$SLURM_ARRAY_TASK_ID\"
code=$?
if [ \"$code\" -eq 75 ]; then
    scontrol requeue \"$SLURM_ARRAY_JOB_ID\"_\"$SLURM_ARRAY_TASK_ID\"
fi
exit \"$code\"
"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_run_is_a_task_that_is_told_before_its_limit() {
        let job =
            Job { command: "fedllava sweep c.toml", runs: 12, name: "c", cores: 4, memory: 900, limit: "02:00:00" };
        let text = script(&job);
        for part in
            ["--array=0-11", "--cpus-per-task=4", "--mem=900M", "--time=02:00:00", "USR1@120", "sweep c.toml --threads"]
        {
            assert!(text.contains(part), "{part}: {text}");
        }
    }
}
