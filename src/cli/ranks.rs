//! Processes that `mpirun` or `srun` started together: rank 0 does what the command line says, the others serve its
//! federated rounds. They read no command line and no config, write nothing, and say nothing that rank 0 can say.

#[cfg(feature = "mpi")]
mod mpi;

use std::process::ExitCode;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use super::{machine, voice};
use crate::error::{Class, Error, Result};
#[cfg(feature = "mpi")]
use crate::exec::ranks::Transport;
use crate::exec::{self, Cancel, Context, Event, Events, Ranks, Silent};
use crate::pipeline::Served;

static JOINED: OnceLock<Ranks> = OnceLock::new();

/// The ranks of this process; before [`join`], and without a launcher, it is alone.
pub fn here() -> Ranks {
    JOINED.get().cloned().unwrap_or_default()
}

/// How many processes a launcher of MPI started together, by what it says in the environment; 1 without one.
fn launched() -> usize {
    let said = |name: &str| std::env::var(name).ok().and_then(|n| n.parse::<usize>().ok());
    let slurm = || said("PMIX_RANK").and_then(|_| said("SLURM_STEP_NUM_TASKS"));
    said("OMPI_COMM_WORLD_SIZE").or_else(|| said("PMI_SIZE")).or_else(slurm).unwrap_or(1)
}

/// Whether this binary can join other processes.
pub const BUILT: bool = cfg!(feature = "mpi");

/// Joins the processes that were started with this one.
pub fn join() -> Result<Ranks> {
    #[cfg(feature = "mpi")]
    if launched() > 1 {
        let mpi = mpi::Mpi::start()?;
        match mpi.size() {
            // The launcher is another MPI's: `refuse_strangers` says so.
            1 => mpi.leave(),
            _ => _ = JOINED.set(Ranks::over(mpi)),
        }
    }
    Ok(here())
}

/// Refuses to do one run in each of several processes.
pub fn refuse_strangers() -> Result<()> {
    let n = launched();
    if n == 1 || here().size() > 1 {
        return Ok(());
    }
    let each = format!("a launcher started {n} processes, which cannot hear each other: each would do the whole run");
    Err(Error::environment(each).hint(match BUILT {
        true => "take mpirun of the MPI that this binary was built with (`ldd` names it), or build it with this one's",
        false => "this binary was built without MPI: cargo build --release --features mpi",
    }))
}

/// Does the work of rank 0, which gives an exit code, and lets all ranks end with it.
pub fn lead(ranks: &Ranks, work: impl FnOnce() -> u8) -> ExitCode {
    if ranks.size() == 1 {
        return ExitCode::from(work());
    }
    let code = exec::caught(|| Ok(work())).unwrap_or_else(|e| {
        voice::error(&e);
        e.class().exit_code()
    });
    // It was said already; the others need the exit code.
    let failed = (code != 0).then(|| Error::new(Class::of_exit_code(code), format!("ended with exit code {code}")));
    ranks.close(failed.as_ref());
    ExitCode::from(code)
}

/// What a rank above 0 does, to its end.
pub fn assist(ranks: &Ranks) -> ExitCode {
    let served = exec::caught(|| serve(ranks));
    let failed = served.err();
    let told = ranks.close(failed.as_ref());
    let Some(e) = failed else { return ExitCode::SUCCESS };
    let code = e.class().exit_code();
    if !told {
        voice::error(&e.context(format!("rank {}", ranks.rank())));
    }
    ExitCode::from(code)
}

fn serve(ranks: &Ranks) -> Result<()> {
    let (ranks, cancel) = (ranks.clone(), machine::signals()?.begin());
    let waiting = Context { ranks, cancel, ..Context::cpu(1) };
    while let Some(run) = Served::next(&waiting)? {
        let cx = machine::context_with(&run.config.run, Arc::new(Silent))?;
        run.serve(&cx)?;
    }
    Ok(())
}

/// How often a rank at work looks for alarms.
const LOOK: Duration = Duration::from_millis(100);

/// Passes events on, and stops this rank's work when another has raised an alarm.
pub struct Watch {
    to: Arc<dyn Events>,
    ranks: Ranks,
    cancel: Cancel,
    looked: Mutex<Instant>,
}

impl Watch {
    /// For a rank that `cancel` stops.
    pub fn over(to: Arc<dyn Events>, ranks: &Ranks, cancel: &Cancel) -> Arc<dyn Events> {
        if ranks.size() == 1 {
            return to;
        }
        Arc::new(Watch { to, ranks: ranks.clone(), cancel: cancel.clone(), looked: Mutex::new(Instant::now()) })
    }
}

impl Events for Watch {
    fn on(&self, event: Event<'_>) {
        if let Event::Part(_) = event {
            let mut looked = exec::lock(&self.looked);
            if looked.elapsed() > LOOK {
                *looked = Instant::now();
                if self.ranks.heard().is_some() {
                    self.cancel.stop();
                }
            }
        }
        self.to.on(event);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exec::ranks::together;

    #[test]
    fn an_alarm_stops_the_work_of_a_rank() {
        let (ranks, cancel) = (together(2), Cancel::default());
        let watch = Watch::over(Arc::new(Silent), &ranks[0], &cancel);
        ranks[1].alarm(&Error::data("no disk"));
        std::thread::sleep(LOOK * 2);
        assert!(cancel.check().is_ok());
        watch.on(Event::Part(0.1));
        assert!(cancel.check().is_err());
    }

    #[test]
    fn what_fails_in_the_lead_ends_all_with_its_exit_code() {
        let ranks = together(2);
        std::thread::scope(|scope| {
            let other = scope.spawn(|| {
                let e = ranks[1].receive(0, &Cancel::default()).unwrap_err();
                ranks[1].close(Some(&e));
                e.class()
            });
            lead(&ranks[0], || Class::Data.exit_code());
            assert_eq!(other.join().unwrap(), Class::Data);
        });
    }
}
