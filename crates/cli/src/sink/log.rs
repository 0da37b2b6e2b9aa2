//! What the logs of a run have in common.

use ddpm_ip::Error;

/// One log file, once training has begun.
pub(super) trait Log {
    /// Takes a remark.
    fn say(&mut self, _text: &str) -> Result<(), Error> {
        Ok(())
    }

    /// Takes the values of a step.
    fn log(&mut self, line: &[(String, f64)]) -> Result<(), Error>;

    /// Makes durable what it has taken.
    fn sync(&self) -> Result<(), Error>;
}

/// A log line for people: without quartiles.
pub(super) fn log_line(line: &[(String, f64)]) -> String {
    let shown = line.iter().filter(|(key, _)| !key.contains("_q"));
    let words: Vec<String> =
        shown.map(|(key, v)| if v.fract() == 0.0 { format!("{key} {v}") } else { format!("{key} {v:.4e}") }).collect();
    words.join("  ")
}
