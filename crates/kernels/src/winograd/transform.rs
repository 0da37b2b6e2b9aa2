//! Tiles into points and back.

use super::form::{Form, SIDE, Square};
use super::tiles::{Sources, Tiles};
use crate::buffer::Shared;
use crate::conv::Epilogue;
use crate::element::Element;
use crate::simd::{Lanes, Simd, multiversion};
use std::ops::Range;

/// Values from one point's plane to the next where each has `values` of them: a cache line more, because many places
/// at a multiple of 4 KiB would all fall into one set of a first-level cache.
pub(super) fn plane<E>(values: usize) -> usize {
    (values * size_of::<E>()).next_multiple_of(64) / size_of::<E>() + 64 / size_of::<E>()
}

/// The columns of a square, each turned by one of a form's matrices.
macro_rules! turn_columns {
    ($F:ident, $S:ident, $matrix:ident, $from:expr => $to:expr, ($i:ident, $j:ident) => $load:expr) => {{
        let mut done: Square<$S::V> = [[$S::splat(0.0); SIDE]; SIDE];
        for $j in 0..$from {
            let mut column = [$S::splat(0.0); SIDE];
            for $i in 0..$from {
                column[$i] = $load;
            }
            let column = $F::$matrix::<$S>(column);
            for i in 0..$to {
                done[i][$j] = column[i];
            }
        }
        done
    }};
}

/// Bᵀ d of a tile.
///
/// # Safety
/// The sources are valid for a vector at `c`, and the machine has the instruction set.
#[inline(always)]
unsafe fn input_columns<S: Simd, E: Element, F: Form>(from: &Sources<E>, c: usize) -> Square<S::V> {
    // SAFETY: the caller's promise.
    unsafe { turn_columns!(F, S, b_transposed, F::IN => F::IN, (i, j) => E::load::<S>(from[i][j].add(c))) }
}

/// A y of a tile.
///
/// # Safety
/// As [`input_columns`].
#[inline(always)]
unsafe fn grad_columns<S: Simd, E: Element, F: Form>(from: &Sources<E>, c: usize) -> Square<S::V> {
    // SAFETY: the caller's promise.
    unsafe { turn_columns!(F, S, a, F::OUT => F::IN, (i, j) => E::load::<S>(from[i][j].add(c))) }
}

multiversion! {
    /// Bᵀ d B of the tiles of a block: point j of channel c of the block's tile i goes to `out[j * plane + i * width + c]`,
    /// with zeros for the channels from C to `width`. As many `zeros`.
    pub(super) fn transform_inputs<S, E: Element, F: Form>(
        tiles: &Tiles,
        x: &[E],
        zeros: &[E],
        block: Range<usize>,
        out: &mut [E],
        plane: usize,
    ) {
        let (g, width) = (tiles.g, zeros.len());
        assert!(block.end <= tiles.count() && x.len() == g.input_len() && g.c <= width, "an input of another shape");
        assert!((F::POINTS - 1) * plane + block.len() * width <= out.len(), "points outside their buffer");
        for (i, tile) in block.enumerate() {
            let from = tiles.inputs::<F, E>(x, zeros, tile);
            let mut c = 0;
            // SAFETY: the tile lies in its image, so every source holds the image's channels; every point has a place in
            // `out` (both checked above).
            unsafe {
                let to = out.as_mut_ptr().add(i * width);
                while c + S::LANES <= g.c {
                    input_points::<S, E, F>(&from, to, plane, c);
                    c += S::LANES;
                }
                while c < g.c {
                    input_points::<Lanes<1>, E, F>(&from, to, plane, c);
                    c += 1;
                }
                // The last cell's second value has no channel.
                for c in g.c..width {
                    for point in 0..F::POINTS {
                        to.add(point * plane + c).write(E::default());
                    }
                }
            }
        }
    }
}

/// # Safety
/// As [`input_columns`]; every point's place in `to` is valid for a vector at `c`.
#[inline(always)]
unsafe fn input_points<S: Simd, E: Element, F: Form>(from: &Sources<E>, to: *mut E, plane: usize, c: usize) {
    // SAFETY: the caller's promise.
    unsafe {
        let rows = input_columns::<S, E, F>(from, c);
        for i in 0..F::IN {
            let points = F::b_transposed::<S>(rows[i]);
            for j in 0..F::IN {
                E::store::<S>(to.add((F::IN * i + j) * plane + c), points[j]);
            }
        }
    }
}

/// Defines a transform into cells along the tiles: `$columns` turns the columns of a tile, `$matrix` the rows.
macro_rules! transform_cells {
    ($(#[$meta:meta])* $name:ident, $one:ident, $sources:ident of $all:ident, $len:ident, $columns:ident, $matrix:ident) => {
        multiversion! {
            $(#[$meta])*
            pub(super) fn $name<S, E: Element, F: Form>(
                tiles: &Tiles,
                values: &[E],
                zeros: &[E],
                block: Range<usize>,
                channels: Range<usize>,
                panel: usize,
                out: &mut [E],
                plane: usize,
            ) {
                let (count, cells) = (channels.len(), block.len().div_ceil(E::STEP));
                assert!(block.end <= tiles.count() && channels.end <= tiles.g.$all, "tiles or channels that are not there");
                assert!(tiles.g.$all <= zeros.len(), "too few zeros");
                assert_eq!(values.len(), tiles.g.$len(), "an image of another shape");
                assert!(
                    (F::POINTS - 1) * plane + count.next_multiple_of(panel) * cells * E::STEP <= out.len(),
                    "points outside their buffer"
                );
                for (cell, first) in block.clone().step_by(E::STEP).enumerate() {
                    let even = tiles.$sources::<F, E>(values, zeros, first);
                    // The last cell may have no second tile.
                    let odd = if E::STEP == 2 && first + 1 < block.end {
                        tiles.$sources::<F, E>(values, zeros, first + 1)
                    } else {
                        [[zeros.as_ptr(); SIDE]; SIDE]
                    };
                    for start in (0..count).step_by(panel) {
                        let (columns, mut c) = (panel.min(count - start), 0);
                        // SAFETY: the tile lies in its image, so every source holds the image's channels; every point has a
                        // place in `out` (both checked above).
                        unsafe {
                            let to = out.as_mut_ptr().add((start * cells + cell * panel) * E::STEP);
                            let from = channels.start + start;
                            while c + S::LANES <= columns {
                                $one::<S, E, F>([&even, &odd], from + c, to.add(c * E::STEP), plane);
                                c += S::LANES;
                            }
                            while c < columns {
                                $one::<Lanes<1>, E, F>([&even, &odd], from + c, to.add(c * E::STEP), plane);
                                c += 1;
                            }
                        }
                    }
                }
            }
        }

        /// # Safety
        /// As [`input_columns`]; every point's place in `to` is valid for a vector of cells.
        #[inline(always)]
        unsafe fn $one<S: Simd, E: Element, F: Form>(from: [&Sources<E>; 2], c: usize, to: *mut E, plane: usize) {
            // SAFETY: the caller's promise.
            unsafe {
                let even = $columns::<S, E, F>(from[0], c);
                let odd = if E::STEP == 1 { even } else { $columns::<S, E, F>(from[1], c) };
                for i in 0..F::IN {
                    let first = F::$matrix::<S>(even[i]);
                    let second = if E::STEP == 1 { first } else { F::$matrix::<S>(odd[i]) };
                    for j in 0..F::IN {
                        E::store_cells::<S>(to.add((F::IN * i + j) * plane), first[j], second[j]);
                    }
                }
            }
        }
    };
}
transform_cells!(
    /// Bᵀ d B of a block's tiles and some channels, as `[point][panel][tile / STEP][channel][STEP]`.
    input_cells, input_cell, inputs of c, input_len, input_columns, b_transposed
);
transform_cells!(
    /// A y Aᵀ of a block's tiles and some channels, as `[point][panel][tile / STEP][channel][STEP]`.
    grad_cells, grad_cell, outputs of o, output_len, grad_columns, a
);

multiversion! {
    /// Aᵀ m A of a block's tiles, with what the epilogue adds, into the `channels` of their pixels. The sums are
    /// `[point][tile][panel column]`, points `plane` apart.
    pub(super) fn transform_outputs<S, E: Element, F: Form>(
        tiles: &Tiles,
        block: Range<usize>,
        sums: &[f32],
        plane: usize,
        channels: Range<usize>,
        bias: &[f32],
        epilogue: Epilogue<E>,
        out: &Shared<E>,
    ) {
        let columns = 2 * S::LANES;
        let (g, o) = (tiles.g, tiles.g.o);
        assert!(block.end <= tiles.count() && block.len() * columns <= plane, "sums of too few tiles");
        assert!(F::POINTS * plane <= sums.len(), "sums of too few points");
        assert!(channels.len() <= columns && channels.len() <= bias.len() && channels.end <= o, "too many channels");
        out.assert_inside(g.output_len());
        assert!(epilogue.residual.is_none_or(|r| r.len() == g.output_len()), "a residual of another shape");
        for (i, tile) in block.enumerate() {
            let (image, [row, column]) = tiles.place(tile);
            let place = Place {
                at: ((image * g.out_h() + row) * g.out_w() + column) * o + channels.start,
                line: g.out_w() * o,
                pixel: o,
                rows: F::OUT.min(g.out_h() - row),
                columns: F::OUT.min(g.out_w() - column),
            };
            let mut c = 0;
            // SAFETY: sums, bias, residual and output hold the values of all these channels and pixels (checked above),
            // and each pixel's channels are written by one task alone.
            unsafe {
                let sums = sums.as_ptr().add(i * columns);
                while c + S::LANES <= channels.len() {
                    output_points::<S, E, F>(sums, plane, c, bias, epilogue, out.pointer(), &place);
                    c += S::LANES;
                }
                while c < channels.len() {
                    output_points::<Lanes<1>, E, F>(sums, plane, c, bias, epilogue, out.pointer(), &place);
                    c += 1;
                }
            }
        }
    }
}

/// Where a tile's output pixels lie.
struct Place {
    /// The first value.
    at: usize,
    /// Values from one line of the image to the next.
    line: usize,
    /// Values from one pixel to the next.
    pixel: usize,
    /// Lines and columns that lie inside the image.
    rows: usize,
    columns: usize,
}

/// # Safety
/// All are valid for a vector at channel `c`, at every pixel of the place, and the machine has the instruction set.
#[inline(always)]
unsafe fn output_points<S: Simd, E: Element, F: Form>(
    sums: *const f32,
    plane: usize,
    c: usize,
    bias: &[f32],
    epilogue: Epilogue<E>,
    out: *mut E,
    place: &Place,
) {
    // SAFETY: the caller's promise.
    unsafe {
        let from = sums.add(c);
        let rows =
            turn_columns!(F, S, a_transposed, F::IN => F::OUT, (i, j) => S::load(from.add((F::IN * i + j) * plane)));
        let bias = S::load(bias.as_ptr().add(c));
        for i in 0..F::OUT {
            if i < place.rows {
                let pixels = F::a_transposed::<S>(rows[i]);
                for j in 0..F::OUT {
                    if j < place.columns {
                        let at = place.at + i * place.line + j * place.pixel + c;
                        let mut v = S::add(pixels[j], bias);
                        if let Some(residual) = epilogue.residual {
                            v = S::add(v, E::load::<S>(residual.as_ptr().add(at)));
                        }
                        E::store::<S>(out.add(at), if epilogue.relu { S::max(S::splat(0.0), v) } else { v });
                    }
                }
            }
        }
    }
}
