//! Work for a GPU: kernels, copies, events between them, and graphs of work that were recorded once.

#![allow(unsafe_code, reason = "functions of C")]

use crate::driver::call;
use crate::error::Result;
use crate::ffi::Handle;
use crate::gpu::Gpu;
use crate::memory::{Address, Pinned};
use bytemuck::Pod;
use std::cell::Cell;
use std::ffi::c_void;
use std::ops::Range;
use std::sync::MutexGuard;
use std::sync::atomic::Ordering;

/// An argument of a kernel.
#[derive(Clone, Copy, Debug)]
pub enum Arg<'a> {
    /// A number or an address.
    Word(u64),
    /// The bytes of a structure.
    Bytes(&'a [u8]),
}

impl<'a> Arg<'a> {
    /// A structure that the kernel takes by value.
    pub fn value<T: Pod>(value: &'a T) -> Self {
        Self::Bytes(bytemuck::bytes_of(value))
    }
}

/// The arguments of a kernel.
#[macro_export]
macro_rules! args {
    ($($arg:expr),* $(,)?) => { &[$($crate::Arg::from($arg)),*] };
}

impl From<Address> for Arg<'_> {
    fn from(address: Address) -> Self {
        Self::Word(address.0)
    }
}
impl From<i32> for Arg<'_> {
    fn from(value: i32) -> Self {
        Self::Word(u64::from(value as u32))
    }
}
impl From<u32> for Arg<'_> {
    fn from(value: u32) -> Self {
        Self::Word(u64::from(value))
    }
}
impl From<f32> for Arg<'_> {
    fn from(value: f32) -> Self {
        Self::Word(u64::from(value.to_bits()))
    }
}
impl From<i64> for Arg<'_> {
    fn from(value: i64) -> Self {
        Self::Word(value as u64)
    }
}
impl From<f64> for Arg<'_> {
    fn from(value: f64) -> Self {
        Self::Word(value.to_bits())
    }
}

/// How many threads a kernel runs on.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Blocks.
    pub grid: [usize; 2],
    /// Threads of a block.
    pub block: usize,
    /// Bytes that a block shares beside what its kernel declares, at most 48 KiB.
    pub shared: usize,
}

/// One thread's turn to give a GPU work.
#[derive(Debug)]
pub struct Turn {
    gpu: &'static Gpu,
    /// Where work goes at the moment.
    pub(crate) stream: Cell<Handle>,
    _guard: MutexGuard<'static, ()>,
}

impl Turn {
    pub(crate) fn new(gpu: &'static Gpu, guard: MutexGuard<'static, ()>) -> Self {
        Self { gpu, stream: Cell::new(gpu.stream), _guard: guard }
    }

    /// Whose turn it is to work.
    pub fn gpu(&self) -> &'static Gpu {
        self.gpu
    }

    /// Starts a kernel.
    ///
    /// # Errors
    /// A broken GPU, or no kernel of that name.
    pub fn launch(&self, name: &str, shape: Shape, args: &[Arg]) -> Result<()> {
        let gpu = self.gpu;
        let function = gpu.kernel(name)?;
        gpu.started[1].fetch_add(1, Ordering::Relaxed);
        // The driver reads what they point to. x86 and ARM keep the low bytes first, so that an argument smaller than a word is
        // found at the same place.
        let place = |arg: &Arg| match arg {
            Arg::Word(word) => std::ptr::from_ref(word).cast_mut().cast::<c_void>(),
            Arg::Bytes(bytes) => bytes.as_ptr().cast_mut().cast(),
        };
        let mut pointers: Vec<*mut c_void> = args.iter().map(place).collect();
        let ([x, y], block, shared) = (shape.grid.map(|n| n as u32), shape.block as u32, shape.shared as u32);
        let (stream, none) = (self.stream.get(), std::ptr::null_mut());
        call!(gpu.driver, cuLaunchKernel(function, x, y, 1, block, 1, 1, shared, stream, pointers.as_mut_ptr(), none))
    }

    /// Sets bytes to zero.
    ///
    /// # Errors
    /// A broken GPU.
    pub fn clear(&self, at: Address, bytes: usize) -> Result<()> {
        call!(self.gpu.driver, cuMemsetD8Async(at.0, 0, bytes, self.stream.get()))
    }

    /// Copies on the GPU.
    ///
    /// # Errors
    /// A broken GPU.
    pub fn copy(&self, to: Address, from: Address, bytes: usize) -> Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        call!(self.gpu.driver, cuMemcpyDtoDAsync_v2(to.0, from.0, bytes, self.stream.get()))
    }

    /// Copies some bytes to the GPU, some time before [`wait`](Self::wait) ends.
    ///
    /// # Errors
    /// A broken GPU.
    pub fn send(&self, to: Address, from: &Pinned, bytes: Range<usize>) -> Result<()> {
        let bytes = &from.values::<u8>(bytes.end)[bytes];
        call!(self.gpu.driver, cuMemcpyHtoDAsync_v2(to.0, bytes.as_ptr().cast(), bytes.len(), self.stream.get()))
    }

    /// Copies from the GPU, some time before [`wait`](Self::wait) ends.
    ///
    /// # Errors
    /// A broken GPU.
    pub fn receive(&self, to: &mut Pinned, from: Address, bytes: usize) -> Result<()> {
        assert!(bytes <= to.bytes, "bytes beyond a buffer");
        call!(self.gpu.driver, cuMemcpyDtoHAsync_v2(to.memory, from.0, bytes, self.stream.get()))
    }

    /// What `work` gives the GPU goes to a second stream, beside what comes next in the first; events keep the order.
    pub fn aside<R>(&self, work: impl FnOnce() -> R) -> R {
        let before = self.stream.replace(self.gpu.side);
        let result = work();
        self.stream.set(before);
        result
    }

    /// What comes next waits, on the GPU, for what `event` was marked after.
    ///
    /// # Errors
    /// A broken GPU.
    pub fn follow(&self, event: &Event) -> Result<()> {
        call!(self.gpu.driver, cuStreamWaitEvent(self.stream.get(), event.made, 0))
    }

    /// The work so far is what `event` waits for.
    ///
    /// # Errors
    /// A broken GPU.
    pub fn mark(&self, event: &Event) -> Result<()> {
        call!(self.gpu.driver, cuEventRecord(event.made, self.stream.get()))
    }

    /// Waits until all work is done.
    ///
    /// # Errors
    /// A GPU that broke meanwhile.
    pub fn wait(&self) -> Result<()> {
        call!(self.gpu.driver, cuStreamSynchronize(self.stream.get()))
    }

    /// Records what `work` enqueues, without doing it.
    ///
    /// # Errors
    /// What `work` fails with, or the driver.
    pub fn record(&self, work: impl FnOnce() -> Result<()>) -> Result<Graph> {
        let (gpu, mut graph, mut made) = (self.gpu, std::ptr::null_mut(), std::ptr::null_mut());
        // Calls of other threads do not disturb.
        call!(gpu.driver, cuStreamBeginCapture_v2(self.stream.get(), 1))?;
        let started = gpu.started[1].load(Ordering::Relaxed);
        let worked = work();
        // Nothing of it runs.
        gpu.started[1].store(started, Ordering::Relaxed);
        let ended = call!(gpu.driver, cuStreamEndCapture(self.stream.get(), &raw mut graph));
        worked.and(ended)?;
        let instantiated = call!(gpu.driver, cuGraphInstantiateWithFlags(&raw mut made, graph, 0));
        call!(gpu.driver, cuGraphDestroy(graph))?;
        instantiated?;
        Ok(Graph { gpu, made })
    }

    /// Starts recorded work.
    ///
    /// # Errors
    /// A broken GPU.
    pub fn replay(&self, graph: &Graph) -> Result<()> {
        self.gpu.started[0].fetch_add(1, Ordering::Relaxed);
        call!(self.gpu.driver, cuGraphLaunch(graph.made, self.stream.get()))
    }

    /// Milliseconds that the GPU takes for what `work` enqueues.
    ///
    /// # Errors
    /// What `work` fails with, or the driver.
    pub fn milliseconds(&self, work: impl FnOnce() -> Result<()>) -> Result<f64> {
        let (begin, end, mut took) = (Event::new(self.gpu, 0)?, Event::new(self.gpu, 0)?, 0.0);
        self.mark(&begin)?;
        work()?;
        self.mark(&end)?;
        end.wait()?;
        call!(self.gpu.driver, cuEventElapsedTime(&raw mut took, begin.made, end.made))?;
        Ok(f64::from(took))
    }
}

/// A point in the stream of work that can be waited for.
#[derive(Debug)]
pub struct Event {
    gpu: &'static Gpu,
    made: Handle,
}

// SAFETY: the driver's events may be used from any thread.
unsafe impl Send for Event {}
// SAFETY: as above.
unsafe impl Sync for Event {}

impl Event {
    pub(crate) fn new(gpu: &'static Gpu, flags: u32) -> Result<Self> {
        let mut made = std::ptr::null_mut();
        gpu.enter()?;
        call!(gpu.driver, cuEventCreate(&raw mut made, flags))?;
        Ok(Self { gpu, made })
    }

    /// Waits until the work before it is done; not at all if it was never [marked](Turn::mark).
    ///
    /// # Errors
    /// A GPU that broke meanwhile.
    pub fn wait(&self) -> Result<()> {
        self.gpu.enter()?;
        call!(self.gpu.driver, cuEventSynchronize(self.made))
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        if self.gpu.enter().is_ok() {
            let _ = call!(self.gpu.driver, cuEventDestroy_v2(self.made));
        }
    }
}

/// Work that was recorded and can be started again and again.
#[derive(Debug)]
pub struct Graph {
    gpu: &'static Gpu,
    made: Handle,
}

// SAFETY: a graph is used under its GPU's lock alone.
unsafe impl Send for Graph {}
// SAFETY: as above.
unsafe impl Sync for Graph {}

impl Drop for Graph {
    fn drop(&mut self) {
        // A GPU that is lost has lost its graphs; the owner has its error already.
        if self.gpu.enter().is_ok() {
            let _ = call!(self.gpu.driver, cuGraphExecDestroy(self.made));
        }
    }
}
