//! TensorFlow 1's bilinear resize, as the FID-Inception graph begins with it.

use rayon::prelude::*;

/// Bilinear interpolation of images `[N, H, W, C]` to `[N, size, size, C]` as `tf.image.resize_bilinear` of TensorFlow 1
/// does it without `align_corners`: output pixel i lies at `i · H / size` (not at the centre of its area) and between the
/// two input pixels next to that, of which the second is clamped to the last. In `f32` and in that operation's order,
/// so that the values are the same bit for bit; downscaling skips pixels, as it does there.
///
/// # Panics
/// When the number of values is not that of the shape, or a side is 0.
pub fn resize_tf1<T>(images: &[T], [n, h, w, c]: [usize; 4], size: usize) -> Vec<f32>
where
    T: Copy + Into<f32> + Sync,
{
    assert!(images.len() == n * h * w * c && h > 0 && w > 0, "{} values for {n} images of {h}x{w}x{c}", images.len());
    let mut out = vec![0.0; n * size * size * c];
    if out.is_empty() {
        return out;
    }
    let (rows, columns) = (places(h, size), places(w, size));
    out.par_chunks_mut(size * size * c).zip(images.par_chunks(h * w * c)).for_each(|(out, image)| {
        // Two input rows at output width, of those numbers.
        let mut wide = [vec![0.0; size * c], vec![0.0; size * c]];
        let mut held = [None; 2];
        for (out, place) in out.chunks_exact_mut(size * c).zip(&rows) {
            if held[1] == Some(place.low) {
                held.swap(0, 1);
                wide.swap(0, 1);
            }
            for ((wide, held), row) in wide.iter_mut().zip(&mut held).zip([place.low, place.high]) {
                if *held != Some(row) {
                    widen(&image[row * w * c..(row + 1) * w * c], &columns, c, wide);
                    *held = Some(row);
                }
            }
            let [top, bottom] = &wide;
            for ((out, top), bottom) in out.iter_mut().zip(top).zip(bottom) {
                *out = top + (bottom - top) * place.share;
            }
        }
    });
    out
}

/// Between which input pixels an output pixel lies.
struct Place {
    low: usize,
    high: usize,
    /// How much of the way from `low` to `high`.
    share: f32,
}

fn places(from: usize, to: usize) -> Vec<Place> {
    let scale = from as f32 / to as f32;
    let place = |i: usize| {
        let at = i as f32 * scale;
        let low = (at as usize).min(from - 1);
        Place { low, high: (low + 1).min(from - 1), share: at - low as f32 }
    };
    (0..to).map(place).collect()
}

/// One input row at output width.
fn widen<T: Copy + Into<f32>>(row: &[T], columns: &[Place], c: usize, out: &mut [f32]) {
    for (out, place) in out.chunks_exact_mut(c).zip(columns) {
        for (i, out) in out.iter_mut().enumerate() {
            let [left, right] = [place.low, place.high].map(|column| row[column * c + i].into());
            *out = left + (right - left) * place.share;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::resize_tf1;

    #[test]
    fn the_same_size_changes_nothing() {
        let image: Vec<u8> = (0..2 * 5 * 5 * 3).map(|v| (v * 37 % 256) as u8).collect();
        let expected: Vec<f32> = image.iter().map(|&v| f32::from(v)).collect();
        assert_eq!(resize_tf1(&image, [2, 5, 5, 3], 5), expected);
    }

    #[test]
    fn pixels_lie_at_multiples_of_the_scale() {
        assert_eq!(resize_tf1(&[0_u8, 100], [1, 1, 2, 1], 4)[..4], [0.0, 50.0, 100.0, 100.0]);
        assert_eq!(resize_tf1(&[0_u8, 10, 20, 30], [1, 4, 1, 1], 2), [0.0, 0.0, 20.0, 20.0]);
        assert!(resize_tf1::<u8>(&[], [0, 4, 4, 3], 299).is_empty());
    }
}
