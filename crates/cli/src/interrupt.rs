//! Ctrl-C (also SIGTERM and SIGHUP): the first asks to stop, the second quits. Before there is work to save the first one quits.
//! SIGUSR1 asks a training to save and go on; other work keeps what it has finished anyway, and passes it over.

use crate::output::complain;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock, OnceLock};
use std::time::{Duration, Instant};

/// How an interrupted program ends.
pub(crate) const EXIT_CODE: u8 = 130;

static STOP: LazyLock<Arc<AtomicBool>> = LazyLock::new(Arc::default);
/// Whether there is work to save.
static WORKING: AtomicBool = AtomicBool::new(false);
static FIRST: OnceLock<Instant> = OnceLock::new();

/// Signals closer together than this are one: `timeout` and others signal the process and its group.
const ONE: Duration = Duration::from_millis(300);

/// A flag that is set when the user, the system or the host asks the program to stop.
pub(crate) fn flag() -> anyhow::Result<Arc<AtomicBool>> {
    if let Some(stop) = crate::host::stop() {
        return Ok(stop);
    }
    ctrlc::set_handler(|| {
        if !WORKING.load(Ordering::Relaxed) {
            quit();
        }
        if STOP.swap(true, Ordering::Relaxed) {
            if FIRST.get().is_none_or(|first| first.elapsed() > ONE) {
                quit();
            }
            return;
        }
        FIRST.get_or_init(Instant::now);
        complain("saving and stopping after this step; press Ctrl-C again to quit at once");
    })?;
    Ok(Arc::clone(&STOP))
}

/// A flag that SIGUSR1 sets: a batch system's wish that a run saves and goes on. From the first call on the signal does not
/// end the program.
pub(crate) fn save_flag() -> Arc<AtomicBool> {
    static SAVE: OnceLock<Arc<AtomicBool>> = OnceLock::new();
    if crate::host::is_served() {
        return Arc::default();
    }
    let flag = SAVE.get_or_init(|| {
        let flag = Arc::default();
        // It fails for other signals alone.
        #[cfg(unix)]
        let _ = signal_hook::flag::register(signal_hook::consts::SIGUSR1, Arc::clone(&flag));
        flag
    });
    Arc::clone(flag)
}

/// From now on a signal saves before it stops.
pub(crate) fn work_begins() {
    WORKING.store(true, Ordering::Relaxed);
}

fn quit() -> ! {
    std::process::exit(EXIT_CODE.into())
}
