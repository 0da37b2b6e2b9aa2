//! The program inside another one, which takes the report, the events and the remarks in place of a terminal.

use crate::commands;
use clap::{Arg, ArgAction, Command};
use ddpm_ip::config::ConfigError;
use ddpm_ip::{Event, Outcome};
use std::cell::RefCell;
use std::ffi::OsString;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// What a program takes of a command that it runs.
pub struct Host {
    /// Whoever sets it has the command save what it has, and stop.
    pub stop: Arc<AtomicBool>,
    /// Receives events; remarks come as notices.
    pub listen: Box<dyn FnMut(&Event)>,
}

/// A host at work, with what was reported so far.
struct Serving {
    host: Host,
    report: String,
}

thread_local! {
    /// Whom this thread works for, if not for a terminal.
    static SERVING: RefCell<Option<Serving>> = const { RefCell::new(None) };
}

/// Ends a thread's service, also where a command panics.
struct End;

impl Drop for End {
    fn drop(&mut self) {
        SERVING.take();
    }
}

/// Runs a command line, the program's name first, for a host: no signal is caught and nothing is printed. The result is what the
/// command would print, which is JSON with `--json`.
///
/// # Errors
/// A command line that does not read, as a [`ConfigError`], and what the command says.
pub fn call(words: impl IntoIterator<Item = OsString>, host: Host) -> anyhow::Result<(Outcome, String)> {
    let matches = commands::read(words)?;
    serve(host, || commands::run(&matches))
}

/// Does something in the service of a host; with what was reported.
///
/// # Errors
/// What `work` says, and a device that fails.
pub fn serve<T>(host: Host, work: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<(T, String)> {
    SERVING.set(Some(Serving { host, report: String::new() }));
    let _end = End;
    let done = ddpm_ip::net::Device::guard(work)??;
    let report = SERVING.with_borrow_mut(|serving| serving.as_mut().map(|s| std::mem::take(&mut s.report)));
    Ok((done, report.unwrap_or_default()))
}

/// What a host that is served does with something; none where there is a terminal instead.
fn with<T>(act: impl FnOnce(&mut Serving) -> T) -> Option<T> {
    SERVING.with_borrow_mut(|serving| serving.as_mut().map(act))
}

/// Whether this thread works for a host.
pub(crate) fn is_served() -> bool {
    with(|_| ()).is_some()
}

/// The host's flag to stop.
pub(crate) fn stop() -> Option<Arc<AtomicBool>> {
    with(|serving| Arc::clone(&serving.host.stop))
}

/// Gives a report to the host, if there is one.
pub(crate) fn report(text: &str) -> Option<()> {
    with(|serving| serving.report = text.to_string())
}

/// Tells the host, if there is one.
pub(crate) fn tell(event: &Event) -> Option<()> {
    with(|serving| (serving.host.listen)(event))
}

/// What comes of a command line that does not read.
pub(crate) fn refused(error: &clap::Error) -> anyhow::Error {
    let text = error.to_string();
    ConfigError(text.trim_start_matches("error: ").trim_end().to_string()).into()
}

/// A command of the program, for a host that names it.
pub struct Named(Command);

impl Named {
    /// The command of that name.
    ///
    /// # Errors
    /// None of that name: the message lists them.
    pub fn find(name: &str) -> Result<Self, ConfigError> {
        let all = commands::all();
        let names: Vec<String> = all.iter().map(|command| command.get_name().to_string()).collect();
        let found = all.into_iter().find(|command| command.get_name() == name);
        found
            .map(Self)
            .ok_or_else(|| ConfigError(format!("there is no command {name:?}: choose one of {}", names.join(", "))))
    }

    /// Whether it has a flag.
    pub fn has(&self, flag: &str) -> bool {
        self.0.get_arguments().any(|arg| arg.get_long() == Some(flag))
    }

    /// The words of a flag, named as it is or with underscores. A switch that is true is its name alone, and nothing where it is
    /// false. Several values repeat a flag that may be repeated, and are joined by commas for others.
    pub fn words(&self, flag: &str, values: &[String]) -> Vec<OsString> {
        let name = flag.replace('_', "-");
        let is_it = |arg: &&Arg| {
            arg.get_long() == Some(&name)
                || arg.get_all_aliases().is_some_and(|aliases| aliases.contains(&name.as_str()))
        };
        let action = self.0.get_arguments().find(is_it).map(Arg::get_action);
        let text = |value: &str| OsString::from(format!("--{name}={value}"));
        match (action, values) {
            (Some(ArgAction::SetTrue), [value]) if value == "false" => Vec::new(),
            (Some(ArgAction::SetTrue), [value]) if value == "true" => vec![format!("--{name}").into()],
            (Some(ArgAction::Append), values) => values.iter().map(|value| text(value)).collect(),
            (_, values) => vec![text(&values.join(","))],
        }
    }
}
