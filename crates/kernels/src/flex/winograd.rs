//! 3x3 convolutions by Winograd's F(2x2, 3x3) (Lavin & Gray, arXiv 1509.09308): 2.25 times fewer products than a plain one.
//!
//! A tile is 2x2 output pixels and the 4x4 input pixels they see. With the paper's matrices
//!
//! ```text
//!      ⎡1  0 −1  0⎤       ⎡1   0   0⎤
//! Bᵀ = ⎢0  1  1  0⎥   G = ⎢½   ½   ½⎥   Aᵀ = ⎡1 1  1  0⎤
//!      ⎢0 −1  1  0⎥       ⎢½  −½   ½⎥        ⎣0 1 −1 −1⎦
//!      ⎣0  1  0 −1⎦       ⎣0   0   1⎦
//! ```
//!
//! the outputs of a tile are Aᵀ[Σ_c (G g Gᵀ) ⊙ (Bᵀ d B)]A, sixteen matrix products over the channels. The gradient of the
//! input is a convolution with the kernel turned by half a turn; that of the weights is Gᵀ[Σ_tiles (Bᵀ d B) ⊙ (A y Aᵀ)]G.
//! Sums are f32 throughout; with bf16 the transformed inputs and weights are rounded once.

#![allow(unsafe_code, reason = "vectors, and tiles that interleave in the output")]
#![expect(clippy::inline_always, reason = "compiled for the caller's instruction set")]
#![expect(clippy::needless_range_loop, reason = "small squares of vectors read best by their indices")]

use super::buffer::{Shared, filled, with_scratch};
use super::conv::Geometry;
use super::element::Element;
use super::product::{Left, panel_columns, product};
use super::simd::{Lanes, Simd, multiversion};
use rayon::prelude::*;
use std::ops::Range;

/// Points of a transformed tile.
const POINTS: usize = 16;

/// Bytes of transformed inputs that a task works on: what leaves room in a second-level cache for weights and sums.
const BLOCK_BYTES: usize = 768 * 1024;

/// Tiles whose products the weight gradient sums in registers before it adds them to memory.
const SUMMED_TILES: usize = 64;

/// Input channels of one task of the weight gradient: their sums stay in a second-level cache.
const SUMMED_CHANNELS: usize = 128;

/// Tasks that the weight gradient is cut into at least, where there are enough tiles.
const MIN_TASKS: usize = 16;

/// Indices of a square of pixels; none outside the image.
type Pixels<const N: usize> = [[Option<usize>; N]; N];

/// Where the tiles of a convolution lie.
#[derive(Clone, Copy)]
struct Tiles {
    g: Geometry,
    /// Rows and columns of tiles in an image.
    rows: usize,
    columns: usize,
}

impl Tiles {
    fn new(g: Geometry) -> Self {
        Self { g, rows: g.out_h().div_ceil(2), columns: g.out_w().div_ceil(2) }
    }

    fn count(&self) -> usize {
        self.g.n * self.rows * self.columns
    }

    /// Image, and row and column of the first output pixel.
    fn place(&self, tile: usize) -> (usize, usize, usize) {
        let (image, row, column) =
            (tile / (self.rows * self.columns), tile / self.columns % self.rows, tile % self.columns);
        (image, 2 * row, 2 * column)
    }

    /// The input pixels that a tile sees.
    fn inputs(&self, tile: usize) -> Pixels<4> {
        self.pixels(tile, self.g.padding[0], [self.g.h, self.g.w])
    }

    /// The output pixels of a tile.
    fn outputs(&self, tile: usize) -> Pixels<2> {
        self.pixels(tile, 0, [self.g.out_h(), self.g.out_w()])
    }

    /// Indices of the pixels `(row + i − pad, column + j − pad)`, i and j below N, or none outside the image.
    fn pixels<const N: usize>(&self, tile: usize, pad: usize, [height, width]: [usize; 2]) -> Pixels<N> {
        let (image, row, column) = self.place(tile);
        let mut pixels = [[None; N]; N];
        for (i, pixels) in pixels.iter_mut().enumerate() {
            for (j, pixel) in pixels.iter_mut().enumerate() {
                // Above or left of the image wraps round to numbers beyond it.
                let (y, x) = ((row + i).wrapping_sub(pad), (column + j).wrapping_sub(pad));
                if y < height && x < width {
                    *pixel = Some((image * height + y) * width + x);
                }
            }
        }
        pixels
    }
}

/// The rows of Bᵀ times four vectors.
///
/// # Safety
/// As [`Simd`].
#[inline(always)]
unsafe fn b_transposed<S: Simd>(d: [S::V; 4]) -> [S::V; 4] {
    // SAFETY: the caller's promise.
    unsafe { [S::sub(d[0], d[2]), S::add(d[1], d[2]), S::sub(d[2], d[1]), S::sub(d[1], d[3])] }
}

/// Aᵀ times four vectors.
///
/// # Safety
/// As [`Simd`].
#[inline(always)]
unsafe fn a_transposed<S: Simd>(m: [S::V; 4]) -> [S::V; 2] {
    // SAFETY: the caller's promise.
    unsafe { [S::add(S::add(m[0], m[1]), m[2]), S::sub(S::sub(m[1], m[2]), m[3])] }
}

/// A times two vectors.
///
/// # Safety
/// As [`Simd`].
#[inline(always)]
unsafe fn a<S: Simd>(y: [S::V; 2]) -> [S::V; 4] {
    // SAFETY: the caller's promise.
    unsafe { [y[0], S::add(y[0], y[1]), S::sub(y[0], y[1]), S::sub(S::splat(0.0), y[1])] }
}

/// # Safety
/// As [`Simd`].
#[inline(always)]
unsafe fn half<S: Simd>(v: S::V) -> S::V {
    // SAFETY: the caller's promise.
    unsafe { S::mul_add(v, S::splat(0.5), S::splat(0.0)) }
}

/// G times three vectors.
///
/// # Safety
/// As [`Simd`].
#[inline(always)]
unsafe fn g<S: Simd>(w: [S::V; 3]) -> [S::V; 4] {
    // SAFETY: the caller's promise.
    unsafe {
        let outer = half::<S>(S::add(w[0], w[2]));
        let inner = half::<S>(w[1]);
        [w[0], S::add(outer, inner), S::sub(outer, inner), w[2]]
    }
}

/// Gᵀ times four vectors.
///
/// # Safety
/// As [`Simd`].
#[inline(always)]
unsafe fn g_transposed<S: Simd>(u: [S::V; 4]) -> [S::V; 3] {
    // SAFETY: the caller's promise.
    unsafe {
        let sum = half::<S>(S::add(u[1], u[2]));
        [S::add(u[0], sum), half::<S>(S::sub(u[1], u[2])), S::add(u[3], sum)]
    }
}

/// Defines the product of one of the matrices above with both sides of a small matrix of vectors: M m Mᵀ. Closures and
/// `map` would not be compiled for the caller's instruction set.
macro_rules! both_sides {
    ($name:ident, $one:ident, $from:literal to $to:literal) => {
        /// # Safety
        /// As [`Simd`].
        #[inline(always)]
        unsafe fn $name<S: Simd>(m: [[S::V; $from]; $from]) -> [[S::V; $to]; $to] {
            // SAFETY: the caller's promise.
            unsafe {
                let mut half_done = [[S::splat(0.0); $from]; $to];
                for j in 0..$from {
                    let mut column = [m[0][j]; $from];
                    for i in 1..$from {
                        column[i] = m[i][j];
                    }
                    let column = $one::<S>(column);
                    for i in 0..$to {
                        half_done[i][j] = column[i];
                    }
                }
                let mut done = [[S::splat(0.0); $to]; $to];
                for i in 0..$to {
                    done[i] = $one::<S>(half_done[i]);
                }
                done
            }
        }
    };
}
both_sides!(b_transposed_both, b_transposed, 4 to 4);
both_sides!(a_transposed_both, a_transposed, 4 to 2);
both_sides!(g_both, g, 3 to 4);
both_sides!(g_transposed_both, g_transposed, 4 to 3);

/// An N x N square of vectors, `row` and `column` apart.
///
/// # Safety
/// As [`Simd`]; the pointers of all vectors are valid.
#[inline(always)]
unsafe fn load_square<S: Simd, const N: usize>(from: *const f32, row: usize, column: usize) -> [[S::V; N]; N] {
    // SAFETY: the caller's promise.
    unsafe {
        let mut square = [[S::splat(0.0); N]; N];
        for i in 0..N {
            for j in 0..N {
                square[i][j] = S::load(from.add(i * row + j * column));
            }
        }
        square
    }
}

/// How a weight `[O, C, 3, 3]` is read: as the convolution's own, or as that of the input's gradient.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    Forward,
    /// Inputs and outputs exchanged, the kernel turned by half a turn.
    Backward,
}

/// Values from one point's plane to the next where each has `values` of them: a cache line more, because sixteen places
/// at a multiple of 4 KiB would all fall into one set of a first-level cache.
fn plane<E>(values: usize) -> usize {
    values + 64 / size_of::<E>()
}

/// Channels packed together.
const PACKED: usize = 16;

/// G g Gᵀ of every kernel, for `g` as the geometry of the convolution to be done: panels of output channels as
/// `[panel][point][input channel / STEP][column][STEP]`, zeros beyond the last channel.
pub(crate) fn pack<E: Element>(g: Geometry, weight: &[f32], direction: Direction) -> Vec<E> {
    let (columns, cells) = (panel_columns(), g.c.div_ceil(E::STEP));
    let point = plane::<E>(cells * columns * E::STEP);
    let panel = POINTS * point;
    let write = |out: Shared<E>| {
        let chunks = (cells * E::STEP).div_ceil(PACKED);
        (0..g.o.div_ceil(columns) * chunks).into_par_iter().for_each_init(
            || vec![0.0; 9 * PACKED * columns],
            |scratch, task| {
                let (p, first) = (task / chunks, task % chunks * PACKED);
                let count = PACKED.min(cells * E::STEP - first);
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
                pack_points(scratch, &out, p * panel + first * columns, point, count);
                if first == 0 {
                    for i in 0..POINTS {
                        let gap = p * panel + i * point + cells * columns * E::STEP..p * panel + (i + 1) * point;
                        // SAFETY: the gap lies inside the panel, and this is the panel's only task that writes it.
                        gap.for_each(|at| unsafe { out.pointer().add(at).write(E::default()) });
                    }
                }
            },
        );
    };
    // SAFETY: the chunks cover all cells of all panels, `pack_points` writes all points and columns of a chunk, and the first
    // chunk's task the lines between planes.
    unsafe { filled(g.o.div_ceil(columns) * panel, write) }
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
    fn pack_points<S, E: Element>(scratch: &[f32], out: &Shared<E>, start: usize, plane: usize, count: usize) {
        let columns = 2 * S::LANES;
        assert!(scratch.len() == 9 * PACKED * columns && count <= PACKED && count.is_multiple_of(E::STEP));
        out.assert_inside(start + (POINTS - 1) * plane + count * columns);
        for i in (0..count).step_by(E::STEP) {
            for j in [0, S::LANES] {
                // SAFETY: the taps of channels below PACKED lie in the scratch; the output was checked above.
                unsafe {
                    let plane_in = PACKED * columns;
                    let from = scratch.as_ptr().add(i * columns + j);
                    let even = g_both::<S>(load_square::<S, 3>(from, 3 * plane_in, plane_in));
                    let odd = if E::STEP == 1 {
                        even
                    } else {
                        g_both::<S>(load_square::<S, 3>(from.add(columns), 3 * plane_in, plane_in))
                    };
                    for point in 0..POINTS {
                        let to = out.pointer().add(start + point * plane + i * columns + j * E::STEP);
                        E::store_cells::<S>(to, even[point / 4][point % 4], odd[point / 4][point % 4]);
                    }
                }
            }
        }
    }
}

/// What happens to the sums of a convolution before they are written.
#[derive(Clone, Copy)]
pub(crate) struct Epilogue<'a, E> {
    /// Added to every pixel `[O]`.
    pub(crate) bias: Option<&'a [f32]>,
    /// Added to the output, shaped as it.
    pub(crate) residual: Option<&'a [E]>,
    /// Whether ReLU follows.
    pub(crate) relu: bool,
}

/// The convolution of `x` `[N, H, W, C]` with [`pack`]ed weights: `[N, H', W', O]`.
pub(crate) fn convolve<E: Element>(g: Geometry, x: &[E], packed: &[E], epilogue: Epilogue<E>) -> Vec<E> {
    let tiles = Tiles::new(g);
    let (columns, width) = (panel_columns(), g.c.next_multiple_of(E::STEP));
    let fitting = BLOCK_BYTES / (POINTS * width * size_of::<E>());
    // A row of a product does not depend on the others: the block may depend on the number of threads.
    let shared = tiles.count().div_ceil(2 * rayon::current_num_threads());
    let block = fitting.min(shared).clamp(12, 96).next_multiple_of(12);
    let (input_plane, sum_plane) = (plane::<E>(block * width), plane::<f32>(block * columns));
    let packed_plane = plane::<E>(width * columns);
    let zeros = vec![E::default(); width];
    let bias = padded_bias(epilogue.bias, g.o.next_multiple_of(columns));
    let write = |out: Shared<E>| {
        (0..tiles.count().div_ceil(block)).into_par_iter().for_each(|task| {
            let first = task * block;
            let count = block.min(tiles.count() - first);
            let places: Vec<Pixels<2>> = (first..first + count).map(|tile| tiles.outputs(tile)).collect();
            with_scratch(POINTS * input_plane, |inputs: &mut [E]| {
                let mut sums = vec![0.0f32; POINTS * sum_plane];
                for i in 0..count {
                    let pixels = tiles.inputs(first + i);
                    transform_input(x, &zeros, g.c, &pixels, inputs, input_plane, i * width);
                }
                for (p, packed) in packed.chunks_exact(POINTS * packed_plane).enumerate() {
                    for (point, packed) in packed.chunks_exact(packed_plane).enumerate() {
                        let lhs = Left {
                            data: &inputs[point * input_plane..],
                            rows: count,
                            cells: width / E::STEP,
                            row_stride: width,
                            cell_stride: E::STEP,
                        };
                        product(&mut sums[point * sum_plane..], columns, lhs, packed, false);
                    }
                    let channels = p * columns..g.o.min((p + 1) * columns);
                    let bias = &bias[p * columns..];
                    transform_output(&tiles, &places, &sums, sum_plane, channels, bias, epilogue, &out);
                }
            });
        });
    };
    // SAFETY: the blocks cover all tiles, the panels all channels, and `transform_output` writes those of each.
    unsafe { filled(g.rows() * g.o, write) }
}

/// The bias with zeros to a whole number of panels.
pub(crate) fn padded_bias(bias: Option<&[f32]>, len: usize) -> Vec<f32> {
    let mut padded = bias.unwrap_or_default().to_vec();
    padded.resize(len, 0.0);
    padded
}

multiversion! {
    /// Bᵀ d B of one tile: point i of channel c goes to `out[i * plane + at + c]`.
    fn transform_input<S, E: Element>(
        x: &[E],
        zeros: &[E],
        channels: usize,
        pixels: &Pixels<4>,
        out: &mut [E],
        plane: usize,
        at: usize,
    ) {
        let width = zeros.len();
        assert!(channels <= width && (POINTS - 1) * plane + at + width <= out.len(), "points outside their buffer");
        let from = sources(x, zeros, channels, pixels);
        let mut c = 0;
        // SAFETY: every source holds `channels` values, and so does every point's place in `out`.
        unsafe {
            let to = out.as_mut_ptr().add(at);
            while c + S::LANES <= channels {
                input_points::<S, E>(&from, to, plane, c);
                c += S::LANES;
            }
            while c < channels {
                input_points::<Lanes<1>, E>(&from, to, plane, c);
                c += 1;
            }
            // The last cell's second value has no channel.
            for c in channels..width {
                for point in 0..POINTS {
                    to.add(point * plane + c).write(E::default());
                }
            }
        }
    }
}

/// Pointers to the channels of pixels; to zeros outside the image.
#[inline(always)]
fn sources<E, const N: usize>(x: &[E], zeros: &[E], channels: usize, pixels: &Pixels<N>) -> [[*const E; N]; N] {
    let mut from = [[zeros[..channels].as_ptr(); N]; N];
    for (from, pixels) in from.iter_mut().zip(pixels) {
        for (from, pixel) in from.iter_mut().zip(pixels) {
            if let &Some(pixel) = pixel {
                *from = x[pixel * channels..(pixel + 1) * channels].as_ptr();
            }
        }
    }
    from
}

/// # Safety
/// The sources and every point's place in `to` are valid for a vector at `c`.
#[inline(always)]
unsafe fn input_points<S: Simd, E: Element>(from: &[[*const E; 4]; 4], to: *mut E, plane: usize, c: usize) {
    // SAFETY: the caller's promise.
    unsafe {
        let mut d = [[S::splat(0.0); 4]; 4];
        for i in 0..4 {
            for j in 0..4 {
                d[i][j] = E::load::<S>(from[i][j].add(c));
            }
        }
        let points = b_transposed_both::<S>(d);
        for i in 0..4 {
            for j in 0..4 {
                E::store::<S>(to.add((4 * i + j) * plane + c), points[i][j]);
            }
        }
    }
}

multiversion! {
    /// Aᵀ m A of the tiles, with bias and residual, into the `channels` of their pixels. The sums are
    /// `[point][tile][panel column]`, points `plane` apart.
    fn transform_output<S, E: Element>(
        tiles: &Tiles,
        places: &[Pixels<2>],
        sums: &[f32],
        plane: usize,
        channels: Range<usize>,
        bias: &[f32],
        epilogue: Epilogue<E>,
        out: &Shared<E>,
    ) {
        let columns = 2 * S::LANES;
        let o = tiles.g.o;
        assert!(places.len() * columns <= plane && sums.len() >= POINTS * plane, "sums of too few tiles");
        assert!(channels.len() <= columns && channels.len() <= bias.len() && channels.end <= o, "too many channels");
        let values = tiles.g.rows() * o;
        out.assert_inside(values);
        assert!(epilogue.residual.is_none_or(|r| r.len() == values), "a residual of another shape");
        for (i, pixels) in places.iter().enumerate() {
            let mut at = [[None; 2]; 2];
            for i in 0..2 {
                for j in 0..2 {
                    if let Some(pixel) = pixels[i][j] {
                        at[i][j] = Some(pixel * o + channels.start);
                    }
                }
            }
            let mut c = 0;
            // SAFETY: sums, bias, residual and output hold the values of all these channels and pixels (checked above),
            // and each pixel's channels are written by one task alone.
            unsafe {
                let sums = sums.as_ptr().add(i * columns);
                while c + S::LANES <= channels.len() {
                    output_points::<S, E>(sums, plane, c, bias, epilogue, out.pointer(), &at);
                    c += S::LANES;
                }
                while c < channels.len() {
                    output_points::<Lanes<1>, E>(sums, plane, c, bias, epilogue, out.pointer(), &at);
                    c += 1;
                }
            }
        }
    }
}

/// # Safety
/// All are valid for a vector at channel `c`, pixels at the indices `at`.
#[inline(always)]
unsafe fn output_points<S: Simd, E: Element>(
    sums: *const f32,
    plane: usize,
    c: usize,
    bias: &[f32],
    epilogue: Epilogue<E>,
    out: *mut E,
    at: &[[Option<usize>; 2]; 2],
) {
    // SAFETY: the caller's promise.
    unsafe {
        let y = a_transposed_both::<S>(load_square::<S, 4>(sums.add(c), 4 * plane, plane));
        let bias = S::load(bias.as_ptr().add(c));
        for i in 0..2 {
            for j in 0..2 {
                if let Some(at) = at[i][j] {
                    let mut v = S::add(y[i][j], bias);
                    if let Some(residual) = epilogue.residual {
                        v = S::add(v, E::load::<S>(residual.as_ptr().add(at + c)));
                    }
                    E::store::<S>(out.add(at + c), if epilogue.relu { S::positive(v) } else { v });
                }
            }
        }
    }
}

/// What one task of the weight gradient sums: rows of four points, some channels, some tiles.
#[derive(Clone)]
struct Part {
    rows: Range<usize>,
    channels: Range<usize>,
    tiles: Range<usize>,
}

impl Part {
    /// All parts of a gradient. They depend on the layer and the batch alone.
    fn all(tiles: &Tiles) -> Vec<Self> {
        let g = tiles.g;
        let blocks = tiles.count().div_ceil(SUMMED_TILES);
        let channel_blocks = g.c.div_ceil(SUMMED_CHANNELS);
        // Small layers do all points at once: their tiles are looked up once.
        let rows = if g.c * g.o <= SUMMED_CHANNELS * SUMMED_CHANNELS / 2 { 4 } else { 1 };
        let shares = (MIN_TASKS * rows).div_ceil(4 * channel_blocks).min(blocks.div_ceil(4)).max(1);
        let share = blocks.div_ceil(shares).max(1) * SUMMED_TILES;
        let mut parts = Vec::new();
        for first in (0..tiles.count()).step_by(share) {
            for channel in (0..g.c).step_by(SUMMED_CHANNELS) {
                for row in (0..4).step_by(rows) {
                    parts.push(Self {
                        rows: row..row + rows,
                        channels: channel..g.c.min(channel + SUMMED_CHANNELS),
                        tiles: first..tiles.count().min(first + share),
                    });
                }
            }
        }
        parts
    }
}

/// The gradient of the weights `[O, C, 3, 3]`, from the input and the output's gradient.
pub(crate) fn weight_grad<E: Element>(g: Geometry, x: &[E], grad: &[E]) -> Vec<f32> {
    let tiles = Tiles::new(g);
    let columns = panel_columns();
    let width = g.o.next_multiple_of(columns);
    let parts = Part::all(&tiles);
    let sums: Vec<Vec<f32>> = parts.par_iter().map(|part| sum_part(&tiles, x, grad, part)).collect();
    let mut weight = vec![0.0; g.o * g.c * 9];
    weight.par_chunks_mut(columns * g.c * 9).enumerate().for_each_init(
        || (vec![0.0; POINTS * PACKED * columns], vec![0.0; 9 * PACKED * columns]),
        |(points, taps), (p, weight)| {
            for first in (0..g.c).step_by(PACKED) {
                let count = PACKED.min(g.c - first);
                points.fill(0.0);
                for (part, sums) in parts.iter().zip(&sums).filter(|(part, _)| part.channels.contains(&first)) {
                    let channels = part.channels.len();
                    for point in 4 * part.rows.start..4 * part.rows.end {
                        for i in 0..count {
                            let channel = (point - 4 * part.rows.start) * channels + first - part.channels.start + i;
                            let from = channel * width + p * columns;
                            let to = (point * PACKED + i) * columns;
                            let sums = &sums[from..from + columns];
                            points[to..to + columns].iter_mut().zip(sums).for_each(|(a, b)| *a += b);
                        }
                    }
                }
                unpack_points(points, taps, count);
                for (o, weight) in weight.chunks_exact_mut(g.c * 9).enumerate() {
                    for i in 0..count {
                        for (tap, v) in weight[(first + i) * 9..(first + i + 1) * 9].iter_mut().enumerate() {
                            *v = taps[(tap * PACKED + i) * columns + o];
                        }
                    }
                }
            }
        },
    );
    weight
}

multiversion! {
    /// Gᵀ u G: from `[point][channel][column]` to `[tap][channel][column]` for `count` channels.
    fn unpack_points<S>(points: &[f32], taps: &mut [f32], count: usize) {
        let columns = 2 * S::LANES;
        assert!(points.len() == POINTS * PACKED * columns && taps.len() == 9 * PACKED * columns && count <= PACKED);
        for i in 0..count {
            for j in [0, S::LANES] {
                // SAFETY: the buffers have places for PACKED channels, checked above.
                unsafe {
                    let (at, plane) = (i * columns + j, PACKED * columns);
                    let w = g_transposed_both::<S>(load_square::<S, 4>(points.as_ptr().add(at), 4 * plane, plane));
                    for tap in 0..9 {
                        S::store(taps.as_mut_ptr().add(tap * plane + at), w[tap / 3][tap % 3]);
                    }
                }
            }
        }
    }
}

/// Σ over a part's tiles of (Bᵀ d B) ⊙ (A y Aᵀ): `[point][channel][output channel]`, of which the channels beyond the last
/// mean nothing.
fn sum_part<E: Element>(tiles: &Tiles, x: &[E], grad: &[E], part: &Part) -> Vec<f32> {
    let columns = panel_columns();
    let (count, width) = (part.channels.len(), tiles.g.o.next_multiple_of(columns));
    let points = 4 * part.rows.len();
    let mut sums = vec![0.0; points * count * width];
    let zeros = vec![E::default(); tiles.g.c.max(tiles.g.o)];
    let (input_plane, grad_plane) = (plane::<E>(SUMMED_TILES * count), plane::<E>(SUMMED_TILES * width));
    with_scratch(points * (input_plane + grad_plane), |scratch| {
        let (inputs, grads) = scratch.split_at_mut(points * input_plane);
        for first in part.tiles.clone().step_by(SUMMED_TILES) {
            let block = first..part.tiles.end.min(first + SUMMED_TILES);
            let cells = block.len().div_ceil(E::STEP);
            transform_rows(tiles, x, grad, &zeros, part, block, inputs, grads);
            for j in 0..points {
                let lhs = Left {
                    data: &inputs[j * input_plane..],
                    rows: count,
                    cells,
                    row_stride: E::STEP,
                    cell_stride: count * E::STEP,
                };
                for p in 0..width / columns {
                    let panel = &grads[j * grad_plane + p * columns * SUMMED_TILES..];
                    product(&mut sums[j * count * width + p * columns..], width, lhs, panel, true);
                }
            }
        }
    });
    sums
}

multiversion! {
    /// A part's points of the inputs and gradients of a block of tiles, in cells along the tiles: inputs as
    /// `[point][tile / STEP][channel][STEP]`, gradients as `[point][panel][tile / STEP][column][STEP]`.
    fn transform_rows<S, E: Element>(
        tiles: &Tiles,
        x: &[E],
        grad: &[E],
        zeros: &[E],
        part: &Part,
        block: Range<usize>,
        inputs: &mut [E],
        grads: &mut [E],
    ) {
        let (count, o, columns) = (part.channels.len(), tiles.g.o, 2 * S::LANES);
        let (width, points) = (o.next_multiple_of(columns), 4 * part.rows.len());
        assert!(block.len() <= SUMMED_TILES && part.channels.end <= tiles.g.c && part.rows.end <= 4);
        let (input_plane, grad_plane) = (plane::<E>(SUMMED_TILES * count), plane::<E>(SUMMED_TILES * width));
        assert!(inputs.len() == points * input_plane && grads.len() == points * grad_plane);
        for first in block.clone().step_by(E::STEP) {
            let cell = (first - block.start) / E::STEP;
            // The last cell may have no second tile: it takes pixels outside the image.
            let mut xs = [sources(x, zeros, tiles.g.c, &tiles.inputs(first)); 2];
            let mut ys = [sources(grad, zeros, o, &tiles.outputs(first)); 2];
            if E::STEP == 2 {
                let second = first + 1;
                let inside = second < block.end;
                let (x_at, y_at) = if inside {
                    (tiles.inputs(second), tiles.outputs(second))
                } else {
                    ([[None; 4]; 4], [[None; 2]; 2])
                };
                xs[1] = sources(x, zeros, tiles.g.c, &x_at);
                ys[1] = sources(grad, zeros, o, &y_at);
            }
            // SAFETY: the sources hold all channels, and the buffers a cell for each (checked above).
            unsafe {
                for (i, row) in part.rows.clone().enumerate() {
                    let to = inputs.as_mut_ptr().add(4 * i * input_plane + cell * count * E::STEP);
                    let (from, mut c) = (part.channels.start, 0);
                    while c + S::LANES <= count {
                        input_row::<S, E>(&xs, row, from + c, to.add(c * E::STEP), input_plane);
                        c += S::LANES;
                    }
                    while c < count {
                        input_row::<Lanes<1>, E>(&xs, row, from + c, to.add(c * E::STEP), input_plane);
                        c += 1;
                    }
                    let to = grads.as_mut_ptr().add(4 * i * grad_plane + cell * columns * E::STEP);
                    let mut c = 0;
                    while c < o {
                        let to = to.add(c / columns * columns * SUMMED_TILES + c % columns * E::STEP);
                        if c + S::LANES <= o {
                            grad_row::<S, E>(&ys, row, c, to, grad_plane);
                            c += S::LANES;
                        } else {
                            grad_row::<Lanes<1>, E>(&ys, row, c, to, grad_plane);
                            c += 1;
                        }
                    }
                }
            }
        }
    }
}

/// # Safety
/// The sources are valid for a vector at `c`, `to` for four vectors of cells, `plane` apart.
#[inline(always)]
unsafe fn input_row<S: Simd, E: Element>(
    from: &[[[*const E; 4]; 4]; 2],
    row: usize,
    c: usize,
    to: *mut E,
    plane: usize,
) {
    // SAFETY: the caller's promise.
    unsafe {
        let even = input_row_points::<S, E>(&from[0], row, c);
        let odd = if E::STEP == 1 { even } else { input_row_points::<S, E>(&from[1], row, c) };
        for j in 0..4 {
            E::store_cells::<S>(to.add(j * plane), even[j], odd[j]);
        }
    }
}

/// # Safety
/// The sources are valid for a vector at `c`.
#[inline(always)]
unsafe fn input_row_points<S: Simd, E: Element>(from: &[[*const E; 4]; 4], row: usize, c: usize) -> [S::V; 4] {
    // SAFETY: the caller's promise.
    unsafe {
        // Row `row` of Bᵀ takes two rows of the input.
        let (first, second) = [(0, 2), (1, 2), (2, 1), (1, 3)][row];
        let mut points = [S::splat(0.0); 4];
        for j in 0..4 {
            let (a, b) = (E::load::<S>(from[first][j].add(c)), E::load::<S>(from[second][j].add(c)));
            points[j] = if row == 1 { S::add(a, b) } else { S::sub(a, b) };
        }
        b_transposed::<S>(points)
    }
}

/// # Safety
/// As [`input_row`].
#[inline(always)]
unsafe fn grad_row<S: Simd, E: Element>(
    from: &[[[*const E; 2]; 2]; 2],
    row: usize,
    c: usize,
    to: *mut E,
    plane: usize,
) {
    // SAFETY: the caller's promise.
    unsafe {
        let even = grad_row_points::<S, E>(&from[0], row, c);
        let odd = if E::STEP == 1 { even } else { grad_row_points::<S, E>(&from[1], row, c) };
        for j in 0..4 {
            E::store_cells::<S>(to.add(j * plane), even[j], odd[j]);
        }
    }
}

/// # Safety
/// The sources are valid for a vector at `c`.
#[inline(always)]
unsafe fn grad_row_points<S: Simd, E: Element>(from: &[[*const E; 2]; 2], row: usize, c: usize) -> [S::V; 4] {
    // SAFETY: the caller's promise.
    unsafe {
        let mut points = [S::splat(0.0); 2];
        for j in 0..2 {
            let (first, second) = (E::load::<S>(from[0][j].add(c)), E::load::<S>(from[1][j].add(c)));
            points[j] = match row {
                0 => first,
                1 => S::add(first, second),
                2 => S::sub(first, second),
                _ => S::sub(S::splat(0.0), second),
            };
        }
        a::<S>(points)
    }
}
