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

    /// Sends each rank the values that `sends` has for it, one slice after another, and returns what each has for this one: `expected`
    /// says how many values. Nothing goes from a rank to itself.
    ///
    /// # Errors
    /// A process that is gone.
    fn exchange(&self, sends: &[Vec<&[f32]>], expected: &[usize]) -> Result<Vec<Vec<f32>>>;

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
        let own = parts[self.rank()].clone();
        let others = |rank| rank != self.rank();
        let sends: Vec<Vec<&[f32]>> =
            (0..count).map(|rank| if others(rank) { vec![&values[parts[rank].clone()]] } else { Vec::new() }).collect();
        let expected: Vec<usize> = (0..count).map(|rank| if others(rank) { own.len() } else { 0 }).collect();
        let received = self.exchange(&sends, &expected)?;
        for theirs in received {
            values[own.clone()].iter_mut().zip(&theirs).for_each(|(sum, v)| *sum += v);
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

    fn exchange(&self, _: &[Vec<&[f32]>], _: &[usize]) -> Result<Vec<Vec<f32>>> {
        Ok(vec![Vec::new()])
    }

    fn spread(&self, _: &mut [f32], _: &[Range<usize>]) -> Result<()> {
        Ok(())
    }
}
