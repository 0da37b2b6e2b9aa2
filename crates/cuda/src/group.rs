//! GPUs of several processes, joined by NCCL.

#![allow(unsafe_code, reason = "functions of C")]

use crate::driver::dotted;
use crate::error::{Error, Result};
use crate::ffi::{self, Handle, NcclId};
use crate::gpu::Gpu;
use crate::library;
use crate::memory::{Address, Buffer};
use crate::turn::Turn;
use std::ffi::{CStr, c_int};

/// f32, and the sum, as NCCL numbers them.
const FLOAT: c_int = 7;
const SUM: c_int = 0;

/// What the processes of a group know each other by: one of them makes it and tells the others.
pub type GroupId = [u8; 128];

/// A process's GPU among those of others. All of them call the same functions in the same order.
pub struct Group {
    gpu: &'static Gpu,
    library: &'static ffi::Nccl,
    /// It stays as long as the process: ending it may wait for others that are gone.
    communicator: Handle,
}

// SAFETY: calls are made in a GPU's turn, one thread at a time.
unsafe impl Send for Group {}
// SAFETY: as above.
unsafe impl Sync for Group {}

fn checked(library: &ffi::Nccl, call: &'static str, code: c_int) -> Result<()> {
    if code == 0 {
        return Ok(());
    }
    let text = |pointer| {
        // SAFETY: a string of the library's, or null.
        let text = unsafe { std::ptr::NonNull::new(pointer).map(|text| CStr::from_ptr(text.as_ptr())) };
        text.map_or_else(String::new, |text| text.to_string_lossy().trim().to_string())
    };
    // SAFETY: both only answer; null stands for any communicator.
    let (name, last) = unsafe {
        let name = (library.ncclGetErrorString)(code);
        (text(name.cast_mut()), text((library.ncclGetLastError)(std::ptr::null_mut()).cast_mut()))
    };
    let text = if last.is_empty() { name } else { format!("{name}: {last}") };
    Err(Error::Call { call, code, text: format!("{text}\n  NCCL_DEBUG=INFO says more") })
}

macro_rules! call {
    ($library:expr, $function:ident($($argument:expr),* $(,)?)) => {{
        let library = $library;
        // SAFETY: pointers and addresses are valid for the call, handles are the library's own.
        let code = unsafe { (library.$function)($($argument),*) };
        checked(library, stringify!($function), code)
    }};
}

impl Group {
    /// NCCL's version.
    ///
    /// # Errors
    /// A library that is missing, with what installs it.
    pub fn version() -> Result<String> {
        let (library, mut version) = (&library::nccl()?.functions, 0);
        call!(library, ncclGetVersion(&raw mut version))?;
        Ok(dotted(version as usize))
    }

    /// What a new group is known by.
    ///
    /// # Errors
    /// A library that is missing, or a machine without a network.
    pub fn id() -> Result<GroupId> {
        let (library, mut id) = (&library::nccl()?.functions, NcclId([0; 128]));
        call!(library, ncclGetUniqueId(&raw mut id))?;
        Ok(id.0)
    }

    /// Meets the others. It waits until all `count` processes have come.
    ///
    /// # Errors
    /// Processes that cannot reach each other, or that share a GPU.
    pub fn join(gpu: &'static Gpu, id: &GroupId, rank: usize, count: usize) -> Result<Self> {
        let (library, mut communicator) = (&library::nccl()?.functions, std::ptr::null_mut());
        gpu.enter()?;
        call!(library, ncclCommInitRank(&raw mut communicator, count as c_int, NcclId(*id), rank as c_int))?;
        Ok(Self { gpu, library, communicator })
    }

    /// Its GPU.
    pub fn gpu(&self) -> &'static Gpu {
        self.gpu
    }

    /// Sends values to other ranks and takes values from them, all at once: for each its rank, a place and how many there are.
    ///
    /// # Errors
    /// A broken GPU or network.
    pub fn exchange(
        &self,
        turn: &Turn,
        sends: &[(usize, Address, usize)],
        receives: &[(usize, Address, usize)],
    ) -> Result<()> {
        let (library, communicator, stream) = (self.library, self.communicator, turn.stream.get());
        call!(library, ncclGroupStart())?;
        let work = || {
            for &(rank, at, count) in sends {
                call!(library, ncclSend(at.0, count, FLOAT, rank as c_int, communicator, stream))?;
            }
            for &(rank, at, count) in receives {
                call!(library, ncclRecv(at.0, count, FLOAT, rank as c_int, communicator, stream))?;
            }
            Ok(())
        };
        let worked = work();
        worked.and(call!(library, ncclGroupEnd()))
    }

    /// Replaces the first values of a buffer by their sum over all ranks, in an order that NCCL chooses.
    ///
    /// # Errors
    /// A broken GPU or network.
    pub fn sum(&self, values: &Buffer, count: usize) -> Result<()> {
        let (turn, at) = (self.gpu.turn()?, values.address().0);
        call!(self.library, ncclAllReduce(at, at, count, FLOAT, SUM, self.communicator, turn.stream.get()))
    }
}
