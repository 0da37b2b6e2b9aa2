//! Ctrl-C: the first asks to stop, the second quits.

use crate::output::complain;
use std::sync::atomic::{AtomicBool, Ordering};

static STOP: AtomicBool = AtomicBool::new(false);

/// A flag that is set when the user (or the system) asks the program to stop.
pub(crate) fn flag() -> anyhow::Result<&'static AtomicBool> {
    ctrlc::set_handler(|| {
        if STOP.swap(true, Ordering::Relaxed) {
            std::process::exit(crate::INTERRUPTED.into());
        }
        complain("stopping after this step, saving first; Ctrl-C again quits at once");
    })?;
    Ok(&STOP)
}
