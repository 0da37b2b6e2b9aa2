//! Weights as the products read them.

use super::form::{Form, Line, SIDE, Square};
use super::transform::plane;
use crate::flex::buffer::Shared;
use crate::flex::conv::Geometry;
use crate::flex::element::Element;
use crate::flex::product::panel_columns;
use crate::flex::simd::{Simd, multiversion};
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

/// G g Gᵀ of every kernel, for `g` as the geometry of the convolution to be done: panels of output channels as
/// `[panel][point][input channel / STEP][column][STEP]`, zeros beyond the last channel; points [`point_plane`] apart.
pub(super) fn pack<E: Element, F: Form>(g: Geometry, weight: &[f32], direction: Direction, packed: &mut [E]) {
    let (columns, channels) = (panel_columns(), g.c.next_multiple_of(E::STEP));
    let point = point_plane::<E>(g);
    assert!(weight.len() == g.o * g.c * 9 && packed.len() == packed_len::<E, F>(g), "weights of another shape");
    let out = Shared::new(packed);
    let chunks = channels.div_ceil(PACKED);
    (0..g.o.div_ceil(columns) * chunks).into_par_iter().for_each_init(
        || vec![0.0; 9 * PACKED * columns],
        |scratch, task| {
            let (p, first) = (task / chunks, task % chunks * PACKED);
            let count = PACKED.min(channels - first);
            let outputs = columns.min(g.o - p * columns);
            let inputs = count.min(g.c - first);
            if outputs < columns || inputs < count {
                scratch.fill(0.0);
            }
            let (o, c) = (p * columns, first);
            match direction {
                Direction::Forward => {
                    let from = &weight[(o * g.c + c) * 9..];
                    gather_taps(from, [outputs, g.c * 9], [inputs, 9], false, columns, scratch);
                }
                Direction::Backward => {
                    let from = &weight[(c * g.o + o) * 9..];
                    gather_taps(from, [outputs, 9], [inputs, g.o * 9], true, columns, scratch);
                }
            }
            pack_points::<E, F>(scratch, &out, p * F::POINTS * point + first * columns, point, count);
        },
    );
}

/// Kernels of `outputs` and `inputs` (number and stride) to `[tap][input][output]`, turned by half a turn if asked.
fn gather_taps(
    from: &[f32],
    [outputs, output_stride]: [usize; 2],
    [inputs, input_stride]: [usize; 2],
    turned: bool,
    columns: usize,
    scratch: &mut [f32],
) {
    assert!(outputs <= columns && inputs <= PACKED && scratch.len() == 9 * PACKED * columns);
    for j in 0..outputs {
        for i in 0..inputs {
            let taps = &from[j * output_stride + i * input_stride..][..9];
            for (tap, &v) in taps.iter().enumerate() {
                let tap = if turned { 8 - tap } else { tap };
                // SAFETY: tap < 9, i < PACKED and j < columns.
                unsafe { *scratch.get_unchecked_mut((tap * PACKED + i) * columns + j) = v };
            }
        }
    }
}

multiversion! {
    /// Transforms the kernels in `scratch` `[tap][channel][column]` for `count` channels; point i begins at
    /// `start + i * plane` of the output.
    fn pack_points<S, E: Element, F: Form>(scratch: &[f32], out: &Shared<E>, start: usize, plane: usize, count: usize) {
        let columns = 2 * S::LANES;
        assert!(scratch.len() == 9 * PACKED * columns && count <= PACKED && count.is_multiple_of(E::STEP));
        out.assert_inside(start + (F::POINTS - 1) * plane + count * columns);
        for i in (0..count).step_by(E::STEP) {
            for j in [0, S::LANES] {
                // SAFETY: the taps of channels below PACKED lie in the scratch; the output was checked above.
                unsafe {
                    let from = scratch.as_ptr().add(i * columns + j);
                    let even = kernel_columns::<S, F>(from, PACKED * columns);
                    let odd = if E::STEP == 1 { even } else { kernel_columns::<S, F>(from.add(columns), PACKED * columns) };
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

/// G g of a vector of kernels whose taps are `tap` values apart: `IN` rows of three.
///
/// # Safety
/// `from` is valid for a vector of every tap, and the machine has the instruction set.
#[inline(always)]
unsafe fn kernel_columns<S: Simd, F: Form>(from: *const f32, tap: usize) -> Square<S::V> {
    // SAFETY: the caller's promise.
    unsafe {
        let mut rows: Square<S::V> = [[S::splat(0.0); SIDE]; SIDE];
        for j in 0..3 {
            let mut column: Line<S::V> = [S::splat(0.0); SIDE];
            for i in 0..3 {
                column[i] = S::load(from.add((3 * i + j) * tap));
            }
            let column = F::g::<S>(column);
            for i in 0..F::IN {
                rows[i][j] = column[i];
            }
        }
        rows
    }
}
