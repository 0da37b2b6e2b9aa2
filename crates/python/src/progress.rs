//! Events as dictionaries, and as a bar of tqdm's.

use ddpm_ip::Event;
use pyo3::prelude::*;
use pyo3::types::PyDict;

/// A bar, where tqdm is installed.
pub(crate) struct Progress<'py> {
    tqdm: Option<Bound<'py, PyAny>>,
    bar: Option<(String, Bound<'py, PyAny>)>,
    /// Reverse steps per image.
    steps: usize,
    /// Images in all.
    total: usize,
}

impl<'py> Progress<'py> {
    pub(crate) fn new(py: Python<'py>, shown: bool) -> Self {
        let tqdm = shown.then(|| py.import("tqdm.auto").and_then(|tqdm| tqdm.getattr("tqdm")).ok()).flatten();
        Self { tqdm, bar: None, steps: 1, total: 0 }
    }

    pub(crate) fn show(&mut self, event: &Event) -> PyResult<()> {
        match event {
            Event::Started { step, last_step, .. } => {
                self.set("training", *step as f64, last_step.map(|n| n as f64), "")
            }
            Event::Step { step, loss, .. } => {
                // Its total is known from the beginning.
                self.set("training", *step as f64, None, &format!("loss {loss:.4}"))
            }
            Event::Sampling { done, total, steps } => {
                (self.total, self.steps) = (*total, *steps);
                self.set("sampling", (done * steps) as f64, Some((total * steps) as f64), "")
            }
            Event::SampleStep { done, step, batch } => {
                let at = done * self.steps + batch * step;
                self.set("sampling", at as f64, None, &format!("{done}/{} images", self.total))
            }
            Event::Bounded { done, total, .. } => self.set("likelihoods", *done as f64, Some(*total as f64), ""),
            Event::Measuring { what, done, total } | Event::Reading { what, done, total } => {
                self.set(what, *done as f64, Some(*total as f64), "")
            }
            Event::Prepared { done, total } => self.set("images", *done as f64, total.map(|n| n as f64), ""),
            Event::Fetching { done, total } => self.set("bytes", *done as f64, total.map(|n| n as f64), ""),
            _ => Ok(()),
        }
    }

    fn set(&mut self, what: &str, at: f64, total: Option<f64>, beside: &str) -> PyResult<()> {
        let Some(tqdm) = self.tqdm.clone() else { return Ok(()) };
        if self.bar.as_ref().is_none_or(|(of, _)| of != what) {
            self.close();
            let arguments = PyDict::new(tqdm.py());
            arguments.set_item("desc", what)?;
            arguments.set_item("total", total)?;
            arguments.set_item("initial", at)?;
            arguments.set_item("bar_format", "{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}")?;
            self.bar = Some((what.to_string(), tqdm.call((), Some(&arguments))?));
        }
        let Some((_, bar)) = &self.bar else { return Ok(()) };
        if !beside.is_empty() {
            bar.call_method1("set_postfix_str", (beside, false))?;
        }
        let before: f64 = bar.getattr("n")?.extract()?;
        bar.call_method1("update", (at - before,)).map(drop)
    }

    pub(crate) fn close(&mut self) {
        if let Some((_, bar)) = self.bar.take() {
            // A bar that cannot be closed does no harm.
            let _ = bar.call_method0("close");
        }
    }
}

/// What a callback is told of an event, under `event` its name; nothing of what is of no use to it.
pub(crate) fn as_dict<'py>(py: Python<'py>, event: &Event) -> PyResult<Option<Bound<'py, PyDict>>> {
    let told = PyDict::new(py);
    let name = match event {
        Event::Notice(text) | Event::Begins(text) | Event::Warning(text) => {
            told.set_item("text", text)?;
            if matches!(event, Event::Warning(_)) { "warning" } else { "notice" }
        }
        Event::Started { parameters, images, step, last_step, batch_size, .. } => {
            told.set_item("parameters", parameters)?;
            told.set_item("images", images)?;
            told.set_item("step", step)?;
            told.set_item("last_step", last_step)?;
            told.set_item("batch_size", batch_size)?;
            "started"
        }
        Event::Step { step, elapsed, loss } => {
            told.set_item("step", step)?;
            told.set_item("elapsed", elapsed.as_secs_f64())?;
            told.set_item("loss", loss)?;
            "step"
        }
        Event::Log(line) => {
            for (key, value) in line {
                told.set_item(key, value)?;
            }
            "log"
        }
        Event::Grid { step, path } | Event::Checkpoint { step, path } => {
            told.set_item("step", step)?;
            told.set_item("path", path)?;
            if matches!(event, Event::Grid { .. }) { "grid" } else { "checkpoint" }
        }
        Event::Best { step, fid } => {
            told.set_item("step", step)?;
            told.set_item("fid", fid)?;
            "best"
        }
        Event::Sampled { done } => {
            told.set_item("images", done)?;
            "sampled"
        }
        Event::SampleStep { done, step, batch } => {
            told.set_item("images", done)?;
            told.set_item("step", step)?;
            told.set_item("batch", batch)?;
            "sample_step"
        }
        Event::Bounded { done, total, bits_per_dim } => {
            told.set_item("images", done)?;
            told.set_item("total", total)?;
            told.set_item("bits_per_dim", bits_per_dim)?;
            "bounded"
        }
        Event::Measuring { what, done, total } | Event::Reading { what, done, total } => {
            told.set_item("what", what)?;
            told.set_item("done", done)?;
            told.set_item("total", total)?;
            "measuring"
        }
        _ => return Ok(None),
    };
    told.set_item("event", name)?;
    Ok(Some(told))
}
