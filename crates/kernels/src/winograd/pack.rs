//! Weights as the products read them.

use super::form::{Form, Line, SIDE, Square};
use super::transform::plane;
use crate::buffer::{Shared, scratch_bytes, with_scratch};
use crate::conv::Geometry;
use crate::element::Element;
use crate::product::panel_columns;
use crate::simd::{Simd, multiversion};
use crate::transpose::transpose;
use rayon::prelude::*;

/// How a weight `[O, C, 3, 3]` is read: as the convolution's own, or as that of the input's gradient.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    Forward,
    /// Inputs and outputs exchanged, the kernel turned by half a turn.
    Backward,
}

/// Channels packed together.
pub(super) const PACKED: usize = 16;

/// Values of one point of a panel: `[input channel / STEP][column][STEP]`.
pub(super) fn point_plane<E: Element>(g: Geometry) -> usize {
    plane::<E>(g.c.next_multiple_of(E::STEP) * panel_columns())
}

/// Values of all panels of packed weights.
pub(super) fn packed_len<E: Element, F: Form>(g: Geometry) -> usize {
    g.o.div_ceil(panel_columns()) * F::POINTS * point_plane::<E>(g)
}

/// Values of the kernels that are packed together, and as many again as a transpose may overwrite.
fn kernels() -> usize {
    (9 * PACKED + panel_columns()) * panel_columns()
}

/// The most bytes of scratch that [`pack`] takes on each thread.
pub(super) fn scratch() -> usize {
    scratch_bytes::<f32>(kernels())
}

/// G g Gᵀ of every kernel, for `g` as the geometry of the convolution to be done: panels of output channels as
/// `[panel][point][input channel / STEP][column][STEP]`, zeros beyond the last input channel, anything beyond the last
/// output channel; points [`point_plane`] apart.
pub(super) fn pack<E: Element, F: Form>(g: Geometry, weight: &[f32], direction: Direction, packed: &mut [E]) {
    let (columns, channels) = (panel_columns(), g.c.next_multiple_of(E::STEP));
    let point = point_plane::<E>(g);
    assert!(weight.len() == g.o * g.c * 9 && packed.len() == packed_len::<E, F>(g), "weights of another shape");
    let out = Shared::new(packed);
    let chunks = channels.div_ceil(PACKED);
    (0..g.o.div_ceil(columns) * chunks).into_par_iter().for_each(|task| {
        let (p, first) = (task / chunks, task % chunks * PACKED);
        let count = PACKED.min(channels - first);
        let (o, outputs, inputs) = (p * columns, columns.min(g.o - p * columns), count.min(g.c - first));
        with_scratch(kernels(), |scratch| {
            match direction {
                Direction::Forward => {
                    let from = &weight[(o * g.c + first) * 9..];
                    transpose(from, g.c * 9, [outputs, inputs * 9], scratch, columns);
                }
                Direction::Backward => {
                    for i in 0..inputs {
                        let from = &weight[((first + i) * g.o + o) * 9..];
                        transpose(from, 9, [outputs, 9], &mut scratch[i * 9 * columns..], columns);
                    }
                }
            }
            scratch[inputs * 9 * columns..count * 9 * columns].fill(0.0);
            let start = p * F::POINTS * point + first * columns;
            pack_points::<E, F>(scratch, direction == Direction::Backward, &out, start, point, count);
        });
    });
}

multiversion! {
    /// Transforms the kernels in `scratch` `[channel][tap][column]` for `count` channels, turned by half a turn if asked;
    /// point i begins at `start + i * plane` of the output.
    fn pack_points<S, E: Element, F: Form>(
        scratch: &[f32],
        turned: bool,
        out: &Shared<E>,
        start: usize,
        plane: usize,
        count: usize,
    ) {
        let columns = 2 * S::LANES;
        assert!(9 * PACKED * columns <= scratch.len() && count <= PACKED && count.is_multiple_of(E::STEP));
        out.assert_inside(start + (F::POINTS - 1) * plane + count * columns);
        for i in (0..count).step_by(E::STEP) {
            for j in [0, S::LANES] {
                // SAFETY: the taps of channels below PACKED lie in the scratch; the output was checked above.
                unsafe {
                    let from = scratch.as_ptr().add(i * 9 * columns + j);
                    let even = kernel_columns::<S, F>(from, columns, turned);
                    let odd = if E::STEP == 1 {
                        even
                    } else {
                        kernel_columns::<S, F>(from.add(9 * columns), columns, turned)
                    };
                    let to = out.pointer().add(start + i * columns + j * E::STEP);
                    for k in 0..F::IN {
                        let first = F::g::<S>(even[k]);
                        let second = if E::STEP == 1 { first } else { F::g::<S>(odd[k]) };
                        for l in 0..F::IN {
                            E::store_cells::<S>(to.add((F::IN * k + l) * plane), first[l], second[l]);
                        }
                    }
                }
            }
        }
    }
}

/// G g of a vector of kernels whose taps are `stride` values apart: `IN` rows of three.
///
/// # Safety
/// `from` is valid for a vector of every tap, and the machine has the instruction set.
#[inline(always)]
unsafe fn kernel_columns<S: Simd, F: Form>(from: *const f32, stride: usize, turned: bool) -> Square<S::V> {
    // SAFETY: the caller's promise.
    unsafe {
        let mut rows: Square<S::V> = [[S::splat(0.0); SIDE]; SIDE];
        for j in 0..3 {
            let mut column: Line<S::V> = [S::splat(0.0); SIDE];
            for i in 0..3 {
                let tap = if turned { 8 - (3 * i + j) } else { 3 * i + j };
                column[i] = S::load(from.add(tap * stride));
            }
            let column = F::g::<S>(column);
            for i in 0..F::IN {
                rows[i][j] = column[i];
            }
        }
        rows
    }
}
