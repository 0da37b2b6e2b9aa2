//! Numbers in main memory, in a GPU's, or in both: copied when the other side asks, and never behind what was written last.

use crate::device::{cuda, done};
use ddpm_cuda::{Address, Buffer, Gpu};
use ddpm_kernels::optim;
use std::sync::OnceLock;

/// Values of f32. One side at least has them.
#[derive(Debug, Default)]
pub(crate) struct Values {
    len: usize,
    host: OnceLock<Vec<f32>>,
    gpu: OnceLock<Buffer>,
}

impl Values {
    /// Values in main memory.
    pub(crate) fn new(values: Vec<f32>) -> Self {
        Self { len: values.len(), host: OnceLock::from(values), gpu: OnceLock::new() }
    }

    /// To be read in main memory.
    pub(crate) fn host(&self) -> &[f32] {
        self.host.get_or_init(|| {
            let buffer = self.gpu.get().expect("values on one side at least");
            done(buffer.download(self.len))
        })
    }

    /// Σ of the squares, where they are.
    pub(crate) fn sum_squares(&self) -> f64 {
        match (self.host.get(), self.gpu.get()) {
            (None, Some(buffer)) => done(cuda::sum_squares(buffer, self.len)),
            _ => optim::sum_squares(self.host()),
        }
    }

    /// To be changed in main memory.
    pub(crate) fn host_mut(&mut self) -> &mut [f32] {
        self.host();
        self.gpu.take();
        self.host.get_mut().expect("they were just copied")
    }

    /// To be read by a GPU.
    pub(crate) fn gpu(&self, gpu: &'static Gpu) -> Address {
        self.gpu.get_or_init(|| done(gpu.upload(self.host.get().expect("values on one side at least")))).address()
    }

    /// To be changed by a GPU.
    pub(crate) fn gpu_mut(&mut self, gpu: &'static Gpu) -> Address {
        let address = self.gpu(gpu);
        self.host.take();
        address
    }
}

impl Clone for Values {
    /// A copy in main memory; these stay where they are.
    fn clone(&self) -> Self {
        Self::new(match (self.host.get(), self.gpu.get()) {
            (None, Some(buffer)) => done(buffer.download(self.len)),
            _ => self.host().to_vec(),
        })
    }
}
