//! The small images that a super-resolution network is conditioned on: made from large ones in training, and enlarged
//! before they enter the network.

/// The mean over the area of each pixel: planes `[C, large, large]` to `[C, small, small]`, as PyTorch's
/// `interpolate(mode="area")`; where the sizes do not divide, areas overlap.
pub fn area_mean(image: &[f32], large: usize, small: usize) -> Vec<f32> {
    let range = |i: usize| i * large / small..((i + 1) * large).div_ceil(small);
    let mut out = Vec::with_capacity(image.len() / (large * large) * small * small);
    for plane in image.chunks_exact(large * large) {
        for y in 0..small {
            for x in 0..small {
                let sum: f32 =
                    range(y).flat_map(|y| range(x).map(move |x| (y, x))).map(|(y, x)| plane[y * large + x]).sum();
                out.push(sum / (range(y).len() * range(x).len()) as f32);
            }
        }
    }
    out
}

/// Bilinear enlargement of planes `[C, small, small]` to `[C, large, large]` with pixel centres aligned, as PyTorch's
/// `interpolate(mode="bilinear")`.
pub fn enlarge(image: &[f32], small: usize, large: usize) -> Vec<f32> {
    let scale = small as f32 / large as f32;
    // Where each pixel lies between two of the small image, and how far from the first.
    let places: Vec<(usize, usize, f32)> = (0..large)
        .map(|i| {
            let at = ((i as f32 + 0.5) * scale - 0.5).max(0.0);
            let first = (at as usize).min(small - 1);
            (first, (first + 1).min(small - 1), at - first as f32)
        })
        .collect();
    let mut out = Vec::with_capacity(image.len() / (small * small) * large * large);
    for plane in image.chunks_exact(small * small) {
        for &(y0, y1, v) in &places {
            let row =
                |y: usize, x0: usize, x1: usize, u: f32| (1.0 - u) * plane[y * small + x0] + u * plane[y * small + x1];
            out.extend(places.iter().map(|&(x0, x1, u)| (1.0 - v) * row(y0, x0, x1, u) + v * row(y1, x0, x1, u)));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn areas_are_averaged_and_overlap_where_sizes_do_not_divide() {
        let image: Vec<f32> = (0..16).map(|v| v as f32).collect();
        assert_eq!(area_mean(&image, 4, 2), [2.5, 4.5, 10.5, 12.5]);
        // Columns 0 to 1, 1 to 2 and 2 to 3 of 4, as PyTorch's adaptive pooling takes them.
        let row: Vec<f32> = (0..16).map(|i| (i % 4) as f32).collect();
        assert_eq!(area_mean(&row, 4, 3)[..3], [0.5, 1.5, 2.5]);
    }

    #[test]
    fn enlarging_aligns_centres_and_keeps_edges() {
        let out = enlarge(&[0.0, 1.0, 0.0, 1.0], 2, 4);
        assert_eq!(out[..4], [0.0, 0.25, 0.75, 1.0]);
        assert_eq!(out[12..], [0.0, 0.25, 0.75, 1.0]);
        assert_eq!(enlarge(&[3.0], 1, 2), [3.0; 4]);
    }
}
