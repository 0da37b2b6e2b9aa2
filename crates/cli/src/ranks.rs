//! Which of several processes this one is, and what joins it with the others.

use ddpm_ip::Device;
use ddpm_ip::config::ConfigError;
use ddpm_ip::ranks::{Link, Place, Pulse, Ranks, Watch};
use ddpm_ip::{Error, Outcome};
use std::io::Write;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

/// Commands whose processes share their work. Others are done by rank 0.
const SHARED: [&str; 9] = [
    "train",
    "classifier-train",
    "super-res-train",
    "sample",
    "classifier-sample",
    "super-res-sample",
    "nll",
    "evaluate",
    "statistics",
];

/// What launchers tell a process of its number, how many there are, and its number on its host: Open MPI, MPICH and its kin, Slurm
/// (inside of `srun` alone), `torchrun`.
const LAUNCHERS: [[&str; 3]; 4] = [
    ["OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"],
    ["PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID"],
    ["SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"],
    ["RANK", "WORLD_SIZE", "LOCAL_RANK"],
];

/// A process as it was launched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Launched {
    rank: usize,
    count: usize,
    /// Among those of its host.
    local: usize,
}

impl Launched {
    fn find(variable: impl Fn(&str) -> Option<String>) -> Option<Self> {
        let number = |name: &str| variable(name)?.parse::<usize>().ok();
        let read = |[rank, count, local]: [&str; 3]| {
            let (rank, count) = (number(rank)?, number(count)?);
            Some(Self { rank, count, local: number(local).unwrap_or(rank) })
        };
        LAUNCHERS.into_iter().find_map(read).filter(|launched| launched.count > 1)
    }

    /// How this process was launched, if it is one of several.
    fn mine() -> Option<Self> {
        static MINE: OnceLock<Option<Launched>> = OnceLock::new();
        *MINE.get_or_init(|| Self::find(|name| std::env::var(name).ok()))
    }
}

static RANKS: OnceLock<Ranks> = OnceLock::new();
static PULSE: Mutex<Option<Pulse>> = Mutex::new(None);

/// Where this process works.
pub(crate) fn place(device: Device) -> Place {
    Place { device, ranks: ranks() }
}

/// The processes that share this one's work.
pub(crate) fn ranks() -> Ranks {
    RANKS.get().cloned().unwrap_or_default()
}

/// Whether this process speaks for all.
pub(crate) fn speaks() -> bool {
    Launched::mine().is_none_or(|launched| launched.rank == 0)
}

/// Says something of this process's own, whichever it is.
pub(crate) fn say(text: &str) {
    let rank = Launched::mine().map_or(0, |launched| launched.rank);
    let _ = writeln!(std::io::stderr(), "rank {rank} on {}: {text}", host());
}

/// The GPU of this process, where it is one of several on a machine and nobody named one.
pub(crate) fn own_gpu(device: &str) -> Option<String> {
    let launched = Launched::mine().filter(|_| RANKS.get().is_some_and(|ranks| ranks.count() > 1))?;
    ["auto", "cuda"].contains(&device).then(|| format!("cuda:{}", launched.local))
}

/// Meets the other processes; whether this one has something to do.
///
/// # Errors
/// Several processes that nothing joins.
pub(crate) fn join(command: &str) -> Result<bool, Error> {
    let Some(launched) = Launched::mine() else { return Ok(true) };
    if !SHARED.contains(&command) {
        return Ok(launched.rank == 0);
    }
    let link = link(launched)?;
    if (link.rank(), link.count()) != (launched.rank, launched.count) {
        return Err(ConfigError(format!(
            "this is process {} of {} by its environment, but {} of {} by MPI: launch all with the mpirun of the MPI that this \
             program was built with",
            launched.rank,
            launched.count,
            link.rank(),
            link.count()
        ))
        .into());
    }
    let ranks = Ranks::meet(link, &host())?;
    if !ranks.leads() {
        // A signal is the others' matter, too: all stop together.
        crate::interrupt::work_begins();
    }
    // From here on what goes wrong is told to all.
    let _ = RANKS.set(ranks.clone());
    let watch = Watch {
        port: number("DDPM_IP_PORT")?.unwrap_or_default(),
        silence: number("DDPM_IP_SILENCE")?
            .map_or(Watch::default().silence, |secs| Duration::from_secs(u64::from(secs))),
    };
    // Whoever waits inside of MPI cannot be asked to end.
    let lost = |error: &Error| {
        say(&format!("error: {error}: ending"));
        std::process::exit(1);
    };
    let pulse = Pulse::begin(&ranks, watch, lost)?;
    *PULSE.lock().unwrap_or_else(PoisonError::into_inner) = Some(pulse);
    Ok(true)
}

/// The number in a variable of the environment.
fn number(name: &str) -> Result<Option<u16>, ConfigError> {
    let read = |text: String| text.parse().map_err(|_| ConfigError(format!("{name} is {text}: it has to be a number")));
    std::env::var(name).ok().map(read).transpose()
}

/// The name of this machine.
fn host() -> String {
    let named = std::fs::read_to_string("/proc/sys/kernel/hostname").ok().or_else(|| std::env::var("HOSTNAME").ok());
    named.map_or_else(|| "a machine without a name".into(), |name| name.trim().to_string())
}

#[cfg(feature = "mpi")]
fn link(_: Launched) -> Result<Arc<dyn Link>, ConfigError> {
    Ok(Arc::new(crate::mpi::Mpi::start()?))
}

#[cfg(not(feature = "mpi"))]
fn link(Launched { count, .. }: Launched) -> Result<Arc<dyn Link>, ConfigError> {
    Err(ConfigError(format!(
        "{count} processes were launched, but this program was built without MPI and cannot join them: build it with \
         `cargo build --release --features mpi`, or launch one process"
    )))
}

/// Ends together: what came of this process's work, once all are known to be well or why not.
pub(crate) fn conclude(result: anyhow::Result<Outcome>) -> anyhow::Result<Outcome> {
    let Some(ranks) = RANKS.get() else { return result };
    match result {
        Ok(done) => ranks.finish().map(|()| done).map_err(anyhow::Error::from),
        Err(error) if matches!(error.downcast_ref(), Some(Error::Over)) => Ok(Outcome::Finished),
        Err(error) if matches!(error.downcast_ref(), Some(Error::Rank { .. } | Error::Gone { .. })) => Err(error),
        Err(error) => {
            let message = format!("{error:#}");
            for other in ranks.fail(&message) {
                crate::output::complain(&format!("error: {other}"));
            }
            Err(error)
        }
    }
}

/// Takes leave of the others, after which nothing may be sent.
pub(crate) fn leave() {
    drop(PULSE.lock().unwrap_or_else(PoisonError::into_inner).take());
    #[cfg(feature = "mpi")]
    crate::mpi::leave();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_launcher_is_known_and_one_process_is_alone() {
        let with = |set: &[(&str, &str)]| {
            Launched::find(|name| set.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_string()))
        };
        for [rank, count, local] in LAUNCHERS {
            let found = with(&[(rank, "5"), (count, "8"), (local, "1")]);
            assert_eq!(found, Some(Launched { rank: 5, count: 8, local: 1 }));
            assert_eq!(with(&[(rank, "0"), (count, "1"), (local, "0")]), None);
        }
        // A batch script of Slurm's has a number and no step.
        assert_eq!(with(&[("SLURM_PROCID", "0"), ("SLURM_NTASKS", "8")]), None);
    }
}
