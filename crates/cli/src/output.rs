//! What goes to the terminal.

use crate::{host, ranks};
use ddpm_ip::Event;
use std::borrow::Cow;
use std::io::{ErrorKind, Write};

/// Prints a report to standard output, or gives it to the host.
pub(crate) fn print(text: &str) -> anyhow::Result<()> {
    if host::report(text).is_some() || !ranks::speaks() {
        return Ok(());
    }
    writeln!(std::io::stdout(), "{}", harmless(text)).map_err(anyhow::Error::from)
}

/// Prints remarks.
pub(crate) fn complain_all(remarks: &[String]) {
    for remark in remarks {
        complain(remark);
    }
}

/// Prints a remark to standard error, or tells the host; where standard error is closed nobody listens.
pub(crate) fn complain(text: &str) {
    if host::tell(&Event::Notice(text.into())).is_some() || !ranks::speaks() {
        return;
    }
    let _ = writeln!(std::io::stderr(), "{}", harmless(text));
}

/// A text in which names of files and tensors cannot command the terminal.
fn harmless(text: &str) -> Cow<'_, str> {
    let commands = |c: char| c.is_control() && !matches!(c, '\n' | '\t');
    if !text.contains(commands) {
        return text.into();
    }
    text.chars().map(|c| if commands(c) { c.escape_default().to_string() } else { c.into() }).collect()
}

/// Whether the reader of standard output has gone, as `head` does: no failure of ours.
pub(crate) fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<std::io::Error>().is_some_and(|e| e.kind() == ErrorKind::BrokenPipe)
}
