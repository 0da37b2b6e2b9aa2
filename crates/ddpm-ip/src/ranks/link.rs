//! What carries values between processes.

use std::io::Result;
use std::ops::Range;

/// What joins the processes of a run. All of them call the same functions in the same order; each waits until all others have.
pub trait Link: Send + Sync {
    /// This process's number.
    fn rank(&self) -> usize;

    /// How many there are.
    fn count(&self) -> usize;

    /// The bytes of each rank, as many as each likes, in order.
    ///
    /// # Errors
    /// A process that is gone.
    fn gather(&self, mine: &[u8]) -> Result<Vec<Vec<u8>>>;

    /// Sends each rank its part of `send`, `counts` values for each in order, and returns what all have for this one,
    /// `expected` values of each in order.
    ///
    /// # Errors
    /// A process that is gone.
    fn exchange(&self, send: &[f32], counts: &[usize], expected: &[usize]) -> Result<Vec<f32>>;

    /// Fills in the parts of `values` that the other ranks have; `parts` says where each rank's lies.
    ///
    /// # Errors
    /// A process that is gone.
    fn spread(&self, values: &mut [f32], parts: &[Range<usize>]) -> Result<()>;

    /// Replaces values by their sum over all ranks, in whatever order is the fastest; all ranks have the same bits.
    ///
    /// # Errors
    /// A process that is gone.
    fn sum(&self, values: &mut [f32]) -> Result<()> {
        let (count, len) = (self.count(), values.len());
        let parts: Vec<Range<usize>> = (0..count).map(|rank| rank * len / count..(rank + 1) * len / count).collect();
        let (own, counts) = (parts[self.rank()].clone(), parts.iter().map(Range::len).collect::<Vec<_>>());
        let received = self.exchange(values, &counts, &vec![own.len(); count])?;
        if own.is_empty() {
            return self.spread(values, &parts);
        }
        values[own.clone()].fill(0.0);
        for theirs in received.chunks_exact(own.len()) {
            values[own.clone()].iter_mut().zip(theirs).for_each(|(sum, v)| *sum += v);
        }
        self.spread(values, &parts)
    }
}

/// One process, which has nobody to wait for.
#[derive(Clone, Copy, Debug)]
pub struct Alone;

impl Link for Alone {
    fn rank(&self) -> usize {
        0
    }

    fn count(&self) -> usize {
        1
    }

    fn gather(&self, mine: &[u8]) -> Result<Vec<Vec<u8>>> {
        Ok(vec![mine.to_vec()])
    }

    fn exchange(&self, send: &[f32], _: &[usize], _: &[usize]) -> Result<Vec<f32>> {
        Ok(send.to_vec())
    }

    fn spread(&self, _: &mut [f32], _: &[Range<usize>]) -> Result<()> {
        Ok(())
    }
}
