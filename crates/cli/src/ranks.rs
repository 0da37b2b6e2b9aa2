//! Which of several processes this one is, and what joins it with the others.

use ddpm_ip::Device;
use ddpm_ip::config::ConfigError;
use ddpm_ip::ranks::{Link, Meeting, Mesh, Place, Pulse, Ranks, Watch};
use ddpm_ip::{Error, Outcome};
use std::io::Write;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

/// Commands whose processes share their work. Others are done by rank 0.
const SHARED: [&str; 10] = [
    "train",
    "classifier-train",
    "super-res-train",
    "sample",
    "classifier-sample",
    "super-res-sample",
    "nll",
    "evaluate",
    "statistics",
    "prepare",
];

/// What launchers tell a process of its number, how many there are, its number on its host and how many are there: Open MPI, MPICH
/// and its kin, Slurm (inside of `srun` alone), `torchrun`.
const LAUNCHERS: [[&str; 4]; 4] = [
    ["OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"],
    ["PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"],
    ["SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_STEP_TASKS_PER_NODE"],
    ["RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"],
];

/// Those of them that are MPI's.
const OF_MPI: usize = 2;

/// A process as it was launched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Launched {
    rank: usize,
    count: usize,
    /// Among those of its host.
    local: usize,
    /// Whether all are on its host.
    one_machine: bool,
    /// Whether MPI joins them, if the program has it.
    by_mpi: bool,
}

impl Launched {
    fn find(variable: impl Fn(&str) -> Option<String>) -> Option<Self> {
        let number = |name: &str| variable(name)?.parse::<usize>().ok();
        let read = |(which, [rank, count, local, locals]): (usize, [&str; 4])| {
            let (rank, count) = (number(rank)?, number(count)?);
            let (local, one_machine) = (number(local).unwrap_or(rank), number(locals) == Some(count));
            Some(Self { rank, count, local, one_machine, by_mpi: which < OF_MPI })
        };
        LAUNCHERS.into_iter().enumerate().find_map(read).filter(|launched| launched.count > 1)
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

/// The GPU of this process, where it is one of several on a machine and nobody named one. A launcher may have left it a single one.
pub(crate) fn own_gpu(device: &str) -> Option<String> {
    let launched = Launched::mine().filter(|_| RANKS.get().is_some_and(|ranks| ranks.count() > 1))?;
    let gpus = || ddpm_ip::net::gpu::gpus().map_or(0, |gpus| gpus.len());
    let count = if ["auto", "cuda"].contains(&device) { gpus() } else { 0 };
    (count > 0).then(|| format!("cuda:{}", launched.local % count))
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
    let (link, meeting) = link(launched)?;
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
        host: meeting.map(|meeting| meeting.host),
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
    // Training compares what comes of the words: the settings, in which a machine's own folder of images has no part.
    if !command.ends_with("train") {
        same_command(&ranks)?;
    }
    Ok(true)
}

/// Refuses processes that were started with other words, or another version, than rank 0.
fn same_command(ranks: &Ranks) -> Result<(), Error> {
    let mine = (env!("CARGO_PKG_VERSION").to_string(), crate::commands::words());
    let said = ranks.gather(&serde_json::to_vec(&mine).expect("texts"))?;
    let read = |said: &Vec<u8>| serde_json::from_slice::<(String, Vec<String>)>(said).unwrap_or_default();
    let (version, words) = read(&said[0]);
    for (rank, said) in said.iter().enumerate() {
        let (their_version, theirs) = read(said);
        let word = |words: &[String], at: usize| words.get(at).map_or("nothing".into(), |word| format!("`{word}`"));
        let what = if their_version != version {
            format!("is version {their_version} of the program, but rank 0 is {version}")
        } else if let Some(at) = (0..words.len().max(theirs.len())).find(|&at| words.get(at) != theirs.get(at)) {
            format!("was started with {} where rank 0 has {}", word(&theirs, at), word(&words, at))
        } else {
            continue;
        };
        return Err(ConfigError(format!("rank {rank} {what}: start all processes with the same command")).into());
    }
    Ok(())
}

/// The number in a variable of the environment.
fn number(name: &str) -> Result<Option<u16>, ConfigError> {
    number_in(name, std::env::var(name).ok())
}

fn number_in(name: &str, text: Option<String>) -> Result<Option<u16>, ConfigError> {
    let read = |text: String| {
        let wrong = || ConfigError(format!("{name} is {text}: it has to be a number from 0 to 65535"));
        text.parse().map_err(|_| wrong())
    };
    text.map(read).transpose()
}

/// The name of this machine.
fn host() -> String {
    let named = std::fs::read_to_string("/proc/sys/kernel/hostname").ok().or_else(|| std::env::var("HOSTNAME").ok());
    named.map_or_else(|| "a machine without a name".into(), |name| name.trim().to_string())
}

/// What joins this process with the others, and where they met if that was by TCP.
fn link(launched: Launched) -> Result<(Arc<dyn Link>, Option<Meeting>), Error> {
    #[cfg(feature = "mpi")]
    if launched.by_mpi {
        return Ok((Arc::new(crate::mpi::Mpi::start()?), None));
    }
    let Some(meeting) = meeting(launched, |name| std::env::var(name).ok())? else {
        let (missing, help) = if launched.by_mpi {
            ("this program was built without MPI", "build it with `cargo build --release --features mpi`, ")
        } else {
            ("MASTER_ADDR is not set", "")
        };
        return Err(ConfigError(format!(
            "{} processes were launched, but nothing joins them, as {missing}: {help}set MASTER_ADDR to the machine of rank 0 so \
             that they meet by TCP, or launch one process",
            launched.count
        ))
        .into());
    };
    let mesh = Mesh::meet(launched.rank, launched.count, &meeting).map_err(|cause| {
        // Nobody else can say it.
        if launched.rank != 0 {
            say(&format!("error: {cause}"));
        }
        Error::Meeting(cause)
    });
    Ok((Arc::new(mesh?), Some(meeting)))
}

/// Where processes meet without MPI, if their environment says it.
fn meeting(launched: Launched, variable: impl Fn(&str) -> Option<String>) -> Result<Option<Meeting>, ConfigError> {
    let slurm = || {
        let same = variable("SLURM_STEP_NUM_TASKS")?.parse() == Ok(launched.count);
        let hosts = variable("SLURM_STEP_NODELIST").or_else(|| variable("SLURM_JOB_NODELIST"))?;
        same.then(|| first_host(&hosts))
    };
    let Some(host) = variable("MASTER_ADDR").or_else(slurm) else { return Ok(None) };
    let number = |name: &str| variable(name).and_then(|text| text.parse::<u64>().ok());
    let port = match number_in("DDPM_IP_PORT", variable("DDPM_IP_PORT"))? {
        Some(port) => port,
        // torchrun itself may hold the port that it names.
        None => match (number("MASTER_PORT"), number("SLURM_JOB_ID")) {
            (Some(port), _) => port.wrapping_add(1) as u16,
            (None, Some(job)) => {
                let step = number("SLURM_STEP_ID").unwrap_or(0);
                20_000 + (job.wrapping_mul(31).wrapping_add(step) % 10_000) as u16
            }
            (None, None) => 29_501,
        },
    };
    let one_machine = launched.one_machine || ["localhost", "127.0.0.1", "::1"].contains(&&*host);
    let of_job = ["DDPM_IP_SECRET", "TORCHELASTIC_RUN_ID", "SLURM_JOB_ID"];
    let secret = of_job.into_iter().find_map(&variable).unwrap_or_default();
    Ok(Some(Meeting { host, port, one_machine, secret }))
}

/// The first machine of a list as Slurm writes it, `a[01-03,7]b,c`.
fn first_host(hosts: &str) -> String {
    let (mut first, mut rest) = (String::new(), hosts);
    while let Some(end) = rest.find(['[', ',']).filter(|&end| rest.as_bytes()[end] == b'[') {
        let (numbers, after) = rest[end + 1..].split_once(']').unwrap_or((&rest[end + 1..], ""));
        first += &rest[..end];
        first += numbers.split(['-', ',']).next().unwrap_or_default();
        rest = after;
    }
    first + rest.split(',').next().unwrap_or_default()
}

/// Ends together: what came of this process's work, once all are known to be well or why not.
pub(crate) fn conclude(result: anyhow::Result<Outcome>) -> anyhow::Result<Outcome> {
    let Some(ranks) = RANKS.get() else { return result };
    match result {
        Ok(done) => ranks.finish().map(|()| done).map_err(anyhow::Error::from),
        Err(error) if matches!(error.downcast_ref(), Some(Error::Over)) => Ok(Outcome::Finished),
        Err(error) if matches!(error.downcast_ref(), Some(Error::Rank { .. })) => Err(error),
        Err(error) if is_broken_gpu(&error) => {
            // The others may wait for this GPU, where nobody can tell them: they notice that the process is gone.
            say(&format!("error: {error:#}"));
            std::process::exit(1)
        }
        Err(error) if matches!(error.downcast_ref(), Some(Error::Gone { .. })) => {
            // Others that lost somebody may have left, too. The watch knows who was the first, and ends the process with that name.
            std::thread::sleep(Duration::from_secs(2));
            Err(error)
        }
        Err(error) => {
            let message = format!("{error:#}");
            for other in ranks.fail(&message) {
                crate::output::complain(&format!("error: {other}"));
            }
            Err(error)
        }
    }
}

/// Whether a GPU failed that was at work.
fn is_broken_gpu(error: &anyhow::Error) -> bool {
    use ddpm_ip::net::{DeviceError, gpu};
    let device = error.downcast_ref().or_else(|| match error.downcast_ref() {
        Some(Error::Device(device)) => Some(device),
        _ => None,
    });
    matches!(device, Some(DeviceError(gpu::Error::Driver { .. } | gpu::Error::Call { .. })))
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

    fn of<'a>(set: &'a [(&'a str, &'a str)]) -> impl Fn(&str) -> Option<String> + 'a {
        |name| set.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_string())
    }

    #[test]
    fn every_launcher_is_known_and_one_process_is_alone() {
        for (which, [rank, count, local, locals]) in LAUNCHERS.into_iter().enumerate() {
            let found = Launched::find(of(&[(rank, "5"), (count, "8"), (local, "1"), (locals, "4")]));
            let by_mpi = which < OF_MPI;
            assert_eq!(found, Some(Launched { rank: 5, count: 8, local: 1, one_machine: false, by_mpi }));
            assert!(Launched::find(of(&[(rank, "5"), (count, "8"), (locals, "8")])).unwrap().one_machine);
            assert_eq!(Launched::find(of(&[(rank, "0"), (count, "1"), (local, "0")])), None);
        }
        // A batch script of Slurm's has a number and no step.
        assert_eq!(Launched::find(of(&[("SLURM_PROCID", "0"), ("SLURM_NTASKS", "8")])), None);
    }

    #[test]
    fn processes_meet_where_their_launcher_says() {
        let launched = |one_machine| Launched { rank: 1, count: 8, local: 1, one_machine, by_mpi: false };
        let met = |set: &[(&str, &str)]| {
            let meeting = meeting(launched(false), of(set)).unwrap();
            meeting.map(|at| (at.host, at.port, at.one_machine, at.secret))
        };
        let at = |host: &str, port, one_machine, secret: &str| Some((host.into(), port, one_machine, secret.into()));
        assert_eq!(met(&[]), None);
        let torchrun = [("MASTER_ADDR", "a.example"), ("MASTER_PORT", "29400"), ("TORCHELASTIC_RUN_ID", "id")];
        assert_eq!(met(&torchrun), at("a.example", 29_401, false, "id"));
        assert_eq!(met(&[("MASTER_ADDR", "localhost")]), at("localhost", 29_501, true, ""));
        let mut slurm =
            vec![("SLURM_STEP_NUM_TASKS", "8"), ("SLURM_STEP_NODELIST", "n[07-09]"), ("SLURM_JOB_ID", "1000")];
        assert_eq!(met(&slurm), at("n07", 21_000, false, "1000"));
        slurm.extend([("DDPM_IP_PORT", "4000"), ("DDPM_IP_SECRET", "s")]);
        assert_eq!(met(&slurm), at("n07", 4000, false, "s"));
        // What Slurm launched are the daemons of an mpirun, say.
        assert_eq!(met(&[("SLURM_STEP_NUM_TASKS", "2"), ("SLURM_STEP_NODELIST", "n[07-09]")]), None);
        assert!(meeting(launched(true), of(&torchrun)).unwrap().unwrap().one_machine);
        assert!(meeting(launched(true), of(&[("MASTER_ADDR", "a"), ("DDPM_IP_PORT", "70000")])).is_err());
    }

    #[test]
    fn the_first_of_slurms_machines() {
        for (hosts, first) in [
            ("a", "a"),
            ("a,b", "a"),
            ("a,b[1-2]", "a"),
            ("node[01-03,07],x", "node01"),
            ("r[1-2]n[30,4].example", "r1n30.example"),
            ("broken[3", "broken3"),
        ] {
            assert_eq!(first_host(hosts), first);
        }
    }
}
