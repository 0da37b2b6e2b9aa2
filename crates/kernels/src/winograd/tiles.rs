//! Where the tiles of a convolution lie.

use super::form::{Form, SIDE};
use crate::conv::Geometry;

/// Where the channels of a square of pixels begin.
pub(super) type Sources<E> = [[*const E; SIDE]; SIDE];

/// The tiles of a convolution, image by image and row by row.
#[derive(Clone, Copy)]
pub(super) struct Tiles {
    pub(super) g: Geometry,
    /// Output pixels along a tile's side.
    side: usize,
    /// Rows and columns of tiles in an image.
    rows: usize,
    columns: usize,
}

impl Tiles {
    pub(super) fn new<F: Form>(g: Geometry) -> Self {
        Self { g, side: F::OUT, rows: g.out_h().div_ceil(F::OUT), columns: g.out_w().div_ceil(F::OUT) }
    }

    pub(super) fn count(&self) -> usize {
        self.g.n * self.rows * self.columns
    }

    /// Image, and row and column of the first output pixel.
    #[inline(always)]
    pub(super) fn place(&self, tile: usize) -> (usize, [usize; 2]) {
        let (image, row, column) =
            (tile / (self.rows * self.columns), tile / self.columns % self.rows, tile % self.columns);
        (image, [row * self.side, column * self.side])
    }

    /// The input pixels that a tile sees, in `x` `[N, H, W, C]`; those outside the image are at `zeros`.
    #[inline(always)]
    pub(super) fn inputs<F: Form, E>(&self, x: &[E], zeros: &[E], tile: usize) -> Sources<E> {
        let (image, first) = self.place(tile);
        // Above or left of the image wraps round to numbers beyond it.
        let first = first.map(|at| at.wrapping_sub(self.g.padding[0][0]));
        square(x, zeros, self.g.c, image, first, F::IN, [self.g.h, self.g.w])
    }

    /// A tile's output pixels in `[N, H', W', O]`; those outside the image are at `zeros`.
    #[inline(always)]
    pub(super) fn outputs<F: Form, E>(&self, y: &[E], zeros: &[E], tile: usize) -> Sources<E> {
        let (image, first) = self.place(tile);
        square(y, zeros, self.g.o, image, first, F::OUT, [self.g.out_h(), self.g.out_w()])
    }
}

#[inline(always)]
fn square<E>(
    values: &[E],
    zeros: &[E],
    channels: usize,
    image: usize,
    [row, column]: [usize; 2],
    side: usize,
    [height, width]: [usize; 2],
) -> Sources<E> {
    let mut from = [[zeros.as_ptr(); SIDE]; SIDE];
    for i in 0..side {
        let y = row.wrapping_add(i);
        if y < height {
            let line = values.as_ptr().wrapping_add((image * height + y) * width * channels);
            for j in 0..side {
                let x = column.wrapping_add(j);
                if x < width {
                    from[i][j] = line.wrapping_add(x * channels);
                }
            }
        }
    }
    from
}
