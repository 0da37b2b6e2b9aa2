//! Processes that share a run. Each has a rank, from 0; rank 0 writes the files.
//!
//! **The same bits whatever the number of processes.** A step's gradient is the sum over its pieces, the microbatches, as a balanced
//! binary tree ([`ddpm_net::partial_sums`]). Each rank takes a contiguous share of the pieces, and computes the partial sums of the
//! tree that lie in it: one, if the share is aligned to a power of two. Every rank receives its part of the parameters of all
//! partial sums, adds them in the order of the tree, and sends the result to all. With one partial sum a rank, a rank sends and
//! receives 2 (n − 1)/n times the gradient, which is the least that any sum over n ranks needs.
//!
//! What is random depends on an image's place in the run already, and so not on who draws it. The terms of the loss are known to
//! all ranks, in the order of the images: so they agree on the time sampler's history, on the scale of the loss, and on whether
//! it is finite.

mod link;
mod meet;
mod mesh;
mod pulse;

pub use link::{Alone, Link};
pub use mesh::{Meeting, Mesh};
pub use pulse::{Pulse, Watch};

use crate::Error;
use crate::config::{ConfigError, TrainConfig};
use ddpm_net::{Device, Gradient, Parameters, add_partial_sums, partial_sums};
use std::ops::Range;
use std::sync::Arc;

/// The processes of a run, seen from one of them.
#[derive(Clone)]
pub struct Ranks {
    link: Arc<dyn Link>,
    /// The machine of each.
    hosts: Arc<[String]>,
}

impl Default for Ranks {
    /// One process alone.
    fn default() -> Self {
        Self { link: Arc::new(Alone), hosts: [String::new()].into() }
    }
}

impl std::fmt::Debug for Ranks {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(f, "rank {} of {}", self.rank(), self.count())
    }
}

/// Where work is done.
#[derive(Clone, Debug, Default)]
pub struct Place {
    /// The device of this process.
    pub device: Device,
    /// The processes that share the work. All of them call the same function; rank 0 alone writes files and knows the result.
    pub ranks: Ranks,
}

impl From<Device> for Place {
    fn from(device: Device) -> Self {
        Self { device, ..Self::default() }
    }
}

/// The images of a step that a process takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Share {
    /// Images of the step.
    pub batch: usize,
    /// Those of the process.
    pub images: Range<usize>,
}

impl From<usize> for Share {
    /// All of a batch.
    fn from(batch: usize) -> Self {
        Self { batch, images: 0..batch }
    }
}

/// What a process says before its bytes: that it is at work, why it ends, or that its work is done.
const WORKS: u8 = 0;
const FAILED: u8 = 1;
const DONE: u8 = 2;

impl Ranks {
    /// Meets the processes that a link joins, from a machine of this name.
    ///
    /// # Errors
    /// A process that is gone.
    pub fn meet(link: Arc<dyn Link>, host: &str) -> Result<Self, Error> {
        let hosts = link.gather(host.as_bytes()).map_err(|cause| Error::Gone { rank: link.rank(), cause })?;
        let hosts = hosts.iter().map(|host| String::from_utf8_lossy(host).into_owned()).collect();
        Ok(Self { link, hosts })
    }

    /// This process's number.
    pub fn rank(&self) -> usize {
        self.link.rank()
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.link.count()
    }

    /// Whether this one writes files and speaks.
    pub fn leads(&self) -> bool {
        self.rank() == 0
    }

    /// How settings cut a step where nobody said it: as a run was cut before, or else each rank has one microbatch.
    ///
    /// # Errors
    /// Fewer microbatches than ranks.
    pub fn cut(&self, settings: &mut TrainConfig, before: Option<&TrainConfig>) -> Result<(), ConfigError> {
        let (count, batch) = (self.count(), settings.batch_size);
        if settings.microbatch <= 0 {
            let same = |before: &&TrainConfig| before.batch_size == batch && before.microbatch > 0;
            settings.microbatch = before.filter(same).map_or(settings.microbatch, |before| before.microbatch);
        }
        if count == 1 {
            return Ok(());
        }
        if settings.microbatch <= 0 {
            settings.microbatch = batch.div_ceil(count) as i64;
        }
        let (micro, pieces) = (settings.microbatch_size(), batch.div_ceil(settings.microbatch_size()));
        if pieces >= count {
            return Ok(());
        }
        let help = match batch / count {
            0 => format!("use a --batch-size of at least {count}, or fewer processes"),
            _ => format!(
                "use --microbatch {} or less, a --batch-size that is a multiple of {count}, or fewer processes",
                (batch - 1) / (count - 1)
            ),
        };
        Err(ConfigError(format!(
            "{count} processes cannot share a batch of {batch} images in {pieces} microbatches of {micro}: {help}"
        )))
    }

    /// The microbatches that a rank takes of so many.
    fn pieces(&self, rank: usize, pieces: usize) -> Range<usize> {
        rank * pieces / self.count()..(rank + 1) * pieces / self.count()
    }

    /// The images of a step that this process takes.
    pub fn share(&self, settings: &TrainConfig) -> Share {
        let (batch, micro) = (settings.batch_size, settings.microbatch_size());
        let pieces = self.pieces(self.rank(), batch.div_ceil(micro));
        Share { batch, images: pieces.start * micro..(pieces.end * micro).min(batch) }
    }

    /// The partial sums of a step of so many microbatches that a rank computes.
    pub(crate) fn partial_sums(&self, rank: usize, pieces: usize) -> Vec<Range<usize>> {
        partial_sums(pieces, &self.pieces(rank, pieces))
    }

    /// The gradient of a step of so many microbatches from each rank's partial sums.
    ///
    /// # Errors
    /// A process that is gone.
    pub(crate) fn sum(&self, mut mine: Vec<Gradient>, pieces: usize) -> Result<Gradient, Error> {
        let count = self.count();
        if count == 1 {
            return Ok(mine.pop().expect("a batch has images"));
        }
        let mut values: Vec<_> = mine.iter_mut().map(Gradient::values).collect();
        let len = values[0].len();
        let segment = |rank: usize| rank * len / count..(rank + 1) * len / count;
        let segments: Vec<Range<usize>> = (0..count).map(segment).collect();
        let own = segments[self.rank()].len();
        let sums: Vec<Vec<Range<usize>>> = (0..count).map(|rank| self.partial_sums(rank, pieces)).collect();
        let rounds = sums.iter().map(Vec::len).max().unwrap_or(0);
        let mut parts = Vec::new();
        for round in 0..rounds {
            let send = values.get(round).map_or(&[][..], |values| values);
            let counts: Vec<usize> = segments.iter().map(|part| if send.is_empty() { 0 } else { part.len() }).collect();
            let expected: Vec<usize> = sums.iter().map(|sums| if round < sums.len() { own } else { 0 }).collect();
            let received = self.call(|link| link.exchange(send, &counts, &expected))?;
            let of_round = sums.iter().filter_map(|sums| sums.get(round)).cloned();
            let begins = (0..received.len()).step_by(own.max(1));
            parts.extend(of_round.zip(begins).map(|(pieces, begin)| (pieces, received[begin..begin + own].to_vec())));
        }
        let mut all = values.swap_remove(0).into_owned();
        drop(values);
        all[segments[self.rank()].clone()].copy_from_slice(&add_partial_sums(parts));
        self.call(|link| link.spread(&mut all, &segments))?;
        let mut gradient = mine.swap_remove(0);
        gradient.set(&all);
        Ok(gradient)
    }

    /// Gives all ranks the values that rank 0 has.
    ///
    /// # Errors
    /// A process that is gone.
    pub(crate) fn spread(&self, parameters: &mut Parameters) -> Result<(), Error> {
        if self.count() == 1 {
            return Ok(());
        }
        let values = parameters.values_mut();
        let mut parts = vec![values.len()..values.len(); self.count()];
        parts[0] = 0..values.len();
        self.call(|link| link.spread(values, &parts))
    }

    /// What each rank says, in order.
    ///
    /// # Errors
    /// A process that is gone, and one that says why it ends ([`fail`](Self::fail)).
    pub fn gather(&self, mine: &[u8]) -> Result<Vec<Vec<u8>>, Error> {
        if self.count() == 1 {
            return Ok(vec![mine.to_vec()]);
        }
        let said = self.call(|link| link.gather(&[&[WORKS], mine].concat()))?;
        let failed = said.iter().enumerate().find(|(_, said)| said.first() == Some(&FAILED));
        if let Some((rank, said)) = failed {
            return Err(self.failure(rank, &String::from_utf8_lossy(&said[1..])));
        }
        // What rank 0 finds done, nobody has to do.
        if said[0].first() == Some(&DONE) {
            return Err(Error::Over);
        }
        if let Some(rank) = said.iter().position(|said| said.first() == Some(&DONE)) {
            return Err(self.failure(rank, "ended before the others"));
        }
        Ok(said.into_iter().map(|mut said| said.split_off(1)).collect())
    }

    /// Says that this process's work is done, and waits until all others' is.
    ///
    /// # Errors
    /// As [`gather`](Self::gather).
    pub fn finish(&self) -> Result<(), Error> {
        if self.count() == 1 {
            return Ok(());
        }
        let said = self.call(|link| link.gather(&[DONE]))?;
        let failed = said.iter().enumerate().find(|(_, said)| said.first() == Some(&FAILED));
        failed.map_or(Ok(()), |(rank, said)| Err(self.failure(rank, &String::from_utf8_lossy(&said[1..]))))
    }

    /// Makes images `done..total` in batches of at most so many, which all ranks take in turn, and passes the bytes of each batch
    /// on to `take` at rank 0, in order. `make` gives none if it was stopped. Whether all were made; `done` counts those that
    /// were.
    ///
    /// # Errors
    /// What `make` and `take` say, and as [`gather`](Self::gather).
    pub(crate) fn share_out(
        &self,
        done: &mut usize,
        total: usize,
        batch: usize,
        mut make: impl FnMut(Range<usize>) -> Result<Option<Vec<u8>>, Error>,
        mut take: impl FnMut(&[u8], usize) -> Result<bool, Error>,
    ) -> Result<bool, Error> {
        let told = self.told(&(*done as u64).to_le_bytes())?;
        *done = u64::from_le_bytes(told.try_into().unwrap_or_default()) as usize;
        let mut go_on = true;
        while *done < total && go_on {
            let batch = batch.min((total - *done).div_ceil(self.count()));
            let of_rank = |rank: usize| {
                let begin = (*done + rank * batch).min(total);
                begin..(begin + batch).min(total)
            };
            let mine = of_rank(self.rank());
            let made = if mine.is_empty() { Some(Vec::new()) } else { make(mine)? };
            let said = self.gather(&made.map_or_else(Vec::new, |bytes| [&[1], &bytes[..]].concat()))?;
            let shares: Vec<Range<usize>> = (0..self.count()).map(of_rank).collect();
            for (share, said) in shares.iter().zip(&said) {
                let Some((_, bytes)) = said.split_first() else { return Ok(false) };
                if !share.is_empty() {
                    *done = share.end;
                    go_on &= take(bytes, *done)?;
                }
            }
            // Whoever stops, all do.
            go_on = self.gather(&[u8::from(go_on)])?.iter().all(|said| said == &[1]);
        }
        Ok(*done == total)
    }

    /// Numbers of each rank, in order.
    ///
    /// # Errors
    /// As [`gather`](Self::gather).
    pub(crate) fn gather_numbers(&self, mine: &[f64]) -> Result<Vec<Vec<f64>>, Error> {
        let said = self.gather(bytemuck::cast_slice(mine))?;
        Ok(said.iter().map(|said| bytemuck::pod_collect_to_vec(said)).collect())
    }

    /// What rank 0 says.
    ///
    /// # Errors
    /// As [`gather`](Self::gather).
    pub(crate) fn told(&self, by_first: &[u8]) -> Result<Vec<u8>, Error> {
        let mine = if self.leads() { by_first } else { &[] };
        Ok(self.gather(mine)?.swap_remove(0))
    }

    /// Tells all others why this process ends: the next that they [`gather`](Self::gather) fails. Gives what others say who end
    /// as well, for other reasons.
    pub fn fail(&self, why: &str) -> Vec<Error> {
        if self.count() == 1 {
            return Vec::new();
        }
        let mine = [&[FAILED], why.as_bytes()].concat();
        let said = self.link.gather(&mine).unwrap_or_default().into_iter().enumerate();
        let others = said.filter(|(_, said)| said.first() == Some(&FAILED) && *said != mine);
        others.map(|(rank, said)| self.failure(rank, &String::from_utf8_lossy(&said[1..]))).collect()
    }

    /// What a rank's end is to the others.
    pub(crate) fn failure(&self, rank: usize, message: &str) -> Error {
        Error::Rank { rank, host: self.hosts[rank].clone(), message: message.into() }
    }

    fn call<T>(&self, act: impl FnOnce(&dyn Link) -> std::io::Result<T>) -> Result<T, Error> {
        act(&*self.link).map_err(|cause| Error::Gone { rank: self.rank(), cause })
    }
}
