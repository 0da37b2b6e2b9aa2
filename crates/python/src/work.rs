//! Long work beside the interpreter: on a thread of its own, without the GIL, while this one passes its events on and looks
//! whether somebody presses Ctrl-C.

use crate::errors::{Kind, error, raised};
use crate::progress::{Progress, as_dict};
use ddpm_ip::Event;
use ddpm_ip_cli::host::Host;
use pyo3::prelude::*;
use std::any::Any;
use std::process;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread;
use std::time::Duration;

/// How long a press of Ctrl-C may wait.
const PATIENCE: Duration = Duration::from_millis(50);

/// Events that may wait for a slow callback before the work waits, too.
const AHEAD: usize = 256;

/// As much as a program's first thread has.
const STACK: usize = 8 << 20;

/// The process that began to work here; 0: none yet.
static PROCESS: AtomicU32 = AtomicU32::new(0);

/// Refuses to work in a process that was forked after work had begun: the threads that do it were left behind.
pub(crate) fn check_process(py: Python<'_>) -> PyResult<()> {
    let own = process::id();
    let first = PROCESS.compare_exchange(0, own, Ordering::Relaxed, Ordering::Relaxed).unwrap_or_else(|first| first);
    if first == 0 || first == own {
        return Ok(());
    }
    let message = "this process was forked after ddpm_ip had started its threads, which a fork does not copy: start \
                   processes with multiprocessing.get_context(\"spawn\")";
    Err(error(py, Kind::Error, message))
}

/// Who listens to the work.
pub(crate) struct Listener<'py> {
    /// Called with each event as a dictionary.
    pub(crate) callback: Option<Bound<'py, PyAny>>,
    /// Whether a bar shows how far it is, where tqdm is installed.
    pub(crate) progress: bool,
}

/// The other end of the work.
pub(crate) struct Desk {
    pub(crate) stop: Arc<AtomicBool>,
    events: SyncSender<Event>,
}

impl Desk {
    /// Passes an event on.
    pub(crate) fn tell(&self, event: Event) {
        // Nobody listens any more where the interpreter has gone on.
        let _ = self.events.send(event);
    }

    /// As the host of a command.
    pub(crate) fn host(self) -> Host {
        Host { stop: Arc::clone(&self.stop), listen: Box::new(move |event| self.tell(event.clone())) }
    }
}

/// Does `work` on another thread and passes on what it tells. A press of Ctrl-C and a callback that raises stop it: it saves what
/// it has, and then the exception is raised.
pub(crate) fn work<T: Send>(
    py: Python<'_>,
    listener: &Listener<'_>,
    work: impl FnOnce(Desk) -> anyhow::Result<T> + Send,
) -> PyResult<T> {
    check_process(py)?;
    let stop = Arc::new(AtomicBool::new(false));
    let (events, mut received) = sync_channel(AHEAD);
    let desk = Desk { stop: Arc::clone(&stop), events };
    let mut progress = Progress::new(py, listener.progress);
    thread::scope(|scope| {
        let worker = thread::Builder::new().name("ddpm_ip".into()).stack_size(STACK);
        let worker = worker
            .spawn_scoped(scope, || {
                ddpm_ip::instruction_set()?;
                work(desk)
            })
            .map_err(|e| error(py, Kind::Error, format!("no thread can be started: {e}")))?;
        let mut failed: Option<PyErr> = None;
        loop {
            let (receiver, batch) = py.detach(move || next(received));
            received = receiver;
            let Some(batch) = batch else { break };
            if failed.is_none() {
                let outcome = batch.iter().try_for_each(|event| pass_on(py, listener, &mut progress, event));
                failed = outcome.and_then(|()| py.check_signals()).err();
            }
            if failed.is_some() {
                stop.store(true, Ordering::Relaxed);
            }
        }
        progress.close();
        let result = py.detach(|| worker.join());
        match (failed, result) {
            (Some(failed), _) => Err(failed),
            (None, Ok(result)) => result.map_err(|e| raised(py, &e)),
            (None, Err(panic)) => {
                Err(error(py, Kind::Error, format!("a bug in ddpm_ip, please report it: {}", told(panic.as_ref()))))
            }
        }
    })
}

/// The events that are there, after a while; none when the work is over.
fn next(received: Receiver<Event>) -> (Receiver<Event>, Option<Vec<Event>>) {
    let batch = match received.recv_timeout(PATIENCE) {
        Ok(first) => Some(std::iter::once(first).chain(received.try_iter().take(AHEAD)).collect()),
        Err(RecvTimeoutError::Timeout) => Some(Vec::new()),
        Err(RecvTimeoutError::Disconnected) => None,
    };
    (received, batch)
}

fn pass_on(py: Python<'_>, listener: &Listener<'_>, progress: &mut Progress<'_>, event: &Event) -> PyResult<()> {
    match event {
        Event::Notice(text) | Event::Begins(text) => log(py, "info", text)?,
        Event::Warning(text) => log(py, "warning", text)?,
        _ => progress.show(event)?,
    }
    if let (Some(callback), Some(event)) = (&listener.callback, as_dict(py, event)?) {
        callback.call1((event,))?;
    }
    Ok(())
}

/// Tells the logger `ddpm_ip`.
pub(crate) fn log(py: Python<'_>, level: &str, text: &str) -> PyResult<()> {
    let logger = py.import("logging")?.call_method1("getLogger", ("ddpm_ip",))?;
    logger.call_method1(level, ("%s", text)).map(drop)
}

fn told(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("it panicked")
}
