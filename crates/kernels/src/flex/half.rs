//! f16 activations: kept in half the memory, computed as f32.
//!
//! Few CPUs multiply f16 into f32 sums, so kernels have no variant of their own for it. What enters one is widened, which
//! is exact, and what leaves it is rounded once; beyond 65 504 that is infinity.

use super::raw_values;
use crate::profile::timed;
use burn::backend::TensorMetadata;
use burn::tensor::{Bytes, DType, f16};
use burn_flex::{FlexTensor, Layout};
use bytemuck::Pod;
use half::slice::HalfFloatSliceExt;
use rayon::prelude::*;

/// Values that a thread converts at a time.
const CHUNK: usize = 1 << 14;

/// Makes a tensor contiguous, and f32 if it was f16.
pub(super) fn widen(x: FlexTensor) -> FlexTensor {
    let x = x.to_contiguous();
    if x.dtype() != DType::F16 {
        return x;
    }
    timed(|| ("f16 to f32".into(), 0.0), || converted(&x, DType::F32, |from: &[f16], to| from.convert_to_f32_slice(to)))
}

/// Rounds a result to f16 if its operand was that.
pub(super) fn narrow(x: FlexTensor, operand: DType) -> FlexTensor {
    if operand != DType::F16 {
        return x;
    }
    timed(
        || ("f32 to f16".into(), 0.0),
        || converted(&x, DType::F16, |from, to: &mut [f16]| to.convert_from_f32_slice(from)),
    )
}

fn converted<A: Pod + Sync, B: Pod + Send + Sync + Default>(
    x: &FlexTensor,
    to: DType,
    convert: impl Fn(&[A], &mut [B]) + Sync,
) -> FlexTensor {
    let from: &[A] = raw_values(x);
    let mut out = vec![B::default(); from.len()];
    out.par_chunks_mut(CHUNK).zip(from.par_chunks(CHUNK)).for_each(|(out, from)| convert(from, out));
    FlexTensor::new(Bytes::from_elems(out), Layout::contiguous(x.shape()), to)
}
