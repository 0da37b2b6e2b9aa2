//! Pillow's BOX and BICUBIC resampling, bit for bit, and the reference's crops on them.
//!
//! Pillow resamples 8-bit images in two passes with 22-bit fixed-point weights and rounding to 8
//! bits after each pass.

use super::Pixels;
use ddpm_math::Stream;

/// Fraction bits of the weights.
const PRECISION: u32 = 22;

#[derive(Clone, Copy)]
enum Filter {
    Box,
    Bicubic,
}

impl Filter {
    /// Half of the filter's width at scale 1.
    fn support(self) -> f64 {
        match self {
            Self::Box => 0.5,
            Self::Bicubic => 2.0,
        }
    }

    fn weight(self, x: f64) -> f64 {
        /// Keys' parameter in Pillow.
        const A: f64 = -0.5;
        match self {
            Self::Box => f64::from(x > -0.5 && x <= 0.5),
            Self::Bicubic => match x.abs() {
                x if x < 1.0 => ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0,
                x if x < 2.0 => (((x - 5.0) * x + 8.0) * x - 4.0) * A,
                _ => 0.0,
            },
        }
    }
}

/// For every output position: the first input position and its weights.
fn weights(from: usize, to: usize, filter: Filter) -> Vec<(usize, Vec<f64>)> {
    let scale = from as f64 / to as f64;
    let filter_scale = scale.max(1.0);
    let support = filter.support() * filter_scale;
    (0..to)
        .map(|i| {
            let centre = (i as f64 + 0.5) * scale;
            let first = (centre - support + 0.5).max(0.0) as usize;
            let last = ((centre + support + 0.5) as usize).min(from);
            let raw: Vec<f64> =
                (first..last).map(|x| filter.weight((x as f64 - centre + 0.5) * (1.0 / filter_scale))).collect();
            let sum: f64 = raw.iter().sum();
            (first, raw.iter().map(|w| if sum == 0.0 { *w } else { w / sum }).collect())
        })
        .collect()
}

/// The same in fixed point.
fn fixed_weights(from: usize, to: usize, filter: Filter) -> Vec<(usize, Vec<i32>)> {
    let fixed = |w: &f64| {
        let w = w * f64::from(1u32 << PRECISION);
        (if w < 0.0 { w - 0.5 } else { w + 0.5 }) as i32
    };
    weights(from, to, filter).iter().map(|(first, w)| (*first, w.iter().map(fixed).collect())).collect()
}

/// One output value from inputs `stride` apart.
fn sample(data: &[u8], start: usize, stride: usize, weights: &[i32]) -> u8 {
    let sum = weights
        .iter()
        .enumerate()
        .fold(1i32 << (PRECISION - 1), |sum, (k, w)| sum + w * i32::from(data[start + k * stride]));
    (sum >> PRECISION).clamp(0, 255) as u8
}

fn resize_rows(image: Pixels, width: usize, filter: Filter) -> Pixels {
    if width == image.width {
        return image;
    }
    let (c, weights) = (image.channels, fixed_weights(image.width, width, filter));
    let row = |row| {
        weights.iter().flat_map(move |(first, w)| (0..c).map(move |channel| sample(row, first * c + channel, c, w)))
    };
    let data = image.data.chunks_exact(image.width * c).flat_map(row).collect();
    Pixels { width, data, ..image }
}

fn resize_columns(image: Pixels, height: usize, filter: Filter) -> Pixels {
    if height == image.height {
        return image;
    }
    let line = image.width * image.channels;
    let weights = fixed_weights(image.height, height, filter);
    let row = |(first, w)| (0..line).map(move |x| (first * line + x, w));
    let data = weights.iter().map(|(first, w)| (*first, w)).flat_map(row);
    let data = data.map(|(start, w)| sample(&image.data, start, line, w)).collect();
    Pixels { height, data, ..image }
}

/// Whether columns are resampled before rows.
///
/// Since Pillow 13 columns come first where they lose more than twice as many pixels as rows do. Earlier versions
/// always begin with rows; values then differ by one here and there, through the rounding between the passes.
fn columns_first([height, width]: [usize; 2], [to_height, to_width]: [usize; 2]) -> bool {
    let lost = |from: usize, to: usize| from as i64 - to as i64;
    let (lost_width, lost_height) = (lost(width, to_width), lost(height, to_height));
    lost_height > 0 && lost_height > 2 * lost_width
}

/// One channel `[H, W]` of an image in Pillow's mode `F`, BICUBIC to a square: products and sums in f64, each pass rounded to
/// f32. Values go beyond those of the image where it has edges.
pub(crate) fn bicubic_floats(channel: &[f32], [height, width]: [usize; 2], size: usize) -> Vec<f32> {
    let pass = |data: &[f32], [height, width]: [usize; 2], columns: bool| -> Vec<f32> {
        let (from, stride) = if columns { (height, width) } else { (width, 1) };
        if from == size {
            return data.to_vec();
        }
        let weights = weights(from, size, Filter::Bicubic);
        let value = |start: usize, (first, w): &(usize, Vec<f64>)| {
            let inputs = data[start + first * stride..].iter().step_by(stride);
            inputs.zip(w).fold(0.0, |sum, (v, w)| sum + f64::from(*v) * w) as f32
        };
        if columns {
            weights.iter().flat_map(|w| (0..width).map(move |x| value(x, w))).collect()
        } else {
            (0..height).flat_map(|y| weights.iter().map(move |w| value(y * width, w))).collect()
        }
    };
    if columns_first([height, width], [size; 2]) {
        pass(&pass(channel, [height, width], true), [size, width], false)
    } else {
        pass(&pass(channel, [height, width], false), [height, size], true)
    }
}

fn resize(image: Pixels, width: usize, height: usize, filter: Filter) -> Pixels {
    if columns_first([image.height, image.width], [height, width]) {
        resize_rows(resize_columns(image, height, filter), width, filter)
    } else {
        resize_columns(resize_rows(image, width, filter), height, filter)
    }
}

/// The shorter side to `target`: halvings by BOX while it is at least twice that, then BICUBIC.
fn scale_to(image: &Pixels, target: usize) -> Pixels {
    let mut image = image.clone();
    while image.width.min(image.height) >= 2 * target {
        let (width, height) = (image.width / 2, image.height / 2);
        image = resize(image, width, height, Filter::Box);
    }
    shorter_side_to(image, target, Filter::Bicubic)
}

fn shorter_side_to(image: Pixels, target: usize, filter: Filter) -> Pixels {
    let scale = target as f64 / image.width.min(image.height) as f64;
    // Python rounds halves to even.
    let size = |side: usize| (side as f64 * scale).round_ties_even() as usize;
    let (width, height) = (size(image.width), size(image.height));
    resize(image, width, height, filter)
}

/// The reference's `center_crop_arr`: a square of side `size`, from an image of at least one pixel.
pub fn center_crop(image: &Pixels, size: usize) -> Pixels {
    let image = scale_to(image, size);
    image.cut((image.width - size) / 2, (image.height - size) / 2, size)
}

/// The crop of the reference's LSUN script: the shorter side to `size` by BOX alone, the middle cut out.
pub(crate) fn box_crop(image: Pixels, size: usize) -> Pixels {
    let image = shorter_side_to(image, size, Filter::Box);
    image.cut((image.width - size) / 2, (image.height - size) / 2, size)
}

/// The crop of CLIP's and DINOv2's preparation: the shorter side to `size` by BICUBIC alone, the middle cut out.
pub(crate) fn bicubic_crop(image: Pixels, size: usize) -> Pixels {
    let image = shorter_side_to(image, size, Filter::Bicubic);
    image.cut((image.width - size) / 2, (image.height - size) / 2, size)
}

/// The reference's `random_crop_arr`: the square covers 0.8 to 1.0 of the shorter side.
pub(super) fn random_crop(image: &Pixels, size: usize, stream: &mut Stream) -> Pixels {
    let largest = (size as f64 / 0.8).ceil() as usize;
    let target = size + stream.below((largest - size + 1) as u64) as usize;
    let image = scale_to(image, target);
    let y = stream.below((image.height - size + 1) as u64) as usize;
    let x = stream.below((image.width - size + 1) as u64) as usize;
    image.cut(x, y, size)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flat_image_stays_flat() {
        for (width, height, size) in [(7, 5, 4), (40, 33, 8), (3, 3, 9), (1, 9, 2)] {
            let image = Pixels { width, height, channels: 3, data: vec![77; width * height * 3] };
            let out = center_crop(&image, size);
            assert_eq!((out.width, out.height), (size, size));
            assert!(out.data.iter().all(|&v| v == 77));
        }
    }

    #[test]
    fn random_crops_have_the_size_and_differ() {
        let data: Vec<u8> = (0..50 * 40).map(|i| (i % 251) as u8).collect();
        let image = Pixels { width: 50, height: 40, channels: 1, data };
        let crop = |i| random_crop(&image, 16, &mut Stream::new(1, ddpm_math::Domain::Augment, i, 0));
        assert!((0..50).all(|i| crop(i).data.len() == 256));
        assert_ne!(crop(0), crop(1));
        assert_eq!(crop(3), crop(3));
    }

    #[test]
    fn floats_are_resampled_as_pillow_does() {
        // Of Pillow 13: Image.fromarray(values, mode="F").resize((n, n), Image.BICUBIC).
        let image = |height: usize, width: usize| -> Vec<f32> {
            let value = |y: usize, x: usize| ((x * 37 + y * 91 + x * y % 7 * 13) % 256) as f32;
            (0..height).flat_map(|y| (0..width).map(move |x| value(y, x))).collect()
        };
        let larger: [f32; 25] = [
            -8.426434, 16.475374, 47.160378, 77.84538, 102.747185, 26.070215, 53.583492, 95.041046, 136.4986,
            164.01187, 88.83654, 123.40427, 166.0, 208.59573, 243.16347, 151.60286, 204.25156, 159.58582, 114.92009,
            167.56879, 186.0995, 249.95126, 147.17924, 44.40723, 108.25898,
        ];
        assert_eq!(bicubic_floats(&image(3, 4), [3, 4], 5), larger);
        let columns_first =
            [76.204384, 108.846664, 141.48894, 105.855896, 124.29518, 142.73447, 138.20439, 119.246666, 100.28895];
        assert_eq!(bicubic_floats(&image(9, 2), [9, 2], 3), columns_first);
        let rows_first =
            [13.462068, 85.66066, 170.72066, 70.767784, 144.479, 120.44351, 128.0735, 203.29735, 70.166374];
        assert_eq!(bicubic_floats(&image(2, 6), [2, 6], 3), rows_first);
        assert_eq!(bicubic_floats(&image(5, 5), [5, 5], 5), image(5, 5));
    }
}
