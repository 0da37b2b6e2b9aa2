//! Processes that share a run. Each has a rank, from 0; rank 0 writes the files.
//!
//! **The same bits whatever the number of processes.** A step's gradient is the sum over its pieces, the microbatches, as a balanced
//! binary tree ([`ddpm_net::partial_sums`]). Each rank takes a contiguous share of the pieces, and computes the partial sums of the
//! tree that lie in it: one, if the share is aligned to a power of two. Every rank receives its part of the parameters of all
//! partial sums, adds them in the order of the tree, and sends the result to all. With one partial sum a rank, a rank sends and
//! receives 2 (n − 1)/n times the gradient, which is the least that any sum over n ranks needs. Ranks of one machine do so first
//! among each other. On processors this goes on beside the backward pass, part by part of the parameters.
//!
//! What is random depends on an image's place in the run already, and so not on who draws it. The terms of the loss are known to
//! all ranks, in the order of the images: so they agree on the time sampler's history, on the scale of the loss, and on whether
//! it is finite.

mod link;
mod meet;
mod mesh;
mod pulse;
mod sum;

pub use link::{Alone, Link};
pub use mesh::{Meeting, Mesh};
pub use pulse::{Pulse, Watch};

use crate::Error;
use crate::config::{ConfigError, TrainConfig};
use ddpm_net::gpu::Group;
use ddpm_net::{Accumulator, Device, GRAIN, Gradient, Layout, Parameters, Squares, done, partial_sums};
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;
use sum::{Carrier, Host, Plan, per_machine};

/// In which order processes add up a step's gradient.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Reduction {
    /// That of the tree over the step's pieces: the number of processes does not change a bit.
    #[default]
    Exact,
    /// Each process adds up its own pieces, and MPI or NCCL these sums in an order that it chooses.
    Fast,
}

/// How long GPUs may take to meet.
const GPUS_MEET: Duration = Duration::from_mins(2);

/// The processes of a run, seen from one of them.
#[derive(Clone)]
pub struct Ranks {
    link: Arc<dyn Link>,
    /// The machine of each.
    hosts: Arc<[String]>,
    /// Ranks of each machine, or all of them.
    per_machine: usize,
    /// Their GPUs, if NCCL joins them.
    group: Option<Arc<Group>>,
    reduction: Reduction,
    /// Whether each updates a part of the parameters.
    shards: bool,
}

impl Default for Ranks {
    /// One process alone.
    fn default() -> Self {
        Self {
            link: Arc::new(Alone),
            hosts: [String::new()].into(),
            per_machine: 1,
            group: None,
            reduction: Reduction::Exact,
            shards: false,
        }
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
        let hosts: Arc<[String]> = hosts.iter().map(|host| String::from_utf8_lossy(host).into_owned()).collect();
        let per_machine = per_machine(&hosts);
        Ok(Self { link, hosts, per_machine, ..Self::default() })
    }

    /// Joins the GPUs of all processes by NCCL, so that gradients go from one to another and not through main memory. What to say
    /// of it: nothing of processors.
    ///
    /// # Errors
    /// As [`gather`](Self::gather).
    pub(crate) fn join_gpus(&mut self, device: Device) -> Result<Option<String>, Error> {
        let Device::Cuda(gpu) = device else {
            self.count_gpus("on the CPU")?;
            return Ok(None);
        };
        if self.count() == 1 {
            return Ok(None);
        }
        let through_memory = |why: String| format!("gradients go through main memory, not by NCCL, because {why}");
        let version = Group::version();
        if let Some(why) =
            self.count_gpus(version.as_ref().map_or_else(ToString::to_string, |_| String::new()).as_str())?
        {
            return Ok(Some(through_memory(why)));
        }
        let id = if self.leads() { Group::id() } else { Ok([0; 128]) };
        let told = self.told(&id.as_ref().map_or_else(|e| e.to_string().into_bytes(), |id| id.to_vec()))?;
        let Ok(id) = told.try_into() else {
            let why = id.err().map_or_else(String::new, |e| e.to_string());
            return Ok(Some(through_memory(why)));
        };
        let (rank, count, (tell, joined)) = (self.rank(), self.count(), std::sync::mpsc::channel());
        // Whoever waits in vain for others inside of NCCL is left there.
        std::thread::spawn(move || tell.send(Group::join(gpu, &id, rank, count)));
        let group = joined.recv_timeout(GPUS_MEET).map_or_else(
            |_| Err("the others' GPUs were not met within two minutes: NCCL_DEBUG=INFO says more".to_string()),
            |made| made.map_err(|e| e.to_string()),
        );
        if let Some(why) = self.count_gpus(group.as_ref().err().map_or("", String::as_str))? {
            return Ok(Some(through_memory(why)));
        }
        self.group = group.ok().map(Arc::new);
        Ok(version.ok().map(|version| format!("gradients go from GPU to GPU by NCCL {version}")))
    }

    /// Which process has a problem with its GPU, if any has.
    fn count_gpus(&self, problem: &str) -> Result<Option<String>, Error> {
        let said = self.gather(problem.as_bytes())?;
        let first = said.iter().enumerate().find(|(_, said)| !said.is_empty());
        Ok(first
            .map(|(rank, said)| format!("of rank {rank} on {}: {}", self.hosts[rank], String::from_utf8_lossy(said))))
    }

    /// This process's number.
    pub fn rank(&self) -> usize {
        self.link.rank()
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.link.count()
    }

    /// A rank in words.
    pub(crate) fn named(&self, rank: usize) -> String {
        if self.count() == 1 { "training".into() } else { format!("rank {rank} on {}", self.hosts[rank]) }
    }

    /// How many there are on the machine of this one.
    pub(crate) fn on_this_machine(&self) -> usize {
        let own = &self.hosts[self.rank()];
        self.hosts.iter().filter(|host| *host == own).count()
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
        let own = self.pieces(rank, pieces);
        match self.reduction {
            Reduction::Exact => partial_sums(pieces, &own),
            Reduction::Fast => vec![own],
        }
    }

    /// The same processes, which add up gradients and update parameters as settings say.
    pub(crate) fn with(self, settings: &TrainConfig) -> Self {
        Self { reduction: settings.reduction, shards: settings.shard_optimizer, ..self }
    }

    /// How values of so many parameters are added up.
    fn plan(&self, len: usize, pieces: usize) -> Plan {
        let count = self.count();
        // With fast sums each rank has one of its own pieces.
        let pieces = if self.reduction == Reduction::Fast { count } else { pieces };
        let shares = (0..count).map(|rank| self.pieces(rank, pieces)).collect();
        let grain = if self.shards { GRAIN } else { 1 };
        Plan { rank: self.rank(), per_machine: self.per_machine, pieces, shares, len, grain }
    }

    /// Whether each rank updates a part of the parameters.
    pub(crate) fn shards(&self) -> bool {
        self.shards && self.count() > 1
    }

    /// The part of so many parameters that a rank updates.
    pub(crate) fn part(&self, rank: usize, len: usize) -> Range<usize> {
        if self.shards() { self.plan(len, self.count()).part(rank) } else { 0..len }
    }

    /// The gradient of a step of so many microbatches from each rank's partial sums: for this rank's [part](Self::part) of the
    /// parameters.
    ///
    /// # Errors
    /// A process that is gone.
    pub(crate) fn sum(&self, mut mine: Vec<Gradient>, pieces: usize) -> Result<Gradient, Error> {
        let (count, len) = (self.count(), mine[0].len());
        if count == 1 {
            return Ok(mine.swap_remove(0));
        }
        let plan = self.plan(len, pieces);
        if let Some(group) = &self.group {
            let of_gpu = |sum: Gradient| sum.into_gpu().expect("computed by a GPU");
            let mut mine: Vec<_> = mine.into_iter().map(of_gpu).collect();
            let sum = if self.takes_any_order() {
                let sum = mine.swap_remove(0);
                done(group.sum(&sum, len));
                sum
            } else {
                let sum = self.call(|_| plan.reduce(&**group, mine))?;
                if self.shards { sum } else { group.join(&self.call(|_| plan.collect(&**group, sum))?) }
            };
            return Ok(Gradient::of_gpu(sum, self.part(self.rank(), len).len()));
        }
        let values: Vec<_> = mine.iter_mut().map(Gradient::values).collect();
        let sum = self.sum_values(values, &plan)?;
        let mut gradient = mine.swap_remove(0);
        gradient.set(&sum);
        Ok(gradient)
    }

    /// [`sum`](Self::sum) through main memory, in parts that follow each other.
    fn sum_values(&self, mut mine: Vec<Cow<[f32]>>, plan: &Plan) -> Result<Vec<Vec<f32>>, Error> {
        if self.takes_any_order() {
            let mut sum = mine.swap_remove(0).into_owned();
            self.call(|link| link.sum(&mut sum))?;
            return Ok(vec![sum]);
        }
        let sum = self.call(|link| plan.reduce(&Host(link), mine))?;
        if self.shards {
            return Ok(vec![sum.into_owned()]);
        }
        let parts = self.call(|link| plan.collect(&Host(link), sum))?;
        Ok(parts.into_iter().map(|(part, _)| part.into_owned()).collect())
    }

    /// Whether MPI or NCCL add up whole gradients, in their order.
    fn takes_any_order(&self) -> bool {
        self.reduction == Reduction::Fast && !self.shards
    }

    /// [`sum`](Self::sum) while the last microbatch's backward pass goes on. `compute` gives that gradient, and before that its parts
    /// as they are completed. `earlier` are the partial sums before the last one, and `waiting` is what of the last one is there.
    ///
    /// # Errors
    /// A process that is gone.
    pub(crate) fn sum_meanwhile<T>(
        &self,
        mut earlier: Vec<Gradient>,
        mut waiting: Accumulator,
        pieces: usize,
        compute: impl FnOnce(&mut dyn FnMut(Range<usize>, &[f32])) -> (Gradient, T),
    ) -> Result<(Gradient, T), Error> {
        let earlier: Vec<_> = earlier.iter_mut().map(Gradient::values).collect();
        let (give, given) = std::sync::mpsc::channel::<(Range<usize>, Vec<f32>)>();
        std::thread::scope(|scope| {
            let sum = |(part, mut last): (Range<usize>, Vec<f32>)| {
                waiting.complete(&part, &mut last);
                let earlier = earlier.iter().map(|sum| Cow::Borrowed(&sum[part.clone()]));
                let mine = earlier.chain([Cow::Owned(last)]).collect();
                let sum = self.sum_values(mine, &self.plan(part.len(), pieces))?;
                Ok((part.start, sum))
            };
            let sums = scope.spawn(|| given.into_iter().map(sum).collect::<Result<Vec<_>, Error>>());
            // Whoever takes no more says why in the end.
            let (mut gradient, made) = compute(&mut |part, values| drop(give.send((part, values.to_vec()))));
            drop(give);
            let sums = sums.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
            for (begin, parts) in &sums {
                gradient.set_from(*begin, parts);
            }
            Ok((gradient, made))
        })
    }

    /// How many values of so many are added up at once where that goes on beside the backward pass.
    pub(crate) fn bucket(len: usize) -> usize {
        /// More of them begin sooner and take more messages.
        const BUCKETS: usize = 16;
        len.div_ceil(BUCKETS).next_multiple_of(GRAIN)
    }

    /// The squares of the gradient of so many parameters, from those of this rank's part of it.
    ///
    /// # Errors
    /// A process that is gone.
    pub(crate) fn squares(&self, mine: Squares, len: usize) -> Result<Squares, Error> {
        if !self.shards() {
            return Ok(mine);
        }
        // Numbers of eight bytes travel as two of four.
        let plan = Plan { len: 2 * len.div_ceil(GRAIN), grain: 2, ..self.plan(len, self.count()) };
        let all = |mine: &[f64]| {
            let parts = self.call(|link| plan.collect(&Host(link), Cow::Borrowed(bytemuck::cast_slice(mine))))?;
            Ok::<Vec<f64>, Error>(parts.iter().flat_map(|(part, _)| bytemuck::pod_collect_to_vec(part)).collect())
        };
        Ok(match (mine, &self.group) {
            (Squares::Host(mine), _) => Squares::Host(all(&mine)?),
            (Squares::Gpu(mine, _), Some(group)) => {
                Squares::Gpu(group.join(&self.call(|_| plan.collect(&**group, mine))?), plan.len / 2)
            }
            (Squares::Gpu(mine, count), None) => {
                let all = all(&done(mine.download(count)))?;
                Squares::Gpu(done(mine.gpu().upload(&all)), all.len())
            }
        })
    }

    /// Gives all ranks the parts of the parameters that the others have updated.
    ///
    /// # Errors
    /// A process that is gone.
    pub(crate) fn collect(&self, parameters: &mut Parameters, device: Device) -> Result<(), Error> {
        if !self.shards() {
            return Ok(());
        }
        let len = parameters.layout().len();
        let (plan, part) = (self.plan(len, self.count()), self.part(self.rank(), len));
        let gpu = if let Device::Cuda(gpu) = device { Some(gpu) } else { None };
        if let (Some(gpu), Some(group)) = (gpu, &self.group) {
            let parts = self.call(|_| plan.collect(&**group, parameters.part_on_gpu(gpu, part)))?;
            parameters.set_on_gpu(gpu, &parts);
            return Ok(());
        }
        let mine = match gpu {
            Some(gpu) => Cow::Owned(done(parameters.part_on_gpu(gpu, part.clone()).download(part.len()))),
            None => Cow::Borrowed(&parameters.values()[part.clone()]),
        };
        let parts = self.call(|link| plan.collect(&Host(link), mine))?;
        if let Some(gpu) = gpu {
            let parts: Vec<_> = parts.iter().map(|(part, len)| (done(gpu.upload(part)), *len)).collect();
            parameters.set_on_gpu(gpu, &parts);
            return Ok(());
        }
        // What is borrowed is this rank's own part, in its place.
        let moved = |(part, len)| (if let Cow::Owned(values) = part { Some(values) } else { None }, len);
        let parts: Vec<(Option<Vec<f32>>, usize)> = parts.into_iter().map(moved).collect();
        let mut rest = parameters.values_mut();
        for (part, len) in parts {
            let (place, after) = rest.split_at_mut(len);
            if let Some(part) = part {
                place.copy_from_slice(&part);
            }
            rest = after;
        }
        Ok(())
    }

    /// For rank 0 all values, of which each rank has its part; nothing for the others.
    ///
    /// # Errors
    /// A process that is gone.
    pub(crate) fn whole(&self, part: &Parameters, layout: &Arc<Layout>) -> Result<Option<Parameters>, Error> {
        let parts: Vec<Range<usize>> = (0..self.count()).map(|rank| self.part(rank, layout.len())).collect();
        let mut sends = vec![Vec::new(); self.count()];
        let mut expected = vec![0; self.count()];
        if self.leads() {
            expected.iter_mut().zip(&parts).skip(1).for_each(|(len, part)| *len = part.len());
        } else {
            sends[0] = vec![part.values()];
        }
        let received = self.call(|link| link.exchange(&sends, &expected))?;
        if !self.leads() {
            return Ok(None);
        }
        let mut all = vec![0.0; layout.len()];
        all[parts[0].clone()].copy_from_slice(part.values());
        for (theirs, part) in received.iter().zip(parts).skip(1) {
            all[part].copy_from_slice(theirs);
        }
        Ok(Some(Parameters::new(Arc::clone(layout), all)))
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

    fn call<'a, T>(&'a self, act: impl FnOnce(&'a dyn Link) -> std::io::Result<T>) -> Result<T, Error> {
        act(&*self.link).map_err(|cause| Error::Gone { rank: self.rank(), cause })
    }
}
