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
