//! MPI between processes. One thread makes all calls of MPI, as not every MPI takes calls from several.

use ddpm_ip::config::ConfigError;
use ddpm_ip::ranks::Link;
use mpi::Threading;
use mpi::collective::SystemOperation;
use mpi::datatype::{Partition, PartitionMut};
use mpi::traits::{Communicator, CommunicatorCollectives};
use std::io::{Error, ErrorKind, Result};
use std::ops::Range;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Mutex, PoisonError};
use std::thread::JoinHandle;

/// What the thread is asked to do.
enum Call {
    Gather(Vec<u8>, Sender<Vec<Vec<u8>>>),
    Exchange { send: Vec<f32>, counts: Vec<i32>, expected: Vec<i32>, received: Sender<Vec<f32>> },
    Sum(Vec<f32>, Sender<Vec<f32>>),
    Spread { mine: Vec<f32>, counts: Vec<i32>, all: Sender<Vec<f32>> },
}

/// The thread that speaks to MPI, and how it is asked.
static THREAD: Mutex<Option<(Sender<Call>, JoinHandle<()>)>> = Mutex::new(None);

/// All processes that were launched together.
pub(crate) struct Mpi {
    rank: usize,
    count: usize,
}

impl Mpi {
    /// Meets the others.
    ///
    /// # Errors
    /// An MPI that does not begin.
    pub(crate) fn start() -> std::result::Result<Self, ConfigError> {
        let (calls, asked) = channel();
        let (tell, told) = channel();
        let thread = std::thread::spawn(move || {
            let Some((universe, _)) = mpi::initialize_with_threading(Threading::Funneled) else { return };
            let world = universe.world();
            let _ = tell.send((world.rank() as usize, world.size() as usize));
            serve(&world, &asked);
            // Here MPI ends.
        });
        let began = told.recv();
        let (rank, count) = began.map_err(|_| ConfigError("MPI has begun in this process already".into()))?;
        *THREAD.lock().unwrap_or_else(PoisonError::into_inner) = Some((calls, thread));
        Ok(Self { rank, count })
    }
}

/// Ends MPI, if it began.
pub(crate) fn leave() {
    let thread = THREAD.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some((calls, thread)) = thread {
        drop(calls);
        let _ = thread.join();
    }
}

/// Asks the thread, and waits for its answer.
fn ask<T>(call: impl FnOnce(Sender<T>) -> Call) -> Result<T> {
    let (answer, answered) = channel();
    let thread = THREAD.lock().unwrap_or_else(PoisonError::into_inner);
    let ended = || Error::new(ErrorKind::NotConnected, "MPI has ended");
    thread.as_ref().ok_or_else(ended)?.0.send(call(answer)).map_err(|_| ended())?;
    drop(thread);
    answered.recv().map_err(|_| ended())
}

/// Does what is asked until nobody asks any more.
fn serve(world: &impl CommunicatorCollectives, asked: &Receiver<Call>) {
    let count = world.size() as usize;
    for call in asked {
        // Whoever asked may be gone.
        match call {
            Call::Gather(mine, answer) => {
                let mut lengths = vec![0i32; count];
                world.all_gather_into(&(mine.len() as i32), &mut lengths);
                let mut all = vec![0u8; lengths.iter().map(|&n| n as usize).sum()];
                world.all_gather_varcount_into(
                    &mine[..],
                    &mut PartitionMut::new(&mut all[..], &lengths[..], places(&lengths)),
                );
                let mut rest = &all[..];
                let each = lengths.iter().map(|&n| {
                    let (said, after) = rest.split_at(n as usize);
                    rest = after;
                    said.to_vec()
                });
                let _ = answer.send(each.collect());
            }
            Call::Exchange { send, counts, expected, received } => {
                let mut values = vec![0f32; expected.iter().map(|&n| n as usize).sum()];
                world.all_to_all_varcount_into(
                    &Partition::new(&send[..], &counts[..], places(&counts)),
                    &mut PartitionMut::new(&mut values[..], &expected[..], places(&expected)),
                );
                let _ = received.send(values);
            }
            Call::Sum(mine, all) => {
                let mut values = vec![0f32; mine.len()];
                world.all_reduce_into(&mine[..], &mut values[..], SystemOperation::sum());
                let _ = all.send(values);
            }
            Call::Spread { mine, counts, all } => {
                let mut values = vec![0f32; counts.iter().map(|&n| n as usize).sum()];
                world.all_gather_varcount_into(
                    &mine[..],
                    &mut PartitionMut::new(&mut values[..], &counts[..], places(&counts)),
                );
                let _ = all.send(values);
            }
        }
    }
}

/// Where each of so many values begins.
fn places(counts: &[i32]) -> Vec<i32> {
    counts.iter().scan(0, |end, count| Some(std::mem::replace(end, *end + count))).collect()
}

/// Numbers as MPI takes them.
fn numbers(counts: impl Iterator<Item = usize>) -> Result<Vec<i32>> {
    let too_many = |_| Error::new(ErrorKind::InvalidInput, "MPI sends at most 2^31 values at a time");
    counts.map(|n| i32::try_from(n).map_err(too_many)).collect()
}

impl Link for Mpi {
    fn rank(&self) -> usize {
        self.rank
    }

    fn count(&self) -> usize {
        self.count
    }

    fn gather(&self, mine: &[u8]) -> Result<Vec<Vec<u8>>> {
        ask(|answer| Call::Gather(mine.to_vec(), answer))
    }

    fn exchange(&self, sends: &[Vec<&[f32]>], expected: &[usize]) -> Result<Vec<Vec<f32>>> {
        let of_rank = |parts: &Vec<&[f32]>| parts.iter().map(|part| part.len()).sum();
        let [counts, each] = [numbers(sends.iter().map(of_rank))?, numbers(expected.iter().copied())?];
        let flat: Vec<f32> = sends.iter().flatten().copied().collect::<Vec<_>>().concat();
        let mut all = ask(|received| Call::Exchange { send: flat, counts, expected: each, received })?;
        // From the end, so that nothing is moved twice.
        let mut received: Vec<Vec<f32>> = expected.iter().rev().map(|len| all.split_off(all.len() - len)).collect();
        received.reverse();
        Ok(received)
    }

    fn spread(&self, values: &mut [f32], parts: &[Range<usize>]) -> Result<()> {
        let counts = numbers(parts.iter().map(Range::len))?;
        let mine = values[parts[self.rank].clone()].to_vec();
        let mut all = &ask(|all| Call::Spread { mine, counts, all })?[..];
        for part in parts {
            let (theirs, rest) = all.split_at(part.len());
            values[part.clone()].copy_from_slice(theirs);
            all = rest;
        }
        Ok(())
    }

    fn sum(&self, values: &mut [f32]) -> Result<()> {
        let all = ask(|all| Call::Sum(values.to_vec(), all))?;
        values.copy_from_slice(&all);
        Ok(())
    }
}
