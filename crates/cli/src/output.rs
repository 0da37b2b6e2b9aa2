//! What goes to the terminal.

use std::io::{ErrorKind, Write};

/// Prints a report to standard output.
pub(crate) fn print(text: &str) -> anyhow::Result<()> {
    writeln!(std::io::stdout(), "{text}").map_err(anyhow::Error::from)
}

/// Prints remarks.
pub(crate) fn complain_all(remarks: &[String]) {
    for remark in remarks {
        complain(remark);
    }
}

/// Prints a remark to standard error; where that is closed nobody listens.
pub(crate) fn complain(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// Whether the reader of standard output has gone, as `head` does: no failure of ours.
pub(crate) fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<std::io::Error>().is_some_and(|e| e.kind() == ErrorKind::BrokenPipe)
}
