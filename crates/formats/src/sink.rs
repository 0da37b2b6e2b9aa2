//! What archives are written to.

use std::io::{Result, Seek, SeekFrom, Write};

/// A writer that takes everything in silence once it has failed. A `ZipWriter` that is dropped tries to complete its archive,
/// says so on the standard error if it cannot, and does not expect to find itself before what it has written.
pub(crate) struct Sink<W> {
    inner: W,
    failed: bool,
    at: u64,
    /// The farthest that it has come.
    end: u64,
}

impl<W> Sink<W> {
    pub(crate) fn new(inner: W) -> Self {
        Self { inner, failed: false, at: 0, end: 0 }
    }

    /// Whether anything went wrong is told once.
    fn once<R>(&mut self, result: Result<R>) -> Result<R> {
        self.failed |= result.is_err();
        result
    }
}

impl<W: Write> Write for Sink<W> {
    fn write(&mut self, bytes: &[u8]) -> Result<usize> {
        if self.failed {
            return Ok(bytes.len());
        }
        let result = self.inner.write(bytes);
        let written = self.once(result)?;
        self.at += written as u64;
        self.end = self.end.max(self.at);
        Ok(written)
    }

    fn flush(&mut self) -> Result<()> {
        if self.failed {
            return Ok(());
        }
        let result = self.inner.flush();
        self.once(result)
    }
}

impl<W: Seek> Seek for Sink<W> {
    fn seek(&mut self, to: SeekFrom) -> Result<u64> {
        if self.failed {
            return Ok(self.end);
        }
        let result = self.inner.seek(to);
        self.at = self.once(result)?;
        Ok(self.at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::npz::NpzWriter;
    use std::io::{Cursor, Error};

    /// A disk that fails once, at an operation.
    struct Failing {
        disk: Cursor<Vec<u8>>,
        left: usize,
    }

    impl Failing {
        fn operation(&mut self) -> Result<()> {
            let (left, over) = self.left.overflowing_sub(1);
            self.left = left;
            if over { Err(Error::other("it fails")) } else { Ok(()) }
        }
    }

    impl Write for Failing {
        fn write(&mut self, bytes: &[u8]) -> Result<usize> {
            self.operation()?;
            self.disk.write(bytes)
        }

        fn flush(&mut self) -> Result<()> {
            self.operation()
        }
    }

    impl Seek for Failing {
        fn seek(&mut self, to: SeekFrom) -> Result<u64> {
            self.operation()?;
            self.disk.seek(to)
        }
    }

    #[test]
    fn an_archive_on_a_disk_that_fails_is_an_error_wherever_it_fails() {
        let write = |left: usize| -> Result<()> {
            let disk = Failing { disk: Cursor::default(), left };
            let mut npz = NpzWriter::new(std::io::BufWriter::with_capacity(64, disk));
            for name in ["arr_0", "arr_1"] {
                npz.array::<u8>(name, &[100], |push| push(&[7; 100]))?;
            }
            npz.finish_with("a comment")
        };
        let fails = (0..10_000).take_while(|&left| write(left).is_err()).count();
        assert!((20..10_000).contains(&fails), "{fails} operations");
    }
}
