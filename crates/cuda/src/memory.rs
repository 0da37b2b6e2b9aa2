//! Memory of a GPU, and main memory that it reads and writes by itself.

#![allow(unsafe_code, reason = "functions of C")]

use crate::driver::call;
use crate::error::Result;
use crate::gpu::Gpu;
use crate::turn::{Event, Turn};
use bytemuck::Pod;
use std::ffi::c_void;
use std::sync::PoisonError;

#[derive(Debug)]
pub(crate) struct Block {
    pub(crate) address: u64,
    pub(crate) bytes: usize,
}

/// Memory of a GPU; it goes back to the GPU's pool in the end.
#[derive(Debug)]
pub struct Buffer {
    pub(crate) gpu: &'static Gpu,
    pub(crate) block: Block,
}

impl Buffer {
    /// Its GPU.
    pub fn gpu(&self) -> &'static Gpu {
        self.gpu
    }

    /// Its bytes.
    pub fn bytes(&self) -> usize {
        self.block.bytes
    }

    /// Where it begins.
    pub fn address(&self) -> Address {
        Address(self.block.address)
    }

    /// The first values.
    ///
    /// # Errors
    /// A broken GPU.
    ///
    /// # Panics
    /// If it does not hold so many.
    pub fn download<T: Pod>(&self, count: usize) -> Result<Vec<T>> {
        let mut values = vec![T::zeroed(); count];
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(&mut values);
        assert!(bytes.len() <= self.block.bytes, "values beyond a buffer");
        let turn = self.gpu.turn()?;
        let (to, from, stream) = (bytes.as_mut_ptr().cast(), self.block.address, self.gpu.stream);
        call!(self.gpu.driver, cuMemcpyDtoHAsync_v2(to, from, bytes.len(), stream))?;
        turn.wait()?;
        Ok(values)
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let block = Block { address: self.block.address, bytes: self.block.bytes };
        self.gpu.pool.lock().unwrap_or_else(PoisonError::into_inner).push(block);
    }
}

/// A place in a GPU's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Address(pub(crate) u64);

impl Address {
    /// None: what a kernel takes for an operand that is not there.
    pub const NULL: Self = Self(0);

    /// As a kernel finds it in memory.
    pub fn number(self) -> u64 {
        self.0
    }

    /// So many bytes further on.
    #[must_use]
    pub fn at(self, bytes: usize) -> Self {
        Self(self.0 + bytes as u64)
    }
}

/// Main memory that a GPU reads and writes by itself.
#[derive(Debug)]
pub struct Pinned {
    pub(crate) gpu: &'static Gpu,
    pub(crate) memory: *mut c_void,
    pub(crate) bytes: usize,
}

// SAFETY: it is memory that one owner has.
unsafe impl Send for Pinned {}
// SAFETY: reading it from many threads is reading memory.
unsafe impl Sync for Pinned {}

impl Pinned {
    /// Its bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Its first values. Whoever had the GPU write here has waited for it.
    pub fn values<T: Pod>(&self, count: usize) -> &[T] {
        assert!(count * size_of::<T>() <= self.bytes, "values beyond a buffer");
        // SAFETY: they lie inside, aligned to a page, and any bits are values.
        unsafe { std::slice::from_raw_parts(self.memory.cast(), count) }
    }

    /// Its first values, to be changed.
    pub fn values_mut<T: Pod>(&mut self, count: usize) -> &mut [T] {
        assert!(count * size_of::<T>() <= self.bytes, "values beyond a buffer");
        // SAFETY: as above, and nobody else has them.
        unsafe { std::slice::from_raw_parts_mut(self.memory.cast(), count) }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // A GPU that is lost keeps its memory; the owner has its error already.
        if self.gpu.enter().is_ok() {
            let _ = call!(self.gpu.driver, cuMemFreeHost(self.memory));
        }
    }
}

/// A few bytes that a GPU sends back.
#[derive(Debug)]
pub struct Note {
    gpu: &'static Gpu,
    /// Where they arrive, and the mark of their arrival. Both go back to the GPU's notes in the end.
    slot: Option<(Pinned, Event)>,
}

impl Note {
    pub(crate) fn new(gpu: &'static Gpu, slot: (Pinned, Event)) -> Self {
        Self { gpu, slot: Some(slot) }
    }

    fn slot(&mut self) -> &mut (Pinned, Event) {
        self.slot.as_mut().expect("taken by the end alone")
    }

    /// Has the GPU fill it from its memory, after what it was given before.
    ///
    /// # Errors
    /// A broken GPU.
    pub fn receive(&mut self, turn: &Turn, from: Address) -> Result<()> {
        let (pinned, arrived) = self.slot();
        let bytes = pinned.bytes();
        turn.receive(pinned, from, bytes)?;
        turn.mark(arrived)
    }

    /// Waits for the values, not for what the GPU was given after them.
    ///
    /// # Errors
    /// A GPU that broke meanwhile.
    ///
    /// # Panics
    /// If it does not hold so many.
    pub fn read<T: Pod>(&self, count: usize) -> Result<&[T]> {
        let (pinned, arrived) = self.slot.as_ref().expect("taken by the end alone");
        arrived.wait()?;
        Ok(pinned.values(count))
    }
}

impl Drop for Note {
    fn drop(&mut self) {
        // What may still arrive there arrives before what the next one is sent.
        self.gpu.notes.lock().unwrap_or_else(PoisonError::into_inner).extend(self.slot.take());
    }
}

/// Memory of a GPU that main memory fills again and again without waiting for the GPU's work.
#[derive(Debug)]
pub struct Mailbox {
    pinned: Pinned,
    sent: Event,
    buffer: Buffer,
}

impl Mailbox {
    /// One for so many bytes at most.
    ///
    /// # Errors
    /// Too little memory.
    pub fn new(gpu: &'static Gpu, bytes: usize) -> Result<Self> {
        Ok(Self { pinned: gpu.pinned(bytes)?, sent: gpu.event()?, buffer: gpu.alloc(bytes)? })
    }

    /// Copies values to the GPU, after what it was given before; where they are then.
    ///
    /// # Errors
    /// A broken GPU.
    ///
    /// # Panics
    /// If there are too many.
    pub fn send<T: Pod>(&mut self, turn: &Turn, values: &[T]) -> Result<Address> {
        self.sent.wait()?;
        let bytes: &[u8] = bytemuck::cast_slice(values);
        self.pinned.values_mut(bytes.len()).copy_from_slice(bytes);
        turn.send(self.buffer.address(), &self.pinned, 0..bytes.len())?;
        turn.mark(&self.sent)?;
        Ok(self.buffer.address())
    }

    /// Where values arrive.
    pub fn address(&self) -> Address {
        self.buffer.address()
    }

    /// Whether as many bytes fit.
    pub fn holds(&self, bytes: usize) -> bool {
        bytes <= self.pinned.bytes
    }
}
